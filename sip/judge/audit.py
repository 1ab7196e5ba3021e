"""A second judge beside the first: how far the two agree, and when they have drifted apart.

A policy learns what its judge likes, faults of the judge included. One that it does not learn from
goes on telling the difference (over-optimisation, arXiv 2210.10760).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sip.judge import build as judges
from sip.judge.judged import Judge, Judged
from sip.judge.voting import Stats
from sip.metrics import pair
from sip.structs import UserError
from sip.training import checkpoints

SAME = 1e-9  # scores this close are equal


def compare(judge: Judged, audit: Judged, sources: Sequence[str], *, who: str) -> Stats:
    """Figures of both on the same candidates, (total, denom); names begin with `who`.

    best[/aspect]: the judge's best is a best of the audit's too, where that has any preference.
    order[/aspect]: pairs that both put in the same order, of those that neither holds equal.
    chosen, judge_chosen: what the audit, and the judge itself, gives the judge's best.
    score/SOURCE, judge_score/SOURCE: what they give where both verdicts are valid.
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
    high_B1 = np.where(ok_BK, b_BK, -np.inf).max(1, keepdims=True)
    low_B1 = np.where(ok_BK, b_BK, np.inf).min(1, keepdims=True)
    at_BK = _best(a_BK, ok_BK) & (high_B1 - low_B1 > SAME)
    return pair(b_BK >= high_B1 - SAME, at_BK)


def _same_order(a_BK, b_BK, ok_BK):
    """Each pair of candidates once."""
    i_C, j_C = np.triu_indices(a_BK.shape[1], k=1)
    a_BC, b_BC = (x_BK[:, i_C] - x_BK[:, j_C] for x_BK in (a_BK, b_BK))
    told_BC = ok_BK[:, i_C] & ok_BK[:, j_C] & (abs(a_BC) > SAME) & (abs(b_BC) > SAME)
    return pair(a_BC * b_BC > 0, told_BC)


@dataclass(frozen=True)
class Point:
    """One audit: the mean score of the judge's choice, by itself and by the audit."""

    step: int
    candidates: int  # rollouts in the pool: scores in another pool are not comparable
    judge: float
    audit: float


def point(found: Mapping[str, tuple], step: int, candidates: int, *, who: str) -> list[Point]:
    """The audit among a step's figures; none where there was none that could be read."""
    (judge, count), (audit, _) = (
        found[key] if key in found else (0.0, 0.0)
        for key in (f"{who}/judge_chosen", f"{who}/chosen")
    )
    return [Point(step, candidates, judge / count, audit / count)] if count else []


def drift(points: Sequence[Point], *, max_drop: float, patience: int) -> str:
    """Why a policy no longer gets better by learning from its judge; empty while there is no sign.

    At each of the last `patience` audits the judge's choice was worth less to the audit than it was
    at its best before, by more than `max_drop`, and the judge's own score has not gone with it:

        min(fall, fall + rise) > max_drop

    where fall = best - audit, and rise is the change of the judge's own score since that best.
    Audits before a change in the number of rollouts do not count.
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
        f"to the audit the judge's choice is worth {now.audit:.3f}, at step {best.step} it was "
        f"{best.audit:.3f}; to the judge {now.judge:.3f} and {best.judge:.3f}"
    )


@dataclass(frozen=True)
class AuditConfig:
    """Before updates 1, 1 + every_steps, ... a second judge sees some of the same candidates; the
    run ends early where the first one's choice gets worse by it (sip/judge/audit.py)."""

    judge: judges.JudgeConfig
    every_steps: int = 0  # 0: never
    prefixes: int = 8  # of a batch
    max_drop: float = 0.1  # of the mean score of the judge's choice; aspects are summed
    patience: int = 3  # audits in a row that are worse than that; 0: the run is never ended

    def __post_init__(self):
        if min(self.every_steps, self.patience) < 0 or self.prefixes < 1 or self.max_drop < 0:
            raise UserError(
                "audit: every_steps, patience and max_drop must be at least 0, prefixes at least 1"
            )

    @property
    def who(self) -> str:
        """What its figures' names begin with: the ground truth is named."""
        return "audit_truth" if self.judge.backend == "truth" else "audit"

    def sources(self) -> dict[str, str]:
        """The run or directory that it needs, by the key that names it."""
        found = self.judge.sources() if self.every_steps else {}
        return {f"audit.{key}": source for key, source in found.items()}

    def check(self, *, judged: bool, rewrite: bool, batch: int) -> None:
        """Raises UserError where the run leaves nothing to audit."""
        if not self.every_steps:
            return
        if not judged:
            raise UserError("audit.every_steps: nothing is judged in this run")
        if self.judge.own:
            raise UserError("audit.judge.init_from: the policy itself is no judge that is held out")
        if self.judge.reference == "rewrite" and not rewrite:
            raise UserError("audit.judge.reference: there is no rewrite among the candidates")
        if self.prefixes > batch:
            raise UserError(f"audit.prefixes {self.prefixes}: a batch has {batch}")


@dataclass(frozen=True)
class Audit:
    """A judge to ask, and when."""

    config: AuditConfig
    judge: Judge

    def due(self, at: int) -> bool:
        """Whether the candidates of update at + 1 are audited."""
        return at % self.config.every_steps == 0

    def figures(self, judged: Judged, prefixes, pool, references, most_invalid: float) -> Stats:
        """Of the first prefixes of a batch, judged already."""
        some = slice(self.config.prefixes)
        asked_BK = pool.valid_BK[some]
        found = self.judge.score(prefixes[some], pool.texts[some], references[some], asked_BK)
        judges.check_invalid(
            asked_BK, found.valid_BK, most_invalid, "of the audit, candidates.max_invalid"
        )
        return compare(_rows(judged, some), found, pool.sources, who=self.config.who)


def _rows(judged: Judged, some: slice) -> Judged:
    aspects = {name: (x_BK[some], ok_BK[some]) for name, (x_BK, ok_BK) in judged.aspects.items()}
    return dataclasses.replace(
        judged, scores_BK=judged.scores_BK[some], valid_BK=judged.valid_BK[some], aspects=aspects
    )


def build(wanted: AuditConfig, workdir, truth, mesh, tokenizer, seed: int = 0) -> Audit | None:
    """The audit of the `audit` section; None where it is never asked."""
    if not wanted.every_steps:
        return None
    try:
        judge = judges.build(wanted.judge, workdir, truth, mesh, tokenizer, seed)
    except UserError as e:
        raise UserError(f"audit: {e}") from None
    return Audit(wanted, judge)


def kept(directory: str) -> list[Point]:
    """The audits of a run so far, from its last checkpoint."""
    if not checkpoints.exists(directory):
        return []
    return [Point(**point) for point in checkpoints.record(directory)["audit"]]


def plain(points: Sequence[Point]) -> dict[str, list]:
    """The same for a checkpoint's record."""
    return {"audit": [dataclasses.asdict(point) for point in points]}


def new(wanted: AuditConfig, found: Stats, at: int, rollouts: int) -> list[Point]:
    """The audit among the figures of update at + 1, if it had one."""
    return point(found, at, rollouts, who=wanted.who)


def end(wanted: AuditConfig, points: Sequence[Point], done: int, steps: int) -> tuple[int, str]:
    """(last step, reason): the step that was just done and why, or that of a whole run."""
    reason = drift(points, max_drop=wanted.max_drop, patience=wanted.patience)
    return (done, reason) if reason and done < steps else (steps, "")
