"""Later rounds of the adaptive schedule: compare where best and worst are still uncertain."""

import numpy as np

from sip.judge import bradley_terry
from sip.judge.compare import Table


def contested(table: Table, *, budget: float, part: float) -> np.ndarray:
    """Returns asked_BKK, the pairs to compare next, in both orders.

    Greedily takes the open pair with the highest

        log(1 + h V) * (best_i best_j + worst_i worst_j)

    V is the variance of the pair's difference in strength (inverse curvature of the Bradley-Terry
    fit) and h = p (1 - p) the information of a comparison. log(1 + h V) is twice the reduction of
    the strengths' entropy (Bayesian D-optimal design). best and worst are from `_contends`.
    Variances do not depend on outcomes, so a taken pair already counts as answered when the next
    one is chosen.

    `budget` is the share of all pairs to spend in total, `part` the share of what remains after the
    first round to have spent after this round.
    """
    strength_BK, precision_BKK = bradley_terry.fit(table.p_BKK, table.both_BKK)
    strength_BK = _settled(strength_BK)
    p_BKK, live_BK = bradley_terry.beats(strength_BK), table.live_BKK.any(-1)
    h_BKK, covariance_BKK = p_BKK * (1 - p_BKK), np.linalg.inv(precision_BKK)
    open_BKK, left_B = np.triu(table.live_BKK & ~table.asked_BKK), _left(table, budget, part)
    taken_BKK = np.zeros_like(open_BKK)
    for taken in range(left_B.max(initial=0)):
        variance_BKK = _variance(covariance_BKK)
        best_BK = _contends(strength_BK, variance_BKK, live_BK)
        worst_BK = _contends(-strength_BK, variance_BKK, live_BK)
        value_BKK = np.log1p(h_BKK * variance_BKK) * (_outer(best_BK) + _outer(worst_BK))
        pair_BKK = _highest(np.where(open_BKK, _settled(value_BKK), -1.0)) & open_BKK
        pair_BKK &= (taken < left_B)[:, None, None]
        covariance_BKK = _answered(covariance_BKK, h_BKK, pair_BKK)
        open_BKK, taken_BKK = open_BKK & ~pair_BKK, taken_BKK | pair_BKK
    return taken_BKK | taken_BKK.transpose(0, 2, 1)


def _left(table: Table, budget: float, part: float) -> np.ndarray:
    """left_B: number of pairs to ask now.

    The first round asked n pairs of n live candidates, or all pairs if there are fewer.
    """
    # 1e-9: a product that is an integer but for float rounding must not be floored below it.
    all_B, asked_B = (np.triu(x_BKK).sum((1, 2)) for x_BKK in (table.live_BKK, table.asked_BKK))
    first_B = np.minimum(table.live_BKK.any(-1).sum(1), all_B)
    spent_B = np.maximum(np.floor(budget * all_B + 1e-9), first_B)
    return (first_B + np.floor((spent_B - first_B) * part + 1e-9)).astype(int) - asked_B


def _contends(strength_BK, variance_BKK, live_BK):
    """Returns exp(-2 z**2), z being how many standard deviations a candidate is behind the leader.

    It is 1 for the leader and near 0 for a candidate that is surely behind. exp(-z**2 / 2) would
    bound twice the chance of being stronger; this sharper form agrees more often with comparing all
    pairs in simulation (`python -m sip.bench schedules`).
    """
    alive_BK = np.where(live_BK, strength_BK, -np.inf)
    leader_B11 = alive_BK.argmax(1)[:, None, None]
    variance_BK = np.take_along_axis(variance_BKK, leader_B11, axis=1)[:, 0]
    behind_BK = alive_BK.max(1, keepdims=True) - strength_BK
    return np.where(live_BK, np.exp(-2 * behind_BK**2 / np.maximum(variance_BK, 1e-300)), 0.0)


def _variance(covariance_BKK):
    """variance_BKK of the difference of two strengths, clipped at 0 against rounding."""
    own_BK = np.diagonal(covariance_BKK, axis1=1, axis2=2)
    return np.maximum(own_BK[:, :, None] + own_BK[:, None] - 2 * covariance_BKK, 0.0)


def _answered(covariance_BKK, h_BKK, pair_BKK):
    """Updates the covariance as if each row's pair, if any, were answered (Sherman-Morrison)."""
    sign_BK = pair_BKK.sum(2) - pair_BKK.sum(1)  # +1 at i, -1 at j of the pair; 0 without one
    x_BK = np.einsum("BIJ,BJ->BI", covariance_BKK, sign_BK)
    h_B = np.where(pair_BKK, h_BKK, 0.0).sum((1, 2))
    share_B = h_B / (1 + h_B * (sign_BK * x_BK).sum(1))
    return covariance_BKK - share_B[:, None, None] * _outer(x_BK)


def _settled(x):
    """Rounds off the digits that depend on the batch size, so that ties are broken by place."""
    return np.round(x, 8)


def _highest(value_BKK):
    """Marks the first of the highest entries of each row: [B, K, K] -> bool [B, K, K]."""
    flat_BN = value_BKK.reshape(len(value_BKK), -1)
    return (np.arange(flat_BN.shape[1]) == flat_BN.argmax(1)[:, None]).reshape(value_BKK.shape)


def _outer(x_BK):
    return x_BK[:, :, None] * x_BK[:, None]
