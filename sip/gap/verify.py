"""Verdicts of a judge on N answers to each of B prompts, one verification of each."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sip.evals.generation_verification_gap import SAME, above, tilted, top
from sip.gap.settings import GapConfig
from sip.judge import diagnostics, voting
from sip.judge.judged import Judge


@dataclass(frozen=True)
class Answers:
    """N answers of a policy to each of B prompts."""

    prompts: list[str]
    references: list[str]  # the document's own suffix; empty for a problem
    texts: list[list[str]]

    @property
    def live_BN(self) -> np.ndarray:
        """Answers that are not empty."""
        return np.array([[bool(text.strip()) for text in row] for row in self.texts], bool)


@dataclass(frozen=True)
class Verified:
    """The verdicts of one verifier on the answers of one policy."""

    score_BN: np.ndarray  # score in 0..1; of a tournament the number of matches won
    valid_BN: np.ndarray  # the answer has a valid verdict; of a tournament it took part
    invalid: float  # share of verifications, or of matches, without a valid verdict
    why: str  # reasons for invalid verdicts; empty if all are valid
    rounds: int = 0  # rounds of a tournament; 0: scores
    flops: float | None = None  # of all verifications of a prompt; None: not known

    def weights(self, cfg: GapConfig) -> dict[str, np.ndarray]:
        """Returns weight_BN of each filter by its name."""
        score_BN, valid_BN = self.score_BN, self.valid_BN
        if self.rounds:
            names = [(f"round {r}", r) for r in range(1, self.rounds + 1)]
            return {name: above(score_BN, valid_BN, r) for name, r in names}
        found = {f"top {q:g}": top(score_BN, valid_BN, q) for q in cfg.quantiles}
        found |= {f"tau {t:g}": above(score_BN, valid_BN, t) for t in cfg.thresholds}
        return found | {f"beta {b:g}": tilted(score_BN, valid_BN, b) for b in cfg.betas}


def scores(judge: Judge, whole: float, asked: Answers) -> Verified:
    """Scores each answer. `whole` is the sum of the judge's weights, which becomes score 1."""
    live_BN = asked.live_BN
    found = judge.score(asked.prompts, asked.texts, asked.references, live_BN)
    valid_BN = found.valid_BK & live_BN
    return Verified(
        np.where(valid_BN, found.scores_BK / whole, 0.0),
        valid_BN,
        1.0 - float(valid_BN.mean()),
        diagnostics.reasons(found.metrics),
    )


def tournament(judge: Judge, rounds: int, asked: Answers, seed: int) -> Verified:
    """Plays a single-elimination tournament among the answers to each prompt.

    The judge compares two answers at a time; the higher score goes on, of equal ones the first of
    the draw. An odd one out goes on without a match. If only one answer of a match has a valid
    verdict, it goes on; if none has, neither does. `seed` and the prompt's index give the draw.
    """
    won_BN = np.zeros(asked.live_BN.shape)
    standing = [
        np.random.default_rng((seed, b)).permutation(np.flatnonzero(live_N)).tolist()
        for b, live_N in enumerate(asked.live_BN)
    ]
    played, unread, stats = 0, 0, []
    for _ in range(rounds):
        matches = [
            (b, row[i], row[i + 1])
            for b, row in enumerate(standing)
            for i in range(0, len(row) - 1, 2)
        ]
        winners, said = _played(judge, asked, matches)
        stats.append(said)
        played += len(matches)
        unread += sum(winner is None for winner in winners)
        through: list[list[int]] = [row[len(row) // 2 * 2 :] for row in standing]
        for (b, _, _), winner in zip(matches, winners, strict=True):
            through[b] += [] if winner is None else [winner]
        for b, row in enumerate(through):
            won_BN[b, row] += 1
        standing = through
    why = diagnostics.reasons(voting.summed(stats))
    return Verified(won_BN, asked.live_BN, unread / max(played, 1), why, rounds)


def _played(judge: Judge, asked: Answers, matches: Sequence[tuple[int, int, int]]):
    """Returns (winner of each match, or None; the judge's metrics)."""
    if not matches:
        return [], {}
    found = judge.score(
        [asked.prompts[b] for b, _, _ in matches],
        [[asked.texts[b][i], asked.texts[b][j]] for b, i, j in matches],
        [asked.references[b] for b, _, _ in matches],
        np.ones((len(matches), 2), bool),
    )
    verdicts = zip(matches, found.scores_BK, found.valid_BK, strict=True)
    return [_winner(s_2, ok_2, (i, j)) for (_, i, j), s_2, ok_2 in verdicts], found.metrics


def _winner(score_2, valid_2, pair: tuple[int, int]) -> int | None:
    if not valid_2.all():
        return pair[int(valid_2.argmax())] if valid_2.any() else None
    return pair[int(score_2[1] > score_2[0] + SAME)]


def with_flops(found: Verified, flops: float | None) -> Verified:
    """Returns the verdicts with the cost of a prompt's verifications."""
    return dataclasses.replace(found, flops=flops)
