"""Which candidates are compared, and what the outcomes say of each."""

from dataclasses import dataclass
from typing import Any

import numpy as np

Pair = tuple[float, float]  # (total, denom)
TIE = 0.05  # an averaged outcome this close to 1/2 is counted as a tie


@dataclass(frozen=True)
class Pairs:
    """Ordered comparisons per prefix: indices of the candidates shown first and second."""

    first_BC: np.ndarray
    second_BC: np.ndarray
    mask_BC: np.ndarray  # left aligned


@dataclass(frozen=True)
class Wins:
    """Mean wins of each candidate, and how sound the comparisons were."""

    score_BK: np.ndarray
    valid_BK: np.ndarray
    flips: Pair  # pairs whose two orders name different winners
    ties: Pair  # pairs whose two orders average to a draw
    first: Pair  # P(first is better) over all comparisons: 1/2 without position bias


def all_pairs(mask_BK: np.ndarray) -> Pairs:
    """Every ordered pair of different live candidates, padded to C = K * (K - 1)."""
    K = mask_BK.shape[1]
    first_C, second_C = np.nonzero(~np.eye(K, dtype=bool))
    live_BC = mask_BK[:, first_C] & mask_BK[:, second_C]
    order_BC = np.argsort(~live_BC, axis=1, kind="stable")
    live_BC = np.take_along_axis(live_BC, order_BC, axis=1)
    return Pairs(first_C[order_BC], second_C[order_BC], live_BC)


def mean_wins(
    outcome_BC: np.ndarray, valid_BC: np.ndarray, pairs: Pairs, K: int, *, hard: bool = False
) -> Wins:
    """Each candidate's mean outcome over its opponents, both orders averaged.

    `outcome_BC` is P(first is better); `hard` rounds it to 0, 1/2 or 1 first, so that orders that
    disagree make a tie. A pair counts only where both orders are valid. A candidate is valid where
    more than half of its live opponents were so compared: otherwise its mean is over whom chance
    left. Hence a candidate without opponents is invalid: nothing was compared.
    """
    outcome_BC = np.where(outcome_BC == 0.5, 0.5, outcome_BC > 0.5) if hard else outcome_BC
    used_BC = pairs.mask_BC & valid_BC
    win_BKK = _square(np.where(used_BC, outcome_BC, 0.0), pairs, K)
    seen_BKK = _square(used_BC, pairs, K)
    asked_BKK = _square(pairs.mask_BC, pairs, K)
    both_BKK = seen_BKK & seen_BKK.transpose(0, 2, 1)
    p_BKK = (win_BKK + 1.0 - win_BKK.transpose(0, 2, 1)) / 2
    count_BK = both_BKK.sum(-1)
    score_BK = np.where(both_BKK, p_BKK, 0.0).sum(-1) / np.maximum(count_BK, 1)
    valid_BK = 2 * count_BK > asked_BKK.sum(-1)
    return Wins(
        np.where(valid_BK, score_BK, 0.0),
        valid_BK,
        flips=_share(_flipped(win_BKK), both_BKK),
        ties=_share(abs(p_BKK - 0.5) < TIE, both_BKK),
        first=(float(win_BKK[seen_BKK].sum()), float(seen_BKK.sum())),
    )


def _square(x_BC, pairs, K) -> Any:
    """x_BKK with [b, i, j] = the entry of x_BC that shows i first and j second."""
    x_BKK = np.zeros((len(x_BC), K, K), x_BC.dtype)
    x_BKK[np.arange(len(x_BC))[:, None], pairs.first_BC, pairs.second_BC] = x_BC
    return x_BKK


def _flipped(win_BKK):
    """Where a win shown first is a loss (or a win a loss) shown second."""
    return (win_BKK - 0.5) * (win_BKK.transpose(0, 2, 1) - 0.5) > 0


def _share(x_BKK, both_BKK) -> Pair:
    """Unordered pairs: both orders say the same, so each is counted half."""
    return float((x_BKK & both_BKK).sum()) / 2, float(both_BKK.sum()) / 2
