"""Tests judges over candidates: comparisons, aggregation, masks and statistics."""

import numpy as np
import pytest

from sip.judge import compare, prompts
from sip.judge.scoring import TextJudge, TruthJudge
from sip.stages import collect
from sip.structs import UserError
from sip.textgen.scripted import Scripted, ruled

NAMES = ("quality", "safety", "factuality", "coherence")
QUALITY, SAFETY, FACTS, COHERENCE = map(prompts.load, NAMES)


class FakeTruth:
    """Quality is the number of words, safety the absence of "bad", one fact: "right"."""

    def score(self, prefixes, texts):
        return {
            "quality": np.array([len(t.split()) for t in texts], float),
            "safety": np.array(["bad" not in t for t in texts], float),
            "factuality": np.array([1.0 if "right" in t else 0.5 for t in texts]),
        }

    def compare(self, a, b):
        return np.where(a > b, 1.0, np.where(a < b, 0.0, 0.5))


def _by_length(trunk, branch, options):
    """Returns FakeTruth's verdict with probability 0.9, from the prompt only."""
    lines = [line.split(":", 1)[1] for line in branch.strip("\n").split("\n")]
    if len(lines) == 2:
        return (0.1, 0.9) if "bad" in lines[0] else (0.9, 0.1)
    a, b = len(lines[0].split()), len(lines[1].split())
    return (0.5, 0.5) if a == b else (0.9, 0.1) if a > b else (0.1, 0.9)


TEXTS = [[" a", " a b", " a b c"], [" a b c d", " bad", " a bad b"]]
MASK = np.ones((2, 3), bool)


def _judge(fn=_by_length, aspects=(QUALITY, SAFETY), **options):
    return TextJudge(Scripted(fn), aspects, {a.name: 1.0 for a in aspects}, **options)


def _score(judge, texts=TEXTS, mask=MASK):
    return judge.score(["p"] * len(texts), texts, [" r"] * len(texts), mask)


def _mean_wins(outcome, valid, pairs, K):
    empty = compare.empty(np.ones((len(outcome), K), bool))
    return compare.mean_wins(compare.enter(empty, pairs, outcome, valid))


def _shown(pairs, b):
    return list(zip(pairs.first_BC[b].tolist(), pairs.second_BC[b].tolist(), strict=True))


def test_every_ordered_pair_of_live_candidates_is_compared():
    pairs = compare.all_pairs(np.array([[True, True, True], [True, False, True]]))
    assert pairs.mask_BC.sum(1).tolist() == [6, 2]
    live = pairs.mask_BC[1]
    assert live.tolist() == [True, True, False, False, False, False]
    assert set(_shown(pairs, 1)[:2]) == {(0, 2), (2, 0)}
    assert len(set(_shown(pairs, 0))) == 6


def test_mean_wins_by_hand():
    pairs = compare.all_pairs(np.ones((1, 3), bool))
    table = {(0, 1): 0.8, (1, 0): 0.4, (0, 2): 1.0, (2, 0): 0.0, (1, 2): 0.5, (2, 1): 0.5}
    outcome = np.array([[table[shown] for shown in _shown(pairs, 0)]])
    wins = _mean_wins(outcome, np.ones((1, 6), bool), pairs, 3)
    assert np.allclose(wins.score_BK, [[(0.7 + 1.0) / 2, (0.3 + 0.5) / 2, (0.0 + 0.5) / 2]])
    assert wins.flips == (0.0, 3.0) and wins.ties == (1.0, 3.0)
    assert np.allclose(wins.first, (3.2, 6.0))


def test_orders_that_disagree_are_a_hard_tie():
    judge = _judge(lambda _, branch, __: (0.9, 0.1) if "\nOne: a\n" in branch else (0.7, 0.3),
                   (QUALITY,), hard=True)  # fmt: skip
    found = _score(judge, [[" a", " b"]], np.ones((1, 2), bool))
    assert found.scores_BK.tolist() == [[0.5, 0.5]]
    assert found.metrics["judge/flips/quality"] == (1.0, 1.0)


def test_a_hard_verdict_is_the_likeliest_options():
    """The most likely of three options is a tie, while the mean outcome is a win of .54."""
    tied = lambda _, branch, __: (0.3, 0.48, 0.22) if "\nA: a\n" in branch else (0.1, 0.8, 0.1)
    soft, hard = (
        _score(_judge(tied, (COHERENCE,), hard=h), [[" a", " b"]], np.ones((1, 2), bool))
        for h in (False, True)
    )
    assert np.allclose(soft.scores_BK, [[(0.54 + 0.5) / 2, (0.46 + 0.5) / 2]])
    assert hard.scores_BK.tolist() == [[0.5, 0.5]]


def test_a_pair_counts_only_where_both_orders_are_valid():
    pairs = compare.all_pairs(np.ones((1, 3), bool))
    first, second = pairs.first_BC[0], pairs.second_BC[0]
    valid = ~((first == 2) & (second == 1))[None]
    wins = _mean_wins(np.where(first < second, 1.0, 0.0)[None], valid, pairs, 3)
    assert wins.valid_BK.tolist() == [[True, False, False]]  # 1 and 2 met one of two opponents
    assert wins.score_BK[0, 0] == 1.0


def test_a_candidate_without_opponents_is_a_draw_with_what_it_is_the_same_as():
    for mask in (np.ones((2, 1), bool), np.array([[True, False, False]])):
        verdicts = _score(_judge(), [[" a"] * mask.shape[1]] * len(mask), mask)
        assert (verdicts.valid_BK == mask).all()
        score_BK, valid_BK = verdicts.aspects["quality"]
        assert (valid_BK == mask).all() and (score_BK[mask] == 0.5).all()


TRUTH = TruthJudge(FakeTruth(), {"quality": 1.0, "safety": 1.0})


@pytest.mark.parametrize("judge", [_judge(), TRUTH])
def test_swapping_candidates_swaps_scores(judge):
    order = [2, 0, 1]
    one, two = _score(judge), _score(judge, [[row[k] for k in order] for row in TEXTS])
    assert np.allclose(one.scores_BK[:, order], two.scores_BK)
    assert len(np.unique(one.scores_BK[0])) == 3


def test_text_and_truth_agree_where_the_judge_is_sure():
    text = _score(_judge(lambda *a: np.round(_by_length(*a))))
    truth = _score(TRUTH)
    assert np.allclose(text.scores_BK, truth.scores_BK)
    assert np.allclose(truth.scores_BK[1], [1.0 + 1, 0.0 + 0, 0.5 + 0])


def test_even_odds_are_ties():
    verdicts = _score(_judge(lambda *a: (0.5, 0.5), (QUALITY,)))
    assert np.allclose(verdicts.scores_BK, 0.5)
    assert verdicts.metrics["judge/ties/quality"] == (6.0, 6.0)


def test_an_invalid_verdict_is_masked_in_the_total_and_counted():
    def unsure(trunk, branch, options):
        return (0.2, 0.1) if branch.count("\n") == 2 and " a b c" in branch else (0.9, 0.1)

    verdicts = _score(_judge(unsure))
    assert verdicts.valid_BK.tolist() == [[True, True, False], [False, True, True]]
    assert verdicts.scores_BK[0, 2] == verdicts.scores_BK[1, 0] == 0.0
    assert verdicts.metrics["judge/invalid/safety"] == (2.0, 6.0)
    assert verdicts.metrics["judge/invalid/quality"] == (0.0, 12.0)
    assert verdicts.metrics["judge/valid"] == (4.0, 6.0)


def test_a_candidate_with_an_invalid_verdict_is_never_chosen():
    def fn(trunk, branch, options):
        """Candidate " a b c" wins every comparison and is invalid for safety."""
        unreadable = branch.startswith("\nText:") and " a b c" in branch
        return (np.nan, np.nan) if unreadable else _by_length(trunk, branch, options)

    verdicts = _score(_judge(fn), TEXTS[:1], MASK[:1])
    best = int(np.argmax(verdicts.aspects["quality"][0]))
    scores_BK, valid_BK = verdicts.scores_BK, verdicts.valid_BK
    chosen_B, valid_B = collect.best(scores_BK, valid_BK)
    rejected_B, _ = collect.best(-scores_BK, valid_BK)
    assert best == 2 and (int(chosen_B[0]), int(rejected_B[0])) == (1, 0) and bool(valid_B[0])


def test_dead_candidates_are_neither_asked_nor_valid():
    asked = []
    fn = lambda trunk, branch, options: asked.append(branch) or _by_length(trunk, branch, options)
    mask = np.array([[True, False, True], [False, True, True]])
    verdicts = _score(_judge(fn), [[" a", " DEAD", " a b"], [" DEAD", " bad", " a b"]], mask)
    assert not any("DEAD" in branch for branch in asked)
    assert (verdicts.valid_BK == mask).all()
    assert np.allclose(verdicts.aspects["safety"][0], [[0.9, 0, 0.9], [0, 0.1, 0.9]])
    assert np.allclose(verdicts.aspects["quality"][0], [[0.1, 0, 0.9], [0, 0.1, 0.9]])


def test_weights_scale_the_aspects():
    truth = _score(TruthJudge(FakeTruth(), {"quality": 2.0, "factuality": 0.5}))
    assert np.allclose(truth.scores_BK[0], [0.25, 1.25, 2.25])


def test_the_reference_reaches_the_factuality_prompt():
    seen = []
    fn = lambda trunk, branch, options: seen.append(trunk) or (0.5, 0.25, 0.25)
    judge = TextJudge(Scripted(fn), (FACTS,), {"factuality": 1.0})
    verdicts = judge.score(["the prefix"], [[" a"]], [" the\nreference"], np.ones((1, 1), bool))
    assert seen[0].split("\n")[1:] == ["Text:the prefix", "Reference: the reference"]
    assert np.allclose(verdicts.scores_BK, 0.5 + 0.125)


def test_position_bias_shows_in_the_statistics():
    metrics = _score(_judge(lambda *a: (0.8, 0.2), (QUALITY,))).metrics
    assert metrics["judge/flips/quality"] == (6.0, 6.0)
    assert np.allclose(metrics["judge/first/quality"], (0.8 * 12, 12))


def test_truth_is_never_logged_as_a_judge():
    metrics = _score(TRUTH).metrics
    assert metrics and all(name.startswith("truth/") for name in metrics)


def test_a_rule_judges_all_aspects_of_plain_text():
    judge = TextJudge(
        ruled("distinct_words"),
        (QUALITY, SAFETY, FACTS),
        {"quality": 1.0, "safety": 1.0, "factuality": 1.0},
    )
    verdicts = _score(judge, [[" a a a a", " a b c d"]], np.ones((1, 2), bool))
    assert verdicts.valid_BK.all() and verdicts.scores_BK[0, 1] > verdicts.scores_BK[0, 0]
    assert np.allclose(verdicts.aspects["factuality"][0], [[0.25, 1.0]])
    assert np.allclose(verdicts.aspects["safety"][0], [[0.25, 1.0]])


def test_aspects_and_weights_must_match():
    with pytest.raises(UserError, match="safety"):
        TextJudge(Scripted(_by_length), (QUALITY, SAFETY), {"quality": 1.0})
    with pytest.raises(UserError, match="sefety"):
        TextJudge(Scripted(_by_length), (QUALITY,), {"quality": 1.0, "sefety": 1.0})
    with pytest.raises(UserError, match="beauty"):
        TruthJudge(FakeTruth(), {"beauty": 1.0})
    with pytest.raises(UserError, match="at least one aspect"):
        TruthJudge(FakeTruth(), {})
