"""Tests the policy-gradient loop: gradient, rewards, prompts, stopping and resuming."""

import dataclasses
import functools
import importlib
import json
import os
import signal
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_recipe
from test_tasks import write_labels
from workdirs import begun, lines, state

from sip import train
from sip.judge import prompts
from sip.objectives import policy
from sip.rewards import verdicts as verdict_rewards
from sip.rewards.verdicts import Question
from sip.run import Run
from sip.stages import candidate_log, rl
from sip.structs import UserError
from sip.tasks import labelled
from sip.tasks.rl import verdicts
from sip.text.tokenizer import Byte
from sip.training import loop, losses, step
from sip.training.losses import PolicyConfig

pytest_plugins = ["tiny_fixtures"]

KINDS = {
    "grpo": PolicyConfig("grpo", "sequence"),
    "dr_grpo": PolicyConfig("dr_grpo", "constant"),
    "dapo": PolicyConfig("grpo", "token", clip_high=0.28),
    "rloo": PolicyConfig("rloo", "constant"),
}
NOTHING: Any = None  # in the place of what is never looked at
B, K, R = 4, 3, 3
REWARD_BK = np.array([[1.0, 0, 0], [0, 0, 0], [1, 0, 1], [1, 1, 0]], np.float32)
VALID_BK = np.array([[True] * 3, [True] * 3, [True] * 3, [True, True, False]])


@functools.cache
def batch(kind):
    """Returns four groups of answers with rewards; the second and the fourth are flat."""
    tree = tiny.tree(B=B, C=K, R=R)
    logp_BKR = tiny.forward(tiny.params(), tiny.CFG, tree)[3]
    advantage_BK = policy.advantages(REWARD_BK, VALID_BK, KINDS[kind].advantage)
    return losses.Branches(tree, VALID_BK, advantage_BK, logp_BKR, np.zeros((B, 6), bool))


@functools.cache
def found(kind, microbatches=1):
    terms = losses.policy_terms(tiny.CFG, KINDS[kind])
    of = lambda params, batch: step.gradient(
        terms, params, None, batch, {"policy": 1.0}, microbatches
    )
    return jax.jit(of)(tiny.params(), batch(kind))


def weights(kind):
    """Computes each token's weight by the papers' formulas, in plain loops."""
    length_BK = np.asarray(batch(kind).tree.mask_BCR).sum(-1)
    weight_BK = np.zeros((B, K))
    for b in range(B):
        live = [k for k in range(K) if VALID_BK[b, k]]
        r = REWARD_BK[b, live].astype(float)
        if kind in ("grpo", "dapo"):
            a = (r - r.mean()) / (r.std() + policy.EPS)
        elif kind == "dr_grpo":
            a = r - r.mean()
        else:
            a = np.array([r[i] - np.delete(r, i).mean() for i in range(len(r))])
        for k, worth in zip(live, a, strict=True):
            per = {"grpo": length_BK[b, k] * VALID_BK.sum(), "dapo": length_BK[VALID_BK].sum()}
            weight_BK[b, k] = worth / (per[kind] if kind in per else VALID_BK.sum() * R)
    return weight_BK


@functools.cache
def plain_gradient():
    """Returns the gradient of minus the weighted sum of plain log-probabilities."""
    plain = tiny.trunk_only(tiny.sequences(batch("grpo").tree))

    def objective(params, weight_NT):
        return -(tiny.forward(params, tiny.CFG, plain)[2] * weight_NT).sum()

    return jax.jit(jax.grad(objective))


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow) if k == "dapo" else k for k in KINDS]
)
def test_the_gradient_is_that_of_plain_sequences_times_advantages(kind):
    tree = batch(kind).tree
    start_N1 = np.asarray(tree.fork_BC).reshape(-1, 1)
    end_N1 = start_N1 + np.asarray(tree.mask_BCR).sum(-1).reshape(-1, 1)
    place_1T = np.arange(tiny.sequences(tree).shape[1])[None]
    answer_NT = (place_1T >= start_N1) & (place_1T < end_N1)
    weight_NT = jnp.asarray(weights(kind).reshape(-1, 1) * answer_NT, jnp.float32)
    grads, _, metrics = found(kind)
    check = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(check, grads, plain_gradient()(tiny.params(), weight_NT))
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) > 1e-3
    assert float(metrics["clip_fraction"][0]) == 0


@pytest.mark.parametrize("kind", [pytest.param("grpo", marks=pytest.mark.slow), "dapo"])
def test_microbatches_give_the_whole_batchs_gradient(kind):
    check = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=4e-6)
    jax.tree.map(check, found(kind, 2), found(kind, 1))
    length_B = np.asarray(batch(kind).tree.mask_BCR).sum((1, 2))
    assert length_B[::2].sum() != length_B[1::2].sum()  # a mean of means would differ


@pytest.mark.parametrize(
    ("redraws", "rewarded", "numbers"),
    [
        (0, {3: 1}, [3]),
        (2, {9: 2}, [9]),
        (2, {9: 0, 10: 1, 11: 1}, [9, 10, 11]),
        (2, {9: 0, 10: 1, 11: 0}, [9, 10, 11]),  # the draws end
        (3, {12: 1, 13: 1}, [12, 13]),
    ],
)
def test_prompts_without_a_reward_are_drawn_again(monkeypatch, redraws, rewarded, numbers):
    """Batches of two prompts; step 3. Trunks of the second batch are longer."""
    asked = []

    def draw(c, task, params, number, *rest, **how):
        asked.append(number)
        tree = jax.tree.map(np.asarray, tiny.tree(seed=number, B=2, T=4 + number % 2, C=2, R=3))
        valid_BC = np.arange(2)[:, None] * np.ones((1, 2), int) >= 2 - rewarded[number]
        advantage_BC = np.array([[1.0, -1.0]], np.float32) * valid_BC
        ce_BT = np.zeros(tree.mask_BT.shape, bool)
        found = losses.Branches(tree, valid_BC, advantage_BC, np.full((2, 2, 3), number), ce_BT)
        share: Any = (2.0 - rewarded[number], 2.0), f"answers {number}"
        return rl.Drawn(found, advantage_BC, {"rl/invalid": share[0]}, share[1])

    monkeypatch.setattr(rl, "draw", draw)
    c: Any = SimpleNamespace(batch=2, redraws=redraws)
    branches, found, seen = rl.collect(c, NOTHING, NOTHING, 3, 0)
    assert asked == numbers and seen == f"answers {numbers[0]}"
    learned = sum(rewarded.values())
    assert branches.valid_BC.any(1).sum() == learned and len(branches.valid_BC) == 2
    assert found["rl/masked_learned"] == (2 - learned, 2)
    assert found["rl/invalid"] == (2 * len(asked) - learned, 2 * len(asked))
    assert ("rl/draws" in found) == (redraws > 0)
    for b in np.flatnonzero(branches.valid_BC.any(1)):  # each row is that of its batch
        number = int(branches.old_logp_BCR[b, 0, 0])
        T = 4 + number % 2
        own = tiny.tree(seed=number, B=2, T=T, C=2, R=3)
        assert branches.tree.tokens_BT[b, :T].tolist() in np.asarray(own.tokens_BT).tolist()
        assert not branches.tree.mask_BT[b, T:].any() and branches.tree.mask_BT[b, :T].all()


def test_a_reference_that_is_the_policy_adds_nothing_and_another_does():
    b = batch("grpo")
    objective = dataclasses.replace(KINDS["grpo"], beta=0.5)
    terms = jax.jit(losses.policy_terms(tiny.CFG, objective))
    same, metrics = terms(tiny.params(), tiny.params(), b)
    plain, _ = jax.jit(losses.policy_terms(tiny.CFG, KINDS["grpo"]))(tiny.params(), None, b)
    np.testing.assert_allclose(same["policy"], plain["policy"], atol=1e-5)
    other, other_metrics = terms(tiny.params(), tiny.params(seed=1), b)
    assert float(metrics["kl"][0]) < 1e-4 < 0.1 < float(other_metrics["kl"][0])
    assert float(other["policy"][0]) > float(same["policy"][0]) + 0.01


PAIR, POINT = prompts.load("reasoned_quality"), prompts.load("safety")
ASKED = [Question(PAIR, 0), Question(PAIR, 1), Question(POINT, 1), Question(POINT, 0)]
ONE, TWO = "so.\n**Conclusion:** Option 1", "Conclusion: option 2."
TEXTS = [[ONE, TWO, ONE, ""], [TWO, TWO, ONE, TWO], [" unsafe"] * 3 + [" "], [" unsafe"] * 4]


def test_a_right_verdict_is_worth_one_and_a_missing_one_nothing():
    reward_BK, valid_BK, metrics = verdict_rewards.reward(ASKED, TEXTS, both_orders=False)
    assert reward_BK.tolist() == [[1, 0, 1, 0], [1, 1, 0, 1], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert valid_BK.all()
    assert metrics["reward/reasoned_quality"] == metrics["verdict/right/reasoned_quality"] == (5, 8)
    assert metrics["verdict/unread/reasoned_quality"] == (1, 8)
    assert metrics["reward/safety"] == (3, 8) and metrics["verdict/unread/safety"] == (1, 8)


def test_both_orders_have_to_be_right_of_a_pair_alone():
    reward_BK, _, metrics = verdict_rewards.reward(ASKED, TEXTS, both_orders=True)
    assert reward_BK.tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert metrics["reward/reasoned_quality"] == (2, 8)
    assert metrics["verdict/right/reasoned_quality"] == (5, 8)


def micro(**changes):
    """The tiny RL run of the micro-world's judge, which continues the tiny recipe's judge."""
    config = tiny_recipe.shrink(importlib.import_module("microworld_judge").get_config("debug"))
    config.data.world = dict(entities=8, train=300, validation=60, test=60)
    run = config.runs.judge_rl
    # Enough answers that some of this untrained judge's are options.
    run.rollouts, run.evals.every_steps = 16, 2
    for key, value in changes.items():
        run[key].update(value) if hasattr(run[key], "update") else run.update({key: value})
    return config


def stop_after(monkeypatch, steps):
    original, seen = loop.Meter.count, []

    def counted(self, argument):
        seen.append(argument)
        if len(seen) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, argument)

    monkeypatch.setattr(loop.Meter, "count", counted)


RESUMED = {
    "on-policy": micro(steps=6, task=dict(both_orders=True), log=dict(every_steps=1), oversample=2),
    "two updates of a batch, near a reference": micro(
        steps=12, updates_per_batch=2, log=dict(every_steps=4), evals=dict(every_steps=4),
        objective=dict(beta=0.01, advantage="rloo", denominator="token"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    [pytest.param("on-policy", marks=pytest.mark.slow), "two updates of a batch, near a reference"],
)
@pytest.mark.slow  # test_stages resumes the loops that share the code
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(
    kind, finished, quick, tmp_path, monkeypatch
):
    config, name = RESUMED[kind], "judge_rl"
    each = config.runs[name].updates_per_batch
    once, twice = (
        begun(finished, tmp_path / n, "base", "tutor", "judge") for n in ("once", "twice")
    )
    figures = rl.train(Run(config, name, str(once)))
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(loop.Stopped, match=f"stopped after step {3 * each} of {6 * each}"):
            rl.train(Run(config, name, str(twice)))
    assert state(config, twice, name)[1] == 3 * each
    assert rl.train(Run(config, name, str(twice))) == figures
    assert lines(once, name) == lines(twice, name)
    ours, theirs = (path / "runs" / name / "candidates.jsonl" for path in (once, twice))
    assert ours.read_bytes() == theirs.read_bytes()
    kept = candidate_log.read(ours.parent)
    assert {row["step"] for row in kept} == {each, 6 * each}
    assert all(len(row["candidates"]) == config.runs[name].rollouts for row in kept)
    states = [state(config, workdir, name)[0] for workdir in (once, twice)]
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert (states[0].reference is not None) == (each == 2)
    moved = jax.tree.leaves(jax.tree.map(jnp.abs, states[0].opt_state))
    assert max(float(x.max()) for x in moved if x.size > 1) > 0  # something was learned from
    check_run(once, figures, on_policy=each == 1)


def check_run(workdir, figures, *, on_policy):
    """Checks the outputs of a run of the micro-world's judge."""
    assert set(figures) >= {"quality_accuracy", "safety_accuracy", "factuality_accuracy"}
    assert json.loads((workdir / "runs/judge_rl/eval.json").read_text()) == figures
    written = lines(workdir, "judge_rl")
    losses_ = [line for line in written if "loss/policy" in line]
    assert {"reward/quality", "verdict/unread/safety", "rl/flat_groups"} <= set(losses_[0])
    assert any("eval/quality" in line for line in written)
    if on_policy:  # the rollouts' own log-probabilities are those of the update
        assert all(abs(x["approx_kl"]) < 1e-5 and x["clip_fraction"] == 0 for x in losses_)
    else:
        moved = [x for x in losses_ if x["rl/flat_learned"] < 1]  # the rest taught nothing
        assert moved and all(abs(x["approx_kl"]) > 1e-9 for x in moved)
        assert all("kl" in x for x in losses_)


@pytest.mark.slow  # test_configs resolves it
def test_the_8b_judge_runs_its_debug_variant_on_a_file(quick, tmp_path):
    config = importlib.import_module("judge_llama8b").get_config("debug")
    config.runs.judge.task.label_file.path = write_labels(tmp_path / "labels.jsonl")
    config.data.path = config.runs.judge.task.label_file.path
    config.runs.judge.log.update(tensorboard=False, progress=False)
    summary = train.train(config, str(tmp_path / "work"))
    assert summary["judge"]["reasoned_safety_accuracy"] == 0  # fresh parameters decide nothing
    last = [x for x in lines(tmp_path / "work", "judge") if "loss/policy" in x][-1]
    assert last["verdict/unread/reasoned_quality"] == 1 and last["rl/flat_groups"] == 1
    assert last["reward/all"] == 0 and last["grad/norm"] == 0


@pytest.mark.slow  # what an update does is worked out by hand above
def test_reward_rises(quick, tmp_path):
    """Fresh parameters write the one rewarded byte about once in 256 answers."""
    (tmp_path / "calm.txt").write_text(
        'kind: pointwise\noptions: ["y", "n"]\nvalues: [1, 0]\n'
        "=== trunk\nCalm?\n=== branch\n{text}:\n"
    )
    lines_ = [dict(aspect="calm", prefix=f"p{i}", candidates=["x"], label="n") for i in range(60)]
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines_))
    config = importlib.import_module("judge_llama8b").get_config("debug")
    run = config.runs.judge
    run.update(steps=30, batch=8, rollouts=64, answer=1, microbatches=1)
    run.model.update(max_len=32)
    run.optim.update(lr=0.03)
    run.sampling.update(temperature=1.0, top_p=1.0)
    run.task.label_file.update(path=str(path), aspects=(str(tmp_path / "calm.txt"),))
    config.data.path = str(path)
    run.log.update(tensorboard=False, progress=False)
    run.evals.every_steps = 0
    figures = rl.train(Run(config, "judge", str(tmp_path / "work")))
    curve = [x["reward/all"] for x in lines(tmp_path / "work", "judge")]
    assert curve[0] < 0.05 and np.mean(curve[-3:]) > 0.9
    assert figures["calm_accuracy"] == 1


def test_a_model_too_narrow_for_the_tokenizer_is_named(tmp_path):
    config = importlib.import_module("judge_llama8b").get_config("debug")
    config.runs.judge.model.vocab_size, config.runs.judge.microbatches = 258, 1
    config.runs.judge.batch = 8
    with pytest.raises(UserError, match=r"model\.vocab_size 258"):
        rl.train(Run(config, "judge", str(tmp_path)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(task=dict(name="poet")), r"task\.name must be one of .*'prompts', 'rewrites'"),
        (dict(task=dict(labels=None)), "exactly one of labels and label_file"),
        (dict(rollouts=1), "rollouts=1: must be in 2.."),
        (dict(oversample=0), "oversample=0: must be in 1.."),
        (dict(answer=0), r"answer must be in 1\.\.191"),
        (dict(answer=192), r"answer must be in 1\.\.191"),
        (dict(updates_per_batch=0), "updates_per_batch=0"),
        (dict(updates_per_batch=3), "updates_per_batch 3 must divide"),
        (dict(task=dict(both_orders=True), batch=7), "batch must be even"),
        (dict(sampling=dict(temperature=0.0)), "temperature must be positive"),
        (dict(objective=dict(advantage="ppo")), r"objective\.advantage=.*: must be one of"),
        (dict(objective=dict(denominator="mean")), r"objective\.denominator=.*: must be one of"),
        (dict(objective=dict(clip_low=1.0)), "clip_low=1.0: must be"),
        (dict(objective=dict(beta=-1.0)), "beta=-1.0: must be"),
        (dict(evals=dict(batch=0)), "evals.batch=0: must be >= 1"),
        (dict(task=dict(surprise=1)), r"task\.surprise: unknown key"),
        (dict(task=dict(label_file=dict(path="x", aspects=("safety",)))), "exactly one of labels"),
    ],
)
def test_what_cannot_be_is_named(changes, message):
    config = micro()
    run = config.runs.judge_rl
    for key, value in changes.items():
        run[key] = (
            {**run[key].to_dict(), **value} if isinstance(value, dict) and key in run else value
        )
    with pytest.raises(UserError, match=f"config runs.judge_rl.*{message}"):
        rl.resolve(config, "judge_rl")


def test_a_direct_aspect_whose_options_are_no_tokens_is_named(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(
        json.dumps(dict(aspect="safety", prefix=f"p{i}", candidates=["t"], label="safe")) + "\n"
        for i in range(60)
    ))  # fmt: skip
    wanted = labelled.LabelFileConfig(str(path), ("safety",))
    made = labelled.from_file(wanted, "train", Byte(), max_len=200)
    with pytest.raises(UserError, match="option ' safe' is 5 tokens"):
        verdicts.check(Byte(), made)
