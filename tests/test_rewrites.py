"""Tests learning to rewrite: examples, metrics of a rewriter, rewards of a rewrite."""

import json

import numpy as np
import pytest
import tiny_recipe
from workdirs import begun, lines

from sip import rewriter as rewriters
from sip.evals import rewrites as rewrite_evals
from sip.evals.continuations import Prompts
from sip.judge import prompts as judge_prompts
from sip.judge.schedules import ScheduleConfig
from sip.judge.scoring import TextJudge, TruthJudge
from sip.rewards import rewrites as rewards
from sip.rewards.rewrites import reward
from sip.run import Run
from sip.stages import recipe
from sip.structs import UserError
from sip.tasks.supervised import rewrites as rewrite_tasks
from sip.text.tokenizer import Byte
from sip.textgen.scripted import Scripted
from sip.training import loop

pytest_plugins = ["tiny_fixtures"]
BYTE = Byte()


class FakeTruth:
    """A ground truth of words.

    "bad" is unsafe and "dull" is a fault; a rewrite replaces both by "good"; quality counts "good".
    """

    def score(self, prefixes, texts):
        count = lambda word: np.array([t.count(word) for t in texts], float)
        return {
            "quality": count("good") - count("dull"),
            "safety": 1.0 - (count("bad") > 0),
            "factuality": 1.0 - (count("dull") > 0),
        }

    @staticmethod
    def compare(a, b):
        return np.where(a == b, 0.5, (a > b).astype(float))

    def rewrite(self, prefixes, suffixes, words):
        return [s.replace("bad", "good").replace("dull", "good") for s in suffixes]


def prompts(*suffixes):
    zeros = np.zeros((len(suffixes), 1), int)
    return Prompts(zeros, zeros == 0, zeros[:, 0], ["a b c d e f"] * len(suffixes), [*suffixes])


def examples(*suffixes, max_len=200):
    asked, prompt = prompts(*suffixes), rewriters.load("rewrite")
    better = FakeTruth().rewrite(asked.prefixes, asked.suffixes, 3)
    both = asked.prefixes, asked.suffixes
    return rewrite_tasks.make(BYTE, prompt, *both, better, max_len=max_len)


def test_an_example_is_the_prompt_and_the_truths_rewrite_of_which_alone_the_tokens_count():
    made = examples(" so bad.", " fine.")
    for e, (suffix, better) in enumerate([(" so bad.", " so good"), (" fine.", " fine.")]):
        live = made.tree.tokens_BT[e][made.tree.mask_BT[e]].tolist()
        before = rewriters.load("rewrite").segments("a b c d e f", suffix)
        assert live == [BYTE.bos, *BYTE.encode("".join(before) + better), BYTE.eos]
        counted = made.tree.tokens_BT[e][made.counted_ET[e]].tolist()
        assert counted == [*BYTE.encode(better), BYTE.eos]  # as long as the suffix at most
    assert made.tree.tokens_BCR.shape[1] == 0 and not (made.counted_ET & ~made.tree.mask_BT).any()


def test_an_example_too_long_is_dropped_and_none_at_all_is_an_error():
    long = examples(" fine.", " so bad." * 9, max_len=100)
    assert len(long.counted_ET) == 1
    with pytest.raises(UserError, match="no example fits 50 tokens"):
        examples(" fine.", max_len=50)


def test_batches_go_through_all_examples_before_one_comes_again():
    made = examples(*[f" {i}." for i in range(6)])
    seen = [made.batch(step, 4, seed=3) for step in range(3)]
    rows = np.concatenate([tree.tokens_BT for tree, _ in seen])
    assert len({row.tobytes() for row in rows[:6]}) == len({r.tobytes() for r in rows[6:]}) == 6
    tree, counted_BT = made.batch(1, 4, seed=3)
    assert (tree.tokens_BT == seen[1][0].tokens_BT).all() and (counted_BT == seen[1][1]).all()
    assert not (made.batch(0, 6, seed=4)[0].tokens_BT == rows[:6]).all()


@pytest.mark.parametrize(
    ("a", "b", "share"),
    [([1, 2, 3, 4], [1, 2, 3, 4], 1.0), ([1, 2, 3, 4], [1, 9, 3, 4], 6 / 8), ([1, 2], [3], 0.0),
     ([1, 2, 3, 4], [1, 2], 4 / 6), ([1, 2, 3, 4], [4, 3, 2, 1], 2 / 8), ([], [1], 0.0)],
)  # fmt: skip
def test_overlap_by_hand(a, b, share):
    assert rewrite_evals.overlap(a, b) == pytest.approx(share)


class Writes:
    """A rewriter that writes given texts; an empty one is a failure."""

    def __init__(self, *texts):
        self.texts = [*texts]

    def rewrite(self, prefixes, suffixes):
        return self.texts, np.array([bool(t) for t in self.texts])


def test_figures_by_hand():
    asked = prompts(" good", " abcd", " dull", " bad", " bad!", " fine")
    made = Writes(" good", " abcx", " good", " good", " bad!", "")
    found = rewrite_evals.figures(made, FakeTruth(), BYTE, asked, words=1)
    assert found == {
        "invalid": (1, 6),
        "copied": (1, 3),  # of " good", " abcd", " fine"
        "overlap": (1 + 8 / 10, 3),
        "overlap_safe": (1 + 8 / 10 + 4 / 10, 4),
        "made_safe": (1, 2),
        "win_rate": (0.5 + 0.5 + 1 + 1 + 0.5, 6),  # a failure wins nothing, a copy ties
        "factuality": (5, 6),
    }


def test_the_truth_itself_copies_what_is_good_and_makes_all_safe():
    asked = prompts(" good", " dull", " bad")
    truth = rewriters.TruthRewriter(FakeTruth(), 1)
    found = rewrite_evals.figures(truth, FakeTruth(), BYTE, asked, words=1)
    assert found["copied"] == found["overlap"] == found["made_safe"] == (1, 1)
    assert found["invalid"] == (0, 3) and found["win_rate"] == (2.5, 3)


class Repeats:
    """A rewriter that replaces x by b; what has a question mark is invalid."""

    def rewrite(self, prefixes, suffixes):
        texts = ["" if "?" in s else s.replace("x", "b") for s in suffixes]
        return texts, np.array([bool(text) for text in texts])


def test_what_is_repaired_by_hand():
    """Two suffixes as they are, of which one is copied; two corrupted ones, of which one is
    repaired and one, with three of four bytes, invalid."""
    suffixes, given = ["abcd", "axcd", "abcd", "abcd"], ["abcd", "axcd", "axcd", "abc?"]
    found = rewrite_evals.repaired(Repeats(), BYTE, ["p"] * 4, given, suffixes)
    assert loop.ratios([found]) == dict(
        invalid=0.25, copied=0.5, repaired=0.5, repaired_before=0.75
    )
    assert tuple(found) == rewrite_evals.REPAIRED


def test_rewards_by_hand():
    safe_B = np.array([True, False])
    copied_BK = np.array([[True, False, True], [True, False, False]])
    quality_BK = np.array([[0.9, 0.9, 0.9], [0.5, 1.0, 0.25]])
    safety_BK = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    reward_BK, valid_BK = reward(
        safe_B, copied_BK, quality_BK, safety_BK, copied_BK | True, copied_BK | True
    )
    assert reward_BK.tolist() == [[1, 0, 1], [0.25, 1, 0.625]] and valid_BK.all()


def test_an_unusable_rewrite_is_worth_nothing_and_a_missing_verdict_masks_of_unsafe_alone():
    written_BK = np.array([[False, True], [True, False], [True, True]])
    judged_BK = np.array([[True, False], [False, False], [True, True]])
    ones = np.ones((3, 2))
    reward_BK, valid_BK = reward(
        np.array([True, False, False]), ones, ones * np.nan, ones, written_BK, judged_BK
    )
    assert valid_BK.tolist() == [[True, True], [False, True], [True, True]]
    assert reward_BK[:2].tolist() == [[0, 1], [0, 0]]


WEIGHTS = {"quality": 1.0, "safety": 1.0}
TRUE = TruthJudge(FakeTruth(), WEIGHTS, ScheduleConfig("against"))
PREFIXES = ["a b c d e f"] * 4
SUFFIXES = [" good", " bad", " bad.", " so\nfine"]
REWRITES = [  # of a safe suffix, two unsafe ones, and a safe one of two lines
    [" good", " good good", "", " good"],
    [" good", " bad", " dull", " good good"],
    [" bad bad", "", " bad bad", " bad."],
    [" so fine", " so\nfine", " so fine ", ""],
]
WORTH = [
    [1, 0, 0, 1],
    [(1 + 1) / 2, 0.5 / 2, (0 + 1) / 2, (1 + 1) / 2],  # " bad" itself is a tie and unsafe
    [0.5 / 2, 0, 0.5 / 2, 0.5 / 2],
    [1, 0, 0, 0],
]


def test_what_a_judge_says_of_rewrites_by_hand():
    reward_BK, valid_BK, metrics = rewards.of(TRUE, PREFIXES, SUFFIXES, REWRITES)
    assert reward_BK.tolist() == WORTH and valid_BK.all()
    assert metrics["suffix/safe"] == (2, 4) and metrics["suffix/unread"] == (0, 4)
    assert metrics["rewrite/unusable"] == (3, 16)
    assert metrics["rewrite/copied_safe"] == (3, 8) and metrics["rewrite/copied_unsafe"] == (2, 8)
    assert metrics["reward/safe"] == (3, 8)
    assert metrics["reward/unsafe"] == (sum(map(sum, WORTH[1:3])), 8)


def says(trunk, branch, options):
    """Returns FakeTruth's verdicts on a prompt, almost certain; a text with "?" is invalid."""
    texts = [line.split(":", 1)[1] for line in branch.strip("\n").split("\n") if ":" in line]
    texts = [text for text in texts if text]
    if any("?" in text for text in texts):
        return (0.1, 0.1)
    known = FakeTruth().score([], texts)
    if len(texts) == 1:
        return (known["safety"][0], 1 - known["safety"][0])
    win = FakeTruth.compare(*known["quality"])
    return (win, 1 - win)


def asked_judge(schedule="against", fn=says):
    aspects = tuple(judge_prompts.load(name) for name in WEIGHTS)
    return TextJudge(Scripted(fn), aspects, WEIGHTS, schedule=ScheduleConfig(schedule))


def test_a_judge_that_reads_is_worth_what_the_truth_is():
    found, known = (rewards.of(j, PREFIXES, SUFFIXES, REWRITES) for j in (asked_judge(), TRUE))
    np.testing.assert_allclose(found[0], known[0], atol=1e-6)
    assert (found[1] == known[1]).all()


def test_rewrites_side_by_side_are_worth_what_each_is_alone():
    """Rewards compare with the suffix only, for any other candidates and any schedule."""
    together = rewards.of(asked_judge(), PREFIXES, SUFFIXES, REWRITES)[0]
    for k in range(4):
        one = [[row[k]] for row in REWRITES]
        alone = rewards.of(asked_judge("all"), PREFIXES, SUFFIXES, one)[0]
        np.testing.assert_allclose(alone[:, 0], together[:, k], atol=1e-6)
    others = rewards.of(asked_judge("all"), PREFIXES, SUFFIXES, REWRITES)[0]
    assert abs(others - together).max() > 0.1  # the mean over all is something else


def test_what_a_judge_does_not_say_is_masked():
    texts = [[" good", " x"], [" what?", " good"], ["", " good"]]
    suffixes = [" so? ", " bad", " bad?"]
    reward_BK, valid_BK, metrics = rewards.of(asked_judge(), PREFIXES[:3], suffixes, texts)
    assert valid_BK.tolist() == [[False, False], [False, True], [False, False]]
    assert reward_BK[1].tolist() == [0, 1] and metrics["suffix/unread"] == (2, 3)


def test_a_judge_is_asked_once_of_each_text_and_of_safe_suffixes_nothing_more():
    asked = []
    judge = asked_judge(fn=lambda *args: asked.append(args[1]) or says(*args))
    rewards.of(judge, PREFIXES, SUFFIXES, REWRITES)
    alone, pairs = ([b for b in asked if (b.count(":") == n)] for n in (2, 3))
    # 4 suffixes first; then the 2 unsafe ones, and of 8 rewrites the 4 that are different
    assert len(alone) == 4 + 2 + 4 and len(pairs) == 2 * 4


def test_a_judges_figures_are_the_truths_where_both_have_them():
    asked = prompts(" good", " abcd", " dull", " bad", " bad!", " fine", " bad.")
    made = Writes(" good", " abcx", " good", " good", " bad!", "", " bad bad")
    known = rewrite_evals.figures(made, FakeTruth(), BYTE, asked, words=1)
    found = rewrite_evals.judged(made, asked_judge(), BYTE, asked)
    for name in ("invalid", "overlap_safe", "made_safe", "win_rate"):
        assert found[name] == pytest.approx(known[name]), name
    assert found["copied_safe"] == (1, 4)


def test_a_verdict_that_is_missing_counts_in_no_figure():
    asked = prompts(" good", " bad", " what?")
    found = rewrite_evals.judged(Writes(" so?", " so?", " so"), asked_judge(), BYTE, asked)
    assert found["invalid"] == (0, 3) and found["copied_safe"] == (0, 1)
    assert found["made_safe"] == found["win_rate"] == (0, 0)


def test_the_tiny_recipes_rewriter_is_trained_and_evaluated_and_used(finished):
    figures = json.loads((finished / "runs/rewriter/eval.json").read_text())
    assert set(figures) == {
        "invalid", "copied", "overlap", "overlap_safe", "made_safe", "win_rate", "factuality"
    }  # fmt: skip
    assert all(0 <= x <= 1 for x in figures.values())
    (learned,) = [x for x in lines(finished, "sip_learned") if "valid/rewrite" in x]
    (oracle,) = [x for x in lines(finished, "sip_oracle") if "valid/rewrite" in x]
    assert learned["valid/rewrite"] < oracle["valid/rewrite"] <= 1  # two steps teach no rewriting


def test_a_rewriter_that_copies_every_suffix_adds_no_candidate(
    finished, quick, tmp_path, monkeypatch
):
    """The pool contains exactly the texts of the local rewriter."""
    copy = lambda self, prefixes, suffixes: ([*suffixes], np.ones(len(suffixes), bool))
    monkeypatch.setattr(rewriters.LocalRewriter, "rewrite", copy)
    workdir = begun(finished, tmp_path, "base", "tutor", "judge", "rewriter")
    recipe.STAGES["selfimprove"].train(Run(tiny_recipe.get_config(), "sip_learned", str(workdir)))
    (line,) = [x for x in lines(workdir, "sip_learned") if "valid/rewrite" in x]
    assert line["valid/rewrite"] == 0 and line["valid/suffix"] == 1
