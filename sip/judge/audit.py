"""A second judge beside the first: how far the two agree, and when they have drifted apart.

A policy learns what its judge likes, faults of the judge included. One that it does not learn from
goes on telling the difference (over-optimisation, arXiv 2210.10760).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sip.judge.scoring import Judged, Stats

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
        found[f"{who}/{prefix}chosen"] = _mean(view.scores_BK, best_BK)
        for source in dict.fromkeys(sources):
            of_BK = both_BK & np.array([s == source for s in sources])
            found[f"{who}/{prefix}score/{source}"] = _mean(view.scores_BK, of_BK)
    return found


def _best(x_BK, ok_BK):
    """Marks the first of the highest valid entries of each row."""
    best_B1 = np.where(ok_BK, x_BK, -np.inf).argmax(1)[:, None]
    return ok_BK & (np.arange(x_BK.shape[1]) == best_B1)


def _same_best(a_BK, b_BK, ok_BK):
    high_B1 = np.where(ok_BK, b_BK, -np.inf).max(1, keepdims=True)
    low_B1 = np.where(ok_BK, b_BK, np.inf).min(1, keepdims=True)
    at_BK = _best(a_BK, ok_BK) & (high_B1 - low_B1 > SAME)
    return float((at_BK & (b_BK >= high_B1 - SAME)).sum()), float(at_BK.sum())


def _same_order(a_BK, b_BK, ok_BK):
    """Each pair of candidates once."""
    i_C, j_C = np.triu_indices(a_BK.shape[1], k=1)
    a_BC, b_BC = (x_BK[:, i_C] - x_BK[:, j_C] for x_BK in (a_BK, b_BK))
    told_BC = ok_BK[:, i_C] & ok_BK[:, j_C] & (abs(a_BC) > SAME) & (abs(b_BC) > SAME)
    return float((told_BC & (a_BC * b_BC > 0)).sum()), float(told_BC.sum())


def _mean(x_BK, ok_BK):
    return float(x_BK[ok_BK].sum()), float(ok_BK.sum())


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
