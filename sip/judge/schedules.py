"""Schedules choose the pairs of candidates that a judge compares.

A schedule compares all pairs, or a subset; Bradley-Terry strengths then predict the other pairs. It
asks in rounds. A round is one call for all B prefixes, with both orders of each pair. A score is a
candidate's mean win over all other candidates, except under `against`: there it is the win over the
first candidate, and the first candidate's score is its mean win over all others. Scores have one
scale under all the others: an increase of 0.1 if all pairs are compared is one of 0.09 to 0.1 if
few are, for a judge that answers in probabilities. For one that answers 0 or 1 with errors, scores
of two comparisons spread 8 to 27 % wider, as their noise is larger.

Random numbers are hashes of the texts: a judge does not know the training step, and a resumed run
shows it the same texts. Candidates are first sorted by their random numbers, so their order in the
pool has no effect, except that it selects the pivot of `against` and of `pivot: first`.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sip.judge import adaptive, compare
from sip.judge.compare import Pairs, Table, Wins
from sip.sections import above, at_least, check, one_of

NAMES = ("all", "pivot", "random", "adaptive", "against")
PIVOTS = ("first", "drawn")
Ask = Callable[[Pairs], tuple[np.ndarray, np.ndarray]]  # -> outcome_BC, valid_BC


@dataclass(frozen=True)
class ScheduleConfig:
    """The subset of the K (K - 1) / 2 pairs of K candidates that is compared. Raises UserError.

    all: every pair. pivot: every candidate against one pivot, other pairs predicted. random: every
    candidate against `opponents` others. adaptive: K pairs in the first round (each candidate
    against two others), then the pairs that help most to find the best and the worst candidate.
    against: every candidate against the first one, which alone decides its score.
    """

    name: str = "all"  # all | pivot | random | adaptive | against
    pivot: str = "first"  # pivot: first (first live candidate: the suffix, if in the pool) | drawn
    opponents: int = 4  # random: number of opponents of each candidate
    budget: float = 0.25  # adaptive: compared share of all pairs, in (0, 1]; at least K pairs
    rounds: int = 5  # adaptive: number of calls of the judge

    def __post_init__(self):
        check(
            "schedule",
            self,
            name=one_of(NAMES),
            pivot=one_of(PIVOTS),
            opponents=at_least(2),
            budget=above(0, most=1),
            rounds=at_least(2),
        )

    @property
    def repeats(self) -> bool:
        """True if the schedule has several rounds, all with the same prefixes."""
        return self.name == "adaptive"


def draws(prefixes: Sequence[str], candidates: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns draw_BK2: two numbers in [0, 1) per candidate, hashed from prefix and text."""
    found = bytearray()
    for prefix, texts in zip(prefixes, candidates, strict=True):
        known = hashlib.blake2b(prefix.encode(errors="surrogatepass") + b"\0", digest_size=16)
        for text in texts:
            own = known.copy()
            own.update(text.encode(errors="surrogatepass"))
            found += own.digest()
    bits = np.frombuffer(bytes(found), "<u8").reshape(len(prefixes), -1, 2)
    return (bits >> np.uint64(11)) / 2.0**53  # 53 bits: all that a float64 in [0, 1) can hold


def play(cfg: ScheduleConfig, ask: Ask, mask_BK: np.ndarray, draw_BK2: np.ndarray) -> Wins:
    """Runs all rounds of a schedule and returns each candidate's mean wins.

    `ask(pairs)` returns (outcome_BC, valid_BC) of a round, outcome_BC being P(first is better).
    `mask_BK` marks live candidates; `draw_BK2` has two numbers in [0, 1) per candidate (see
    `draws`). The only live candidate of a row gets a valid score of 1/2: its duplicates were merged
    into it, and it would tie with them.
    """
    if cfg.name == "all":
        pairs, table = compare.all_pairs(mask_BK), compare.empty(mask_BK)
        wins = compare.mean_wins(compare.enter(table, pairs, *ask(pairs)))
        return _with_alone(wins, mask_BK)
    # From here on candidates are in the order of their first draw, live ones first; `at_BK` has
    # their original places. `ask` gets original places, and the scores are put back at the end.
    at_BK = np.argsort(np.where(mask_BK, draw_BK2[..., 0], np.inf), axis=1, kind="stable")
    place = lambda x_B, i_B: np.take_along_axis(x_B, i_B, axis=1)
    table = compare.empty(place(mask_BK, at_BK))
    rounds = _rounds(cfg, at_BK, place(draw_BK2[..., 1], at_BK))
    for choose, width in zip(rounds, widths(cfg, mask_BK.shape[1]), strict=True):
        pairs = compare.pairs_of(choose(table), width)
        if not pairs.mask_BC.any():
            continue
        shown = Pairs(place(at_BK, pairs.first_BC), place(at_BK, pairs.second_BC), pairs.mask_BC)
        table = compare.enter(table, pairs, *ask(shown))
    score = compare.mean_wins if cfg.name == "against" else compare.expected_wins
    wins, back_BK = score(table), np.argsort(at_BK, axis=1)
    each = {k: (place(x, back_BK), place(n, back_BK)) for k, (x, n) in wins.each.items()}
    wins = dataclasses.replace(
        wins,
        score_BK=place(wins.score_BK, back_BK),
        valid_BK=place(wins.valid_BK, back_BK),
        each=each,
    )
    return _with_alone(wins, mask_BK)


@functools.cache
def widths(cfg: ScheduleConfig, K: int) -> tuple[int, ...]:
    """Returns the number of comparisons in each round if all of K candidates are live.

    Rows with dead candidates have less, apart from rounding: an adaptive round takes a rounded
    share of the budget.
    """
    mask_1K = np.ones((1, K), bool)
    table, place_1K = compare.empty(mask_1K), np.arange(K)[None]
    if cfg.name == "all":
        return (K * (K - 1),)
    found = []
    for choose in _rounds(cfg, place_1K, place_1K / K):
        pairs = compare.pairs_of(choose(table))
        found.append(int(pairs.mask_BC.sum()))
        table = compare.enter(table, pairs, np.full(pairs.mask_BC.shape, 0.5), pairs.mask_BC)
    return tuple(found)


def _with_alone(wins: Wins, mask_BK) -> Wins:
    """Sets a valid score of 1/2 for the only live candidate of a row."""
    alone_BK = mask_BK & (mask_BK.sum(1, keepdims=True) == 1)
    score_BK = np.where(alone_BK, 0.5, wins.score_BK)
    return dataclasses.replace(wins, score_BK=score_BK, valid_BK=wins.valid_BK | alone_BK)


def _rounds(cfg: ScheduleConfig, at_BK, number_BK) -> list[Callable[[Table], np.ndarray]]:
    """One function per round, from the table so far to asked_BKK, the pairs to compare."""
    if cfg.name in ("pivot", "against"):
        first = cfg.name == "against" or cfg.pivot == "first"
        pivot_BK = at_BK if first else np.arange(at_BK.shape[1])[None]
        return [lambda table: _star(table, pivot_BK)]
    opponents = cfg.opponents if cfg.name == "random" else 2
    once = [lambda table: _circle(table, number_BK, opponents)]
    if cfg.name == "random":
        return once
    parts = np.arange(1, cfg.rounds) / (cfg.rounds - 1)
    return once + [
        functools.partial(adaptive.contested, budget=cfg.budget, part=part) for part in parts
    ]


def _star(table: Table, rank_BK):
    """Pairs of every candidate with the live candidate of the lowest rank, the pivot."""
    rank_BK = np.where(table.live_BKK.any(-1), rank_BK, rank_BK.size)
    pivot_BK = rank_BK == rank_BK.min(1, keepdims=True)
    return table.live_BKK & (pivot_BK[:, :, None] | pivot_BK[:, None])


def _circle(table: Table, number_BK, opponents: int):
    """Pairs of every candidate with `opponents` others, or with all if there are fewer.

    The pairs form a circulant graph: the n live candidates are on a circle, and each meets those at
    chosen distances. Distance 1 is always chosen, so that the graph is connected; the row's numbers
    choose the others. Each distance gives two opponents. For an odd number of opponents the last
    one is across the circle; if n is odd too, one candidate has one opponent more.
    """
    K = number_BK.shape[1]
    n_B1 = table.live_BKK.any(-1).sum(1, keepdims=True)
    m_B1 = np.clip(n_B1 - 1, 0, opponents)
    apart_KK = abs(np.subtract.outer(np.arange(K), np.arange(K)))
    circle_BKK = np.minimum(apart_KK, abs(n_B1[..., None] - apart_KK))
    distance_K = np.arange(K)  # distance d is ranked by the random number of place d
    number_BK = np.where(distance_K == 1, -1.0, number_BK)
    farthest_B1 = np.where(m_B1 % 2, (n_B1 + 1) // 2 - 1 - n_B1 % 2, (n_B1 - 1) // 2)
    free_BK = (distance_K > 0) & (distance_K <= farthest_B1)
    rank_BK = np.where(free_BK, number_BK, np.inf).argsort(1, kind="stable").argsort(1)
    met_BK = free_BK & (rank_BK < m_B1 // 2)
    met_BKK = np.take_along_axis(met_BK, circle_BKK.reshape(len(met_BK), -1), axis=1)
    across_BKK = ((m_B1 % 2 == 1) & (n_B1 > 1))[..., None] & (apart_KK == (n_B1 // 2)[..., None])
    return table.live_BKK & (met_BKK.reshape(circle_BKK.shape) | across_BKK)
