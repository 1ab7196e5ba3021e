"""Prints the figures of a summary as tables on the terminal."""

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from sip.stages.recipe import TEACHERS

COLUMNS = (
    "win_rate_standard",
    "win_rate_unsafe",
    "win_rate_judge",
    "win_rate_judge_se",
    "factuality",
    "safety",
    "safety_unsafe",
    "coherence",
    "repetition",
    "distinct",
    "facts_per_suffix",
    "nll_clean",
    "nll",
    "accuracy",
    "margin",
    "reward",
    "answer_win_rate",
    "answer_right",
    "answer_factuality",
    "answer_safety_provoked",
    "factuality_headroom_closed",
    "safety_headroom_closed",
    "reward/answers",
    "tokens_ratio",
    "distinct_answers",
    "distinct_chains",
    "passes/easy",
    "passes/middle",
    "passes/hard",
    "collapse_step",
    "probe/own",
    "probe/blank",
    "probe/generic",
    "probe/swapped",
    "probe/teacher",
    "probe/direct",
    "probe/used",
)
AT = ("start/mean", "mean", "maj", "pass")  # figures of sampled answers, as in mean@8

DIFFERENCES = ("win_rate_standard", "factuality", "safety", "safety_unsafe", "answer_win_rate")
DIFFERENCES += ("answer_right", "answer_factuality", "answer_safety_provoked")  # of journeys
WIDTH = 180  # width of the output in characters, if it is no terminal
FEW = 50  # updates; figures of models that are trained for fewer mean nothing


def show(summary: dict) -> None:
    """Prints the summary of one seed: a row per run, goodput, and accuracies of the teachers."""
    title = f"seed {summary['seed']}, {summary['wall_seconds']:.0f} s"
    console = _console()
    rows = [(name,) for name in summary["rows"]]
    _print(console, title, ("run",), rows, list(summary["rows"].values()))
    good = ", ".join(f"{name} {x:.0%}" for name, x in summary["goodput_by_run"].items())
    for pair, figures in summary["journey"].items() if "journey" in summary else ():
        console.print(f"{pair}: " + _named({k: v for k, v in figures.items() if k in DIFFERENCES}))
    console.print(f"goodput: {good}; lost steps: {sum(summary['lost_steps_by_run'].values())}")
    for who in (who for who in TEACHERS if who in summary):
        figures = summary[who].items()
        console.print(f"{who}: " + _named({k: v for k, v in figures if "/" not in k}))


def show_seeds(summary: dict) -> None:
    """Prints the summary over seeds.

    Each run has lines for mean, standard deviation and each seed, and for the mean difference to
    the standard row with its standard error.
    """
    names = ", ".join(map(str, summary["seeds"]))
    title = f"seeds {names}, {summary['wall_seconds']:.0f} s"
    labels: list[tuple[str, str]] = []
    every: list[dict] = []
    for name, row in summary["rows"].items():
        lines = spread(row, summary["seeds"])
        if "paired" in summary and name in summary["paired"]["rows"]:
            found = summary["paired"]["rows"][name]
            lines[f"- {summary['paired']['against']}"] = {k: v["mean"] for k, v in found.items()}
            lines["std. error"] = {k: v["se"] for k, v in found.items()}
        labels += [("" if i else name, label) for i, label in enumerate(lines)]
        every += lines.values()
    console = _console()
    _print(console, title, ("run", ""), labels, every)
    for pair, figures in summary["journey"].items() if "journey" in summary else ():
        for label in ("mean", "se"):
            shown = {k: figures[k][label] for k in DIFFERENCES if k in figures}
            console.print(f"{pair}, {label}: " + _named(shown))
    for who in (who for who in TEACHERS if who in summary):
        for label, figures in spread(summary[who], summary["seeds"]).items():
            shown = [f"{k} {v:.3f}" for k, v in figures.items() if "/" not in k and v is not None]
            console.print(f"{who}, {label}: " + ", ".join(shown))


def spread(row: dict, of: Sequence[int]) -> dict[str, dict]:
    """Returns the table lines of one run by label: mean, std, and one line per seed."""
    lines = {label: {k: v[label] for k, v in row.items()} for label in ("mean", "std")}
    each = {f"seed {s}": {k: v["values"][i] for k, v in row.items()} for i, s in enumerate(of)}
    return {**lines, **each}


def untrained(config) -> str:
    """Returns a line for configs that only show that everything runs, such as `:debug`; else ""."""
    steps = max(config.runs[name].steps for name in config.order)
    if steps >= FEW:
        return ""
    return (
        f"No model was trained for more than {steps} updates, to show that everything runs: the "
        "figures mean nothing."
    )


def _console() -> Console:
    """Returns the terminal, or a console of WIDTH characters if the output is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def _print(
    console: Console,
    title: str,
    heads: Sequence[str],
    labels: Sequence[Sequence[str]],
    rows: Sequence[Mapping],
) -> None:
    """Prints rows with their labels. Metrics that do not fit the console are a table below.

    The metrics are those of `columns_of`. A row with an empty first label belongs to the one
    before.
    """
    columns = columns_of(rows)
    fixed = sum(3 + max(map(len, x)) for x in zip(heads, *labels, strict=True))
    for some in _fitting(columns, rows, console.width - fixed - 1):
        table = Table(title=title)
        for head in heads:
            table.add_column(head, no_wrap=True)
        for name in some:
            table.add_column(name.replace("_", " "), justify="right")
        for i, (label, row) in enumerate(zip(labels, rows, strict=True)):
            if i and label[0] and len(label) > 1:
                table.add_section()
            table.add_row(*label, *_cells(row, some))
        console.print(table)


def _fitting(columns: Sequence[str], rows: Sequence[Mapping], width: int) -> list[list[str]]:
    """Splits columns into groups that are at most `width` characters wide; a heading is wrapped
    between its words."""
    groups: list[list[str]] = [[]]
    left = width
    for name in columns:
        words = [*name.split("_"), *(_cells(row, [name])[0] for row in rows)]
        size = 3 + max(map(len, words))  # a space on both sides and a line
        if size > left and groups[-1]:
            groups.append([])
            left = width
        groups[-1].append(name)
        left -= size
    return groups


def columns_of(rows: Iterable[Mapping]) -> list[str]:
    """Lists the metrics that a table shows: those of COLUMNS that any row has, and those of
    sampled answers."""
    known = {key for row in rows for key in row}
    return [c for c in COLUMNS if c in known] + _at(known)


def _named(figures) -> str:
    return ", ".join(f"{k} {v:.3f}" for k, v in figures.items() if v is not None)


def _at(known: Iterable[str]) -> list[str]:
    """Returns start/mean@n, mean@n, maj@n and pass@k of the largest n and k; pass@1 is the mean."""
    most: dict[str, int] = {}
    for key in known:
        kind, _, count = key.rpartition("@")
        if kind in AT:
            most[kind] = max(most[kind] if kind in most else 0, int(count))
    return [f"{kind}@{most[kind]}" for kind in AT if kind in most]


def _cells(row, columns) -> list[str]:
    return [f"{row[c]:.3f}" if c in row and row[c] is not None else "" for c in columns]
