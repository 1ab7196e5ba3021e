"""How often fewer comparisons choose what all pairs would have chosen, with simulated judges.

A judge's verdicts on all ordered pairs are drawn once. The full ranking is the mean wins of all of
them; a schedule sees some, and its best and worst candidates are looked up in the full ranking.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sip.judge import schedules
from sip.judge.compare import Pairs, Wins
from sip.judge.schedules import ScheduleConfig

SAME = 1e-9  # scores this close are equal
LOGITS = 0.5  # deviation of what a judge's log-odds say of one comparison
BIAS = 1.0  # log-odds in favour of the candidate shown first
FLIPPED = 0.15


@dataclass(frozen=True)
class Simulated:
    """Qualities of candidates, and a judge that compares two of them."""

    quality: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]  # rng, (B, K)
    judge: Callable[[np.random.Generator, np.ndarray], np.ndarray]  # rng, first - second

    def verdicts(self, rng: np.random.Generator, quality_BK: np.ndarray) -> np.ndarray:
        """outcome_BKK: P(first is better), [b, i, j] with i shown first."""
        return self.judge(rng, quality_BK[:, :, None] - quality_BK[:, None])


def _normal(rng, shape):
    return rng.normal(0, 2, shape)


def _levels(rng, shape):
    return rng.integers(0, 4, shape).astype(float)


def _sure(rng, gap):
    """1, 0, or 1/2 for equals."""
    del rng
    return np.where(gap == 0, 0.5, gap > 0)


def _calibrated(rng, gap, bias=0.0):
    return 1 / (1 + np.exp(-gap - bias - LOGITS * rng.normal(size=gap.shape)))


def _biased(rng, gap):
    return _calibrated(rng, gap, BIAS)


def _drawn(rng, gap):
    """Won or lost by chance; wrong in about 17 of 100, mostly where candidates are near."""
    return (rng.random(gap.shape) < 1 / (1 + np.exp(-gap))).astype(float)


def _flipped(rng, gap):
    """Won or lost, and wrong in 15 of 100, however far apart the candidates are."""
    return ((gap > 0) != (rng.random(gap.shape) < FLIPPED)).astype(float)


JUDGES = {
    "calibrated": Simulated(_normal, _calibrated),
    "biased": Simulated(_normal, _biased),
    "drawn": Simulated(_normal, _drawn),
    "flipped": Simulated(_normal, _flipped),
    "ties": Simulated(_levels, _sure),
    "noisy ties": Simulated(_levels, _calibrated),
}


def measure(
    simulated: Simulated,
    wanted: dict[str, ScheduleConfig],
    *,
    prefixes: int,
    candidates: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Figures of each schedule on the same verdicts; and of `again`, all pairs asked once more."""
    rng = np.random.default_rng(seed)
    quality_BK = simulated.quality(rng, (prefixes, candidates))
    outcome_BKK, again_BKK = (simulated.verdicts(rng, quality_BK) for _ in range(2))
    draw_BK2 = rng.random((*quality_BK.shape, 2))
    full_BK = _play(ScheduleConfig("all"), outcome_BKK, draw_BK2).score_BK
    found = {name: _play(cfg, outcome_BKK, draw_BK2) for name, cfg in wanted.items()}
    found["again"] = _play(ScheduleConfig("all"), again_BKK, draw_BK2)
    return {name: figures(wins, full_BK) for name, wins in found.items()}


def _play(cfg: ScheduleConfig, outcome_BKK, draw_BK2) -> Wins:
    rows_B1 = np.arange(len(outcome_BKK))[:, None]

    def ask(pairs: Pairs):
        return outcome_BKK[rows_B1, pairs.first_BC, pairs.second_BC], pairs.mask_BC

    return schedules.play(cfg, ask, np.ones(draw_BK2.shape[:2], bool), draw_BK2)


def figures(wins: Wins, full_BK: np.ndarray) -> dict[str, float]:
    """Cost, and what the full ranking says of the best and the worst by `wins`.

    `chosen`: the best is among the full ranking's top 2, equals of the second included; `rejected`:
    the worst is among its bottom 2; `agree`: both. Regrets are in mean wins, from the full best
    and from the full worst.
    """
    at_B1 = lambda index_B: np.take_along_axis(full_BK, index_B[:, None], axis=1)[:, 0]
    ranked_BK = np.sort(full_BK, axis=1)
    best_B, worst_B = at_B1(wins.score_BK.argmax(1)), at_B1(wins.score_BK.argmin(1))
    chosen_B, rejected_B = best_B >= ranked_BK[:, -2] - SAME, worst_B <= ranked_BK[:, 1] + SAME
    return {
        "comparisons": wins.comparisons[0] / wins.comparisons[1],
        "share": wins.share[0] / wins.share[1],
        "agree": float((chosen_B & rejected_B).mean()),
        "chosen": float(chosen_B.mean()),
        "rejected": float(rejected_B.mean()),
        "regret_chosen": float((ranked_BK[:, -1] - best_B).mean()),
        "regret_rejected": float((worst_B - ranked_BK[:, 0]).mean()),
    }
