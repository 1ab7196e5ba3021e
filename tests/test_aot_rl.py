"""Tests what `python -m sip.aot` plans for RL, and for supervised runs on answers and pairs."""

import importlib
import json

import jax
import numpy as np
import pytest
import tiny
import tiny_recipe  # noqa: F401  (makes configs importable)
from foreseen import fake_rollouts, shapes

from sip import run as runs
from sip import sampling
from sip.aot import __main__ as aot
from sip.aot import parts, programs
from sip.aot.plan import Lengths
from sip.costs import chips, compiling, flops
from sip.data.thoughts import Fork
from sip.loading import LoadedModel
from sip.mesh import batch_shapes
from sip.padding import bucket
from sip.rewards import information_gain, reward_model
from sip.sections import plain
from sip.stages import rl
from sip.tasks.rl import prompts
from sip.text.tokenizer import Byte
from sip.training import losses

PRESET = "llama3_8b"
MODEL = dict(plain(tiny.BYTES.__dict__), max_len=128, branch_chunk=8)


def config(name="rlhf", arg=PRESET, run="rlhf", **changes):
    """Returns a recipe of a checkpoint that is not there, with a tiny model of bytes."""
    found = importlib.import_module(name).get_config(arg)
    found.tokenizer.update(kind="byte", path="")
    scalar = found.runs[run].model.scalar
    found.runs[run].model.update(MODEL, scalar=scalar)
    found.runs[run].update(batch=16, **changes)
    return found


def planned(config, run="rlhf", **lengths):
    how = "nowhere", jax.devices(), "llama31_8b", Lengths(**lengths)
    return programs.plan(config, run, *how)


def named(plan):
    return {one.name: one for one in plan.programs}


def fake_likelihoods(asked):
    """Returns a stub of `losses.branch_logprobs` that records the shapes of its trees."""

    def program(cfg):
        def run(params, tree):
            asked.append(shapes(tree))
            return np.zeros(tree.tokens_BCR.shape, np.float32)

        return run

    return program


def test_a_step_on_prompts_meets_the_shapes_that_are_foreseen(tmp_path, monkeypatch):
    lines = [json.dumps({"prompt": f"{i} " + "word " * (i % 9)}) for i in range(80)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "my.py").write_text(
        "def f(prompts, answers):\n    return [float(len(a)) for a in answers]"
    )
    wanted = config(answer=24, oversample=2)
    wanted.runs.rlhf.task.update(
        prompts=str(tmp_path / "a.jsonl"), reward=f"{tmp_path / 'my.py'}:f"
    )
    asked, scored = [], []
    monkeypatch.setattr(sampling, "program", fake_rollouts(asked))
    monkeypatch.setattr(losses, "branch_logprobs", fake_likelihoods(scored))
    c = rl.resolve(wanted, "rlhf")
    mesh = runs.build_mesh(c)
    task = prompts.build(runs.Run(wanted, "rlhf", str(tmp_path)), c, mesh)
    with jax.set_mesh(mesh):
        batch, _, seen = rl.collect(c, task, None, 0, 0)
    monkeypatch.undo()
    longest = max(map(len, seen.prompts))
    found = named(planned(wanted, prompt=longest))
    update, rollout, kl = (found[x] for x in ("update", "answers 8", "KL to the start"))
    assert shapes(update.args[1]) == shapes(batch_shapes(mesh, batch))
    assert shapes(rollout.args[1:]) == shapes(asked[1]) and len(asked[1][1]) == 32
    assert shapes(kl.args[1]) == scored[0]
    cfg, K, steps, how, stop = asked[0]
    assert rollout.loops == steps and rollout.args[1].shape[1] == bucket(longest, 16)
    assert rollout.jitted is sampling.program(cfg, K, steps, how, parts.STOPS) and stop


def test_a_reward_model_is_asked_in_the_shapes_that_are_foreseen(monkeypatch):
    wanted, asked = config(answer=24), []
    plan = planned(wanted, prompt=40)
    (foreseen,) = [one for one in plan.programs if one.name.startswith("reward model")]
    assert plan.notes[-1] == "reward model: no checkpoint 'reward_model', using preset llama31_8b"
    assert set(plan.models) == {"policy", "reward model"}

    def program(cfg):
        def score(params, tree):
            asked.append(shapes(tree))
            return np.zeros(tree.tokens_BCR.shape[:2], np.float32)

        return score

    monkeypatch.setattr(reward_model, "program", program)
    model = LoadedModel(None, tiny.model(max_len=128), Byte(), plan.mesh)
    reward_model.RewardModel(model).reward([[5] * 40] * 16, [[[7] * 24] * 8] * 16)
    assert [shapes(foreseen.args[1])] == asked and foreseen.calls == 1


def test_likelihood_rewards_of_thoughts_are_asked_in_the_shapes_that_are_foreseen(monkeypatch):
    wanted = config("thinking", f"{PRESET},rlp", "rl", answer=25, rollouts=2)
    wanted.data.cut.update(prefix_min=8, prefix_max=40, suffix=8)
    wanted.runs.rl.task.thoughts.tokens = 24
    plan, asked = planned(wanted, "rl"), []
    found = named(plan)
    monkeypatch.setattr(losses, "branch_logprobs", fake_likelihoods(asked))
    places = [Fork([5] * 40, [6] * 8)] * 16
    how = dict(width=bucket(41, 16), most=24, horizon=8, pad=0)
    cfg = rl.resolve(wanted, "rl").model
    information_gain.reward(
        cfg, plan.mesh, None, None, places, [[[7] * 24] * 2] * 16, (1, 2), **how
    )
    names = ("suffix after thoughts", "suffix alone")
    assert [shapes(found[name].args[1]) for name in names] == asked
    average = found["moving average"]
    assert average.args[0].reference is not None and average.calls == 1


def test_an_rl_steps_operations_by_hand():
    """Counted by hand: products of matrices, of attention, and of the unembedding."""
    wanted = config(answer=32, rollouts=4)
    wanted.runs.rlhf.model.update(remat="none", layers=2, logprob_chunk=32)
    found = named(planned(wanted, prompt=32))
    cfg = rl.resolve(wanted, "rlhf").model
    B, T, K, R, L, D, V = 16, 32, 4, 32, 2, cfg.width, cfg.vocab_size
    heads = cfg.kv_heads * cfg.queries_per_kv
    # One token through one layer: queries and output, keys and values, the feed-forward part.
    inner = heads * cfg.head_dim
    layer = 2 * (2 * D * inner + 2 * D * cfg.kv_heads * cfg.head_dim + 3 * D * cfg.hidden)
    seen = lambda keys: 2 * 2 * keys * inner  # scores of so many keys, and their weighted values
    logits = 2 * D * V
    prompt = B * T * L * (layer + seen(T))
    read, decoded = (B * K * R * L * (layer + seen(keys)) for keys in (T + R, T + R + 1))
    counted = lambda name: flops.count(_traced(found[name]).jaxpr, found[name].loops)
    # The prompt is read once, without logits. A token of an answer has logits, then it is read: it
    # sees the prompt, the room that the cache has for the answer, and itself.
    assert counted("answers 4") == {"read": prompt, "decode": decoded + B * K * R * logits}
    # The reference reads both, and has the logits of the answers.
    whole = prompt + read + B * K * R * logits
    assert counted("KL to the start") == {"read": whole}
    # Two products of gradients for each product. For them the logits are computed again, and of
    # attention the scores, half of its products.
    scores = (B * T * L * seen(T) + B * K * R * L * seen(T + R)) // 2
    assert counted("update") == {"read": 3 * whole + B * K * R * logits + scores}


def _traced(program):
    with jax.set_mesh(program.mesh):
        return program.jitted.trace(*program.args)


def test_answers_before_the_first_step_are_counted_if_their_number_is_given():
    wanted = config("two_phase", run="phase_one", steps=100)
    wanted.runs.phase_one.evals.batch = 32
    wanted.runs.phase_one.task.update(answer=32, rollouts=8, length=128)
    first, second = "answers before the first step", "second turns before the first step"
    found = planned(wanted, "phase_one", prompt=40)
    assert [named(found)[name].calls for name in (first, second)] == [0, 0]
    assert f"{first}: not counted: give --problem_count" in found.notes
    found = named(planned(wanted, "phase_one", prompt=40, problems=100))
    # Four batches of 32, and each of the eight answers to a problem is asked about by itself.
    assert found[first].calls == 4 / 100 and found[second].calls == 4 * 8 / 100
    assert found[first].args[1].shape == (32, 48) and found[second].args[1].shape == (32, 96)
    wanted.runs.phase_one.task.limit = 20
    found = named(planned(wanted, "phase_one", prompt=40, problems=100))
    assert found[first].calls == 1 / 100


def test_votes_of_a_frozen_model_are_one_sampling_before_the_first_step():
    wanted = config("self_training", f"{PRESET},fixed,filtered", "fixed", answer=32)
    wanted.runs.filtered.model.update(MODEL)
    wanted.runs.filtered.answer = 32
    plan = planned(wanted, "fixed", prompt=40, problems=33)
    votes = named(plan)["votes before the first step"]
    assert votes.calls == 3 / 500 and plan.beside(votes) == 0  # the state comes after them
    answers = named(planned(wanted, "filtered", prompt=40))["answers 8"]
    assert answers.args[1].shape[0] == 2 * 32  # of the config's batch, oversampled


@pytest.mark.parametrize(("name", "run"), [("dpo", "dpo"), ("reward_model", "reward_model")])
def test_pairs_of_a_file_have_the_lengths_that_are_given(name, run):
    wanted = config(name, run=run)
    wanted.runs[run].task.pairs.path = "nowhere.jsonl"
    plan = planned(wanted, run, prompt=41, answer=20)
    tree = plan.programs[0].args[1].tree
    assert tree.tokens_BT.shape == (16, 48) and tree.tokens_BCR.shape == (16, 2, 24)
    assert (plan.programs[0].args[0].reference is not None) == (name == "dpo")
    if name == "reward_model":
        wanted.runs[run].task.together = 4
        batch = planned(wanted, run, prompt=41, answer=20).programs[0].args[1]
        assert batch.tree.tokens_BCR.shape == (16, 4, 24) and batch.pair_BP2.shape == (16, 6, 2)


SIZES = ("rl_problems", "self_training", "two_phase", "rejection_sampling", "rlhf", "dpo", "sft")


@pytest.mark.parametrize("name", SIZES)
def test_a_recipe_of_a_size_is_planned_without_files(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = importlib.import_module(name).get_config(PRESET)
    for run in found.order:
        plan = programs.plan(found, run, "", jax.devices(), "llama31_8b")
        params = plan.programs[0].args[0].params
        assert sum(x.size for x in jax.tree.leaves(params)) >= 8_030_261_248 - 128256 * 4096


def test_runs_with_equal_programs_compile_them_once(monkeypatch):
    made = []
    found = config("self_training", f"{PRESET},labels,soft", "labels", answer=32)
    found.runs.soft = found.runs.labels.copy_and_resolve_references()
    cost = compiling.Compiled(1, 2, {"read": 8000.0}, 320.0, 200.0)
    monkeypatch.setattr(compiling, "measure", lambda *how: made.append(how) or cost)
    chip = chips.Chip("toy", flops=100.0, hbm=1000.0, hbm_bandwidth=10.0, ici=4.0, torus=2)
    known, rows = {}, []
    for run in ("labels", "soft"):
        rows.append(aot.check(planned(found, run, prompt=40), chip, known=known))
    assert len(made) == 3 and rows[0]["programs"] == rows[1]["programs"]
    days = 2 * rows[0]["step"]["days"]
    assert aot.total(rows) == [f"labels, soft: at least {days:.2f} days, one after the other"]
    assert aot.total(rows[:1]) == []
