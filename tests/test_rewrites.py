"""Learning to rewrite: examples, what is measured of a rewriter, what a rewrite is worth."""

import json

import numpy as np
import pytest
import tiny_recipe
from workdirs import begun, lines

from sip import rewriter
from sip.evals import rewriting
from sip.evals.continuations import Prompts
from sip.rewards.rewriting import reward
from sip.stages import recipe, rewrites
from sip.structs import UserError
from sip.tokenizer import Byte

pytest_plugins = ["tiny_fixtures"]
BYTE = Byte()


class FakeTruth:
    """ "bad" is unsafe and "dull" a fault; both are mended to "good"; quality counts "good"."""

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
    asked, prompt = prompts(*suffixes), rewriter.load("rewrite")
    return rewrites.make(FakeTruth(), BYTE, prompt, asked, words=3, max_len=max_len)


def test_an_example_is_the_prompt_and_the_truths_rewrite_of_which_alone_the_tokens_count():
    made = examples(" so bad.", " fine.")
    for e, (suffix, better) in enumerate([(" so bad.", " so good"), (" fine.", " fine.")]):
        live = made.tree.tokens_BT[e][made.tree.mask_BT[e]].tolist()
        before = rewriter.load("rewrite").segments("a b c d e f", suffix)
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
    assert rewriting.overlap(a, b) == pytest.approx(share)


class Writes:
    """A rewriter that writes given texts, an empty one being a failure."""

    def __init__(self, *texts):
        self.texts = [*texts]

    def rewrite(self, prefixes, suffixes):
        return self.texts, np.array([bool(t) for t in self.texts])


def test_figures_by_hand():
    asked = prompts(" good", " abcd", " dull", " bad", " bad!", " fine")
    made = Writes(" good", " abcx", " good", " good", " bad!", "")
    found = rewriting.figures(made, FakeTruth(), BYTE, asked, words=1)
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
    truth = rewriter.TruthRewriter(FakeTruth(), 1)
    found = rewriting.figures(truth, FakeTruth(), BYTE, asked, words=1)
    assert found["copied"] == found["overlap"] == found["made_safe"] == (1, 1)
    assert found["invalid"] == (0, 3) and found["win_rate"] == (2.5, 3)


def test_rewards_by_hand():
    safe_B = np.array([True, False])
    copied_BK = np.array([[True, False, True], [True, False, False]])
    quality_BK = np.array([[0.9, 0.9, 0.9], [0.5, 1.0, 0.25]])
    safety_BK = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    reward_BK, valid_BK = reward(
        safe_B, copied_BK, quality_BK, safety_BK, copied_BK | True, copied_BK | True
    )
    assert reward_BK.tolist() == [[1, 0, 1], [0.25, 1, 0.625]] and valid_BK.all()


def test_a_failed_rewrite_is_masked_and_a_verdict_counts_of_unsafe_suffixes_alone():
    written_BK = np.array([[False, True], [True, False], [True, True]])
    judged_BK = np.array([[True, False], [False, True], [True, True]])
    ones = np.ones((3, 2))
    reward_BK, valid_BK = reward(
        np.array([True, False, False]), ones, ones * np.nan, ones, written_BK, judged_BK
    )
    assert valid_BK.tolist() == [[False, True], [False, False], [True, True]]
    assert reward_BK[:2].tolist() == [[0, 1], [0, 0]]


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
    """What the local rewriter writes is what stands in the pool."""
    copy = lambda self, prefixes, suffixes: ([*suffixes], np.ones(len(suffixes), bool))
    monkeypatch.setattr(rewriter.LocalRewriter, "rewrite", copy)
    workdir = begun(finished, tmp_path, "base", "tutor", "judge", "rewriter")
    recipe.STAGES["selfimprove"].run(tiny_recipe.get_config(), "sip_learned", str(workdir))
    (line,) = [x for x in lines(workdir, "sip_learned") if "valid/rewrite" in x]
    assert line["valid/rewrite"] == 0 and line["valid/suffix"] == 1
