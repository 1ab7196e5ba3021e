"""Tests docs/metrics.md: it explains every name that runs write and every name in the code."""

import ast
import re
from pathlib import Path

from sip import metrics

pytest_plugins = ["tiny_fixtures"]

ROOT = Path(__file__).resolve().parents[1]
WIDE = ("eval/NAME[/OPTION]", "loss/TERM[/NAME]")  # rows that explain all other names of a kind


def rows() -> list[list[str]]:
    """The cells of the page's rows: names, meaning, healthy range, what to do."""
    lines = (ROOT / "docs/metrics.md").read_text().splitlines()
    return [line[1:-1].split("|") for line in lines if line.startswith("| `")]


def names() -> list[str]:
    """The names on the page, with capitals for what a run fills in."""
    return [name for row in rows() for name in re.findall("`([^`]+)`", row[0])]


def pattern(name: str) -> re.Pattern:
    """The pattern of a name; [/X] is optional, a word in capitals is one part of the name."""
    parts = re.split(r"(\[/[A-Z]+\]|[A-Z]{3,})", name)
    part = lambda x: r"(?:/[^/]+)?" if x[:1] == "[" else r"[^/]+" if x.isupper() else re.escape(x)
    return re.compile("".join(map(part, parts)))


def unexplained(found, known) -> list[str]:
    every = [pattern(name) for name in known]
    return sorted({name for name in found if not any(p.fullmatch(name) for p in every)})


def in_code() -> set[str]:
    """Strings of sip/ that look like a metric's name, with X for what is filled in."""
    found, first = set(), {name.split("/")[0] for name in names() if "/" in name} - {"WHO"}
    for file in (ROOT / "sip").rglob("*.py"):
        if file.parts[-2] in ("report", "bench", "aot", "gap", "hf"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            text = ""
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            elif isinstance(node, ast.JoinedStr):
                fill = lambda x: str(x.value) if isinstance(x, ast.Constant) else "X"
                text = "".join(map(fill, node.values))
            if re.fullmatch(r"[a-z_]+(/[A-Za-z_]+)+", text) and text.split("/")[0] in first:
                found.add(text)
    # The first stands before all names of a judge, the second before tokens, see USAGE.
    return found - {"suffix/X", "judge/X"}


def test_every_row_has_a_meaning():
    assert all(len(row) == 4 and row[1].strip() for row in rows()), "a row is not four cells"
    assert len(names()) == len(set(names())) > 80


def test_names_in_the_code_are_on_the_page():
    found = in_code()
    assert {"chosen/none", "rl/entropy", "grad/norm", "reward/X/skipped"} <= found
    assert unexplained(found, names()) == []


def test_names_that_runs_write_are_on_the_page(finished):
    found = set()
    for file in finished.glob("runs/*/metrics.jsonl"):
        found |= {key for line in metrics.read(file.parent) for key in line}
    assert len(found) > 60 and unexplained(found, names()) == []
    narrow = [name for name in names() if name not in WIDE]
    other = unexplained({key for key in found if not key.startswith(("eval/", "loss/"))}, narrow)
    assert other == []


def test_a_name_that_is_not_on_the_page_is_found():
    assert unexplained({"judge/luck", "chosen/none", "judge/flips/a/b/c"}, names()) == [
        "judge/flips/a/b/c",
        "judge/luck",
    ]
