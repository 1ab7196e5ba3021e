"""Rewards of rewrites by a judge's verdicts, to train a rewriter (arXiv 2601.21343)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sip.judge.judged import Judge
from sip.judge.voting import Stats
from sip.metrics import pair
from sip.text.template import quote

SAFE = 0.5  # a suffix is safe if its safety score is higher than this


def reward(
    safe_B: np.ndarray,
    copied_BK: np.ndarray,
    quality_BK: np.ndarray,
    safety_BK: np.ndarray,
    written_BK: np.ndarray,
    judged_BK: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (reward_BK in 0..1, valid_BK) of K rewrites of each of B suffixes.

    Safe suffix: an exact copy gets 1, any other rewrite 0. Unsafe suffix: a rewrite gets
    (quality + safety) / 2, its share of wins against the suffix and its own safety score. An
    unusable rewrite (not `written`) is a failure of the rewriter: its reward is 0 and valid, so
    that the rewriter unlearns it. A rewrite of an unsafe suffix that was not `judged` is a failure
    of the judge: it is masked and its reward is meaningless.
    """
    written_BK = np.asarray(written_BK, bool)
    safe_BK = np.broadcast_to(np.asarray(safe_B, bool)[:, None], written_BK.shape)
    valid_BK = ~written_BK | safe_BK | np.asarray(judged_BK, bool)
    judged = (np.asarray(quality_BK, float) + np.asarray(safety_BK, float)) / 2
    reward_BK = np.where(safe_BK, np.asarray(copied_BK, float), judged)
    return np.where(valid_BK & written_BK, reward_BK, 0.0), valid_BK


@dataclass(frozen=True)
class RewriteVerdicts:
    """A judge's verdicts on B suffixes and on K rewrites of each."""

    safe_B: np.ndarray  # the suffix is safe
    known_B: np.ndarray  # the verdict on the suffix is readable
    quality_BK: np.ndarray  # win probability against the suffix; for unsafe suffixes only
    safety_BK: np.ndarray  # safety score of the rewrite; for unsafe suffixes only
    judged_BK: np.ndarray  # both verdicts on the rewrite are readable
    metrics: Stats


def of(
    judge: Judge,
    prefixes: Sequence[str],
    suffixes: Sequence[str],
    texts: Sequence[Sequence[str]],
) -> tuple[np.ndarray, np.ndarray, Stats]:
    """Judges and rewards the rewrites `texts[b][k]`. Returns (reward_BK, valid_BK, metrics).

    An empty text is an unusable rewrite. If the verdict on a suffix is unreadable, its row is
    masked. A copy is compared with the suffix as the prompt shows it, on one line.
    """
    written_BK = np.array([[bool(text) for text in row] for row in texts])
    shown = [quote(suffix) for suffix in suffixes]
    copied_BK = np.array([[t == s for t in row] for s, row in zip(shown, texts, strict=True)])
    copied_BK &= written_BK
    found = ask(judge, prefixes, suffixes, texts, copied_BK)
    reward_BK, valid_BK = reward(
        found.safe_B,
        copied_BK,
        found.quality_BK,
        found.safety_BK,
        written_BK,
        found.judged_BK,
    )
    valid_BK = valid_BK & found.known_B[:, None]
    safe_BK = valid_BK & found.safe_B[:, None]
    unsafe_BK = valid_BK & ~found.safe_B[:, None]
    metrics = {
        "suffix/safe": pair(found.safe_B, found.known_B),
        "suffix/unread": pair(~found.known_B),
        "rewrite/unusable": pair(~written_BK),
        "rewrite/copied_safe": pair(copied_BK, safe_BK),
        "rewrite/copied_unsafe": pair(copied_BK, unsafe_BK),
        "reward/safe": pair(reward_BK, safe_BK),
        "reward/unsafe": pair(reward_BK, unsafe_BK),
    }
    return reward_BK.astype(np.float32), valid_BK, {**found.metrics, **metrics}


def ask(judge: Judge, prefixes, suffixes, texts, copied_BK: np.ndarray) -> RewriteVerdicts:
    """Judges the suffixes' safety, and then the rewrites of the unsafe ones."""
    one_B1 = np.ones((len(suffixes), 1), bool)
    alone = judge.score(prefixes, [[suffix] for suffix in suffixes], suffixes, one_B1)
    safety_B, known_B = (x_B1[:, 0] for x_B1 in alone.aspects["safety"])
    safe_B = known_B & (safety_B > SAFE)
    metrics = {f"suffix/{k}": v for k, v in alone.metrics.items() if "/quality" not in k}
    shape = copied_BK.shape
    quality_BK, safety_BK, judged_BK = np.zeros(shape), np.zeros(shape), np.zeros(shape, bool)
    unsafe = np.flatnonzero(known_B & ~safe_B)
    if len(unsafe):
        some = lambda rows: [rows[b] for b in unsafe]
        found, new = _judge(judge, some(prefixes), some(suffixes), some(texts), copied_BK[unsafe])
        quality_BK[unsafe], safety_BK[unsafe], judged_BK[unsafe] = found
        metrics |= new
    return RewriteVerdicts(safe_B, known_B, quality_BK, safety_BK, judged_BK, metrics)


def _judge(judge: Judge, prefixes, suffixes, texts, copied_NK):
    """Judges rewrites of N unsafe suffixes: ((quality_NK, safety_NK, judged_NK), metrics).

    The judge's schedule is `against`: candidates are compared with the first one, the suffix. Each
    distinct text is judged once. A copy ties with the suffix and has its safety score.
    """
    at_NK, live_NC = _distinct(texts, copied_NK)
    rows = [[suffix, *row] for suffix, row in zip(suffixes, texts, strict=True)]
    judged = judge.score(prefixes, rows, suffixes, live_NC)
    quality_NC, compared_NC = (x_NC.copy() for x_NC in judged.aspects["quality"])
    quality_NC[:, 0], compared_NC[:, 0] = 0.5, True  # a copy of the suffix ties with it
    safety_NC, read_NC = judged.aspects["safety"]
    pick = lambda x_NC: np.take_along_axis(x_NC, at_NK, axis=1)
    found = pick(quality_NC), pick(safety_NC), pick(live_NC & compared_NC & read_NC)
    return found, judged.metrics


def _distinct(texts, copied_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (at_NK, live_NC): the candidate to judge for each rewrite, and the live candidates.

    Candidate 0 is the suffix and candidate 1 + k is rewrite k, C = 1 + K. A copy maps to the
    suffix, a repeated text to its first occurrence. An unusable rewrite is not live.
    """
    at_NK = 1 + np.array([[row.index(text) for text in row] for row in texts])
    at_NK = np.where(copied_NK, 0, at_NK)
    written_NK = np.array([[bool(text) for text in row] for row in texts])
    first_NK = at_NK == np.arange(1, at_NK.shape[1] + 1)
    suffix_N1 = np.ones((len(texts), 1), bool)
    return at_NK, np.concatenate([suffix_N1, first_NK & written_NK], axis=1)
