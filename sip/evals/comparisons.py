"""Estimates over prompts and paired comparisons of two checkpoints, by scipy.

A figure may be the average over several sets of prompts, its parts: the mean of the parts' means.
Values are in 0..1; a prompt without a valid verdict has NaN and is left out, in a comparison if
either checkpoint has none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sip.evals import intervals
from sip.evals.intervals import Estimate, IntervalConfig

DEFAULT = IntervalConfig()
MCNEMAR, PERMUTATION = "McNemar", "permutation"
ORDERS = 9999  # random assignments of a permutation test; fewer prompts than 13 are enumerated


@dataclass(frozen=True)
class Difference:
    """The mean difference of two checkpoints on the same prompts, and a test that it is zero."""

    mean: float
    low: float | None
    high: float | None
    count: int  # prompts with a valid verdict on both
    test: str  # McNemar (exact) | permutation (of the two checkpoints, prompt by prompt)
    p: float  # two-sided, not corrected for the number of comparisons


def estimate(value_E, how: IntervalConfig = DEFAULT, *, seed: int = 0) -> Estimate:
    """Returns the mean of one part, with its interval: Wilson's of outcomes 0 and 1, else BCa.

    The bootstrap of a share near 0 or 1 is too narrow, and of a constant one empty.
    """
    from scipy import stats

    value_E = known(value_E)
    if not len(value_E) or not _binary(value_E):
        return intervals.mean(value_E, how=how, seed=seed)
    found = stats.binomtest(int(value_E.sum()), len(value_E))
    bounds = found.proportion_ci(how.confidence, method="wilson")
    return Estimate(float(value_E.mean()), float(bounds.low), float(bounds.high), len(value_E))


def average(parts: Sequence[Estimate]) -> Estimate:
    """Returns the mean of independent estimates, with an interval made of theirs.

    Its half-widths are sqrt(sum of (half-width / parts)^2), lower and upper apart (MOVER, Zou and
    Donner 2008). The interval is unknown if that of a part is.
    """
    if len(parts) == 1:
        return parts[0]
    count = sum(part.count for part in parts)
    means = [part.mean for part in parts if part.mean is not None]
    if not parts or len(means) < len(parts):
        return Estimate(None, None, None, count)
    mean, low, high = float(np.mean(means)), 0.0, 0.0
    for part in parts:
        if part.mean is None or part.low is None or part.high is None:
            return Estimate(mean, None, None, count)
        low += ((part.mean - part.low) / len(parts)) ** 2
        high += ((part.high - part.mean) / len(parts)) ** 2
    return Estimate(mean, mean - math.sqrt(low), mean + math.sqrt(high), count)


def difference(
    ours: Sequence[np.ndarray],
    theirs: Sequence[np.ndarray],
    how: IntervalConfig = DEFAULT,
    *,
    seed: int = 0,
) -> Difference | None:
    """Compares two checkpoints, part by part on the same prompts.

    Outcomes 0 and 1 of one part are tested by McNemar's exact test, others by a permutation test of
    the mean difference. None if a part has no prompt with a valid verdict on both.
    """
    pairs = [both_known(a_E, b_E) for a_E, b_E in zip(ours, theirs, strict=True)]
    if not pairs or not all(len(a_E) for a_E, _ in pairs):
        return None
    found = average([intervals.mean(a_E - b_E, how=how, seed=seed) for a_E, b_E in pairs])
    assert found.mean is not None
    one = len(pairs) == 1 and all(map(_binary, pairs[0]))
    test, p = (MCNEMAR, mcnemar(*pairs[0])) if one else (PERMUTATION, permutation(pairs, seed))
    return Difference(found.mean, found.low, found.high, found.count, test, p)


def mcnemar(a_E: np.ndarray, b_E: np.ndarray) -> float:
    """Returns the two-sided p of McNemar's exact test: binomial over the prompts that differ."""
    from scipy import stats

    won, lost = int((a_E > b_E).sum()), int((a_E < b_E).sum())
    return float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0


def permutation(pairs: Sequence[tuple[np.ndarray, np.ndarray]], seed: int = 0) -> float:
    """Returns the two-sided p of the mean over parts of their mean differences.

    Under the hypothesis the two values of a prompt may be exchanged, each prompt by itself.
    """
    from scipy import stats

    a_E, b_E = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
    weight_E = np.concatenate([np.full(len(a), 1 / (len(a) * len(pairs))) for a, _ in pairs])
    if np.array_equal(a_E, b_E) or len(a_E) == 1:  # scipy needs two prompts
        return 1.0
    found = stats.permutation_test(
        (a_E, b_E),
        lambda x, y, axis: ((x - y) * weight_E).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=ORDERS,
        batch=max(1, (1 << 21) // len(a_E)),  # 32 MiB at a time
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def rank_correlation(a_NE, b_NE, how: IntervalConfig = DEFAULT, *, seed: int = 0) -> Estimate:
    """Returns Spearman's rank correlation of N checkpoints' means by two judges, with its interval.

    It is undefined (None) for fewer than three checkpoints or if a judge's means are all equal.
    Prompts without a valid verdict of both judges are left out, checkpoint by checkpoint. The
    interval is a percentile bootstrap: prompts are drawn anew, the same ones for all checkpoints.
    Draws in which the correlation is undefined are left out. The interval covers other prompts, not
    other checkpoints.
    """
    a_NE, b_NE = np.asarray(a_NE, float), np.asarray(b_NE, float)
    known_NE = ~(np.isnan(a_NE) | np.isnan(b_NE))
    prompts = known_NE.shape[1]
    keep_N, count = known_NE.any(1), int(known_NE.any(0).sum())
    ranked = lambda times_RE: _ranks_agree(
        *(_means(value_NE[keep_N], known_NE[keep_N], times_RE) for value_NE in (a_NE, b_NE))
    )
    (mean,) = ranked(np.ones((1, prompts)))
    if np.isnan(mean):
        return Estimate(None, None, None, count)
    rng = np.random.default_rng(seed)
    drawn_R = ranked(rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=how.resamples))
    drawn_R = drawn_R[~np.isnan(drawn_R)]
    if count < 2 or not len(drawn_R):
        return Estimate(float(mean), None, None, count)
    low, high = np.quantile(drawn_R, [(1 - how.confidence) / 2, (1 + how.confidence) / 2])
    return Estimate(float(mean), float(low), float(high), count)


def _means(value_NE, known_NE, times_RE) -> np.ndarray:
    """Returns each checkpoint's mean [R, N], prompt e counted times_RE[r, e] times; NaN of none."""
    total_RN = times_RE @ np.where(known_NE, value_NE, 0.0).T
    count_RN = times_RE @ known_NE.T.astype(float)
    return np.where(count_RN > 0, total_RN / np.maximum(count_RN, 1), np.nan)


def _ranks_agree(a_RN, b_RN) -> np.ndarray:
    """Returns Spearman's rank correlation [R] of each row; NaN where it is undefined."""
    from scipy import stats

    if a_RN.shape[1] < 3:
        return np.full(len(a_RN), np.nan)
    # Means that are equal but for rounding share their rank.
    ranks = [stats.rankdata(np.round(x_RN, 12), axis=1) for x_RN in (a_RN, b_RN)]
    x_RN, y_RN = (rank_RN - rank_RN.mean(1, keepdims=True) for rank_RN in ranks)
    spread_R = np.sqrt((x_RN**2).sum(1) * (y_RN**2).sum(1))
    undefined_R = np.isnan(a_RN + b_RN).any(1) | (spread_R == 0)
    found_R = (x_RN * y_RN).sum(1) / np.where(undefined_R, 1.0, spread_R)
    return np.where(undefined_R, np.nan, found_R)


def known(value_E) -> np.ndarray:
    """Returns the values that are not NaN."""
    value_E = np.asarray(value_E, float)
    return value_E[~np.isnan(value_E)]


def both_known(a_E, b_E) -> tuple[np.ndarray, np.ndarray]:
    """Returns the values of the prompts that are NaN in neither."""
    a_E, b_E = np.asarray(a_E, float), np.asarray(b_E, float)
    keep_E = ~(np.isnan(a_E) | np.isnan(b_E))
    return a_E[keep_E], b_E[keep_E]


def _binary(value_E: np.ndarray) -> bool:
    return bool(np.isin(value_E, (0.0, 1.0)).all())
