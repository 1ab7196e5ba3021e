"""Tests the arithmetic of the generation-verification gap, by enumeration and by hand."""

import itertools
import math

import numpy as np
import pytest

from sip.evals import generation_verification_gap as gap
from sip.evals import intervals
from sip.evals.intervals import IntervalConfig
from sip.evals.problems import pass_at
from sip.sections import section
from sip.structs import UserError

ALL = lambda x: np.ones(np.shape(x), bool)


def drawn(seed=0, B=6, N=7, levels=3):
    """Draws utilities of several levels, scores with ties, and some answers without a verdict."""
    rng = np.random.default_rng(seed)
    utility = rng.integers(0, levels, (B, N)) / (levels - 1)
    score = np.round(rng.random((B, N)) + 0.5 * utility, 1)
    return utility, score, rng.random((B, N)) < 0.8


def test_the_gap_of_a_world_with_known_probabilities():
    """Compares with sums over all answers of a policy given by its probabilities."""
    answers = {"a": (6, 1.0, 0.9), "b": (3, 0.0, 0.9), "c": (2, 0.5, 0.4), "d": (1, 0.0, 0.1)}
    rows = [(u, s) for times, u, s in answers.values() for _ in range(times)]
    utility, score = (np.array([[row[i] for row in rows]]) for i in (0, 1))
    p = {y: times / 12 for y, (times, _, _) in answers.items()}
    for weight, w in (
        (gap.above(score, ALL(score), 0.4), lambda s: float(s >= 0.4)),
        (gap.tilted(score, ALL(score), 0.25), lambda s: math.exp(s / 0.25)),
    ):
        before = sum(p[y] * u for y, (_, u, _) in answers.items())
        norm = sum(p[y] * w(s) for y, (_, _, s) in answers.items())
        after = sum(p[y] * w(s) * u for y, (_, u, s) in answers.items()) / norm
        found = gap.gaps(utility, ALL(utility), weight)
        assert np.allclose(found.before_B, before) and np.allclose(found.after_B, after)
        assert np.allclose(found.relative_B, (after - before) / (1 - before))


@pytest.mark.parametrize("seed", range(3))
def test_the_gap_is_the_covariance_of_weight_and_utility(seed):
    utility, score, valid = drawn(seed)
    for weight in (gap.top(score, valid, 0.6), gap.above(score, valid, 0.7),
                   gap.tilted(score, valid, 0.3)):  # fmt: skip
        found = gap.gaps(utility, ALL(utility), weight)
        mean = weight.mean(1)
        covariance = (weight * utility).mean(1) - mean * utility.mean(1)
        assert np.allclose(found.gap_B[mean > 0], (covariance / np.where(mean, mean, 1))[mean > 0])
        assert (found.gap_B[mean == 0] == 0).all() and (found.empty_B == (mean == 0)).all()


def test_a_quantile_equals_the_mean_over_all_random_orders_of_equal_answers():
    utility, score, valid = drawn(1, B=4, N=5)
    score = np.round(score)  # many ties
    keep = 0.4  # of 5 answers 2, if all are valid
    found = gap.gaps(utility, ALL(utility), gap.top(score, ALL(valid), 1 - keep))
    for b in range(4):
        after = []
        for order in itertools.permutations(range(5)):
            kept = sorted(order, key=lambda n: -score[b, n])[:2]  # a stable sort
            after.append(utility[b, kept].mean())
        assert np.isclose(found.after_B[b], np.mean(after))


def test_a_quantile_keeps_its_share_of_the_valid_answers():
    _, score, valid = drawn(2)
    for q in (0.0, 0.5, 0.9):
        assert np.allclose(gap.top(score, valid, q).sum(1), (1 - q) * valid.sum(1))
        assert (gap.top(score, valid, q)[~valid] == 0).all()
    assert gap.top([[1.0, 1.0, 0.0]], ALL([[0] * 3]), 2 / 3).tolist() == [[0.5, 0.5, 0.0]]


def test_the_rules_for_what_has_no_gap_by_hand():
    utility = np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    known = np.array([[1, 1], [1, 1], [1, 1], [0, 0]], bool)
    weight = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.5], [1.0, 1.0]])
    found = gap.gaps(utility, known, weight)
    assert found.asked_B.tolist() == [True, True, True, False], "no utility: counts nowhere"
    assert found.solved_B.tolist() == [True, False, False, False]
    assert found.empty_B.tolist() == [False, True, False, False]
    assert found.gap_B[:3].tolist() == [0.0, 0.0, 0.5]
    # J = 1 is left out, nothing kept is 0: the mean of the ratios is (0 + 1) / 2.
    assert found.relative_B[found.room_B].tolist() == [0.0, 1.0]
    assert found.kept_B[:3].tolist() == [0.5, 0.0, 0.25]


def test_an_answer_of_unknown_utility_counts_nowhere():
    utility, known = np.array([[1.0, 0.0, 1.0]]), np.array([[True, True, False]])
    found = gap.gaps(utility, known, np.array([[0.5, 0.5, 1.0]]))
    assert (found.before_B, found.after_B, found.kept_B) == (0.5, 0.5, 0.5)


def test_the_relative_gap_is_a_mean_of_ratios_not_a_ratio_of_means():
    """The two may differ in sign, as in the paper's Sudoku."""
    utility = np.array([[1.0] * 9 + [0.0], [1.0] + [0.0] * 9])
    weight = np.array([[0.0] * 9 + [1.0], [1.0] + [0.0] * 9])
    found = gap.gaps(utility, ALL(utility), weight)
    assert np.allclose(found.gap_B, [-0.9, 0.9]) and abs(found.gap_B.mean()) < 1e-9
    assert np.allclose(found.relative_B, [-9.0, 1.0])


def test_an_answer_without_a_verdict_is_dropped_but_written():
    utility, score = np.array([[1.0, 0.0, 0.0]]), np.array([[0.2, 0.9, 0.1]])
    valid = np.array([[True, False, True]])
    for weight in (gap.top(score, valid, 0.5), gap.above(score, valid, 0.2)):
        assert gap.gaps(utility, ALL(utility), weight).gap_B == 1 - 1 / 3
    none = gap.tilted(score, ~ALL(score), 0.1)
    assert (none == 0).all() and gap.gaps(utility, ALL(utility), none).empty_B.all()


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_best_of_k_equals_the_mean_over_all_draws(k):
    utility, score, valid = drawn(3, B=4, N=6)
    found = gap.best_of(k, score, valid, utility, ALL(utility))
    for b in range(4):
        values = []
        for some in itertools.combinations(range(6), k):
            key = {n: score[b, n] if valid[b, n] else -np.inf for n in some}
            first = [n for n in some if key[n] == max(key.values())]
            values.append(utility[b, first].mean())
        assert np.isclose(found[b], np.mean(values))


def test_the_best_of_k_by_the_utility_itself_is_pass_at_k():
    utility = np.array([[1, 0, 0, 0, 1, 0], [0] * 6, [1] * 6], float)
    for k in (1, 2, 3, 6):
        found = gap.best_of(k, utility, ALL(utility), utility, ALL(utility))
        assert np.allclose(found, [pass_at(k, 6, int(row.sum())) for row in utility])
    assert np.isnan(gap.best_of(7, utility, ALL(utility), utility, ALL(utility))).all()


def test_an_ensemble_keeps_what_all_keep():
    a, b = np.array([[0.9, 0.8, 0.1]]), np.array([[0.2, 0.9, 0.9]])
    weight = gap.all_of([gap.above(x, ALL(x), 0.5) for x in (a, b)])
    assert weight.tolist() == [[0.0, 1.0, 0.0]]


def test_correlations_by_hand():
    a = np.array([[0.0, 1.0], [2.0, 3.0]])
    b = np.array([[1.0, 0.0], [3.0, 2.0]])  # the prompts agree, the answers within do not
    over, within = gap.correlations([a, b, 0 * a], [ALL(a)] * 3)
    assert np.isclose(over[0, 1], np.corrcoef(a.ravel(), b.ravel())[0, 1]) and over[0, 1] > 0.5
    assert np.isclose(within[0, 1], -1) and np.isnan(over[0, 2]) and np.isclose(over[0, 0], 1)


def test_the_compute_optimal_pairings_by_hand():
    cost, value = [3, 1, 2, 2, math.inf, 4], [0.5, 0.2, 0.4, 0.3, 0.9, 0.5]
    assert gap.frontier(cost, value).tolist() == [True, True, True, False, False, False]


def test_an_interval_needs_a_spread():
    assert intervals.mean([0.25] * 3).low == intervals.mean([0.25] * 3).high == 0.25
    assert intervals.mean([0.3]) == intervals.Estimate(0.3, None, None, 1)
    assert intervals.mean([1.0, 2.0], [False, False]).mean is None
    found = intervals.mean(np.arange(50) / 50)
    assert found.low < found.mean < found.high and found == intervals.mean(np.arange(50) / 50)


def test_a_confidence_of_1_is_refused():
    with pytest.raises(UserError, match="gap.intervals: intervals.confidence=1.0"):
        section(IntervalConfig, {"confidence": 1.0}, "gap.intervals")


def test_a_paired_interval_is_narrower_than_the_intervals_of_both():
    rng = np.random.default_rng(0)
    hard, noise = rng.random(200), 0.05 * rng.standard_normal((2, 200))
    a, b = hard + noise[0] + 0.02, hard + noise[1]
    width = lambda x: intervals.mean(x).high - intervals.mean(x).low
    assert width(a - b) < 0.5 * width(a) and intervals.mean(a - b).low > 0


def simulated(rng, B=100, N=8):
    """Draws the gaps of B prompts: hard and easy ones, a verifier that is right in 80 %."""
    hard = rng.beta(1, 1.5, (B, 1))
    utility = (rng.random((B, N)) < hard).astype(float)
    score = np.where(rng.random((B, N)) < 0.8, utility, 1 - utility)
    found = gap.gaps(utility, ALL(utility), gap.top(score, ALL(score), 0.75))
    return found


@pytest.mark.slow  # half a minute
@pytest.mark.parametrize("figure", ["gap", "relative"])
def test_intervals_cover_at_their_stated_rate(figure):
    rng = np.random.default_rng(0)
    values = lambda g: g.gap_B[g.asked_B] if figure == "gap" else g.relative_B[g.room_B]
    true = values(simulated(rng, B=400_000)).mean()
    inside = 0
    for draw in range(1000):
        found = intervals.mean(values(simulated(rng)), how=IntervalConfig(resamples=999), seed=draw)
        inside += found.low <= true <= found.high
    print(f"{figure}: {inside / 10:.1f} % of the intervals contain {true:.4f}")
    assert 925 <= inside <= 970  # 950 +- 3.6 standard deviations of 6.9, at 100 prompts
