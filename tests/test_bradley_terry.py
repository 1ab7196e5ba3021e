"""Tests Bradley-Terry scores: by hand, and against a generic optimiser."""

import numpy as np
import pytest
from scipy import optimize

from sip.judge import bradley_terry

TINY = 1e-9


def _square(table, K=3):
    """Returns (p_BKK, seen_BKK) of one row from {(i, j): P(i beats j)}."""
    p, seen = np.zeros((1, K, K)), np.zeros((1, K, K), bool)
    for (i, j), value in table.items():
        p[0, i, j], p[0, j, i], seen[0, i, j], seen[0, j, i] = value, 1 - value, True, True
    return p, seen


def test_a_chain_of_three_by_hand():
    """Odds of 3 twice in a row are odds of 9."""
    strength_BK, _ = bradley_terry.fit(*_square({(0, 1): 0.75, (1, 2): 0.75}), prior=TINY)
    assert np.allclose(strength_BK, [[np.log(3), 0, -np.log(3)]], atol=1e-6)
    assert np.allclose(bradley_terry.beats(strength_BK)[0, 0], [0.5, 0.75, 0.9])


def test_the_prior_by_hand():
    """One pair, won outright: 1 / (1 + x**2) = prior * (x / (1 + x) - 1 / 2), and x = 3 at 0.4."""
    strength_BK, precision_BKK = bradley_terry.fit(*_square({(0, 1): 1.0}, K=2), prior=0.4)
    assert np.allclose(strength_BK, [[np.log(3), -np.log(3)]])
    pair, own = 9 / 100, 0.4 * 3 / 16
    assert np.allclose(precision_BKK, [[[pair + own, -pair], [-pair, pair + own]]])


def test_who_met_no_one_has_strength_zero():
    strength_BK, _ = bradley_terry.fit(*_square({(0, 1): 0.75}))
    assert np.allclose(strength_BK, strength_BK[0, 0] * np.array([1, -1, 0]))
    assert strength_BK[0, 0] > 0.1


@pytest.mark.parametrize("hard", [False, True])
def test_the_fit_is_what_a_generic_optimiser_finds(hard):
    rng = np.random.default_rng(0)
    for _ in range(8):
        K, prior = int(rng.integers(2, 7)), float(rng.uniform(0.05, 1))
        pairs = [(i, j) for i in range(K) for j in range(i) if rng.random() < 0.7]
        draw = (lambda: float(rng.integers(2))) if hard else rng.random
        p, seen = _square({pair: draw() for pair in pairs}, K)

        def loss(s, p=p[0], seen=seen[0], prior=prior):
            log = -np.logaddexp(0, -(s[:, None] - s))  # both orders: each pair's two terms
            own = np.logaddexp(0, -s) + np.logaddexp(0, s)
            return -np.where(seen, p * log, 0).sum() + prior / 2 * own.sum()

        found = optimize.minimize(loss, np.zeros(K), tol=1e-12)
        strength_BK, _ = bradley_terry.fit(p, seen, prior)
        assert np.allclose(strength_BK[0], found.x, atol=1e-4)
        assert loss(strength_BK[0]) <= found.fun + 1e-12


def test_rows_are_fitted_as_if_alone():
    rng = np.random.default_rng(1)
    rows = [_square({(0, 1): p, (1, 2): 1.0}) for p in rng.random(4)]
    p, seen = (np.concatenate(x) for x in zip(*rows, strict=True))
    alone = np.concatenate([bradley_terry.fit(*row)[0] for row in rows])
    assert np.allclose(bradley_terry.fit(p, seen)[0], alone, atol=1e-12)


def test_expected_wins_over_those_met_are_the_wins_had():
    """Checks the likelihood equations on a ring of five."""
    rng = np.random.default_rng(2)
    p, seen = _square({(i, (i + 1) % 5): float(rng.uniform(0.2, 0.8)) for i in range(5)}, 5)
    fitted = bradley_terry.beats(bradley_terry.fit(p, seen, prior=TINY)[0])
    sums = [np.where(seen, x, 0).sum(-1) for x in (p, fitted)]
    assert np.allclose(*sums, atol=1e-6) and not np.allclose(p[seen], fitted[seen], atol=1e-3)
