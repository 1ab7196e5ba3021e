"""Tests `python -m sip.aot`: shapes are those of the loops, figures add up, misfits are named."""

import dataclasses
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny_recipe
import workdirs
from foreseen import fake_rollouts, shapes

from sip import cli, sampling, sections
from sip import mesh as meshes
from sip import rewriter as rewriters
from sip import run as runs
from sip.aot import __main__ as aot
from sip.aot import parts, programs, questions
from sip.aot.plan import Plan, Program, device_bytes
from sip.costs import chips, compiling, traffic
from sip.judge import prompts, scoring
from sip.loading import LoadedModel
from sip.mesh import batch_shapes, put_batch
from sip.models.presets import preset
from sip.stages import collect, selfimprove
from sip.structs import UserError
from sip.text.tokenizer import Byte
from sip.textgen import local as local_generator
from sip.textgen.local import Local
from sip.workdir import differing

WIDE = dict(prefix=16, suffix=8, bytewise=True)


def config(name="sip_quality_1b4", arg="debug", **run):
    found = importlib.import_module(name).get_config(arg)
    found.runs.sip.update(run)
    return found


def planned(config, **more):
    return programs.plan(config, "sip", "nowhere", jax.devices(), "llama31_8b", **more)


def test_what_is_put_on_a_mesh_has_the_shape_that_was_foreseen():
    mesh = planned(config(batch=16)).mesh
    batch = dict(a=np.zeros((16, 3), np.int32), b=np.zeros(7, bool), c=np.zeros((), np.float32))
    seen = batch_shapes(mesh, batch)
    placed = put_batch(mesh, batch)
    assert shapes(seen) == shapes(placed)
    assert {k: seen[k].sharding for k in seen} == {k: placed[k].sharding for k in placed}
    assert not placed["a"].sharding.is_fully_replicated and placed["b"].sharding.is_fully_replicated


@pytest.mark.parametrize("documents", [0, 8])
@pytest.mark.parametrize("objective", ["dpo", "rf_nll", "dr_grpo"])
def test_programs_meet_the_shapes_that_the_loop_feeds_them(
    objective, documents, tmp_path, monkeypatch
):
    texts = [f"{i} " + "some words to go on with " * 3 for i in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    wanted = config(batch=16)
    wanted.runs.sip.objective.name, wanted.data.path = objective, str(tmp_path / "a.jsonl")
    if documents:
        wanted.runs.sip.update(control="</s>", documents=documents)
        wanted.runs.sip.objective.update(ce_weight=1.0, ce_weight_last=1.0)
    update, rollout = planned(wanted).programs
    asked = []
    monkeypatch.setattr(sampling, "program", fake_rollouts(asked))
    c = selfimprove.resolve(wanted, "sip")
    mesh = runs.build_mesh(c)
    policy = selfimprove.build_collector(runs.Run(wanted, "sip", str(tmp_path)), c, mesh, mesh)
    batch, *_ = collect.collect(policy, None, collect.begin(policy, None, 0))
    assert shapes(update.args[1]) == shapes(batch_shapes(mesh, batch))
    assert shapes(rollout.args[1:]) == shapes(asked[1])
    monkeypatch.undo()
    assert rollout.jitted is sampling.program(*asked[0])


class Loose(Local):
    """A local model whose options may have more than one token."""

    def _option(self, option):
        return 0


@pytest.mark.parametrize("schedule", ["all", "pivot", "random", "against"])
def test_a_judge_is_asked_in_the_shapes_that_are_foreseen(schedule, monkeypatch):
    weights = (("quality", 1.0), ("factuality", 1.0), ("safety", 1.0))
    common = importlib.import_module("_common")
    wanted = config(batch=16)
    how = common.schedule(schedule, opponents=2)
    wanted.runs.sip.judge = common.judge("local", init_from="judge", weights=weights, schedule=how)
    wanted.runs.sip.candidates.rollouts = ((0, 4),)
    plan, seen = planned(wanted), []
    foreseen = {p.name.split()[1]: p for p in plan.programs if p.name.startswith("judge")}
    c = selfimprove.resolve(wanted, "sip")

    def program(cfg):
        def choose(params, tree, last_BC, options_O, cache):
            seen.append((shapes((tree, last_BC)), options_O.shape))
            return np.zeros((*last_BC.shape, len(options_O)), np.float32)

        return choose

    def of_stems(cfg):
        def choose(params, *asked):
            *rest, options_O = asked
            seen.append((shapes(tuple(rest)), options_O.shape))
            B, M, K = rest[-1].shape
            return np.zeros((B, M * K, len(options_O)), np.float32)

        return choose

    monkeypatch.setattr(local_generator, "program", program)
    monkeypatch.setattr(local_generator, "program_of_stems", of_stems)
    local = Loose(LoadedModel(None, c.model, Byte(), plan.mesh), batch=c.judge.batch)
    local._cfg = SimpleNamespace(max_len=4096)
    judge = scoring.TextJudge(
        local, c.judge.aspects(), dict(weights), min_mass=0.0, schedule=c.judge.schedule
    )
    rows = [[f"abcdefg{i}" for i in range(5)]] * 16
    judge.score(["0123456789abcdef"] * 16, rows, ["abcdefgh"] * 16, np.ones((16, 5), bool))
    for (asked, options), aspect in zip(seen, foreseen, strict=True):
        args = foreseen[aspect].args
        assert asked == shapes(args[1:-1]) and options == args[-1].shape
        assert foreseen[aspect].calls == 1
    on_stems = len(foreseen["quality"].args) == 5
    assert on_stems == (schedule == "all"), "of other schedules few pairs share their first text"
    assert plan.notes == ("judge: no checkpoint 'judge', using preset llama31_8b",)


def test_reasoned_verdicts_and_rounds_are_asked_for_as_often_as_they_are():
    common = importlib.import_module("_common")
    judge = common.judge("local", init_from="judge", weights=(("reasoned_safety", 1.0),))
    wanted = config(batch=16)
    wanted.runs.sip.judge = judge
    c = selfimprove.resolve(wanted, "sip")
    (asked,) = questions.questions(c.judge, 5, **WIDE)
    assert (asked.branches, asked.options) == (5, 0)
    safety = prompts.load("reasoned_safety")
    assert asked.trunk == 1 + len(safety.trunk)
    assert asked.branch == len(safety.branch.replace("{text}", "")) + 8
    verdicts = planned(wanted).programs[-1]
    answers = sampling.answering(preset("llama31_8b"), 1, 512, c.judge.sampling, parts.STOPS)
    assert verdicts.jitted is answers and verdicts.loops == 512


def test_a_rewriter_is_asked_in_the_shapes_that_are_foreseen(monkeypatch):
    wanted = config("sip_scratch_1b4", batch=16)
    run = wanted.runs.sip
    run.candidates.update(suffix=False, rewrite=True, rollouts=((0, 1),))
    run.objective.name, run.rewriter.batch = "rf_nll", 16
    plan, seen = planned(wanted), []
    foreseen = next(p for p in plan.programs if p.name.startswith("rewriter"))

    def program(cfg, branches, steps, how, stop):
        seen.append((branches, steps, len(stop)))

        def run(params, *args):
            seen.append(args)
            return SimpleNamespace(tokens_BCR=np.zeros((16, 1, steps), np.int32))

        return run

    monkeypatch.setattr(sampling, "program", program)
    cfg = SimpleNamespace(max_len=4096)
    prompt, how = rewriters.load("rewrite"), sampling.SamplingConfig(0.0)
    ours = rewriters.LocalRewriter(
        LoadedModel(None, cfg, Byte(), plan.mesh), prompt=prompt, sampling=how, batch=16
    )
    ours.rewrite(["xa b c d e f g h"] * 16, ["abcdefgh"] * 16)
    assert shapes(foreseen.args[1:]) == shapes(seen[1])
    assert seen[0] == (1, foreseen.loops, len(parts.STOPS))


@pytest.mark.parametrize("name", ["sip_quality_1b4", "sip_scratch_1b4"])
def test_models_at_the_papers_size_take_what_a_hand_would_count(name):
    plan = planned(config(name, "v5e-64", batch=256))
    policy, teacher = 1_355_892_736, 8_030_261_248  # parameters of Llama 2's shapes, of Llama 3.1
    each = 4 + 8 + (0 if "scratch" in name else 4)  # parameter, two moments, reference
    assert plan.models["policy"] == pytest.approx(each * policy / 8, rel=0.02)
    assert plan.models["judge"] == pytest.approx(4 * teacher / 8, rel=0.02)
    update, rollout = plan.programs[:2]
    assert update.holds == plan.models["policy"]
    assert device_bytes(update.args) == pytest.approx(each * policy / 8, rel=0.02)
    assert rollout.holds == pytest.approx(4 * policy / 8, rel=0.02)
    assert plan.tokens == 256 * (1920 + 128 * update.args[1].tree.fork_BC.shape[1])


def test_judges_that_are_set_apart_lie_and_run_on_their_own_devices():
    wanted = config("sip_scratch_1b4", "v5e-64", batch=256, staleness=1)
    wanted.runs.sip.judge_mesh.update(devices=4, fsdp=2, tensor=2)
    plan, whole = planned(wanted), planned(config("sip_scratch_1b4", "v5e-64", batch=256))
    assert (plan.devices, plan.apart, plan.ahead) == (8, True, True)
    assert (whole.devices, whole.apart, whole.ahead) == (8, False, False)
    ours, theirs = ({d.id for d in m.devices.ravel()} for m in {p.mesh for p in plan.programs})
    assert len(ours) == len(theirs) == 4 and not ours & theirs
    for one in plan.programs:
        assert (one.mesh == plan.mesh) == one.name.startswith(("update", "rollout"))
        held = {d for x in jax.tree.leaves(one.args) for d in x.sharding.device_set}
        assert held == set(one.mesh.devices.ravel())
    for name in ("policy", "judge", "rewriter"):
        assert plan.models[name] == pytest.approx(2 * whole.models[name], rel=0.01)


def test_other_stages_have_their_update_and_their_answers():
    judge = importlib.import_module("judge_llama8b").get_config("debug")
    judge.runs.judge.batch = 16
    plan = programs.plan(judge, "judge", "nowhere", jax.devices(), "llama31_8b")
    update, answers = plan.programs
    c = judge.runs.judge
    assert update.args[1].tree.tokens_BCR.shape == (16, c.rollouts, c.answer)
    T = c.model.max_len - c.answer
    assert update.args[1].tree.tokens_BT.shape == answers.args[1].shape == (16, T)
    base = programs.plan(tiny_recipe.get_config(), "base", "", jax.devices(), "llama31_8b")
    (update,) = base.programs
    assert update.args[1][0].tokens_BT.shape == (8, 40 + 24) and base.tokens == 8 * 64
    assert list(base.models) == ["policy"]


def test_pools_that_grow_share_the_steps():
    wanted = config(batch=16, steps=100)
    wanted.runs.sip.candidates.rollouts = ((0, 0), (60, 2), (90, 4))
    wanted.runs.sip.objective.ce_weight = 0.5  # learned from at first
    calls = {p.name: p.calls for p in planned(wanted).programs}
    assert calls == pytest.approx({"update": 1, "rollout 2": 0.3, "rollout 4": 0.1})


CHIP = chips.Chip("toy", flops=100.0, hbm=1000.0, hbm_bandwidth=10.0, ici=4.0, torus=2)


def toy(**changes):
    """Returns a plan of two programs on eight devices, and their costs."""
    plan = planned(config(batch=16))
    made = tuple(
        Program(n, plan.mesh, n, (), calls=c, loops=1, holds=h, useful=u, remedy=f"less of {n}")
        for n, c, h, u in (("update", 1, 300.0, 4000.0), ("rollout", 0.5, 100.0, 1600.0))
    )
    models = {"policy": 300.0}
    plan = Plan("sip", 86400, 160.0, plan.mesh, made, models, (), 8, apart=False, ahead=False)
    costs = {"update": compiling.Compiled(1, 2, {"read": 8000.0}, 320.0, 200.0, moved(read=50))}
    costs["rollout"] = compiling.Compiled(
        1, 3, {"read": 800.0, "decode": 80.0}, 110.0, 500.0, moved(read=5, decode=20)
    )
    return plan, {**costs, **changes}


def moved(**bytes):
    return traffic.Traffic(Counter(bytes))


def checked(monkeypatch, **changes):
    plan, costs = toy(**changes)
    monkeypatch.setattr(compiling, "measure", lambda jitted, *_: costs[jitted])
    return aot.check(plan, CHIP)


def test_a_steps_figures_by_hand(monkeypatch, capsys):
    found = checked(monkeypatch)
    update, rollout = found["programs"]
    assert (update["total_bytes"], rollout["total_bytes"]) == (520, 110 + 500 + 200)
    assert rollout["other_bytes"] == 200 and update["fits"] and rollout["fits"]
    # Update: 8000 / 8 / 100 = 10 s of products. Rollout: 1 s of products, then 2 s of memory.
    step = found["step"]
    assert step["seconds"] == 10 + 0.5 * (1 + 2) and step["days"] == step["seconds"]
    assert step["seconds_by_bound"] == {"compute": 10.5, "memory": 1.0, "interconnect": 0.0}
    assert step["mfu_at_most"] == pytest.approx((4000 + 800) / (11.5 * 100 * 8))
    assert step["tokens_per_second_per_chip"] == pytest.approx(160 / 11.5 / 8)
    assert aot.misfits(found) == []
    aot.show(found, aot.Console(width=160))
    assert "rollout: decoding" in (said := capsys.readouterr().out) and "bound by compute" in said
    assert json.loads(json.dumps(found))["programs"][0]["collectives"] == []


@pytest.mark.parametrize("ahead", [False, True])
def test_judges_with_devices_of_their_own_work_beside_the_policy_if_it_is_ahead(ahead, monkeypatch):
    """Worked by hand: the policy takes 11.5 s on eight devices, a judge 30 s on two."""
    plan, costs = toy(judge=compiling.Compiled(1, 2, {"read": 6000.0}, 90.0, 10.0, moved(read=5)))
    two = meshes.build(meshes.MeshConfig(), jax.devices()[:2])
    judge = Program("judge", two, "judge", (), 1, 1, holds=70.0, useful=1500.0, remedy="")
    made, models = (*plan.programs, judge), {"policy": 300.0, "judge": 70.0, "rewriter": 5.0}
    plan = dataclasses.replace(
        plan, programs=made, models=models, devices=10, apart=True, ahead=ahead
    )
    monkeypatch.setattr(compiling, "measure", lambda jitted, *_: costs[jitted])
    found = aot.check(plan, CHIP)
    assert [p["other_bytes"] for p in found["programs"]] == [0, 200, 5]
    step = found["step"]
    assert step["seconds"] == (30 if ahead else 41.5)
    assert step["seconds_apart"] == ([11.5, 30] if ahead else [41.5])
    useful = 4000 + 800 + 1500
    assert step["mfu_at_most"] == pytest.approx(useful / (step["seconds"] * 100 * 10))
    said = " ".join(aot._summary(step))
    assert ("judges at the same time 30.00 s" in said) == ahead and "other chips for judges" in said


@pytest.mark.parametrize(
    ("cost", "needs"),
    [
        (compiling.Compiled(1, 3, {"read": 1.0}, 110.0, 691.0, moved(read=1)), 110 + 691 + 200),
        (compiling.Compiled(1, 3, {"read": 1.0}, 0.0, 0.0, needed=4096.0), 4096 + 200),
    ],
)
def test_what_does_not_fit_is_named_with_what_to_change(cost, needs, monkeypatch):
    found = checked(monkeypatch, rollout=cost)
    assert [p["fits"] for p in found["programs"]] == [True, False] and not found["step"]["fits"]
    (line,) = aot.misfits(found)
    assert "sip: rollout needs" in line and line.endswith("less of rollout")
    assert found["programs"][1]["total_bytes"] == needs


def test_a_run_that_does_not_fit_is_told_before_it_is_compiled():
    with pytest.raises(UserError, match="config runs.sip: batch 4 in microbatches 2"):
        planned(config())
    wanted = config(batch=16)
    wanted.runs.sip.mesh.tensor = 3
    with pytest.raises(UserError, match="config runs.sip: mesh: .* there are 8"):
        planned(wanted)
    wanted.runs.sip.mesh.tensor = 4
    with pytest.raises(UserError, match="G=2, not divisible by mesh axes tensor"):
        planned(wanted)
    wanted = config(arg="v5e-64", batch=256)
    wanted.data.cut.prefix_max = 2170
    wanted.runs.sip.judge.init_from = "policy"
    with pytest.raises(
        UserError, match=r"prompt for quality has about \d+ tokens, .* max_len 2304"
    ):
        planned(wanted)
    with pytest.raises(parts.Unknown, match="its shapes depend on the labels"):
        tiny = tiny_recipe.get_config()
        programs.plan(tiny, "judge", "nowhere", jax.devices(), "llama31_8b")


def test_variants_change_batch_and_mesh_of_all_runs_and_nothing_else():
    wanted = config()
    found = list(aot.variants(wanted, [8, 16], [(1, 2, 4), (2, 4, 1)]))
    assert [shape for shape, _ in found] == [(1, 2, 4), (2, 4, 1)] * 2
    last = found[-1][1]
    assert last.runs.sip.batch == 16 and dict(last.runs.sip.mesh) == dict(
        replica=2, fsdp=4, tensor=1
    )
    axes = ("replica", "fsdp")
    changed = {f"runs.sip.{mesh}.{axis}" for mesh in ("mesh", "judge_mesh") for axis in axes}
    changed.add("runs.sip.batch")
    assert differing(sections.plain(last), sections.plain(wanted)) == changed


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--topology=v5e:8x8"], "--config is needed"),
        (["--config=CONFIG"], "--topology is needed"),
        (["--config=CONFIG", "--topology=h9:2x2"], "--topology=h9:2x2: must be CHIP:SHAPE"),
        (
            ["--config=CONFIG", "--topology=v3:2x2"],
            "TPU v3 is not supported: each of its two cores",
        ),
        (["--config=CONFIG", "--topology=v5e:2x2", "--batches=8"], "--meshes need --sweep"),
        (["--config=CONFIG", "--topology=v5e:2x2", "x"], "unexpected argument 'x'"),
    ],
)
def test_a_bad_command_is_one_line(argv, message, capsys):
    path = str(tiny_recipe.ROOT / "configs" / "sip_quality_1b4.py:debug")
    code = workdirs.call(aot, *[word.replace("CONFIG", path) for word in argv])
    said = capsys.readouterr().err
    assert code == cli.MENDABLE and message in said and said.count("\n") == 1


def test_without_a_tpus_compiler_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'sip-jax\[tpu\]'"):
        aot.devices_of("v5e:2x2")


TINY = """
import json, sys
sys.path.insert(0, "configs")
import dataclasses, jax, sip_quality_1b4
from sip.aot import __main__ as aot
from sip.aot import programs
config = sip_quality_1b4.get_config("debug")
config.runs.sip.batch = 8
devices = aot.devices_of("v5e:2x2")
jax.config.update("jax_optimization_level", "O1")
plan = programs.plan(config, "sip", "", devices, "llama31_8b")
plan = dataclasses.replace(plan, programs=plan.programs[1:])
print(json.dumps(aot.check(plan, aot.chip_of("v5e:2x2"))))
"""


@pytest.mark.slow  # needs libtpu; the fast suite lowers for TPUs
def test_a_rollout_compiles_for_four_tpus():
    """Compiles on a host without a TPU; this run's update would take three times as long."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install -e '.[tpu]'")
    env = os.environ | {"PYTHONPATH": str(tiny_recipe.ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", TINY]
    root = str(tiny_recipe.ROOT)
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    (rollout,) = json.loads(done.stdout)["programs"]
    assert rollout["fits"] and rollout["compiles"] and rollout["hbm_bytes"] == 15.75 * 2**30
    assert set(rollout["phases"]) == {"read", "decode"}
    read, decode = rollout["phases"]["read"], rollout["phases"]["decode"]
    assert min(read["flops"], read["bytes"], decode["flops"], decode["bytes"]) > 0
    # Parameters are gathered once, before the first token: decoding sends nothing.
    assert read["interconnect"] > 0 and decode["interconnect"] == 0
    gathers = [c for c in rollout["collectives"] if c["kind"] == "all-gather"]
    assert {c["devices"] for c in gathers} == {4}
