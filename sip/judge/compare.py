"""Tables of pairwise comparisons, and each candidate's mean wins computed from them."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sip.judge import bradley_terry
from sip.metrics import pair

Pair = tuple[float, float]  # (total, denom)
DRAWN = 0.02  # weight of the prior of predicted outcomes, as a share of a candidate's comparisons
TIE = (
    0.05  # a pair's averaged outcome closer to 1/2 than this counts as a tie (in the metrics only)
)


@dataclass(frozen=True)
class Pairs:
    """C ordered comparisons for each of B prefixes."""

    first_BC: np.ndarray  # index of the candidate shown first
    second_BC: np.ndarray  # index of the candidate shown second
    mask_BC: np.ndarray  # comparisons to make, left aligned


@dataclass(frozen=True)
class Table:
    """The comparisons so far: entry [b, i, j] is the one that shows i first and j second."""

    live_BKK: np.ndarray  # i and j are different live candidates
    asked_BKK: np.ndarray  # the judge was asked
    seen_BKK: np.ndarray  # the judge was asked and its verdict is valid
    win_BKK: np.ndarray  # P(i is better) with i shown first; 0 if not seen

    @property
    def both_BKK(self) -> Any:
        """True for pairs that were seen in both orders; symmetric."""
        return self.seen_BKK & self.seen_BKK.transpose(0, 2, 1)

    @property
    def p_BKK(self) -> Any:
        """P(i beats j), averaged over both orders; meaningful only under `both_BKK`."""
        return (self.win_BKK + 1.0 - self.win_BKK.transpose(0, 2, 1)) / 2


@dataclass(frozen=True)
class Wins:
    """Mean wins of each candidate, and metrics of the comparisons as (total, denom) pairs."""

    score_BK: np.ndarray  # mean wins in 0..1; 0 if not valid
    valid_BK: np.ndarray
    invalid: Pair  # share of comparisons without a valid verdict
    flips: Pair  # share of pairs whose two orders name different winners
    ties: Pair  # share of pairs whose two orders average to a tie
    first: Pair  # mean P(first is better) over all comparisons: 1/2 without position bias
    comparisons: Pair  # comparisons per prefix, both orders counted
    share: Pair  # share of the possible comparisons that was asked
    # invalid, flips, ties per candidate as (total_BK, denom_BK); a pair counts half for each of its
    # two candidates, so that sums over candidates are the totals above
    each: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


def empty(mask_BK: np.ndarray) -> Table:
    """A table without comparisons. `mask_BK` marks the live candidates."""
    K = mask_BK.shape[1]
    live_BKK = mask_BK[:, :, None] & mask_BK[:, None] & ~np.eye(K, dtype=bool)
    none_BKK = np.zeros(live_BKK.shape, bool)
    return Table(live_BKK, none_BKK, none_BKK, np.zeros(live_BKK.shape))


def pairs_of(asked_BKK: np.ndarray, width: int | None = None) -> Pairs:
    """Lists the comparisons marked in `asked_BKK`, padded to C = K * (K - 1).

    With `width`: to C = `width`, or to the largest number of comparisons of a row if that is more.
    """
    K = asked_BKK.shape[1]
    first_C, second_C = np.nonzero(~np.eye(K, dtype=bool))
    asked_BC = asked_BKK[:, first_C, second_C]
    order_BC = np.argsort(~asked_BC, axis=1, kind="stable")  # left aligns, keeps the order
    asked_BC = np.take_along_axis(asked_BC, order_BC, axis=1)
    if width is not None:
        C = max(width, int(asked_BC.sum(1).max(initial=0)))
        order_BC, asked_BC = order_BC[:, :C], asked_BC[:, :C]
    return Pairs(first_C[order_BC], second_C[order_BC], asked_BC)


def all_pairs(mask_BK: np.ndarray) -> Pairs:
    """Lists every ordered pair of different live candidates."""
    return pairs_of(empty(mask_BK).live_BKK)


def enter(table: Table, pairs: Pairs, outcome_BC: np.ndarray, valid_BC: np.ndarray) -> Table:
    """Returns the table with a round's outcomes added.

    `outcome_BC` is P(first is better). An invalid outcome counts as asked, but not as seen. The two
    orders of a pair are averaged later: if they name different winners, the pair is a tie.
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
    """Scores each candidate by its mean outcome over the opponents it met, both orders averaged.

    A pair counts only if both of its orders are valid. A candidate is valid if more than half of
    its asked pairs count; with fewer, its mean depends on which verdicts happened to be readable.
    A candidate without opponents is therefore invalid here.
    """
    both_BKK = table.both_BKK
    score_BK = _mean(table.p_BKK, both_BKK)
    return _wins(table, score_BK, 2 * both_BKK.sum(-1) > table.asked_BKK.sum(-1))


def expected_wins(table: Table) -> Wins:
    """Scores each candidate by its mean win over all others, including those it did not meet.

    A seen pair counts with its outcome, any other pair with the prediction of Bradley-Terry
    strengths (sip/judge/bradley_terry.py). If every pair was seen, this equals `mean_wins`. Without
    the fit's prior the predictions alone would give the same mean: at the maximum of the likelihood
    a candidate's predicted wins over the opponents it met equal its actual wins. So the prior is a
    small, fixed share of the comparisons: the same prior for few and for many would draw the scores
    of few towards 1/2, and their aspect would weigh less beside the others.

    A candidate is valid if at least half of its asked pairs were seen in both orders, and if seen
    pairs connect it to more than half of the live candidates, itself included. Strengths in
    components that never met cannot be compared. Unlike a mean, a strength is not biased by which
    opponents a candidate happened to meet, so half of the pairs is enough.
    """
    both_BKK = table.both_BKK
    strength_BK, _ = bradley_terry.fit(table.p_BKK, both_BKK, _prior(table))
    linked_BK = _linked(table)
    p_BKK = np.where(both_BKK, table.p_BKK, bradley_terry.beats(strength_BK))
    score_BK = _mean(p_BKK, table.live_BKK & linked_BK[:, :, None] & linked_BK[:, None])
    enough_BK = 2 * both_BKK.sum(-1) >= table.asked_BKK.sum(-1)
    return _wins(table, score_BK, enough_BK & linked_BK)


def _prior(table: Table):
    """prior_B1 of the fit, in comparisons: DRAWN times their mean number per live candidate."""
    met_BK = table.both_BKK.sum(-1)
    live_B1 = table.live_BKK.any(-1).sum(1, keepdims=True)
    met_B1 = met_BK.sum(1, keepdims=True) / np.maximum(live_B1, 1)
    return np.where(met_B1 > 0, DRAWN * met_B1, bradley_terry.PRIOR)  # the fit needs some


def _linked(table: Table):
    """linked_BK: seen pairs connect this candidate to more than half of the live candidates."""
    K = table.live_BKK.shape[1]
    both_BKK = table.both_BKK
    reach_BKK = both_BKK | np.eye(K, dtype=bool)
    # Squaring the reachability matrix doubles the path length; float32 makes it a fast matmul.
    for _ in range(K.bit_length()):
        reach_BKK = (reach_BKK.astype(np.float32) @ reach_BKK.astype(np.float32)) > 0
    live_B1 = table.live_BKK.any(-1).sum(1, keepdims=True)
    return both_BKK.any(-1) & (2 * reach_BKK.sum(-1) > live_B1)


def _mean(p_BKK, mask_BKK):
    """Mean of p_BKK over the opponents under the mask: [B, K], 0 without any."""
    return np.where(mask_BKK, p_BKK, 0.0).sum(-1) / np.maximum(mask_BKK.sum(-1), 1)


def _wins(table: Table, score_BK, valid_BK) -> Wins:
    """The scores with the metrics of the table's comparisons."""
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
    """Metrics per candidate; their sums over all candidates are the totals of `Wins`."""
    halves = lambda x_BKK: (x_BKK.sum(1) + x_BKK.sum(2)) / 2
    both_BKK, asked_BKK = np.triu(table.both_BKK), table.asked_BKK
    pairs = lambda x_BKK: (halves(x_BKK & both_BKK), halves(both_BKK))
    return {
        "invalid": (halves(asked_BKK & ~table.seen_BKK), halves(asked_BKK)),
        "flips": pairs(_flipped(table.win_BKK)),
        "ties": pairs(_tied(table)),
    }


def _square(x_BC, pairs: Pairs, shape) -> Any:
    """Scatters x_BC to x_BKK: entry [b, i, j] is that of the comparison that shows i first."""
    x_BKK = np.zeros(shape, x_BC.dtype)
    x_BKK[np.arange(len(x_BC))[:, None], pairs.first_BC, pairs.second_BC] = x_BC
    return x_BKK


def _tied(table: Table):
    """Marks pairs whose two orders average to a tie."""
    return abs(table.p_BKK - 0.5) < TIE


def _flipped(win_BKK):
    """Marks pairs whose winner depends on the order.

    win_BKK is P(shown first is better), so the same position wins in both orders.
    """
    return (win_BKK - 0.5) * (win_BKK.transpose(0, 2, 1) - 0.5) > 0


def _share(x_BKK, both_BKK) -> Pair:
    """(total, denom) over unordered pairs: each occurs in both orders, so an entry counts half."""
    return float((x_BKK & both_BKK).sum()) / 2, float(both_BKK.sum()) / 2
