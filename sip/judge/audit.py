"""A second, held-out judge audits the judge that a policy learns from.

A policy learns to exploit the faults of its judge (reward over-optimisation, arXiv 2210.10760). A
judge that the policy does not learn from still tells good candidates from bad ones. The audit
reports how far the two agree and ends the run when they diverge.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sip.judge import build as judges
from sip.judge.judged import Judge, Judged
from sip.judge.voting import Stats
from sip.metrics import pair
from sip.sections import at_least, check
from sip.structs import UserError
from sip.training import checkpoints

SAME = 1e-9  # scores that differ by at most this count as equal


def compare(judge: Judged, audit: Judged, sources: Sequence[str], *, who: str) -> Stats:
    """Compares the verdicts of judge and audit on the same candidates.

    Returns (total, denom) pairs by name, each name after `who`/. `sources` are the K candidates'.

    valid: share of valid verdicts of the audit.
    best[/aspect]: share of prefixes whose best candidate by the judge is also a best one by the
        audit. Prefixes on which the audit has no preference do not count.
    order[/aspect]: share of pairs that both put in the same order. Pairs that either of them scores
        equal do not count.
    chosen, judge_chosen: mean score of the judge's best candidate, by the audit and by the judge.
    score/SOURCE, judge_score/SOURCE: mean score of a source's candidates, by the audit and by the
        judge, over candidates on which both verdicts are valid.
    """
    found = {f"{who}/valid": audit.metrics[f"{audit.who}/valid"]}
    views = {"": [(x.scores_BK, x.valid_BK) for x in (judge, audit)]}
    for name in [name for name in judge.aspects if name in audit.aspects]:
        views[f"/{name}"] = [x.aspects[name] for x in (judge, audit)]
    for name, ((a_BK, a_ok_BK), (b_BK, b_ok_BK)) in views.items():
        found[f"{who}/best{name}"] = _same_best(a_BK, b_BK, a_ok_BK & b_ok_BK)
        found[f"{who}/order{name}"] = _same_order(a_BK, b_BK, a_ok_BK & b_ok_BK)
    both_BK, scores = judge.valid_BK & audit.valid_BK, {"": audit, "judge_": judge}
    best_BK = both_BK & _best(judge.scores_BK, judge.valid_BK)
    for prefix, view in scores.items():
        found[f"{who}/{prefix}chosen"] = pair(view.scores_BK, best_BK)
        for source in dict.fromkeys(sources):
            of_BK = both_BK & np.array([s == source for s in sources])
            found[f"{who}/{prefix}score/{source}"] = pair(view.scores_BK, of_BK)
    return found


def _best(x_BK, ok_BK):
    """Marks the first of the highest valid entries of each row."""
    best_B1 = np.where(ok_BK, x_BK, -np.inf).argmax(1)[:, None]
    return ok_BK & (np.arange(x_BK.shape[1]) == best_B1)


def _same_best(a_BK, b_BK, ok_BK):
    """(total, denom) of prefixes whose first best candidate by `a` is among the best by `b`."""
    high_B1 = np.where(ok_BK, b_BK, -np.inf).max(1, keepdims=True)
    low_B1 = np.where(ok_BK, b_BK, np.inf).min(1, keepdims=True)
    at_BK = _best(a_BK, ok_BK) & (high_B1 - low_B1 > SAME)
    return pair(b_BK >= high_B1 - SAME, at_BK)


def _same_order(a_BK, b_BK, ok_BK):
    """(total, denom) of pairs that `a` and `b` put in the same order; each pair counts once."""
    i_C, j_C = np.triu_indices(a_BK.shape[1], k=1)
    a_BC, b_BC = (x_BK[:, i_C] - x_BK[:, j_C] for x_BK in (a_BK, b_BK))
    told_BC = ok_BK[:, i_C] & ok_BK[:, j_C] & (abs(a_BC) > SAME) & (abs(b_BC) > SAME)
    return pair(a_BC * b_BC > 0, told_BC)


@dataclass(frozen=True)
class Point:
    """One audit of a run: the mean score of the judge's best candidates by both judges."""

    step: int
    candidates: int  # rollouts in the pool: scores in another pool are not comparable
    judge: float
    audit: float


def point(found: Mapping[str, tuple], step: int, candidates: int, *, who: str) -> list[Point]:
    """A list with the audit point in a step's metrics; empty if there is no readable audit."""
    (judge, count), (audit, _) = (
        found[key] if key in found else (0.0, 0.0)
        for key in (f"{who}/judge_chosen", f"{who}/chosen")
    )
    return [Point(step, candidates, judge / count, audit / count)] if count else []


def drift(points: Sequence[Point], *, max_drop: float, patience: int) -> str:
    """Returns why judge and audit have diverged; empty if they have not.

    They have diverged if at each of the last `patience` audits the audit's score of the judge's
    best candidates was below its earlier maximum by more than `max_drop`, and the judge's own score
    did not fall by as much:

        min(fall, fall + rise) > max_drop

    fall = earlier maximum - now, of the audit's score; rise = now - then, of the judge's own score,
    both since the step of that maximum. Audits before a change in the number of candidates do not
    count: the best of more candidates scores higher.
    """
    same = [p for p in points if p.candidates == points[-1].candidates]
    if not 0 < patience < len(same):
        return ""
    for i in range(len(same) - patience, len(same)):
        now, best = same[i], max(same[:i], key=lambda p: p.audit)
        fall, rise = best.audit - now.audit, now.judge - best.judge
        if min(fall, fall + rise) <= max_drop:
            return ""
    return (
        f"the audit scores the judge's choice {now.audit:.3f}, at step {best.step} it scored it "
        f"{best.audit:.3f}; the judge scores it {now.judge:.3f} now, {best.judge:.3f} then"
    )


@dataclass(frozen=True)
class AuditConfig:
    """A held-out judge that scores some of the candidates before updates 1, 1 + every_steps, ...

    The run ends early if the score it gives to the first judge's choice keeps falling (`drift` in
    sip/judge/audit.py). Raises UserError for values out of range.
    """

    judge: judges.JudgeConfig
    every_steps: int = 0  # steps between two audits; 0: no audit
    prefixes: int = 8  # audited prefixes of a batch: the first ones
    max_drop: float = 0.1  # tolerated fall of the audit's mean score of the judge's choice
    patience: int = 3  # consecutive audits below that limit that end the run; 0: never end it

    def __post_init__(self):
        check(
            "audit",
            self,
            every_steps=at_least(0),
            prefixes=at_least(1),
            max_drop=at_least(0),
            patience=at_least(0),
        )

    @property
    def who(self) -> str:
        """The prefix of its metric names: audit, or audit_truth for backend truth."""
        return "audit_truth" if self.judge.backend == "truth" else "audit"

    def sources(self) -> dict[str, str]:
        """The runs or directories that this section reads, by config key."""
        found = self.judge.sources() if self.every_steps else {}
        return {f"audit.{key}": source for key, source in found.items()}

    def check(self, *, judged: bool, rewrite: bool, batch: int) -> None:
        """Raises UserError if the run has nothing to audit, or the audit's judge does not fit it.

        `judged`: the run has a judge. `rewrite`: its candidates include rewrites. `batch`: prefixes
        per step.
        """
        if not self.every_steps:
            return
        if not judged:
            raise UserError("audit.every_steps: this run has no judge to audit; set it to 0")
        if self.judge.own:
            raise UserError(
                "audit.judge.init_from: the policy is not a held-out judge; name another model"
            )
        if self.judge.reference == "rewrite" and not rewrite:
            raise UserError("audit.judge.reference: no rewrite is among the candidates; use suffix")
        if self.prefixes > batch:
            raise UserError(
                f"audit.prefixes must be at most the batch of {batch}, not {self.prefixes}"
            )


@dataclass(frozen=True)
class Audit:
    """The held-out judge of a run and its schedule."""

    config: AuditConfig
    judge: Judge

    def due(self, at: int) -> bool:
        """True if the candidates of update `at` + 1 are audited."""
        return at % self.config.every_steps == 0

    def figures(self, judged: Judged, prefixes, pool, references, most_invalid: float) -> Stats:
        """Audits the first prefixes of a judged batch. Returns the metrics of `compare`.

        Raises UserError if more than `most_invalid` of the audit's verdicts are invalid.
        """
        some = slice(self.config.prefixes)
        asked_BK = pool.valid_BK[some]
        found = self.judge.score(prefixes[some], pool.texts[some], references[some], asked_BK)
        key = "audit, candidates.max_invalid"
        judges.check_invalid(asked_BK, found.valid_BK, most_invalid, key, found.metrics)
        return compare(_rows(judged, some), found, pool.sources, who=self.config.who)


def _rows(judged: Judged, some: slice) -> Judged:
    """The verdicts on some of the prefixes."""
    aspects = {name: (x_BK[some], ok_BK[some]) for name, (x_BK, ok_BK) in judged.aspects.items()}
    return dataclasses.replace(
        judged, scores_BK=judged.scores_BK[some], valid_BK=judged.valid_BK[some], aspects=aspects
    )


def build(wanted: AuditConfig, workdir, truth, mesh, tokenizer, seed: int = 0) -> Audit | None:
    """Builds the audit of an `audit` section; None if `every_steps` is 0. Raises UserError."""
    if not wanted.every_steps:
        return None
    try:
        judge = judges.build(wanted.judge, workdir, truth, mesh, tokenizer, seed)
    except UserError as e:
        raise UserError(f"audit: {e}") from None
    return Audit(wanted, judge)


def kept(directory: str) -> list[Point]:
    """The audit points of a run so far, from its last checkpoint."""
    if not checkpoints.exists(directory):
        return []
    return [Point(**point) for point in checkpoints.record(directory)["audit"]]


def plain(points: Sequence[Point]) -> dict[str, list]:
    """Audit points as an entry of a checkpoint's record."""
    return {"audit": [dataclasses.asdict(point) for point in points]}


def new(wanted: AuditConfig, found: Stats, at: int, rollouts: int) -> list[Point]:
    """The audit point among the metrics of update `at` + 1; empty if it was not audited."""
    return point(found, at, rollouts, who=wanted.who)


def end(wanted: AuditConfig, points: Sequence[Point], done: int, steps: int) -> tuple[int, str]:
    """Returns (last step, reason): (done, why) if the run must end now, else (steps, "")."""
    reason = drift(points, max_drop=wanted.max_drop, patience=wanted.patience)
    return (done, reason) if reason and done < steps else (steps, "")
