"""Tests the accuracy of a judge on pairs of rollouts, by what differs: counts by hand."""

import numpy as np

from sip.bench import ranking
from sip.data.microworld.oracle import MicroworldTruth

# Two prefixes with three rollouts each. Of the first prefix the last rollout repeats itself, of
# the second one the first has a wrong fact, and the other two are a tie.
KNOWN = {
    "quality": np.array([[0.9, 0.8, 0.3], [0.0, 0.5, 0.51]]),
    "coherent": np.array([[1.0, 1.0, 0.5], [1.0, 1.0, 1.0]]),
    "safety": np.ones((2, 3)),
    "facts": np.array([[2.0, 1.0, 1.0], [3.0, 2.0, 2.0]]),
    "facts_right": np.array([[2.0, 1.0, 1.0], [2.0, 2.0, 2.0]]),
    "repetition": np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]),
}


def test_pairs_are_counted_by_what_differs_and_ties_are_not():
    score = np.array([[0.2, 0.9, 0.1], [0.5, 0.5, 0.9]])
    found = ranking.accuracy(score, KNOWN, MicroworldTruth.compare)
    assert found == {
        "all": (3.5, 5),  # wrong about (0, 1) of the first prefix; equal scores are half right
        "both faultless": (0.0, 1),  # the pair of the second prefix is a tie
        "one faultless": (3.5, 4),
        "one repeats itself": (2.0, 2),
        "quality 0 to 0.2 apart": (0.0, 1),
        "quality 0.2 to 0.4 apart": (0.0, 0),
        "quality 0.4 to 0.8 apart": (3.5, 4),
        "quality 0.8 to inf apart": (0.0, 0),
    }


def test_a_text_without_a_verdict_is_wrong_and_not_chosen():
    score = np.array([[np.nan, 0.9, 0.1], [np.nan, np.nan, np.nan]])
    assert ranking.accuracy(score, KNOWN, MicroworldTruth.compare)["all"] == (1.0, 5)
    found = ranking.chosen(score, KNOWN)
    assert np.isclose(found["chosen"]["quality"], (0.8 + 0.0) / 2)


def test_the_chosen_rollout_is_compared_with_the_best_and_with_all():
    found = ranking.chosen(np.array([[0.0, 0.1, 0.9], [0.0, 0.0, 1.0]]), KNOWN)
    assert np.isclose(found["chosen"]["quality"], (0.3 + 0.51) / 2)
    assert np.isclose(found["best"]["quality"], (0.9 + 0.51) / 2)
    assert found["chosen"]["repetition"] == 0.5 and found["all"]["repetition"] == 1 / 6
