"""Confidence intervals of means over prompts, by the bootstrap of scipy (BCa)."""

from dataclasses import dataclass

import numpy as np

from sip.sections import above, at_least, check
from sip.structs import UserError


@dataclass(frozen=True)
class IntervalConfig:
    """Confidence intervals over prompts."""

    confidence: float = 0.95  # coverage of an interval, in (0, 1)
    resamples: int = 2000  # of the bootstrap

    def __post_init__(self):
        check("intervals", self, confidence=above(0, most=1), resamples=at_least(100))
        if self.confidence >= 1:
            raise UserError(f"intervals.confidence={self.confidence}: must be > 0 and < 1")


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts and its interval; all None over no prompt, `low` and `high` over one."""

    mean: float | None
    low: float | None
    high: float | None
    count: int  # prompts


def mean(
    value_B, counted_B=None, how: IntervalConfig = IntervalConfig(), *, seed: int = 0
) -> Estimate:
    """Returns the mean over the prompts under `counted_B`, with its interval.

    Of a difference on the same prompts it is the paired interval. A constant has no spread: its
    interval is the value.
    """
    from scipy import stats

    # Values that are equal but for rounding must be equal: the bootstrap counts which are smaller.
    value_B = np.round(np.asarray(value_B, float), 12)
    value_B = value_B if counted_B is None else value_B[np.asarray(counted_B, bool)]
    if not len(value_B):
        return Estimate(None, None, None, 0)
    found = float(value_B.mean())
    if len(value_B) == 1:
        return Estimate(found, None, None, 1)
    if np.ptp(value_B) < 1e-12:
        return Estimate(found, found, found, len(value_B))
    bounds = stats.bootstrap(
        (value_B,),
        np.mean,
        confidence_level=how.confidence,
        n_resamples=how.resamples,
        batch=max(1, (1 << 22) // len(value_B)),  # 32 MiB at a time
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(found, float(bounds.low), float(bounds.high), len(value_B))
