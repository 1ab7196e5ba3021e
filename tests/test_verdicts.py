"""Verdicts read from probabilities."""

import numpy as np

from sip.judge import verdicts


def _direct(p, values, min_mass=0.5):
    with np.errstate(divide="ignore"):
        score, valid = verdicts.direct(np.log(np.array([[p]])), values, min_mass=min_mass)
    return score[0, 0], valid[0, 0]


def test_the_score_is_the_expectation_over_the_options_renormalised():
    score, valid = _direct([0.4, 0.2, 0.2], (1.0, 0.5, 0.0))
    assert valid and np.isclose(score, (0.4 + 0.1) / 0.8)


def test_an_option_of_probability_zero_is_an_answer():
    assert _direct([0.0, 0.9], (1.0, 0.0)) == (0.0, True)


def test_too_little_mass_is_invalid_and_scores_nothing():
    assert _direct([0.3, 0.1], (1.0, 0.0), min_mass=0.5) == (0.0, False)
    assert _direct([0.0, 0.0], (1.0, 0.0), min_mass=0.0) == (0.0, False)


def test_a_nan_is_invalid_and_leaves_its_neighbours_alone():
    logp = np.log(np.array([[[0.5, 0.5], [0.9, 0.1]]]))
    logp[0, 0, 1] = np.nan
    score, valid = verdicts.direct(logp, (1.0, 0.0), min_mass=0.5)
    assert valid.tolist() == [[False, True]]
    assert np.allclose(score, [[0.0, 0.9]])
    logp[0, 0, 1] = np.inf
    assert not verdicts.direct(logp, (1.0, 0.0), min_mass=0.5)[1][0, 0]


def test_no_branches_give_no_verdicts():
    score, valid = verdicts.direct(np.zeros((3, 0, 2)), (1.0, 0.0), min_mass=0.5)
    assert score.shape == valid.shape == (3, 0)
