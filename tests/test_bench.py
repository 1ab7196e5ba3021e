"""Tests the benchmarks: the meaning of their figures, and the command line."""

import dataclasses
import json

import numpy as np
import pytest
import tiny
from workdirs import call

from sip.bench import __main__ as bench
from sip.bench import schedules as schedule_bench
from sip.bench import sharing
from sip.bench.schedules import JUDGES, figures, measure
from sip.bench.sharing import FEWER
from sip.data.microworld.oracle import MicroworldTruth
from sip.data.microworld.world import WorldConfig
from sip.judge.compare import Wins
from sip.judge.schedules import ScheduleConfig

pytest_plugins = ["tiny_fixtures"]
NONE = (0.0, 1.0)


def _wins(score_BK):
    score_BK = np.array(score_BK)
    valid_BK = np.ones(score_BK.shape, bool)
    return Wins(score_BK, valid_BK, NONE, NONE, NONE, NONE, (24.0, 2.0), (24.0, 48.0))


def test_figures_by_hand():
    """Checks two prefixes by hand.

    In the first, best and worst are right. In the second they are third and next to last in the
    full ranking; in `equal` the third ties with the second.
    """
    full = np.array([[0.1, 0.2, 0.5, 0.6, 0.9]] * 2)
    equal = np.array([[0.1, 0.2, 0.6, 0.6, 0.9]] * 2)
    wins = _wins([[0.0, 0.1, 0.2, 0.3, 0.4], [0.2, 0.1, 0.9, 0.3, 0.4]])
    found = figures(wins, full)
    assert found["comparisons"] == 12 and found["share"] == 0.5
    assert (found["chosen"], found["rejected"], found["agree"]) == (0.5, 1.0, 0.5)
    assert found["regret_chosen"] == pytest.approx(0.4 / 2)
    assert found["regret_rejected"] == pytest.approx(0.1 / 2)
    assert figures(wins, equal)["agree"] == 1.0


def test_all_pairs_agree_with_themselves_and_fewer_agree_less():
    wanted = {"all": ScheduleConfig(), "quarter": ScheduleConfig("adaptive", budget=0.25)}
    for name in ("calibrated", "drawn"):
        found = measure(JUDGES[name], wanted, prefixes=200, candidates=17, seed=1)
        assert found["all"]["agree"] == 1 and found["all"]["regret_chosen"] == 0
        assert 0.8 < found["quarter"]["agree"] < 1 and found["quarter"]["share"] == 0.25
        assert found["again"]["agree"] < 1 and found["again"]["share"] == 1


@pytest.mark.parametrize("name", JUDGES)
def test_simulated_judges_prefer_the_better(name):
    rng, judge = np.random.default_rng(0), JUDGES[name]
    quality = judge.quality(rng, (200, 6))
    outcome, gap = judge.verdicts(rng, quality), quality[:, :, None] - quality[:, None]
    assert 0 <= outcome.min() and outcome.max() <= 1
    right = np.where(gap == 0, np.nan, (outcome > 0.5) == (gap > 0))
    assert np.nanmean(right) > 0.75
    first = outcome[:, ~np.eye(6, dtype=bool)].mean()
    assert (abs(first - 0.5) > 0.05) == (name == "biased")


def test_pools_of_the_world_are_different_texts_with_the_rewrite_among_them():
    truth = MicroworldTruth(WorldConfig(train=6))
    prefixes, pools = schedule_bench.world_pools(truth, np.random.default_rng(0), 9)
    documents = [text for text, _, _ in truth.world.documents("train")]
    for prefix, pool, document in zip(prefixes, pools, documents, strict=True):
        assert len(pool) == len(set(pool)) == 9 and document.startswith(prefix + pool[0])
        assert truth.rewrite([prefix], pool[:1], schedule_bench.SUFFIX_WORDS)[0] in pool[:2]
    quality = schedule_bench.world().quality(np.random.default_rng(0), (6, 9))
    assert quality.shape == (6, 9) and (quality[:, :2].max(1) > quality.mean(1)).all()


def test_prompt_tokens_by_hand():
    # BOS and 10 tokens once, and 3 + 4 + 5; or with each of three branches.
    assert sharing.prompt_tokens([0] * 10, [[0] * 3, [0] * 4, [0] * 5]) == (11 + 12, 33 + 12)


def test_the_bars_prompts_save_the_tokens_that_they_should():
    # "Better continuation?\nText:" is 26 tokens, "\nOne:" and "\nTwo:" 5, "\nBetter:" 8.
    for prefix, (fewer, _) in FEWER.items():
        trunk, branches = sharing.questions(prefix, 17, 0)
        shared, unshared = sharing.prompt_tokens(*sharing._ids(trunk, branches))
        assert shared == 27 + prefix + 272 * 274
        assert unshared == 272 * (27 + prefix + 274) and unshared / shared > fewer
        assert len(set(branches)) == 272


TINY = dataclasses.replace(sharing.MODEL, width=16, head_dim=4, hidden=24)


def test_a_trunk_and_plain_prompts_say_the_same(monkeypatch):
    monkeypatch.setattr(sharing, "SUFFIX", 9)
    monkeypatch.setattr(sharing, "BATCHES", (2,))
    params = tiny.params(TINY)
    monkeypatch.setattr(sharing.decoder, "init", lambda cfg, key: params)
    found = sharing.measure(40, candidates=3, sample=5, repeats=1, seed=0, cfg=TINY)
    assert (found["pairs"], found["sampled"], found["batch"]) == (6, 5, 2)
    assert found["tokens_shared"] == 67 + 6 * 36 and found["tokens_unshared"] == 6 * (67 + 36)
    assert found["difference"] < 1e-5 < 1e-3 < found["spread"]
    for clock in ("seconds", "cpu"):
        shared, unshared = found[f"{clock}_shared"], found[f"{clock}_unshared"]
        assert shared > 0 and found[f"{clock}_ratio"] == pytest.approx(unshared / shared)


def test_the_sharing_command_prints_whether_bars_are_met(capsys, monkeypatch):
    figures = {
        "pairs": 6, "sampled": 3, "batch": 4, "tokens_shared": 10, "tokens_unshared": 46,
        "tokens_ratio": 4.6, "seconds_shared": 2.0, "seconds_unshared": 6.0, "seconds_ratio": 3.0,
        "cpu_shared": 3.0, "cpu_unshared": 9.0, "cpu_ratio": 3.0,
        "difference": 2e-5, "spread": 0.25,
    }  # fmt: skip
    asked = []
    monkeypatch.setattr(sharing, "measure", lambda p, **how: asked.append((p, how)) or figures)
    assert call(bench, "sharing", "--candidates=3", "--sample=3") == 0
    near, far = capsys.readouterr().out.split("prefix 1920")
    assert "4.60x fewer (at least 4.5x): met" in near and "(at least 7.0x): NOT met" in far
    assert "3.00x less (at least 3.5x): NOT met" in near
    assert "differ by 2.0e-05 at most (at most 1e-05): NOT met" in near
    assert asked[0] == (1024, {"candidates": 3, "sample": 3, "repeats": 3, "seed": 0})
    assert call(bench, "sharing", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"1024": figures, "1920": figures}


SMALL = ("schedules", "--prefixes=4", "--candidates=5")


@pytest.mark.slow
def test_the_command_prints_a_table_or_json_and_plots(capsys, tmp_path):
    assert call(bench, *SMALL) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in (*schedule_bench.WANTED, "again", "world", "agree"))
    picture = tmp_path / "curve.png"
    assert call(bench, *SMALL, "--json", f"--png={picture}") == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {*JUDGES, "world"}
    assert set(found["world"]) == {*schedule_bench.WANTED, "again"}
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_a_judge_of_a_recipe_in_int8(finished, capsys):
    judge = finished / "runs" / "judge"
    assert call(bench, "int8", f"--judge={judge}", "--json") == 0
    found = json.loads(capsys.readouterr().out)["int8"]
    accuracy = json.loads((judge / "eval.json").read_text())
    assert set(found["aspects"]) == {"quality", "safety", "factuality"}
    for name, aspect in found["aspects"].items():
        assert aspect["accuracy_float32"] == pytest.approx(accuracy[f"{name}_accuracy"])
        assert 0 < aspect["largest"] < 0.2
    assert call(bench, "int8", f"--judge={finished / 'runs' / 'base'}") == 2
    assert "no judge trained on ground-truth labels" in capsys.readouterr().err


@pytest.mark.slow
def test_a_judge_of_a_recipe_ranks_rollouts_of_its_policy(finished, capsys):
    named = (f"--judge={finished / 'runs' / 'judge'}", "--prefixes=8", "--candidates=4")
    assert call(bench, "ranking", *named, "--rollouts_of=sip_learned", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    right, pairs = found["accuracy"]["all"]
    assert 0 <= right <= pairs <= 8 * 6
    assert found["means"]["best"]["quality"] >= found["means"]["chosen"]["quality"]
    assert call(bench, "ranking", *named, "--rollouts_of=nobody") == 2
    assert "--rollouts_of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "usage: python -m sip.bench schedules"),
        (("speed",), "usage"),
        (("sharing", "--candidates=1"), "--candidates"),
        (("sharing", "--sample=0"), "--sample"),
        (("schedules", "--prefixes=0"), "--prefixes"),
        (("schedules", "--candidates=2"), "--candidates"),
        (("schedules", "--candidates=9999"), "--candidates"),
        (("schedules", "--seed=-3"), "--seed"),
        (("sharing", "--repeats=0"), "--repeats"),
        (("int8", "--judge=s3://bucket/run"), "s3://bucket/run cannot be reached"),
        (("int8",), "int8: --judge is needed"),
        (("ranking",), "ranking: --judge is needed"),
        (("schedules", "--png=/nowhere/a.png"), "--png /nowhere/a.png"),
    ],
)
def test_bad_commands_are_one_line(argv, message, capsys):
    assert call(bench, *argv) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
