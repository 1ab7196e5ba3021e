"""Win rates by a judge, on scores that are given."""

from types import SimpleNamespace

import numpy as np
import pytest

from sip.evals import continuations, ground_truth, judged
from sip.evals.continuations import SAMPLES, Prompts
from sip.evals.ground_truth import EvalConfig, HeldOut, Suite
from sip.judge.build import JudgeConfig
from sip.mesh import single
from sip.structs import UserError

RULE = JudgeConfig("rule", (("quality", 1.0),), rule="distinct_words")
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


def suite(monkeypatch, judge, **evals) -> Suite:
    """An evaluation without a ground truth; the policy writes "a" to "d", its baseline "A".."""
    config = EvalConfig(baseline="base", judge=RULE, validation=E, **evals)
    held = HeldOut(ASKED, ASKED, ASKED)
    texts = {"validation": {"standard": list("ABCD")}}
    monkeypatch.setattr(ground_truth, "_likelihood", lambda *_: {"nll": 2.0})
    monkeypatch.setattr(ground_truth, "_baseline", lambda s: texts)
    monkeypatch.setattr(continuations, "greedy", lambda model, x, **_: list("abcd")[: len(x)])
    paths = ("here", "there")
    return Suite(config, None, held, held, *paths, None, single(), None, 1, lambda: judge, 1)  # type: ignore: the model is not used


def test_during_the_run_the_first_prefixes_are_compared_if_asked_for(monkeypatch):
    judge = Given([[1, 0], [0.5, 0.5]], [[1, 1], [1, 1]])
    found = ground_truth.during(suite(monkeypatch, judge, judged=2), {})
    assert found == {
        "eval/nll": 2.0, "eval/win_rate_judge": 0.75, "eval/win_rate_judge_se": 0.25,
        "eval/judge_valid": 1.0, SAMPLES: [("p", "a")],
    }  # fmt: skip
    assert judge.asked == (["p"] * 2, [["a", "A"], ["b", "B"]], [" suffix"] * 2, (2, 2))
    never = suite(monkeypatch, None)  # by default the judge is not even built
    assert ground_truth.during(never, {}) == {"eval/nll": 2.0, SAMPLES: [("p", "a")]}


def test_wrong_numbers_of_compared_prefixes_are_named():
    with pytest.raises(UserError, match="evals.judged needs evals.judge"):
        EvalConfig(judged=1)
    with pytest.raises(UserError, match="evals.judged=9: must be"):
        EvalConfig(judged=9, validation=8, baseline="b", judge=RULE)
