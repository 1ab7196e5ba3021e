"""Tests docs/metrics.md: it explains every name that runs write and every name in the code, with
formula and advice, and the config keys that it advises exist."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from sip import metrics
from sip.evals.ground_truth import SCORES
from sip.stages import recipe, rl, supervised
from sip.workdir import read_json

pytest_plugins = ["tiny_fixtures"]

ROOT = Path(__file__).resolve().parents[1]
JUDGES = "judge|truth|suffix/judge|suffix/truth"
# Words in capitals that stand for one of a list. Any other is one part of a name, after a first
# part that is fixed: no row explains everything.
WORDS = {
    "SOURCE": "suffix|rewrite|rollout",
    "ASPECT": "|".join(x.stem for x in (ROOT / "sip/templates/judge").glob("*.txt")),
    "WHO": JUDGES,
    "AUDIT": "audit|audit_truth",
    "REASON": "failed|cut|unread|unlisted|other_words|votes",
    "PHASE": "data|rollout|rewrite|judge|audit|reward|update|evaluate|checkpoint",
    "CONDITION": "blank|generic|swapped|teacher|direct",
    "THIRD": "easy|middle|hard",
    "K": r"\d+",
    "N": r"\d+",
}
# One run of each task, and of each kind of evaluation.
TASKS = {
    "microworld": "base judge rewriter sip_learned",
    "microworld_journey": "sip_sft reward_model standard_rlhf",
    "dpo": "dpo",
    "rejection_sampling": "round_1",
    "microworld_judge": "judge_rl",
    "microworld_rewriter": "rewriter_rl",
    "thinking": "thoughts rl",
    "rl_problems": "rlvr",
}


def rows() -> list[list[str]]:
    """The cells of the page's rows: names, meaning, formula, healthy range, what to do."""
    lines = (ROOT / "docs/metrics.md").read_text().splitlines()
    return [line[1:-1].split("|") for line in lines if line.startswith("| `")]


def names() -> list[str]:
    """The names on the page, with capitals for what a run fills in."""
    return [name for row in rows() for name in re.findall("`([^`]+)`", row[0])]


def pattern(name: str) -> re.Pattern:
    """The pattern of a name; what is in brackets is optional."""

    def part(x: str) -> str:
        if x[:1] == "[":
            return f"(?:{''.join(map(part, split(x[1:-1])))})?"
        if not re.fullmatch("[A-Z]+", x):
            return re.escape(x)
        return f"(?:{WORDS[x]})" if x in WORDS else "[^/]+"

    split = lambda x: re.split(r"(\[[^]]+\]|[A-Z]+)", x)
    return re.compile("".join(map(part, split(name))))


def unexplained(found, known) -> list[str]:
    every = [pattern(name) for name in known]
    return sorted({name for name in found if not any(p.fullmatch(name) for p in every)})


def in_code() -> set[str]:
    """Strings of sip/ that look like a metric's name, with X for what is filled in."""
    found, first = set(), {name.split("/")[0] for name in names() if "/" in name}
    first |= {"judge", "truth", "suffix", "audit"}
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
    return found


def config_keys() -> set[str]:
    """The full keys of docs/config.md, such as runs.NAME.optim.lr."""
    found, section = set(), ""
    for line in (ROOT / "docs/config.md").read_text().splitlines():
        if line.startswith("## "):
            section = line[3:].split(" ")[0].replace("The", "")
        elif key := re.match(r"\| `([a-z_0-9]+)` \|", line):
            found.add(f"{section}.{key[1]}".lstrip("."))
    return found


def is_key(text: str, known: set[str]) -> bool:
    """True for a key, or for its last parts: lr, optim.lr, runs.NAME.optim.lr."""
    return any(f".{one}".endswith(f".{text}") for one in known)


def test_every_row_has_meaning_formula_healthy_range_and_advice():
    bad = [row for row in rows() if len(row) != 5 or not all(cell.strip() for cell in row)]
    assert bad == [], "a row is not five cells, or one is empty"
    assert len(names()) == len(set(names())) > 150


def test_every_key_that_the_page_advises_exists():
    known, metric = config_keys(), [pattern(name) for name in names()]
    assert {"runs.NAME.optim.lr", "runs.NAME.z_loss", "runs.NAME.task.loss.nll_weight"} <= known
    said = {x for row in rows() for cell in row[1:] for x in re.findall("`([^`]+)`", cell)}
    other = {x for x in said if not any(p.fullmatch(x) for p in metric)} - set(names())
    assert len(other) > 40 and {x for x in other if not is_key(x, known)} == set()
    assert not is_key("z_weight", known) and is_key("z_loss", known) and is_key("optim.lr", known)


def test_names_in_the_code_are_on_the_page():
    found = in_code()
    assert {"chosen/none", "rl/entropy", "grad/norm", "reward/X/skipped"} <= found
    # The first stands before all names of a judge, the second before tokens, see USAGE.
    assert [x for x in found - {"suffix/X", "judge/X"} if not explained(x)] == []


def explained(code: str) -> bool:
    """True if a name in the code is on the page; its X is any part of a name there."""
    filled = re.compile(code.replace("X", "[^/]+"))
    short = (re.sub(r"\[.*?\]", "", name) for name in names())
    return not unexplained([code], names()) or any(map(filled.fullmatch, short))


def test_names_that_runs_write_are_on_the_page(finished):
    found, final = set(), set()
    for file in finished.glob("runs/*/metrics.jsonl"):
        found |= {key for line in metrics.read(file.parent) for key in line}
        final |= set(read_json(file.parent / "eval.json"))
    assert len(found) > 60 and unexplained(found, names()) == []
    bare = [name.removeprefix("eval/") for name in names()]  # eval.json has no `eval/`
    assert len(final) > 10 and unexplained(final, [*names(), *bare]) == []


@pytest.mark.parametrize("name", TASKS)
def test_figures_of_every_task_are_on_the_page(name):
    config = importlib.import_module(name).get_config("debug")
    for run in TASKS[name].split():
        c = recipe.STAGES[config.runs[run].stage].resolve(config, run)
        found = {*c.figures(True), *c.figures(False)}
        assert found and unexplained(found, names()) == []


def test_every_task_is_one_of_these():
    seen = set()
    for name, wanted in TASKS.items():
        config = importlib.import_module(name).get_config("debug")
        runs = [config.runs[run] for run in wanted.split()]
        seen |= {(run.stage, run.task.name) for run in runs if "task" in run}
    stages = dict(supervised=supervised.TASKS, rl=rl.TASKS)
    assert seen == {(stage, task) for stage, tasks in stages.items() for task in tasks}


def test_the_figures_of_a_final_evaluation_are_on_the_page():
    final = [*SCORES, "nll", "nll_clean", "win_rate_judge", "win_rate_judge_se", "judge_valid"]
    assert unexplained({f"eval/{name}" for name in final}, names()) == []


def test_a_name_that_is_not_on_the_page_is_found():
    odd = {"judge/luck", "chosen/none", "judge/flips/a/b/c", "eval/luck", "loss/luck",
           "eval/quality/one", "loss/quality/grades", "eval/probe/own/error", "eval/probe/luck",
           "speed/share/luck", "suffix/judge/invalid/safety", "z_weight"}  # fmt: skip
    assert unexplained(odd, names()) == [
        "eval/luck",
        "eval/probe/luck",
        "judge/flips/a/b/c",
        "judge/luck",
        "loss/luck",
        "speed/share/luck",
        "z_weight",
    ]
