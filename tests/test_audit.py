"""Tests a second judge: its agreement by hand, and how it ends a run."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_recipe
from workdirs import begun, lines, state, stop_after

from sip import workdir as workdirs
from sip.judge import audit
from sip.judge.audit import Point, drift
from sip.judge.judged import Judged
from sip.report import statistics
from sip.run import Run
from sip.stages import recipe, selfimprove
from sip.structs import UserError
from sip.textgen import scripted
from sip.training import checkpoints, loop

pytest_plugins = ["tiny_fixtures"]
SOURCES = ["suffix", "rollout", "rollout"]


def judged(scores, valid=None, who="judge", **aspects):
    scores_BK = np.array(scores, float)
    valid_BK = np.ones(scores_BK.shape, bool) if valid is None else np.array(valid, bool)
    each = {name: (np.array(x, float), valid_BK) for name, x in aspects.items()}
    metrics = {f"{who}/valid": (float(valid_BK.sum()), float(valid_BK.size))}
    return Judged(scores_BK, valid_BK, each, metrics, who, {})


def test_agreement_by_hand():
    judge = judged([[0.2, 0.9, 0.5], [0.3, 0.1, 0.1]], quality=[[0, 1, 0], [0, 0, 0]])
    other = judged([[0.4, 0.1, 0.6], [0.8, 0.8, 0.2]], quality=[[0, 1, 0], [1, 1, 1]], tone=[[]])
    found = audit.compare(judge, other, SOURCES, who="audit")
    assert found["audit/best"] == (1, 2)  # 2 rather than 1; 0 is one of two best
    # row 0: 0 < 1 against 0 > 1, 0 < 2 both, 1 > 2 against 1 < 2; row 1: 0 > 2 both
    assert found["audit/order"] == (2, 4)
    assert found["audit/best/quality"] == (1, 1)  # the audit holds all of row 1 equal
    assert found["audit/order/quality"] == (2, 2)
    assert found["audit/chosen"] == pytest.approx((0.1 + 0.8, 2))
    assert found["audit/judge_chosen"] == pytest.approx((0.9 + 0.3, 2))
    assert found["audit/score/suffix"] == pytest.approx((0.4 + 0.8, 2))
    assert found["audit/judge_score/rollout"] == pytest.approx((0.9 + 0.5 + 0.1 + 0.1, 4))
    assert "audit/best/tone" not in found and found["audit/valid"] == (6, 6)


def test_what_one_of_them_cannot_read_is_not_compared():
    judge = judged([[0.2, 0.9, 0.5]], [[True, True, False]])
    other = judged([[0.4, 0.0, 0.6]], [[True, False, True]])
    found = audit.compare(judge, other, SOURCES, who="audit")
    assert found["audit/order"] == found["audit/chosen"] == (0, 0)
    assert found["audit/score/suffix"] == (0.4, 1) and found["audit/score/rollout"] == (0, 0)
    assert audit.point(found, 3, 2, who="audit") == []


def test_agreement_with_itself_is_whole_and_with_its_opposite_none():
    x = np.random.default_rng(0).random((5, 3))
    for sign, want in ((1, 1.0), (-1, 0.0)):
        found = audit.compare(judged(x), judged(sign * x), SOURCES, who="audit")
        assert loop.ratios([found])["audit/order"] == loop.ratios([found])["audit/best"] == want
        assert found["audit/order"][1] == 15


def points(judge, other, candidates=None):
    rows = zip(judge, other, candidates or [4] * len(judge), strict=True)
    return [Point(5 * i, k, a, b) for i, (a, b, k) in enumerate(rows)]


DRIFTS = {  # the judge's own mean, the audit's, rollouts in the pool: whether the run ends
    "steady": ([0.5] * 4, [0.5] * 4, None, False),
    "falls while the judge rises": ([0.5, 0.6, 0.7], [0.5, 0.3, 0.3], None, True),
    "falls while the judge stays": ([0.9, 0.9, 0.9], [0.5, 0.3, 0.3], None, True),
    "both fall": ([0.9, 0.7, 0.7], [0.5, 0.3, 0.3], None, False),
    "both rise": ([0.5, 0.7, 0.9], [0.5, 0.6, 0.7], None, False),
    "falls from what it had risen to": ([0.5, 0.6, 0.7, 0.7], [0.5, 0.9, 0.6, 0.6], None, True),
    "falls by just as much as it may": ([0.5, 0.6, 0.7], [0.5, 0.375, 0.375], None, False),
    "falls once": ([0.5, 0.6, 0.7, 0.7], [0.5, 0.3, 0.5, 0.3], None, False),
    "falls at the first of two": ([0.5, 0.6], [0.5, 0.1], None, False),
    "another pool": ([0.5, 0.6, 0.7], [0.5, 0.3, 0.3], [0, 4, 4], False),
    "and then": ([0.5, 0.6, 0.7, 0.7], [0.9, 0.6, 0.3, 0.3], [0, 4, 4, 4], True),
    "nothing yet": ([], [], None, False),
}


@pytest.mark.parametrize(("judge", "other", "pool", "ends"), DRIFTS.values(), ids=DRIFTS)
def test_a_run_ends_where_judge_and_audit_drift_apart(judge, other, pool, ends):
    history = points(judge, other, pool)
    assert bool(drift(history, max_drop=0.125, patience=2)) == ends
    assert not drift(history, max_drop=0.1, patience=0), "patience 0 never ends a run"


def test_the_reason_names_both_means():
    history = points([0.5, 0.6, 0.7], [0.5, 0.375, 0.25])
    said = drift(history, max_drop=0.12, patience=2)
    assert "0.250, at step 0 it scored it 0.500" in said and "0.700 now, 0.500 then" in said


def test_a_bad_audit_is_refused_by_its_name(tmp_path):
    def refused(message, **changes):
        config = tiny_recipe.get_config("dpo_rollouts,truth")
        config.runs.dpo_rollouts.audit.update(every_steps=1, **changes)
        with pytest.raises(UserError, match=message):
            recipe.check(config, str(tmp_path))

    refused("audit.prefixes must be at most the batch of 8, not 9", prefixes=9)
    refused("runs.dpo_rollouts.audit.max_drop=-0.1", max_drop=-0.1)
    refused("audit.judge.reference: no rewrite", judge=dict(reference="rewrite"))
    refused("audit.judge.init_from", judge=dict(backend="local", init_from="nowhere"))
    refused("audit.judge.init_from: the policy", judge=dict(backend="local", init_from="policy"))
    refused("runs.dpo_rollouts.audit.judge.backend", judge=dict(backend="guess"))
    refused("runs.dpo_rollouts.audit.judge.*url is needed", judge=dict(backend="http"))
    config = tiny_recipe.get_config("sft_one_rollout,truth")
    config.runs.sft_one_rollout.audit.every_steps = 1
    with pytest.raises(UserError, match="audit.every_steps: this run has no judge"):
        recipe.check(config, str(tmp_path))


def test_over_seeds_the_reason_has_no_mean_and_the_step_has():
    rows = [{"nll": 1.0, "stopped_early": "why", "stopped_early_after": 7}, {"nll": 3.0}]
    found = statistics.over(rows)
    assert set(found) == {"nll", "stopped_early_after"} and found["nll"]["mean"] == 2.0
    assert found["stopped_early_after"]["values"] == [7, None]


def test_a_corpus_without_a_truth_is_named():
    wanted = dataclasses.replace(
        selfimprove.resolve(tiny_recipe.get_config("dpo_rollouts,truth"), "dpo_rollouts").audit,
        every_steps=2,
    )
    with pytest.raises(UserError, match="audit: judge.backend truth: this corpus has no"):
        audit.build(wanted, "", None, None, None)
    assert audit.build(dataclasses.replace(wanted, every_steps=0), "", None, None, None) is None


NAME = "rf_nll_rollouts"
RULES = {"long": lambda text: min(1.0, len(text) / 200), "short": lambda t: 1 - len(t) / 200}
RULES["longer"] = lambda text: RULES["long"](text) ** 2


def audited(judge, other, **changes):
    """Trains a policy on the absolute rewards of `judge`, audited by `other`."""
    config = tiny_recipe.get_config(f"{NAME},truth")
    run = config.runs[NAME]
    weights = (("safety", 1.0),)  # judged alone: a score does not hang on the pool
    run.judge.update(backend="rule", rule=judge)
    run.audit.judge.update(backend="rule", rule=other)
    run.judge.weights = run.audit.judge.weights = weights
    run.audit.update(every_steps=2, prefixes=8, max_drop=0.02, patience=2, **changes)
    run.steps, run.optim.lr, run.optim.schedule = 14, 0.05, "constant"
    run.log.every_steps, run.evals.every_steps, run.checkpoint.every_steps = 3, 4, 100
    return config


@pytest.fixture
def ruled(monkeypatch):
    for name, rule in RULES.items():
        monkeypatch.setitem(scripted.RULES, name, rule)


@pytest.mark.slow  # an audit stops a run below, too
def test_a_judge_of_length_is_stopped_by_one_that_is_not(
    ruled, finished, quick, tmp_path, monkeypatch, capsys
):
    config = audited("long", "short")
    once, twice = (begun(finished, tmp_path / n, "base") for n in ("once", "twice"))
    figures = selfimprove.train(Run(config, NAME, str(once)))
    last = figures["stopped_early_after"]
    assert 3 <= last < 14
    said = capsys.readouterr().out
    assert said == f"{NAME}: stopped early, after step {last} of 14: {figures['stopped_early']}\n"
    written = [json.loads((once / "runs" / NAME / "eval.json").read_text()), figures]
    assert written[0] == written[1] and 0 <= figures["win_rate_standard"] <= 1
    rows = lines(once, NAME)
    assert [row["step"] for row in rows if "audit/stopped" in row] == [last]
    assert rows[-1]["step"] == last and "eval/win_rate_standard" in rows[-1]
    chosen = [row["audit/chosen"] for row in rows if "audit/chosen" in row]
    assert chosen[-1] < chosen[0] - 0.02

    with monkeypatch.context() as patch:  # interrupted, then stopped, then interrupted again
        stop_after(patch, 2)
        with pytest.raises(loop.Stopped, match="stopped after step 2 of 14"):
            selfimprove.train(Run(config, NAME, str(twice)))
    with monkeypatch.context() as patch:
        stop_after(patch, last - 2)
        with pytest.raises(loop.Stopped, match=f"stopped after step {last} of 14"):
            selfimprove.train(Run(config, NAME, str(twice)))
    assert capsys.readouterr().out == "" and state(config, twice, NAME)[1] == last
    assert selfimprove.train(Run(config, NAME, str(twice))) == figures
    assert capsys.readouterr().out == said and lines(twice, NAME) == rows
    a, b = (checkpoints.record(workdirs.run_dir(str(w), NAME)) for w in (once, twice))
    assert a["audit"] == b["audit"] and [p["step"] for p in a["audit"]] == list(range(0, last, 2))


@pytest.mark.slow  # a run without an audit goes on, too
def test_a_judge_that_the_audit_agrees_with_goes_on(ruled, finished, quick, tmp_path):
    config = audited("long", "longer")
    workdir = begun(finished, tmp_path, "base")
    figures = selfimprove.train(Run(config, NAME, str(workdir)))
    assert "stopped_early" not in figures
    rows = lines(workdir, NAME)
    assert rows[-1]["step"] == 14 and not any("audit/stopped" in row for row in rows)
    told = [row for row in rows if "audit/order" in row]
    assert {row["audit/order"] for row in told} == {row["audit/best"] for row in told} == {1.0}
    assert told[-1]["audit/judge_chosen"] > told[0]["audit/judge_chosen"]


def test_the_truth_audits_under_its_name_and_can_end_a_run_at_once(
    finished, quick, tmp_path, monkeypatch
):
    config = tiny_recipe.get_config(f"{NAME},truth")
    config.runs[NAME].audit.every_steps = 1
    monkeypatch.setattr(audit, "drift", lambda points, **_: "enough" if points else "")
    figures = selfimprove.train(Run(config, NAME, str(begun(finished, tmp_path, "base"))))
    assert (figures["stopped_early"], figures["stopped_early_after"]) == ("enough", 1)
    (row,) = [x for x in lines(tmp_path, NAME) if "audit/stopped" in x]
    assert row["audit_truth/order"] == row["audit_truth/order/quality"] == 1.0
    assert row["audit_truth/chosen"] == row["audit_truth/judge_chosen"]
    assert not any(key.startswith("audit/") for key in row if key != "audit/stopped")
