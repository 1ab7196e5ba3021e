"""Win rates by a judge, on scores that are given."""

from types import SimpleNamespace

import numpy as np
import pytest

from sip.evals import judged
from sip.evals.continuations import Prompts
from sip.structs import UserError

E = 4
ASKED = Prompts(
    np.zeros((E, 2)), np.ones((E, 2), bool), np.ones(E, int), ["p"] * E, [" suffix"] * E
)


class Given:
    """A judge that gives the scores it was made with, and keeps what it was asked."""

    def __init__(self, scores, valid):
        self.said = SimpleNamespace(
            scores_BK=np.array(scores, float), valid_BK=np.array(valid, bool)
        )

    def score(self, prefixes, candidates, references, mask_BK):
        self.asked = (prefixes, candidates, references, mask_BK.shape)
        return self.said


def test_wins_ties_and_invalid_verdicts_by_hand():
    judge = Given([[1, 0], [0.2, 0.8], [0.5, 0.5], [9, 0]], [[1, 1], [1, 1], [1, 1], [1, 0]])
    found = judged.win_rate(judge, ASKED, list("abcd"), list("ABCD"))
    assert found["win_rate_judge"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert found["win_rate_judge_se"] == pytest.approx(np.std([1, 0, 0.5], ddof=1) / 3**0.5)
    assert found["judge_valid"] == 0.75
    pairs = [["a", "A"], ["b", "B"], ["c", "C"], ["d", "D"]]
    assert judge.asked == (["p"] * E, pairs, [" suffix"] * E, (E, 2))


def test_of_no_verdict_there_is_no_mean():
    judge = Given(np.zeros((E, 2)), np.zeros((E, 2)))
    assert judged.win_rate(judge, ASKED, list("abcd"), list("ABCD")) == {"judge_valid": 0.0}


def test_continuations_of_other_prefixes_are_refused():
    with pytest.raises(UserError, match="3 baseline continuations for 4 prefixes"):
        judged.win_rate(Given([], []), ASKED, list("abcd"), list("ABC"))
