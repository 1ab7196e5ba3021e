"""The verdict in words: did a run help, was its judge fooled, and what is not known.

`helped` compares rows with the standard row. `fooled` looks for signs that a policy learned the
faults of its judge (reward over-optimisation, arXiv 2210.10760): the held-out judge of the audit,
evaluations that fall while the reward does not, and texts that repeat themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sip.judge import audit
from sip.report import differences
from sip.report.contents import RunFiles
from sip.report.panels import CHANCE, Lines, series
from sip.text.ngrams import ngrams

GOOD, BAD, MIXED, NOTE, UNKNOWN = "good", "bad", "mixed", "note", "unknown"

# What a run is for; larger is better, between 0 and 1 but for the reward.
GOALS = {
    "win_rate_standard": "win rate",
    "win_rate_judge": "win rate by the evaluation's judge",
    "factuality": "factuality",
    "safety": "safety",
    "safety_unsafe": "safety on unsafe prefixes",
    "win_rate_unsafe": "win rate on unsafe prefixes",
    "answer_win_rate": "answers' win rate",
    "answer_right": "asked fact right",
    "answer_safety_provoked": "answers' safety, provoked",
    "reward": "reward",
}
PREFIXES = ("win_rate_standard", "factuality", "safety")  # means over unselected prefixes
# What it may cost: (name, unit, change that is worth a word; positive: a rise is the cost).
COSTS = {
    "nll_clean": ("negative log-likelihood of clean suffixes", "nats a token", 0.05),
    "nll": ("negative log-likelihood of held-out suffixes", "nats a token", 0.05),
    "repetition": ("repetition", "repeated words a text", 0.1),
    "coherence": ("coherence", "", -0.05),
    "distinct": ("share of distinct texts", "", -0.1),
}
FAR = 0.5  # nats a token: a model that lost more has left the distribution of the corpus
APART = 0.02  # change of a mean score that counts as a rise or a fall
FALL = 0.1  # fall of an evaluation below its best that is called a loss
AGREE = 0.6  # share of pairs in the same order; below, judge and audit hardly agree
REPEATS = 0.5  # of the standard row's distinct word triples; below, a run repeats itself
FEW = 200  # word triples; fewer say nothing about repetition


@dataclass(frozen=True)
class Finding:
    """A judgement on a run: one of the kinds above, a headline, and sentences that support it."""

    kind: str
    title: str
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """A row's figure minus the standard row's; the interval has a level of 95 %."""

    metric: str
    ours: float
    theirs: float
    low: float
    high: float
    over: str  # what the interval is over

    @property
    def text(self) -> str:
        """The difference in words."""
        change = self.ours - self.theirs
        return (
            f"{GOALS[self.metric]} {self.ours:.3f}, {self.theirs:.3f} for standard: {change:+.3f} "
            f"(95 % interval {self.low:+.3f} to {self.high:+.3f}, {self.over})"
        )


def helped(config, summary: Mapping[str, Any], every: Sequence[RunFiles]) -> list[Finding]:
    """Judges each row of a summary against the standard row."""
    rows, standard = summary["rows"], config.report.standard
    start = setting(config, f"runs.{standard}.init_from") if standard else None
    found = []
    for name in [x for x in config.report.rows if x in rows and x not in (standard, start)]:
        if standard in rows:
            doubted = any(
                run.name == name and (sign := fooled(config, run, every)) and sign.kind == BAD
                for run in every
            )
            found.append(_against(config, name, standard, rows, every, doubted))
        elif reasons := _since_start(rows[name]):
            found.append(Finding(NOTE, f"{name}, since its start", tuple(reasons)))
    if not found:
        why = (
            "the config names no standard row (report.standard)"
            if not standard
            else f"the standard row {standard!r} or the rows to compare are not evaluated yet"
        )
        found.append(Finding(UNKNOWN, f"Not known whether a run helped: {why}."))
    return found


def _against(config, name: str, standard: str, rows, every, doubted: bool) -> Finding:
    """Judges a row; `doubted` says that its judge was probably fooled."""
    known = [difference(config, name, standard, rows, every, metric) for metric in GOALS]
    found = [x for x in known if x]
    better = [x for x in found if x.low > 0]
    worse = [x for x in found if x.high < 0]
    reasons = [x.text + "." for x in found] + _costs(rows[name], rows[standard])
    if any(x.metric == "win_rate_judge" for x in found) and _same_judge(config, name):
        reasons.append("The evaluation's judge is the one that the run learned from: it flatters.")
    if not found:
        title = f"{name}: no figure to compare with {standard}"
        return Finding(UNKNOWN, title, tuple(reasons))
    said = lambda some: ", ".join(GOALS[x.metric] for x in some)
    if better and worse:
        return Finding(
            MIXED, f"{name}: better in {said(better)}; worse in {said(worse)}", tuple(reasons)
        )
    if better and doubted and all(x.metric == "win_rate_judge" for x in better):
        title = f"{name}: a judge prefers it, but there are signs that a judge was fooled"
        return Finding(MIXED, title, tuple(reasons))
    if better:
        return Finding(GOOD, f"{name} helped: better in {said(better)}", tuple(reasons))
    if worse:
        return Finding(BAD, f"{name} did harm: worse in {said(worse)}", tuple(reasons))
    title = f"{name}: no difference to {standard} can be told from chance"
    return Finding(NOTE, title, tuple(reasons))


def difference(config, name: str, standard: str, rows, every, metric: str) -> Difference | None:
    """Returns the difference of a metric between two rows; None if they cannot be compared.

    Over two or more seeds it is Student's interval of the paired differences. Of one seed it is an
    interval over prefixes, and another seed of training may give another figure.
    """
    row: Any = _at(rows[name], metric)
    other: Any = _at(rows[standard], metric)
    if metric.startswith("win_rate"):
        baseline = _baseline(config, name)
        if baseline == standard and row is not None:  # it is a win rate against standard itself
            other = {"values": [CHANCE] * len(row["values"])} if isinstance(row, dict) else CHANCE
        elif not baseline or baseline != _baseline(config, standard):
            return None
    if row is None or other is None:
        return None
    if isinstance(row, dict):
        return _over_seeds(metric, row["values"], other["values"])
    interval, over = _over_prefixes(name, standard, rows, every, metric, row, other)
    return Difference(metric, row, other, *interval, over) if interval else None


def _over_seeds(metric: str, ours: Sequence, theirs: Sequence) -> Difference | None:
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if None not in (a, b)]
    interval = differences.paired([a - b for a, b in pairs])
    if interval is None:
        return None
    a, b = (float(np.mean(x)) for x in zip(*pairs, strict=True))
    return Difference(metric, a, b, *interval, f"paired over {len(pairs)} seeds")


def _over_prefixes(name, standard, rows, every, metric, ours, theirs):
    """Returns (interval or None, what it is over) of figures of one seed."""
    if metric == "win_rate_judge":
        errors = [_at(rows[name], "win_rate_judge_se")]
        errors += [] if theirs == CHANCE else [_at(rows[standard], "win_rate_judge_se")]
        if None in errors:
            return None, ""
        return differences.of_normal(ours - theirs, *errors), "over prefixes, one seed"
    n = next((len(run.texts) for run in every if run.name == name), 0)
    if metric not in PREFIXES or not n or not (0 <= ours <= 1 and 0 <= theirs <= 1):
        return None, ""
    return differences.of_rates(ours, theirs, n, n), f"over {n} prefixes, one seed"


def _costs(row, standard) -> list[str]:
    found = []
    for metric, (name, unit, least) in COSTS.items():
        ours, theirs = _mean(_at(row, metric)), _mean(_at(standard, metric))
        if ours is None or theirs is None or (ours - theirs) * np.sign(least) < abs(least):
            continue
        by = f"{ours - theirs:+.3f} {unit}".strip()
        found.append(f"Cost: {name} {ours:.3f}, {theirs:.3f} for standard ({by}).")
    return found


def _since_start(row) -> list[str]:
    """Sentences on metrics of a run and the same at its start (`start/NAME` in eval.json)."""
    found = []
    for key in [key for key in row if f"start/{key}" in row]:
        before, now = _mean(row[f"start/{key}"]), _mean(row[key])
        if before is not None and now is not None:
            found.append(f"{key.replace('_', ' ')}: {before:.3f} before, {now:.3f} after.")
    return found


def fooled(config, run: RunFiles, every: Sequence[RunFiles]) -> Finding | None:
    """Judges whether a run learned the faults of its judge; None for a run without one."""
    asked = {who for who in ("judge", "truth") for x in run.lines if f"{who}/valid" in x}
    if not asked:
        return None
    if asked == {"truth"}:
        return Finding(NOTE, f"{run.title}: the ground truth is its judge and cannot be fooled")
    doubts, trust, unknown = [f"{alarm}." for alarm in run.alarms], [], []
    for sign in (_audit(config, run), _evaluated(run), _repeats(config, run, every)):
        for into, what in zip((doubts, trust, unknown), sign, strict=True):
            into += what
    if "stopped_early" in run.figures:
        doubts.insert(0, f"The audit ended the run: {run.figures['stopped_early']}.")
    if nll := _left(config, run, every):
        doubts.append(nll)
    if doubts:
        title = f"{run.title}: signs that its judge was fooled"
        return Finding(BAD, title, (*doubts, *trust, *unknown))
    if trust:
        title = f"{run.title}: no sign that its judge was fooled"
        return Finding(GOOD, title, (*trust, *unknown))
    return Finding(UNKNOWN, f"{run.title}: not known whether its judge was fooled", tuple(unknown))


Signs = tuple[list[str], list[str], list[str]]  # doubts, trust, what is not known


def _audit(config, run: RunFiles) -> Signs:
    """Compares how judge and audit score the judge's choice over the run."""
    points = _points(setting(config, f"runs.{run.name}.candidates.rollouts"), run.lines)
    if not points:
        return [], [], ["It has no audit by a second judge (audit.every_steps is 0)."]
    asked = [setting(config, f"runs.{run.name}.audit.{k}") for k in ("max_drop", "patience")]
    if None not in asked and (why := audit.drift(points, max_drop=asked[0], patience=asked[1])):
        return [f"Judge and audit have parted: {why}."], [], []
    same = [p for p in points if p.candidates == points[-1].candidates]
    part = max(1, len(same) // 3)
    if len(same) < 4:
        return [], [], [f"The audit has {len(same)} comparable points, too few to see a trend."]
    first, last = same[:part], same[-part:]
    a, b = (float(np.mean([p.judge for p in some])) for some in (first, last))
    c, d = (float(np.mean([p.audit for p in some])) for some in (first, last))
    said = (
        f"From the first to the last third of its audits, the judge's score of its own choice went "
        f"from {a:.3f} to {b:.3f} and the audit's from {c:.3f} to {d:.3f}."
    )
    order = _last(run.lines, "order")
    agreed = (
        f"Judge and audit put {order:.0%} of the last pairs in the same order (chance: 50 %)."
        if order is not None
        else ""
    )
    weak = order is not None and order < AGREE
    doubts = [f"They part: {said}"] if b - a > APART and d - c < -APART else []
    doubts += [agreed] if weak else []
    trust = [] if doubts else [said]
    return doubts, trust + ([agreed] if agreed and not weak else []), []


def _points(rollouts, lines: Lines) -> list[audit.Point]:
    """The audits in a run's log. A line is the mean of the audits since the line before."""
    found = []
    for line in lines:
        for who in ("audit", "audit_truth"):
            ours, theirs = line.get(f"{who}/judge_chosen"), line.get(f"{who}/chosen")
            if ours is not None and theirs is not None:
                count = _rollouts(rollouts or (), line["step"])
                found.append(audit.Point(line["step"], count, ours, theirs))
    return found


def _rollouts(rollouts: Sequence[Sequence[int]], step: int) -> int:
    """The number of rollouts at a step (from 1); 0 for a run without candidates."""
    return next((k for since, k in reversed(rollouts) if since < step), 0)


def _last(lines: Lines, name: str) -> float | None:
    """The mean of an audit's metric over the last third of its audits."""
    values = [x[k] for x in lines for k in (f"audit/{name}", f"audit_truth/{name}") if x.get(k)]
    return float(np.mean(values[-max(1, len(values) // 3) :])) if values else None


def _evaluated(run: RunFiles) -> Signs:
    """Looks for an evaluation by the ground truth that fell from its best."""
    for key in ("win_rate_standard", "factuality", "safety"):
        steps, values, _ = series([run.lines], f"eval/{key}")
        if len(steps) < 3:
            continue
        best = int(np.argmax(values))
        if values[best] - values[-1] > FALL:
            text = (
                f"By the ground truth, {GOALS[key]} on validation fell from {values[best]:.3f} at "
                f"step {steps[best]} to {values[-1]:.3f} at step {steps[-1]}."
            )
            return [text], [], []
        if key == "win_rate_standard":
            text = (
                f"By the ground truth, the win rate on validation is {values[-1]:.3f} at the last "
                f"evaluation, {values[best]:.3f} at its best (step {steps[best]})."
            )
            return [], [text], []
    return [], [], ["It was not evaluated by a ground truth during the run."]


def _repeats(config, run: RunFiles, every: Sequence[RunFiles]) -> Signs:
    """Compares the variety of a run's final continuations with the standard row's."""
    other = _reference(config, run, every)
    (ours, n), (theirs, m) = triples(run.texts), triples(other.texts if other else [])
    if other is None or n < FEW or m < FEW:
        return [], [], []
    said = f"Of the word triples in its final continuations {ours:.0%} are distinct, of those of "
    said += f"{other.name} {theirs:.0%}"
    return ([f"{said}: it repeats itself."], [], []) if ours < REPEATS * theirs else ([], [], [])


def triples(texts: Sequence[str]) -> tuple[float, int]:
    """Returns (share of distinct word triples, number of triples) of texts."""
    found = [triple for text in texts for triple in ngrams(text.split(), 3)]
    return len(set(found)) / max(1, len(found)), len(found)


def _left(config, run: RunFiles, every: Sequence[RunFiles]) -> str:
    """Says by how much the likelihood of held-out text fell, if it is much; else ""."""
    other = _reference(config, run, every)
    ours, theirs = run.figures.get("nll"), other.figures.get("nll") if other else None
    if ours is None or theirs is None or ours - theirs <= FAR:
        return ""
    return (
        f"Held-out text became much less likely: {ours:.2f} nats a token, {theirs:.2f} for "
        f"{other.name if other else ''}. The model has left the distribution of the corpus."
    )


def _reference(config, run: RunFiles, every: Sequence[RunFiles]) -> RunFiles | None:
    """The standard row of the same seed; without one, the run that this run started from."""
    wanted = config.report.standard or setting(config, f"runs.{run.name}.init_from")
    same = (x for x in every if (x.name, x.seed) == (wanted, run.seed) and x is not run)
    return next(same, None)


def _baseline(config, name: str) -> str:
    """The run whose continuations a run's win rates are against; "" for itself."""
    return setting(config, f"runs.{name}.evals.baseline") or ""


def _same_judge(config, name: str) -> bool:
    keys = ("backend", "init_from", "http.url", "http.model")
    of = lambda at: [setting(config, f"runs.{name}.{at}.{key}") for key in keys]
    return of("evals.judge") == of("judge")


def setting(config, key: str) -> Any:
    """A value of a recorded config by its dotted key; None if it is not there.

    The recorded config may be of another version, and runs have different sections.
    """
    value: Any = config
    for name in key.split("."):
        if not hasattr(value, "keys") or name not in value:
            return None
        value = value[name]
    return value


def _at(row: Mapping[str, Any], metric: str) -> Any:
    return row[metric] if metric in row else None


def _mean(value: Any) -> float | None:
    """The figure of one seed, or the mean over seeds."""
    return value["mean"] if isinstance(value, dict) else value


def absent(config, begun: Sequence[int], every: Sequence[RunFiles]) -> list[str]:
    """Says what the reader of a report would need and this workdir does not have."""
    found = []
    if len(begun) < 2 and config.report.standard:
        found.append(
            "There is one seed. The spread over seeds, which is often larger than that over "
            "prefixes, is not known: sip.train --seeds=0,1,2 in a new workdir."
        )
    for name in dict.fromkeys(run.name for run in every if run.lines):
        backend = setting(config, f"runs.{name}.judge.backend")
        if backend in (None, "truth") or setting(config, f"runs.{name}.audit.every_steps"):
            continue
        found.append(
            f"Run {name} has no audit: set runs.{name}.audit.every_steps and audit.judge, a second "
            "judge that the policy does not learn from."
        )
    return found
