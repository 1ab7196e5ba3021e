"""Panels: the lines of a run's metrics over steps, drawn as PNG and in the HTML page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sip.metrics import LOSS, OF_RL

# One colour per source of candidates, in all plots and in the page.
SOURCES = {
    "suffix": "#4c78a8",
    "rewrite": "#e45756",
    "rollout": "#54a24b",
    "answer": "#b279a2",
    "none": "#9d9d9d",
}
PALETTE = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d", "#eeca3b")
BOTH = "/both_orders"  # ending of a judge's accuracy over pairs judged in both orders
CHANCE = 0.5  # of a win rate and of an accuracy between two
SAME = 1e-12  # a line that varies by less is constant

Lines = list[dict]  # lines of one seed's metrics.jsonl
Runs = Mapping[str, Sequence[Lines]]  # run -> lines of each seed


@dataclass(frozen=True)
class Line:
    """A metric over steps: the mean over seeds, and the standard deviation if there are several."""

    label: str
    color: str
    steps: list[int]
    mean: np.ndarray
    deviation: np.ndarray | None = None

    @property
    def constant(self) -> bool:
        """True if two or more points have the same value."""
        return len(self.steps) > 1 and float(np.ptp(self.mean)) <= SAME


@dataclass(frozen=True)
class Panel:
    """One plot. `kind` is the plot file and the group in the page; `level` is a dotted line."""

    kind: str
    title: str
    label: str  # of the y axis
    lines: list[Line]
    level: float | None = None
    rate: bool = False  # the values are between 0 and 1

    @property
    def informative(self) -> bool:
        """True if a line varies, or has a single point."""
        return any(not line.constant for line in self.lines)


def panels(runs: Runs, judge: str = "") -> list[Panel]:
    """Returns all panels of a workdir that have a line which varies.

    Args:
        runs: Lines of the runs by name, in the order of the report; one list per seed.
        judge: Name of the run that trained the judge, or "". It has a panel of accuracies and
            none of evaluations.
    """
    rows = {name: seeds for name, seeds in runs.items() if name != judge}
    found = [_losses(name, seeds) for name, seeds in runs.items()]
    found += [_rewards(name, seeds) for name, seeds in rows.items()]
    found += [_by_source(name, "chosen", "chosen rate", seeds) for name, seeds in rows.items()]
    found += [_evaluation(key, rows) for key in _evaluated(rows)]
    found += [_audit(name, seeds) for name, seeds in rows.items()]
    if judge in runs:
        found.append(_accuracy(judge, runs[judge]))
    return [panel for panel in found if panel.informative]


def series(runs: Sequence[Lines], key: str) -> tuple[list[int], np.ndarray, np.ndarray | None]:
    """Returns (steps, mean, standard deviation) of metric `key` over seeds.

    Only steps at which every seed has the metric count. The deviation is None for a single seed.
    """
    found = [{x["step"]: x[key] for x in lines if _number(x, key)} for lines in runs]
    steps = sorted(set.intersection(*map(set, found)))
    values = np.array([[one[step] for step in steps] for one in found], float)
    return steps, values.mean(axis=0), values.std(axis=0, ddof=1) if len(runs) > 1 else None


def color_of(name: str, names: Sequence[str]) -> str:
    """Returns the colour of a run among the runs of a report."""
    return PALETTE[list(names).index(name) % len(PALETTE)]


def _number(line: Mapping, key: str) -> bool:
    return key in line and isinstance(line[key], int | float) and not isinstance(line[key], bool)


def _line(runs: Sequence[Lines], key: str, label: str, color: str) -> list[Line]:
    """Returns a list with the line of a metric; empty if no step has it."""
    steps, mean, deviation = series(runs, key)
    return [Line(label, color, steps, mean, deviation)] if steps else []


def _keys(runs: Sequence[Lines], kind: str) -> list[str]:
    return sorted({k for lines in runs for line in lines for k in line if k.startswith(f"{kind}/")})


def _of_keys(runs: Sequence[Lines], named: Mapping[str, str]) -> list[Line]:
    """Returns the lines of metrics by label, in the order of the palette."""
    return [
        line
        for i, (key, label) in enumerate(named.items())
        for line in _line(runs, key, label, PALETTE[i % len(PALETTE)])
    ]


def _losses(name: str, runs: Sequence[Lines]) -> Panel:
    keys = [key for key in _keys(runs, "loss") if key != LOSS]
    # A single part is the total itself.
    named = {LOSS: "total"} | ({k: k.removeprefix("loss/") for k in keys} if len(keys) > 1 else {})
    return Panel("loss", name, "loss (nats)", _of_keys(runs, named))


def _rewards(name: str, runs: Sequence[Lines]) -> Panel:
    """A line per candidate source; of policy gradients the whole reward and each of its parts."""
    keys = [key for key in _keys(runs, "reward") if not key.endswith("/skipped")]
    if OF_RL not in keys:
        return _by_source(name, "reward", "mean reward", runs)
    parts = {key: key.removeprefix("reward/") for key in keys if key != OF_RL}
    lines = _of_keys(runs, {OF_RL: "all"} | parts)
    # A single part without a penalty is the whole.
    own = [line for line in lines[1:] if not np.array_equal(line.mean, lines[0].mean)]
    return Panel("reward", name, "mean reward", [*lines[:1], *own])


def _by_source(name: str, kind: str, label: str, runs: Sequence[Lines]) -> Panel:
    """A line per candidate source."""
    keys = [key for key in _keys(runs, kind) if key.removeprefix(f"{kind}/") in SOURCES]
    of = lambda key: key.removeprefix(f"{kind}/")
    lines = [line for key in keys for line in _line(runs, key, of(key), SOURCES[of(key)])]
    return Panel(kind, name, label, lines, rate=kind == "chosen")


def _evaluated(rows: Runs) -> list[str]:
    keys = {key for runs in rows.values() for key in _keys(runs, "eval") if key.count("/") == 1}
    first = ("eval/win_rate_standard", "eval/factuality", "eval/safety", "eval/safety_unsafe")
    return [key for key in first if key in keys] + sorted(keys - set(first))


def _evaluation(key: str, rows: Runs) -> Panel:
    """A line per run."""
    name = key.removeprefix("eval/")
    lines = [
        line
        for row, runs in rows.items()
        for line in _line(runs, key, row, color_of(row, list(rows)))
    ]
    rate = name.startswith(("win_rate", "factuality", "safety", "coherence", "distinct"))
    level = CHANCE if "win_rate" in name else None
    title = name.replace("_", " ")
    return Panel("evaluations", title, title, lines, level=level, rate=rate)


def _audit(name: str, runs: Sequence[Lines]) -> Panel:
    """The mean score of the judge's best candidates, by the judge and by the audit."""
    keys = {"audit/judge_chosen": "by the judge", "audit/chosen": "by the audit"}
    keys |= {k.replace("audit/", "audit_truth/"): v.replace("audit", "ground truth")
             for k, v in keys.items()}  # fmt: skip
    label = "mean score of the judge's choice"
    return Panel("audit", name, label, _of_keys(runs, keys))


def _accuracy(name: str, runs: Sequence[Lines]) -> Panel:
    """A judge's accuracy on held-out labels, with a line per aspect.

    Aspects that compare pairs also have a line for pairs judged in both orders.
    """
    keys = [key for key in _keys(runs, "eval") if key.count("/") == 1 or key.endswith(BOTH)]
    said = lambda key: key.removeprefix("eval/").replace("/", ", ").replace("_", " ")
    lines = _of_keys(runs, {key: said(key) for key in keys})
    return Panel("judge", name, "accuracy", lines, level=CHANCE, rate=True)
