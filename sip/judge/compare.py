"""Pairs of candidates, what is known of them, and what that says of each candidate."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sip.judge import bradley_terry
from sip.metrics import pair

Pair = tuple[float, float]  # (total, denom)
TIE = 0.05  # an averaged outcome this close to 1/2 is counted as a tie


@dataclass(frozen=True)
class Pairs:
    """Ordered comparisons per prefix: indices of the candidates shown first and second."""

    first_BC: np.ndarray
    second_BC: np.ndarray
    mask_BC: np.ndarray  # left aligned


@dataclass(frozen=True)
class Table:
    """What was asked and answered: [b, i, j] is the comparison that shows i first, j second."""

    live_BKK: np.ndarray  # different live candidates
    asked_BKK: np.ndarray
    seen_BKK: np.ndarray  # asked, and the verdict is valid
    win_BKK: np.ndarray  # P(first is better), 0 where not seen

    @property
    def both_BKK(self) -> Any:
        """Whether a pair was seen in both orders."""
        return self.seen_BKK & self.seen_BKK.transpose(0, 2, 1)

    @property
    def p_BKK(self) -> Any:
        """P(i beats j), both orders averaged; of use where both were seen."""
        return (self.win_BKK + 1.0 - self.win_BKK.transpose(0, 2, 1)) / 2


@dataclass(frozen=True)
class Wins:
    """Mean wins of each candidate, what they cost, and how sound the comparisons were."""

    score_BK: np.ndarray
    valid_BK: np.ndarray
    invalid: Pair  # comparisons without a valid verdict
    flips: Pair  # pairs whose two orders name different winners
    ties: Pair  # pairs whose two orders average to a draw
    first: Pair  # P(first is better) over all comparisons: 1/2 without position bias
    comparisons: Pair  # per prefix, both orders counted
    share: Pair  # of all that could be asked
    # invalid, flips, ties of each candidate, (total_BK, denom_BK): what two share is half of each
    each: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


def empty(mask_BK: np.ndarray) -> Table:
    """Nothing asked yet of the live candidates."""
    K = mask_BK.shape[1]
    live_BKK = mask_BK[:, :, None] & mask_BK[:, None] & ~np.eye(K, dtype=bool)
    none_BKK = np.zeros(live_BKK.shape, bool)
    return Table(live_BKK, none_BKK, none_BKK, np.zeros(live_BKK.shape))


def pairs_of(asked_BKK: np.ndarray) -> Pairs:
    """The comparisons marked in `asked_BKK`, padded to C = K * (K - 1)."""
    K = asked_BKK.shape[1]
    first_C, second_C = np.nonzero(~np.eye(K, dtype=bool))
    asked_BC = asked_BKK[:, first_C, second_C]
    order_BC = np.argsort(~asked_BC, axis=1, kind="stable")
    asked_BC = np.take_along_axis(asked_BC, order_BC, axis=1)
    return Pairs(first_C[order_BC], second_C[order_BC], asked_BC)


def all_pairs(mask_BK: np.ndarray) -> Pairs:
    """Every ordered pair of different live candidates."""
    return pairs_of(empty(mask_BK).live_BKK)


def enter(table: Table, pairs: Pairs, outcome_BC: np.ndarray, valid_BC: np.ndarray) -> Table:
    """The table with a round's outcomes, P(first is better); invalid ones were asked, not seen.

    Both orders of a pair are averaged: where one says that the first is better and the other that
    the second is, it is a tie.
    """
    used_BC = pairs.mask_BC & valid_BC
    win_BKK = _square(np.where(used_BC, outcome_BC, 0.0), pairs, table.live_BKK.shape)
    return Table(
        table.live_BKK,
        table.asked_BKK | _square(pairs.mask_BC, pairs, table.live_BKK.shape),
        table.seen_BKK | _square(used_BC, pairs, table.live_BKK.shape),
        table.win_BKK + win_BKK,
    )


def mean_wins(table: Table) -> Wins:
    """Each candidate's mean outcome over the opponents that it met, both orders averaged.

    A pair counts only where both orders are valid. A candidate is valid where more than half of
    the opponents that it was to meet were so compared: otherwise its mean is over whom chance
    left. Hence a candidate without opponents is invalid here: nothing was compared.
    """
    both_BKK = table.both_BKK
    score_BK = _mean(table.p_BKK, both_BKK)
    return _wins(table, score_BK, 2 * both_BKK.sum(-1) > table.asked_BKK.sum(-1))


def expected_wins(table: Table) -> Wins:
    """Each candidate's mean win over all others, whether it met them or not.

    An outcome that was seen stands for itself, any other is what Bradley-Terry strengths expect
    (sip/judge/strengths.py). With every pair seen this is `mean_wins` exactly. Without the fit's
    prior it would be the mean of the expectations alone: where the likelihood is highest, the wins
    expected of a candidate over those it met are the wins it had.

    A candidate is valid where at least half of the opponents that it was to meet were so compared,
    and pairs that were seen link it to more than half of the candidates, itself included: strengths
    in parts that never met cannot be compared. Who was met by chance biases no strength.
    """
    both_BKK = table.both_BKK
    strength_BK, _ = bradley_terry.fit(table.p_BKK, both_BKK)
    linked_BK = _linked(table)
    p_BKK = np.where(both_BKK, table.p_BKK, bradley_terry.beats(strength_BK))
    score_BK = _mean(p_BKK, table.live_BKK & linked_BK[:, :, None] & linked_BK[:, None])
    enough_BK = 2 * both_BKK.sum(-1) >= table.asked_BKK.sum(-1)
    return _wins(table, score_BK, enough_BK & linked_BK)


def _linked(table: Table):
    """linked_BK: seen pairs lead from here to more than half of the live candidates."""
    K = table.live_BKK.shape[1]
    both_BKK = table.both_BKK
    reach_BKK = both_BKK | np.eye(K, dtype=bool)
    for _ in range(K.bit_length()):
        reach_BKK = (reach_BKK.astype(np.float32) @ reach_BKK.astype(np.float32)) > 0
    live_B1 = table.live_BKK.any(-1).sum(1, keepdims=True)
    return both_BKK.any(-1) & (2 * reach_BKK.sum(-1) > live_B1)


def _mean(p_BKK, mask_BKK):
    return np.where(mask_BKK, p_BKK, 0.0).sum(-1) / np.maximum(mask_BKK.sum(-1), 1)


def _wins(table: Table, score_BK, valid_BK) -> Wins:
    both_BKK, asked = table.both_BKK, float(table.asked_BKK.sum())
    return Wins(
        np.where(valid_BK, score_BK, 0.0),
        valid_BK,
        invalid=(float((table.asked_BKK & ~table.seen_BKK).sum()), asked),
        flips=_share(_flipped(table.win_BKK), both_BKK),
        ties=_share(_tied(table), both_BKK),
        first=pair(table.win_BKK, table.seen_BKK),
        comparisons=(asked, float(len(score_BK))),
        share=(asked, float(table.live_BKK.sum())),
        each=_each(table),
    )


def _each(table: Table) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each candidate; over all of them the sums are those of `Wins`."""
    halves = lambda x_BKK: (x_BKK.sum(1) + x_BKK.sum(2)) / 2
    both_BKK, asked_BKK = np.triu(table.both_BKK), table.asked_BKK
    pairs = lambda x_BKK: (halves(x_BKK & both_BKK), halves(both_BKK))
    return {
        "invalid": (halves(asked_BKK & ~table.seen_BKK), halves(asked_BKK)),
        "flips": pairs(_flipped(table.win_BKK)),
        "ties": pairs(_tied(table)),
    }


def _square(x_BC, pairs: Pairs, shape) -> Any:
    """x_BKK with [b, i, j] = the entry of x_BC that shows i first and j second."""
    x_BKK = np.zeros(shape, x_BC.dtype)
    x_BKK[np.arange(len(x_BC))[:, None], pairs.first_BC, pairs.second_BC] = x_BC
    return x_BKK


def _tied(table: Table):
    """Where both orders average to a draw."""
    return abs(table.p_BKK - 0.5) < TIE


def _flipped(win_BKK):
    """Where a win shown first is a loss (or a win a loss) shown second."""
    return (win_BKK - 0.5) * (win_BKK.transpose(0, 2, 1) - 0.5) > 0


def _share(x_BKK, both_BKK) -> Pair:
    """Unordered pairs: both orders say the same, so each is counted half."""
    return float((x_BKK & both_BKK).sum()) / 2, float(both_BKK.sum()) / 2
