"""The figures of the paper's evaluations as tables, for the terminal and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from sip.evals import grids
from sip.evals.grids import Grid

Found = Mapping[str, Any]


def tables(found: Found) -> list[Grid]:
    """Returns the tables: figures in the paper's layout, their parts, comparisons, the judge."""
    columns = [(c["name"], c) for c in found["columns"]]
    title = f"{_confidence(found)} intervals; in percent"
    made = [_figures(title, found["rows"], columns)]
    for column in found["columns"]:
        if len(column["parts"]) > 1:
            parts = [(m, column) for m in column["parts"]]
            made.append(_figures(f"{column['name']}: parts", found["parts"], parts))
    if found["differences"]:
        made.append(_differences(found))
    if found["judge"]:
        made.append(_judge(found))
    return made


def _confidence(found: Found) -> str:
    return f"{found['confidence']:.0%}"


def _figures(title: str, rows: Found, columns: Sequence[tuple[str, Found]]) -> Grid:
    heads = [
        f"{name.replace('/', ', ')}{'' if of['higher'] else ' (lower is better)'}"
        for name, of in columns
    ]
    cells = [
        [name, *(estimate(row[column], of["share"]) for column, of in columns)]
        for name, row in rows.items()
    ]
    return Grid(title, ["checkpoint", *heads], cells)


def estimate(one: Found, share: bool = True, sign: str = "") -> str:
    """Returns a mean with its interval, such as 86.3 [81.0, 90.2]."""
    if one["mean"] is None:
        return "none"
    number = lambda x: format(x * (100 if share else 1), f"{sign}.{1 if share else 2}f")
    if one["low"] is None:
        return number(one["mean"])
    return f"{number(one['mean'])} [{number(one['low'])}, {number(one['high'])}]"


def _differences(found: Found) -> Grid:
    share = {c["name"]: c["share"] for c in found["columns"]}
    cells = [
        [
            f"{one['row']} - {one['against']}",
            one["column"].replace("/", ", "),
            estimate(one, share[one["column"]], "+"),
            f"{one['p']:.4f}",
            one["test"],
            str(one["count"]),
        ]
        for one in found["differences"]
    ]
    title = "paired differences; p is two-sided, not corrected for the number of tests"
    return Grid(title, ["checkpoints", "column", "difference", "p", "test", "prompts"], cells)


def _judge(found: Found) -> Grid:
    lines = found["judge"]
    known = lambda key: any(key in line and line[key] is not None for line in lines)
    keys = [key for key in ("valid", "first", "flips", "bias", "rank") if known(key)]
    names = {"valid": "valid", "first": "first shown wins", "flips": "flips", "rank": "rank corr."}
    names["bias"] = "bias: judge - exact"

    def said(line: Found, key: str) -> str:
        if key not in line or line[key] is None:
            return "-"
        if key == "rank":
            return _rank(line[key], line["checkpoints"])
        return estimate(line[key], True, "+") if key == "bias" else format(line[key], ".1%")

    cells = [[line["measure"].replace("/", ", "), *(said(line, k) for k in keys)] for line in lines]
    return Grid("the judge", ["measure", *(names[key] for key in keys)], cells)


def _rank(one: Found, checkpoints: int) -> str:
    """Returns a rank correlation with its interval, such as 0.90 [0.70, 1.00] of 5."""
    if one["mean"] is None:
        return "-"
    return f"{estimate(one, share=False)} of {checkpoints}"


def terminal(found: Found) -> None:
    """Prints the tables and notes."""
    to = grids.console()
    grids.show(to, tables(found), "fold")
    for line in found["notes"]:
        to.print(Text(line), soft_wrap=True)


def markdown(found: Found) -> str:
    """Returns the tables and notes as Markdown."""
    parts = grids.markdown(tables(found), "---:") + [f"- {line}" for line in found["notes"]]
    return "\n".join(parts).rstrip("\n") + "\n"
