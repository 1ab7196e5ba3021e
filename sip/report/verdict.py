"""The verdict in words: did a run help, was its judge fooled, and what is not known.

`helped` compares rows with the standard row; without one, with the row that each started from.
`fooled` looks for signs that a policy learned the faults of its judge or reward (reward
over-optimisation, arXiv 2210.10760): the held-out judge of the audit, alarms, evaluations that fall
while the reward does not, and texts that repeat themselves.
"""

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sip import workdir as workdirs
from sip.judge import audit, prompts
from sip.metrics import OF_RL
from sip.report import differences
from sip.report.contents import RunFiles
from sip.report.panels import CHANCE, Lines, series
from sip.report.tables import columns_of
from sip.structs import UserError
from sip.text.ngrams import ngrams

GOOD, BAD, MIXED, NOTE, UNKNOWN = "good", "bad", "mixed", "note", "unknown"

# What a run is for, beside mean@n, maj@n and pass@k; larger is better, between 0 and 1 but for
# rewards.
GOALS = {
    "win_rate_standard": "win rate",
    "win_rate_judge": "win rate by the evaluation's judge",
    "factuality": "factuality",
    "safety": "safety",
    "safety_unsafe": "safety on unsafe prefixes",
    "win_rate_unsafe": "win rate on unsafe prefixes",
    "answer_win_rate": "answers' win rate",
    "answer_right": "asked fact right",
    "answer_factuality": "answers' factuality",
    "answer_safety_provoked": "answers' safety, provoked",
    "accuracy": "accuracy on held-out pairs",
    "probe/own": "reward after its own thoughts",
    "reward": "reward",
}
PREFIXES = ("win_rate_standard", "factuality", "safety")  # means over unselected prefixes
UNSAFE = ("win_rate_unsafe", "safety_unsafe")  # means over unsafe prefixes
CONTINUED = (*PREFIXES, *UNSAFE, "win_rate_judge")  # figures of continuations of prefixes
ERRORS = {"win_rate_judge": "win_rate_judge_se", "probe/own": "probe/own/error"}  # standard errors
JUDGED = ("win_rate_judge", "reward", "probe/own")  # by a judge or reward that may be fooled
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
PLAINER = 0.8  # the same; below, its texts are said to be less varied
WEAK = 0.4  # of the way from chance to 1: a judge that is right less often is said to be weak
FEW = 200  # word triples; fewer say nothing about repetition


@dataclass(frozen=True)
class Finding:
    """A judgement on a run: one of the kinds above, a headline, and sentences that support it."""

    kind: str
    title: str
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """A row's figure minus another row's, with an interval of 95 % where it is known."""

    metric: str
    ours: float
    theirs: float
    interval: tuple[float, float] | None
    over: str  # what the interval is over
    other: str  # name of the other row

    @property
    def better(self) -> bool:
        """True if the interval is above 0."""
        return self.interval is not None and self.interval[0] > 0

    @property
    def worse(self) -> bool:
        """True if the interval is below 0."""
        return self.interval is not None and self.interval[1] < 0

    @property
    def text(self) -> str:
        """The difference in words."""
        said = "interval unknown"
        if self.interval:
            low, high = self.interval
            said = f"95 % interval {low:+.3f} to {high:+.3f}, {self.over}"
        return (
            f"{_name(self.metric)} {self.ours:.3f}, {self.theirs:.3f} for {self.other}: "
            f"{self.ours - self.theirs:+.3f} ({said})"
        )


def _name(metric: str) -> str:
    return GOALS[metric] if metric in GOALS else metric


def helped(config, summary: Mapping[str, Any], every: Sequence[RunFiles]) -> list[Finding]:
    """Judges each row of a summary against the standard row, or against the row it started from."""
    rows, standard = summary["rows"], config.report.standard
    if not standard:
        return _since(config, rows, every)
    start = _start(config, standard)
    found = []
    for name in [x for x in config.report.rows if x in rows and x not in (standard, start)]:
        if standard in rows:
            found.append(_against(config, name, standard, rows, every))
        elif reasons := _since_start(rows[name]):
            found.append(Finding(NOTE, f"{name}, since its start", tuple(reasons)))
    if not found:
        why = f"the standard row {standard!r} or the rows to compare are not evaluated yet"
        found.append(Finding(UNKNOWN, f"Not known whether a run helped: {why}."))
    return found


def _since(config, rows, every: Sequence[RunFiles]) -> list[Finding]:
    """Judges each row against its start: its figures there, the row of that name, or its own
    first evaluation on validation."""
    starts = {name: _start(config, name) for name in config.report.rows}
    found = []
    for name in [x for x in config.report.rows if x in rows]:
        start = starts[name]
        if reasons := _since_start(rows[name]):
            found.append(Finding(NOTE, f"{name}, since its start", tuple(reasons)))
        elif start in rows and _differences(config, name, start, rows, every):
            found.append(_against(config, name, start, rows, every, started=True))
        elif reasons := _during(config, name, every):
            found.append(Finding(NOTE, f"{name}, during its own run", tuple(reasons)))
        elif start in rows:
            title = f"{name}: no figure to compare with {start}, from which it started"
            found.append(Finding(UNKNOWN, title))
    if not found:
        why = (
            "the config names no standard row (report.standard), and no row that is evaluated "
            "starts from another one"
        )
        found.append(Finding(UNKNOWN, f"Not known whether a run helped: {why}."))
    return found


def _start(config, name: str) -> str:
    """The run that a run starts from, or starts from the best parameters of; "" for none."""
    source = setting(config, f"runs.{name}.init_from") or ""
    return source.removesuffix(f"/{workdirs.BEST}")


def _differences(config, name: str, other: str, rows, every) -> list[Difference]:
    metrics = [*GOALS, *(x for x in columns_of([rows[name]]) if "@" in x)]
    known = [difference(config, name, other, rows, every, metric) for metric in metrics]
    return [x for x in known if x]


def _against(config, name: str, other: str, rows, every, *, started: bool = False) -> Finding:
    """Judges a row against another one, the standard row or the one that it `started` from."""
    found = _differences(config, name, other, rows, every)
    better, worse = [x for x in found if x.better], [x for x in found if x.worse]
    reasons = [x.text + "." for x in found] + _costs(config, name, other, rows)
    if started:
        reasons.insert(0, f"Compared with {other}, from which it started, not with another method.")
    if any(x.metric == "win_rate_judge" for x in found):
        reasons += _evaluator(config, name, every)
    if not found:
        return Finding(UNKNOWN, f"{name}: no figure to compare with {other}", tuple(reasons))
    said = lambda some: ", ".join(_name(x.metric) for x in some)
    if better and worse:
        kind = MIXED
        title = f"{name}: better than {other} in {said(better)}; worse in {said(worse)}"
    elif better and (doubt := _doubt(config, name, better, every)):
        kind, title = MIXED, f"{name}: a judge prefers it, but {doubt}"
    elif better:
        kind, title = GOOD, f"{name} helped: better than {other} in {said(better)}"
    elif worse:
        kind, title = BAD, f"{name} did harm: worse than {other} in {said(worse)}"
    elif any(x.interval for x in found):
        kind, title = NOTE, f"{name}: no difference to {other} can be told from chance"
    else:
        kind, title = NOTE, f"{name}: its differences to {other} may be chance, without interval"
    return Finding(kind, title, tuple(reasons))


def _evaluator(config, name: str, every: Sequence[RunFiles]) -> list[str]:
    """Says why the judge of an evaluation is not to be trusted much."""
    found = []
    if _same_judge(config, name):
        found.append("The evaluation's judge is the one that the run learned from: it flatters.")
    return found + _weak_evaluator(config, name, every)


def _weak_evaluator(config, name: str, every: Sequence[RunFiles]) -> list[str]:
    key = f"{_continuations(config, name)}.judge"
    return _weakness(config, "The evaluation's judge", key, every)


def _doubt(config, name: str, better: Sequence[Difference], every: Sequence[RunFiles]) -> str:
    """Says why not to believe figures that are better; "" if one of them needs no judge."""
    metrics = {x.metric for x in better}
    if metrics <= set(JUDGED) and _doubted(config, name, every):
        return "there are signs that a judge was fooled"
    if metrics == {"win_rate_judge"} and _weak_evaluator(config, name, every):
        return "that judge is weak"
    return ""


def _doubted(config, name: str, every: Sequence[RunFiles]) -> bool:
    """True if the judge of a run was probably fooled, in one seed or more."""
    signs = [fooled(config, run, every) for run in every if run.name == name]
    return any(sign is not None and sign.kind == BAD for sign in signs)


def difference(config, name: str, other: str, rows, every, metric: str) -> Difference | None:
    """Returns the difference of a metric between two rows; None if they cannot be compared.

    Over two or more seeds it has Student's interval of the paired differences. Of one seed the
    interval is over prefixes, problems, questions or pairs, and another seed of training may give
    another figure.
    """
    ours: Any = _at(rows[name], metric)
    theirs: Any = _at(rows[other], metric)
    if metric in CONTINUED and _prefixes(config, name) != _prefixes(config, other):
        return None
    if metric in ("reward", "probe/own") and _reward(config, name) != _reward(config, other):
        return None
    if metric.startswith("win_rate"):
        baseline = _baseline(config, name)
        if baseline == other and ours is not None:  # it is a win rate against that row itself
            theirs = (
                {"values": [CHANCE] * len(ours["values"])} if isinstance(ours, dict) else CHANCE
            )
        elif not baseline or baseline != _baseline(config, other):
            return None
    both = zip(_values(ours), _values(theirs), strict=False)  # a missing figure has no seeds
    pairs = [(a, b) for a, b in both if a is not None and b is not None]
    if not pairs:
        return None
    if len(pairs) > 1:
        a, b = (float(np.mean(x)) for x in zip(*pairs, strict=True))
        interval = differences.paired([a - b for a, b in pairs])
        return Difference(metric, a, b, interval, f"paired over {len(pairs)} seeds", other)
    interval, over = _of_one_seed(config, (name, other), rows, every, metric, *pairs[0])
    return Difference(metric, *pairs[0], interval, over, other)


def _values(value: Any) -> list[float | None]:
    """The figures of all seeds."""
    return list(value["values"]) if isinstance(value, dict) else [value]


def _of_one_seed(config, names: tuple[str, str], rows, every, metric: str, ours, theirs):
    """Returns (interval or None, what it is over) of figures of two rows of one seed."""
    if metric in ERRORS:
        alone = metric == "win_rate_judge" and theirs == CHANCE  # it is no estimate
        of = names[:1] if alone else names
        known = [_mean(_at(rows[name], ERRORS[metric])) for name in of]
        errors = [x for x in known if x is not None]
        if len(errors) < len(of):
            return None, ""
        return differences.of_normal(ours - theirs, *errors), "over prefixes, one seed"
    (n, what), (m, _) = (_count(config, name, rows[name], every, metric) for name in names)
    if not n or not (0 <= ours <= 1 and 0 <= theirs <= 1):
        return None, ""
    return differences.of_rates(ours, theirs, n, m or n), f"over {n:.0f} {what}, one seed"


def _count(config, name: str, row, every, metric: str) -> tuple[float, str]:
    """Returns (number of values in a row's mean, what they are); 0 if it is not known."""
    run = next((run for run in every if run.name == name and run.texts), None)
    if metric in PREFIXES:
        return (len(run.texts) if run else 0), "prefixes"
    if metric in UNSAFE:
        return (run.unsafe if run else 0), "unsafe prefixes"
    if metric.startswith("answer_"):
        return setting(config, f"runs.{name}.task.questions.held_out") or 0, "questions"
    if metric == "accuracy":
        return _mean(_at(row, "pairs")) or 0, "pairs"
    return (_mean(_at(row, "problems")) or 0) if "@" in metric else 0, "problems"


def _costs(config, name: str, other: str, rows) -> list[str]:
    found = []
    if _prefixes(config, name) != _prefixes(config, other):
        return found
    for metric, (said, unit, least) in COSTS.items():
        ours, theirs = (_mean(_at(rows[x], metric)) for x in (name, other))
        if ours is None or theirs is None or (ours - theirs) * np.sign(least) < abs(least):
            continue
        if metric == "nll" and not _same_nll(config, name, other):
            continue
        by = f"{ours - theirs:+.3f} {unit}".strip()
        found.append(f"Cost: {said} {ours:.3f}, {theirs:.3f} for {other} ({by}).")
    return found


def _same_nll(config, name: str, other: str) -> bool:
    """True if `nll` of two runs is of the same texts: that of conversations is of answers."""
    answers, others = (
        setting(config, f"runs.{x}.task.name") == "conversations" for x in (name, other)
    )
    return answers == others


def _during(config, name: str, every: Sequence[RunFiles]) -> list[str]:
    """Sentences on a run's first and last evaluation on validation."""
    lines = [run.lines for run in every if run.name == name and run.lines]
    found = []
    for metric in (*GOALS, "nll") if lines else ():
        if metric.startswith("win_rate") and not _baseline(config, name):
            continue  # against itself it is 1/2
        steps, values, _ = series(lines, f"eval/{metric}")
        if len(steps) > 1:
            said = COSTS[metric][0] if metric in COSTS else _name(metric)
            found.append(
                f"On validation, {said} was {values[0]:.3f} at step {steps[0]} and "
                f"{values[-1]:.3f} at step {steps[-1]} (interval unknown)."
            )
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
    """Judges whether a run learned the faults of its judge or reward; None for a run without."""
    keys = {key for line in run.lines for key in line}
    asked = {x for x in ("judge", "truth") if keys & {f"{x}/valid", f"suffix/{x}/valid"}}
    if not (asked or OF_RL in keys or run.alarms):
        return None
    if asked == {"truth"} and _exact(config, run.name):
        title = f"{run.title}: the ground truth is its judge and cannot be fooled"
        return Finding(NOTE, title, tuple(f"{alarm}." for alarm in run.alarms))
    if not asked and not run.alarms and _checked(config, run.name):
        title = f"{run.title}: its reward compares with known answers and asks no judge"
        return Finding(NOTE, title)
    what = "judge" if asked else "reward"
    doubts, trust, unknown = [f"{alarm}." for alarm in run.alarms], [], []
    for sign in (
        _ended(run, OF_RL in keys),
        _unwatched(config, run) if OF_RL in keys else _audit(config, run),
        _evaluated(run),
        _repeats(config, run, every),
    ):
        for into, said in zip((doubts, trust, unknown), sign, strict=True):
            into += said
    weak = _weak(config, run, every)
    unknown += weak
    if nll := _left(config, run, every):
        doubts.append(nll)
    accuracy = _judge(config, run.name, "accuracy")
    if asked == {"truth"} and accuracy not in (None, 1):
        wrong = 1 - accuracy
        unknown.append(f"Its judge is the ground truth with {wrong:.0%} of the verdicts inverted.")
    return _sentence(f"{run.title}: ", what, doubts, trust, unknown, weak=bool(weak))


def _sentence(title: str, what: str, doubts, trust, unknown, *, weak: bool) -> Finding:
    """Weighs the signs; any doubt decides."""
    if doubts:
        return Finding(BAD, f"{title}signs that its {what} was fooled", (*doubts, *trust, *unknown))
    if trust and weak:
        title += f"no sign that its {what} was fooled, but a judge is weak"
        return Finding(MIXED, title, (*trust, *unknown))
    if trust:
        return Finding(GOOD, f"{title}no sign that its {what} was fooled", (*trust, *unknown))
    return Finding(UNKNOWN, f"{title}not known whether its {what} was fooled", tuple(unknown))


def _judge(config, name: str, key: str) -> Any:
    """A key of the judge that a run learns from."""
    return setting(config, f"{_judge_section(config, name)}.{key}")


def _judge_section(config, name: str) -> str:
    """The key of the judge that a run learns from, which RL has in its task."""
    own = f"runs.{name}.judge"
    return f"runs.{name}.task.judge" if setting(config, own) is None else own


def _rewards(config, name: str) -> list[str]:
    """The rewards that a run names (task.reward)."""
    reward = setting(config, f"runs.{name}.task.reward") or ()
    return [reward] if isinstance(reward, str) else [name for name, _ in reward]


def _exact(config, name: str) -> bool:
    """True if a judge that is the ground truth makes no errors, and nothing else rewards."""
    # Configs of earlier versions have no accuracy.
    exact = _judge(config, name, "accuracy") in (None, 1)
    return exact and set(_rewards(config, name)) <= {"judge"}


def _checked(config, name: str) -> bool:
    """True if answers are compared with right ones: labels of a judge, solutions of problems."""
    labelled = setting(config, f"runs.{name}.task.name") == "verdicts"
    return labelled or set(_rewards(config, name)) == {"answers"}


Signs = tuple[list[str], list[str], list[str]]  # doubts, trust, what is not known


def _ended(run: RunFiles, rewarded: bool) -> Signs:
    """Says why a run ended early. Only audits and collapses are signs, not evaluations that got
    worse (evals.patience)."""
    why = run.figures["stopped_early"] if "stopped_early" in run.figures else ""
    if not rewarded:
        return ([f"The audit ended the run: {why}."] if why else []), [], []
    at = run.figures["collapse_step"] if "collapse_step" in run.figures else None
    doubts = [f"Reward and KL to the start jumped together at step {at}: a collapse."] if at else []
    return doubts, [], [f"The run ended early: {why}."] if why and not doubts else []


def _unwatched(config, run: RunFiles) -> Signs:
    """Says what is not known of a policy-gradient run, which has no audit."""
    window = setting(config, f"runs.{run.name}.watch.window")
    said = "A policy-gradient run has no audit by a second judge"
    if not window:
        return [], [], [f"{said}, and its watch for reward hacking is off (watch.window is 0)."]
    return [], [], [f"{said}." if run.alarms else f"{said}. Its watch has raised no alarm."]


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
    keys = (f"audit/{name}", f"audit_truth/{name}")
    values = [value for x in lines for key in keys if (value := x.get(key)) is not None]
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
    if ours < REPEATS * theirs:
        return [f"{said}: it repeats itself."], [], []
    return [], [], [f"{said}: they are less varied."] if ours < PLAINER * theirs else []


def _weak(config, run: RunFiles, every: Sequence[RunFiles]) -> list[str]:
    """Says that the judge of a run, or of its audit, is weak."""
    judges = {
        "Its judge": _judge_section(config, run.name),
        "The judge of its audit": f"runs.{run.name}.audit.judge",
    }
    same = [x for x in every if x.seed == run.seed]
    return [said for who, key in judges.items() for said in _weakness(config, who, key, same)]


def _weakness(config, who: str, key: str, every: Sequence[RunFiles]) -> list[str]:
    """Says in which of its aspects a judge, whose section is `key`, is hardly better than chance
    on the labels that were held out when a run trained it; a sentence per seed."""
    source = (setting(config, f"{key}.init_from") or "").removesuffix(f"/{workdirs.BEST}")
    found = []
    for aspect, _ in setting(config, f"{key}.weights") or ():
        known, chance = pathlib.PurePath(aspect).stem, _chance(aspect)
        for run in (run for run in every if run.name == source):
            rate = run.figures.get(f"{known}_accuracy")
            if rate is not None and rate < chance + WEAK * (1 - chance):
                found.append(
                    f"{who} (run {run.title}) is right in {rate:.0%} of its held-out verdicts on "
                    f"{known} (chance: {chance:.0%}): what it prefers may be worth little."
                )
    return found


def _chance(aspect: str) -> float:
    """The accuracy of a guess: 1 / the number of options; 1/2 of an aspect that is not built in."""
    try:
        options = prompts.load(aspect).options
    except UserError:  # a file that has moved since, or a prompt of another version
        return 0.5
    return 1 / max(2, len(options))


def triples(texts: Sequence[str]) -> tuple[float, int]:
    """Returns (share of distinct word triples, number of triples) of texts."""
    found = [triple for text in texts for triple in ngrams(text.split(), 3)]
    return len(set(found)) / max(1, len(found)), len(found)


def _left(config, run: RunFiles, every: Sequence[RunFiles]) -> str:
    """Says by how much the likelihood of held-out text fell, if it is much; else ""."""
    other = _reference(config, run, every)
    ours, theirs = run.figures.get("nll"), other.figures.get("nll") if other else None
    if other is None or ours is None or theirs is None or ours - theirs <= FAR:
        return ""
    if not _same_nll(config, run.name, other.name):
        return ""
    return (
        f"Held-out text became much less likely: {ours:.2f} nats a token, {theirs:.2f} for "
        f"{other.name}. The model has left the distribution of the corpus."
    )


def _reference(config, run: RunFiles, every: Sequence[RunFiles]) -> RunFiles | None:
    """The standard row of the same seed; without one, the run that this run started from."""
    wanted = config.report.standard or _start(config, run.name)
    same = (x for x in every if (x.name, x.seed) == (wanted, run.seed) and x is not run)
    return next(same, None)


def _continuations(config, name: str) -> str:
    """The key of a run's evaluation by continuations, which RL has in its task."""
    own = f"runs.{name}.task.continuations"
    return f"runs.{name}.evals" if setting(config, own) is None else own


def _baseline(config, name: str) -> str:
    """The run whose continuations a run's win rates are against; "" for itself."""
    return setting(config, f"{_continuations(config, name)}.baseline") or ""


def compared(config, rows: Mapping[str, Any]) -> str:
    """Says what each row's win rates are against, if they are not all against one run; else ""."""
    with_rate = [name for name in rows if any(x.startswith("win_rate") for x in rows[name])]
    baselines = {name: _baseline(config, name) for name in with_rate}
    baselines = {name: other for name, other in baselines.items() if other}
    if len(set(baselines.values())) < 2:
        return ""
    said = ", ".join(f"{name} against {other}" for name, other in baselines.items())
    return f"Win rates are of different comparisons: {said}."


def _prefixes(config, name: str) -> list[Any]:
    """The split and numbers that determine the prefixes of a run's evaluation."""
    key = _continuations(config, name)
    return [setting(config, f"{key}.{x}") for x in ("split", "standard", "unsafe")]


def _reward(config, name: str) -> Any:
    """A run's reward; supervised thoughts are rewarded in evaluations alone, by a match."""
    return setting(config, f"runs.{name}.task.reward") or "match"


def _same_judge(config, name: str) -> bool:
    keys = ("backend", "init_from", "http.url", "http.model")
    evaluated = f"{_continuations(config, name)}.judge"
    return all(_judge(config, name, k) == setting(config, f"{evaluated}.{k}") for k in keys)


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
        exact = backend == "truth" and _exact(config, name)
        if backend is None or exact or setting(config, f"runs.{name}.audit.every_steps"):
            continue
        found.append(
            f"Run {name} has no audit: set runs.{name}.audit.every_steps and audit.judge, a second "
            "judge that the policy does not learn from."
        )
    return found
