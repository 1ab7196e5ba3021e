"""Tests intervals and paired tests: by hand, by enumeration, and their rates."""

import itertools

import numpy as np
import pytest

from sip.evals import comparisons, intervals
from sip.evals.intervals import Estimate, IntervalConfig

NAN = np.nan


def test_an_interval_of_outcomes_is_wilsons_by_hand():
    # (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.959964
    found = comparisons.estimate([0.0] * 10)
    assert found.mean == 0 and found.low == 0
    assert found.high == pytest.approx(1.959964**2 / (10 + 1.959964**2), abs=1e-6)
    found = comparisons.estimate([1, 1, 1, 0, NAN])
    assert (found.mean, found.count) == (0.75, 4)
    assert [found.low, found.high] == pytest.approx([0.300642, 0.954413], abs=1e-5)


def test_values_between_are_bootstrapped_and_none_is_none():
    value_E = np.random.default_rng(0).random(50)
    assert comparisons.estimate(value_E) == intervals.mean(value_E)
    assert comparisons.estimate([NAN, NAN]) == Estimate(None, None, None, 0)


def test_the_interval_of_an_average_by_hand():
    parts = [Estimate(0.5, 0.4, 0.8, 10), Estimate(0.9, 0.5, 0.9, 20)]
    found = comparisons.average(parts)
    assert (found.mean, found.count) == (0.7, 30)
    assert found.low == pytest.approx(0.7 - np.hypot(0.05, 0.2))
    assert found.high == pytest.approx(0.7 + np.hypot(0.15, 0.0))
    assert comparisons.average(parts[:1]) is parts[0]
    assert comparisons.average([*parts, Estimate(0.1, None, None, 1)]).low is None
    assert comparisons.average([*parts, Estimate(None, None, None, 0)]).mean is None


def test_mcnemar_counts_the_prompts_that_differ():
    # 8 to 1 of 9: 2 * (9 + 1) / 2^9
    a_E, b_E = np.array([1] * 8 + [0] + [1] * 20), np.array([0] * 8 + [1] + [1] * 20)
    assert comparisons.mcnemar(a_E, b_E) == pytest.approx(20 / 512)
    assert comparisons.mcnemar(b_E, b_E) == 1.0
    found = comparisons.difference([a_E], [b_E])
    assert found and (found.test, found.p) == ("McNemar", pytest.approx(20 / 512))
    assert found.mean == pytest.approx(7 / 29) and found.low < 7 / 29 < found.high


def test_the_permutation_test_is_an_enumeration():
    rng = np.random.default_rng(1)
    parts = [(rng.random(5), rng.random(5)), (rng.random(4), rng.random(4))]
    gap = np.concatenate([(a - b) / (2 * len(a)) for a, b in parts])
    sums = [abs(gap @ np.array(s)) for s in itertools.product((1, -1), repeat=len(gap))]
    want = np.mean([x >= abs(gap.sum()) - 1e-12 for x in sums])
    assert comparisons.permutation(parts) == pytest.approx(want)
    assert comparisons.permutation([(np.ones(3) / 2, np.ones(3) / 2)]) == 1.0


def test_only_prompts_that_both_have_are_compared():
    a_E, b_E = np.array([0.9, NAN, 0.5, 0.2]), np.array([0.4, 0.3, NAN, 0.4])
    found = comparisons.difference([a_E], [b_E])
    assert found and (found.count, found.test) == (2, "permutation")
    assert found.mean == pytest.approx((0.5 - 0.2) / 2)
    assert comparisons.difference([a_E[1:2]], [b_E[1:2]]) is None


def test_rank_correlation_needs_three_means_that_differ():
    each = lambda *means: np.repeat(np.array(means)[:, None], 4, 1)
    rank = lambda a, b: comparisons.rank_correlation(each(*a), each(*b))
    assert rank([1, 2, 3], [10, 30, 40]) == Estimate(pytest.approx(1), *[pytest.approx(1)] * 2, 4)
    # 1 - 6 * (1 + 1 + 0) / (3 * (9 - 1))
    assert rank([1, 2, 3], [2, 1, 3]).mean == pytest.approx(0.5)
    none = Estimate(None, None, None, 4)
    assert rank([1, 2], [1, 2]) == rank([1, 1, 1], [1, 2, 3]) == none
    assert rank([1, 2, NAN], [1, 2, 3]) == none, "the third has no verdict"


def test_the_interval_of_a_rank_correlation_equals_scipys_bootstrap_over_prompts():
    from scipy import stats

    rng = np.random.default_rng(2)
    a_NE = np.linspace(0.3, 0.6, 6)[:, None] + rng.normal(0, 0.3, (6, 60))
    b_NE = a_NE + rng.normal(0, 0.5, (6, 60))
    found = comparisons.rank_correlation(a_NE, b_NE, IntervalConfig(resamples=4000))
    assert found.mean == pytest.approx(stats.spearmanr(a_NE.mean(1), b_NE.mean(1)).statistic)

    def drawn(*prompts):  # the same prompts for all checkpoints and for both judges
        a_N, b_N = np.array(prompts[:6]).mean(1), np.array(prompts[6:]).mean(1)
        return stats.spearmanr(a_N, b_N).statistic

    want = stats.bootstrap(
        (*a_NE, *b_NE), drawn, paired=True, vectorized=False, n_resamples=1000,
        method="percentile", rng=np.random.default_rng(5),
    ).confidence_interval  # fmt: skip
    assert found.low == pytest.approx(want.low, abs=0.1) and found.low < found.mean
    assert found.high == pytest.approx(want.high, abs=0.1) and found.high > found.mean


def test_a_prompt_without_a_verdict_is_left_out_of_the_rank_correlation():
    a_NE = np.array([[0.1, 0.2, 0.9], [0.3, 0.2, 0.1], [0.4, 0.5, 0.6]])
    b_NE = np.array([[0.1, 0.2, NAN], [0.3, 0.2, 0.9], [NAN, 0.5, 0.6]])
    # Means over the prompts that both have: .15, .2, .55 and .15, .467, .55; of all .4, .2, .5.
    assert comparisons.rank_correlation(a_NE, b_NE).mean == pytest.approx(1)
    assert comparisons.rank_correlation(a_NE, np.nan_to_num(b_NE)).mean < 1


@pytest.mark.parametrize("p", [0.02, 0.3, 0.98])
def test_wilsons_interval_covers_near_its_rate(p):
    """Exact: the sum over all counts of the probability of those that cover."""
    from scipy import stats

    n = 100
    outcomes = [np.r_[np.ones(k), np.zeros(n - k)] for k in range(n + 1)]
    found = [comparisons.estimate(x_E) for x_E in outcomes]
    covers = np.array([one.low <= p <= one.high for one in found])
    assert 0.93 < stats.binom.pmf(np.arange(n + 1), n, p)[covers].sum() < 0.98


def coverage(draw, true: float, estimate) -> float:
    """Returns the share of 1000 simulated samples whose interval has the true value."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        found = estimate(draw(rng))
        hits += found.low <= true <= found.high
    return hits / 1000


FEW = IntervalConfig(resamples=399)


@pytest.mark.slow  # 10 s
def test_intervals_of_verdicts_cover_at_their_rate():
    """Win rates in {0, 1/2, 1}, votes of a skewed judge, and paired differences of correlated
    checkpoints: 95 % of 1000 intervals have the true value, with a standard error of 0.7 %."""
    wins = lambda rng: rng.choice([0, 0.5, 1], 80, p=[0.2, 0.3, 0.5])
    assert 0.93 < coverage(wins, 0.65, lambda x: comparisons.estimate(x, FEW)) < 0.97
    votes = lambda rng: rng.beta(8, 2, 80)
    assert 0.93 < coverage(votes, 0.8, lambda x: comparisons.estimate(x, FEW)) < 0.97

    def pair(rng):
        shared = rng.normal(0, 1, 80)
        return shared + rng.normal(0.2, 0.5, 80), shared + rng.normal(0, 0.5, 80)

    both = lambda x: comparisons.difference([x[0]], [x[1]], FEW)
    quick = lambda x: intervals.mean(x[0] - x[1], how=FEW)  # what `difference` reports
    rng = np.random.default_rng(3)
    one = pair(rng)
    assert both(one).low == quick(one).low
    assert 0.93 < coverage(pair, 0.2, quick) < 0.97


def parts(rng):
    return [(rng.random(60) < 0.95).astype(float), rng.choice([0, 0.5, 1], 80)]


@pytest.mark.slow
def test_the_interval_of_an_average_covers_at_its_rate():
    found = lambda x: comparisons.average([comparisons.estimate(one, FEW) for one in x])
    assert 0.93 < coverage(parts, (0.95 + 0.5) / 2, found) < 0.98


@pytest.mark.slow
def test_the_tests_reject_equal_checkpoints_at_most_at_their_rate():
    """Two equal checkpoints: p below .05 in about 5 % of 1000 draws (McNemar's exact: at most)."""
    rng, low = np.random.default_rng(0), {"McNemar": 0, "permutation": 0}
    for _ in range(1000):
        a_E, b_E = (rng.random((2, 40)) < 0.5).astype(float)
        low["McNemar"] += comparisons.mcnemar(a_E, b_E) < 0.05
        a_E, b_E = rng.random((2, 12))  # enumerated
        low["permutation"] += comparisons.permutation([(a_E, b_E)]) < 0.05
    assert low["McNemar"] <= 55 and 30 <= low["permutation"] <= 70


@pytest.mark.slow  # 4 s
@pytest.mark.parametrize("true", [1.0, 0.6])
def test_intervals_of_a_rank_correlation_cover_at_least_at_their_rate(true):
    """Spearman's is a step function of the means, so no interval covers at exactly 95 %."""
    exact_N = np.array([0.3, 0.4, 0.5, 0.6, 0.7])
    # Of the second order the sum of squared differences is 8: 1 - 6 * 8 / (5 * 24) = 0.6.
    order = [0, 1, 2, 3, 4] if true == 1.0 else [2, 1, 0, 3, 4]
    judged_N = exact_N[order]

    def sample(rng):
        shared_E = rng.normal(0, 0.3, 80)
        noise = lambda: rng.normal(0, 0.3, (5, 80))
        return judged_N[:, None] + shared_E + noise(), exact_N[:, None] + shared_E + noise()

    rank = lambda pair: comparisons.rank_correlation(*pair, FEW)
    assert coverage(sample, true - 1e-9, rank) > 0.93
