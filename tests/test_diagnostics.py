"""Tests a judge's diagnostics by source of the candidates: sums agree with the judge's own."""

import numpy as np
import pytest

from sip import metrics
from sip.judge import compare, diagnostics, prompts
from sip.judge.schedules import ScheduleConfig
from sip.judge.scoring import TextJudge, TruthJudge
from sip.textgen.scripted import Scripted
from sip.training import loop

QUALITY, SAFETY = prompts.load("quality"), prompts.load("safety")
SOURCES = ["suffix", "rewrite", "rollout", "rollout"]
TEXTS = [[" a", " a b", " a b c", " bad"], [" a b c d", " bad a", " a bad b", " b"]]
MASK = np.array([[True, True, True, True], [True, False, True, True]])


def noisy(trunk, branch, options):
    """Returns probabilities from the letters: some flip when swapped, some tie or are invalid."""
    seed = sum(i * ord(c) for i, c in enumerate(branch))
    p = (0.5, 0.9, 0.7, 0.3)[seed % 4]
    return (0.1, 0.1) if seed % 7 == 0 else (p, 1 - p)


class FakeTruth:
    def score(self, prefixes, texts):
        return {"quality": np.array([len(t) for t in texts], float)}

    def compare(self, a, b):
        return np.where(a > b, 1.0, np.where(a < b, 0.0, 0.5))


def judge(fn=noisy, aspects=(QUALITY, SAFETY), **options):
    return TextJudge(Scripted(fn), aspects, {a.name: 1.0 for a in aspects}, **options)


def score(judge, texts=TEXTS, mask=MASK):
    return judge.score(["p"] * len(texts), texts, [" r"] * len(texts), mask)


SCHEDULES = [ScheduleConfig(name, opponents=2) for name in ("all", "pivot", "random", "adaptive")]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_sums_over_sources_are_the_judges_own(schedule):
    judged = score(judge(schedule=schedule))
    found = diagnostics.by_source(judged, SOURCES, TEXTS)
    whole = {k: v for k, v in judged.metrics.items() if f"{k}/suffix" in found}
    assert {k.split("/")[1] for k in whole} >= {"flips", "ties", "invalid", "score", "says_unsafe"}
    for key, pair in whole.items():
        parts = [found[f"{key}/{source}"] for source in ("suffix", "rewrite", "rollout")]
        np.testing.assert_allclose(np.sum(parts, axis=0), pair, err_msg=key)
    told = [judged.metrics[f"judge/{key}/quality"][0] for key in ("flips", "ties", "invalid")]
    assert 0 not in told, "else nothing was compared here"


def test_what_is_known_of_a_candidate_is_its_own_under_every_schedule():
    """Schedules reorder candidates; with all pairs compared, all give the same figures."""
    want = score(judge(schedule=SCHEDULES[0])).each
    assert len(set(want["judge/flips/quality"][0][0])) > 1, "candidates differ"
    for schedule in (ScheduleConfig("random", opponents=3), ScheduleConfig("adaptive", budget=1.0)):
        found = score(judge(schedule=schedule)).each
        for key in ("judge/flips/quality", "judge/ties/quality", "judge/invalid/quality"):
            np.testing.assert_array_equal(found[key], want[key])
    pivot = score(judge(lambda *a: (0.9, 0.1), schedule=ScheduleConfig("pivot"))).each
    assert pivot["judge/ties/quality"][1].tolist() == [[1.5, 0.5, 0.5, 0.5], [1, 0, 0.5, 0.5]]


def test_flips_ties_and_invalid_comparisons_by_hand():
    """0 and 1 tie, 0 and 2 flip, one order of 1 and 2 is invalid."""
    live = np.ones((1, 3), bool)
    pairs = compare.all_pairs(live)
    shown = list(zip(pairs.first_BC[0], pairs.second_BC[0], strict=True))
    said = {(0, 1): 0.5, (1, 0): 0.5, (0, 2): 0.9, (2, 0): 0.9, (1, 2): 0.8, (2, 1): 0.1}
    table = compare.enter(
        compare.empty(live),
        pairs,
        np.array([[said[pair] for pair in shown]]),
        np.array([[pair != (2, 1) for pair in shown]]),
    )
    each = compare.mean_wins(table).each
    assert [x.tolist() for x in each["ties"]] == [[[1, 0.5, 0.5]], [[1, 0.5, 0.5]]]
    assert [x.tolist() for x in each["flips"]] == [[[0.5, 0, 0.5]], [[1, 0.5, 0.5]]]
    assert [x.tolist() for x in each["invalid"]] == [[[0, 0.5, 0.5]], [[2, 2, 2]]]


def test_a_verdict_is_the_option_nearest_to_the_score():
    facts = prompts.load("factuality")
    score_BK = np.array([[1.0, 0.7, 0.3, 0.2]])
    valid_BK = np.array([[True, True, True, False]])
    said = diagnostics.verdicts(facts, score_BK, valid_BK)
    counts = {name: (x.sum(), n.sum()) for name, (x, n) in said.items()}
    assert counts == {"says_none": (1, 3), "says_possible": (2, 3), "says_definite": (0, 3)}


def test_an_aspect_is_logged_by_source_under_the_judges_name():
    judged = score(judge(lambda *a: (0.9, 0.1), (SAFETY,)))
    found = diagnostics.by_source(judged, SOURCES, TEXTS)
    assert found["judge/says_safe/safety/rollout"] == (4, 4)
    assert found["judge/invalid/safety/rewrite"] == (0, 1)
    assert found["judge/score/safety/suffix"] == pytest.approx((1.8, 2))
    truth = score(TruthJudge(FakeTruth(), {"quality": 1.0}))
    assert all(key.startswith("truth/") for key in diagnostics.by_source(truth, SOURCES, TEXTS))


def test_length_is_correlated_over_steps_as_over_all_candidates():
    def by_length(trunk, branch, options):
        p = 0.5 + 0.01 * len(branch) + 0.02 * branch.count("b")
        return (p, 1 - p)

    one = judge(by_length, (SAFETY,))
    steps = [
        diagnostics.by_source(
            score(one, TEXTS[i : i + 1], MASK[i : i + 1]), SOURCES, TEXTS[i : i + 1]
        )
        for i in (0, 1)
    ]
    whole = score(one)
    length_BK = np.array([[len(text) for text in row] for row in TEXTS], float)
    want = lambda k: np.corrcoef(length_BK[:, k][MASK[:, k]], whole.scores_BK[:, k][MASK[:, k]])
    kept = [loop.totals(steps[:1]), steps[1]]  # a checkpoint in between
    for found in (loop.ratios(steps), loop.ratios(kept)):
        assert found["judge/length/safety"] == pytest.approx(want([0, 1, 2, 3])[0, 1])
        assert found["judge/length/safety/rollout"] == pytest.approx(want([2, 3])[0, 1])
        assert "judge/length/safety/rewrite" not in found, "a single candidate has no correlation"
        assert not any(metrics.MOMENT in key for key in found)


def test_two_aspects_are_never_mistaken_for_each_other():
    judged = score(judge(aspects=(QUALITY, SAFETY)))
    found = diagnostics.by_source(judged, SOURCES, TEXTS)
    by_key = {tuple(key.split("/")[2:]) for key in found if key.startswith("judge/says")}
    assert by_key == {("safety", s) for s in ("suffix", "rewrite", "rollout")}
