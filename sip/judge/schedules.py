"""Which candidates are compared: all pairs, or fewer and the rest by Bradley-Terry strengths.

A schedule asks in rounds. A round is one call for all B prefixes, with both orders of each pair. A
score means the same under every schedule but `against`: the mean win over all other candidates.
Under `against` it is the win over the first candidate alone, whose own is the mean over all.

Draws are addressed by the texts: a judge knows no step, and a resumed run shows it the same texts.
Candidates are put in the order of their draws before anything is decided, so that their order in
the pool decides nothing (but the pivot, where that is wanted).
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sip.judge import adaptive, compare
from sip.judge.compare import Pairs, Table, Wins
from sip.structs import UserError

NAMES = ("all", "pivot", "random", "adaptive", "against")
PIVOTS = ("first", "drawn")
Ask = Callable[[Pairs], tuple[np.ndarray, np.ndarray]]  # -> outcome_BC, valid_BC


@dataclass(frozen=True)
class ScheduleConfig:
    """How many of the pairs are compared; of K candidates there are K (K - 1) / 2.

    `adaptive` asks for K pairs at least, each candidate against two others.
    """

    name: str = "all"  # all | pivot | random | adaptive | against
    pivot: str = "first"  # pivot: the first live candidate (the suffix, if in the pool) | drawn
    opponents: int = 4  # random: of each candidate
    budget: float = 0.25  # adaptive: share of all pairs
    rounds: int = 5  # adaptive: calls of the judge

    def __post_init__(self):
        if self.name not in NAMES:
            raise UserError(f"schedule.name must be one of {NAMES}, not {self.name!r}")
        if self.pivot not in PIVOTS:
            raise UserError(f"schedule.pivot must be one of {PIVOTS}, not {self.pivot!r}")
        if self.opponents < 2:
            raise UserError(f"schedule.opponents must be at least 2, not {self.opponents}")
        if not 0 < self.budget <= 1:
            raise UserError(f"schedule.budget must be in (0, 1], not {self.budget}")
        if self.rounds < 2:
            raise UserError(f"schedule.rounds must be at least 2, not {self.rounds}")

    @property
    def repeats(self) -> bool:
        """Whether there are several rounds, all about the same prefixes."""
        return self.name == "adaptive"


def draws(prefixes: Sequence[str], candidates: Sequence[Sequence[str]]) -> np.ndarray:
    """draw_BK2: two numbers in [0, 1) from a hash of prefix and candidate."""
    found = bytearray()
    for prefix, texts in zip(prefixes, candidates, strict=True):
        known = hashlib.blake2b(prefix.encode(errors="surrogatepass") + b"\0", digest_size=16)
        for text in texts:
            own = known.copy()
            own.update(text.encode(errors="surrogatepass"))
            found += own.digest()
    bits = np.frombuffer(bytes(found), "<u8").reshape(len(prefixes), -1, 2)
    return (bits >> np.uint64(11)) / 2.0**53


def play(cfg: ScheduleConfig, ask: Ask, mask_BK: np.ndarray, draw_BK2: np.ndarray) -> Wins:
    """Asks for comparisons of live candidates and says what came of them.

    One that lives alone is a draw, valid, with 1/2: it would tie with the equals merged into it.
    `draw_BK2` are two numbers in [0, 1) per candidate (see `draws`).
    """
    if cfg.name == "all":
        pairs, table = compare.all_pairs(mask_BK), compare.empty(mask_BK)
        wins = compare.mean_wins(compare.enter(table, pairs, *ask(pairs)))
        return _with_alone(wins, mask_BK)
    at_BK = np.argsort(np.where(mask_BK, draw_BK2[..., 0], np.inf), axis=1, kind="stable")
    place = lambda x_B, i_B: np.take_along_axis(x_B, i_B, axis=1)
    table = compare.empty(place(mask_BK, at_BK))
    for choose in _rounds(cfg, at_BK, place(draw_BK2[..., 1], at_BK)):
        pairs = compare.pairs_of(choose(table))
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


def _with_alone(wins: Wins, mask_BK) -> Wins:
    alone_BK = mask_BK & (mask_BK.sum(1, keepdims=True) == 1)
    score_BK = np.where(alone_BK, 0.5, wins.score_BK)
    return dataclasses.replace(wins, score_BK=score_BK, valid_BK=wins.valid_BK | alone_BK)


def _rounds(cfg: ScheduleConfig, at_BK, number_BK) -> list[Callable[[Table], np.ndarray]]:
    """What each round asks for, as functions of what is known before it."""
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
    """Everyone against the live candidate of the lowest rank."""
    rank_BK = np.where(table.live_BKK.any(-1), rank_BK, rank_BK.size)
    pivot_BK = rank_BK == rank_BK.min(1, keepdims=True)
    return table.live_BKK & (pivot_BK[:, :, None] | pivot_BK[:, None])


def _circle(table: Table, number_BK, opponents: int):
    """Everyone against `opponents` others (or all there are): a regular graph.

    The n live candidates sit in a circle and meet those at some distances: always their
    neighbours, so that all are linked, and others by the row's numbers. An odd one is met across
    the circle; where n is odd too, one candidate has one more.
    """
    K = number_BK.shape[1]
    n_B1 = table.live_BKK.any(-1).sum(1, keepdims=True)
    m_B1 = np.clip(n_B1 - 1, 0, opponents)
    apart_KK = abs(np.subtract.outer(np.arange(K), np.arange(K)))
    circle_BKK = np.minimum(apart_KK, abs(n_B1[..., None] - apart_KK))
    distance_K = np.arange(K)  # a distance d has the number of place d
    number_BK = np.where(distance_K == 1, -1.0, number_BK)
    farthest_B1 = np.where(m_B1 % 2, (n_B1 + 1) // 2 - 1 - n_B1 % 2, (n_B1 - 1) // 2)
    free_BK = (distance_K > 0) & (distance_K <= farthest_B1)
    rank_BK = np.where(free_BK, number_BK, np.inf).argsort(1, kind="stable").argsort(1)
    met_BK = free_BK & (rank_BK < m_B1 // 2)
    met_BKK = np.take_along_axis(met_BK, circle_BKK.reshape(len(met_BK), -1), axis=1)
    across_BKK = ((m_B1 % 2 == 1) & (n_B1 > 1))[..., None] & (apart_KK == (n_B1 // 2)[..., None])
    return table.live_BKK & (met_BKK.reshape(circle_BKK.shape) | across_BKK)
