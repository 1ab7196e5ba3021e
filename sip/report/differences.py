"""Confidence intervals of differences."""

import math
from collections.abc import Sequence

from scipy import stats

from sip.report import statistics

LEVEL = 0.95
NORMAL = float(stats.norm.ppf(0.5 + LEVEL / 2))


def wilson(rate: float, n: float) -> tuple[float, float]:
    """Returns Wilson's score interval of a mean of n values between 0 and 1.

    Of values other than 0 and 1 it is conservative: their variance is at most rate (1 - rate).
    """
    z2 = NORMAL**2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return centre - half, centre + half


def of_rates(ours: float, theirs: float, n: float, m: float) -> tuple[float, float]:
    """Returns the interval of ours - theirs, two means of n and m values between 0 and 1.

    Newcombe's hybrid score interval (Statistics in Medicine 17, 1998, method 10) of independent
    samples. Of the same prefixes it is conservative, as their outcomes vary together.
    """
    (low, high), (other_low, other_high) = wilson(ours, n), wilson(theirs, m)
    difference = ours - theirs
    down = math.hypot(ours - low, other_high - theirs)
    up = math.hypot(high - ours, theirs - other_low)
    return difference - down, difference + up


def of_normal(difference: float, *errors: float) -> tuple[float, float]:
    """Returns the interval of a difference of independent means with these standard errors."""
    half = NORMAL * math.hypot(*errors)
    return difference - half, difference + half


def paired(values: Sequence[float]) -> tuple[float, float] | None:
    """Returns Student's interval of the mean of paired differences; None for fewer than two."""
    mean, error = statistics.mean(values), statistics.error(values)
    if mean is None or error is None:
        return None
    half = float(stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1)) * error
    return mean - half, mean + half
