"""Tests judges on their own devices, and rollouts sampled one step ahead."""

from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import tiny_recipe
from workdirs import begun, lines, state, stop_after

from sip import mesh as meshes
from sip import workdir as workdirs
from sip.mesh import PartConfig, put_batch
from sip.run import Run
from sip.stages import candidate_log, collect, recipe, selfimprove, session
from sip.structs import UserError
from sip.training import checkpoints, loop, optim

pytest_plugins = ["tiny_fixtures"]
needs_8 = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")


def hosts(processes, each, kind="TPU v5"):
    return [
        SimpleNamespace(process_index=p, device_kind=kind, id=p * each + i)
        for p in range(processes)
        for i in range(each)
    ]


def test_the_last_devices_of_every_process_are_set_apart():
    left, apart = meshes.divide(PartConfig(devices=4), hosts(2, 4))
    assert [d.id for d in left] == [0, 1, 4, 5] and [d.id for d in apart] == [2, 3, 6, 7]
    assert meshes.divide(PartConfig(), "all") == ("all", "all")


@pytest.mark.parametrize("devices", [1, 3, 8, 10])
def test_parts_that_processes_do_not_share_alike_are_refused(devices):
    with pytest.raises(UserError, match=f"devices {devices}: as many .* 2 processes with 4, 4"):
        meshes.divide(PartConfig(devices=devices), hosts(2, 4))


def test_a_slice_whose_parts_do_not_compile_is_refused_with_what_does():
    for kind in meshes.WHOLE:
        with pytest.raises(UserError, match=f"{kind} slice of 8 .*judge.backend=http.*v5p"):
            meshes.divide(PartConfig(devices=2), hosts(2, 4, kind))
        assert len(meshes.divide(PartConfig(devices=1), hosts(1, 4, kind))[1]) == 1


def learned(steps=2, staleness=0, **places):
    """Trains the tiny recipe's self-improving run with a trained judge and rewriter."""
    config = tiny_recipe.get_config()
    run = config.runs.sip_learned
    run.steps, run.staleness, run.log.every_steps = steps, staleness, 1
    run.candidates.rollouts = ((0, 2),)
    run.judge_mesh.update(places)
    return config


NEEDED = ("base", "tutor", "judge", "rewriter")


def run(config, workdir, name="sip_learned"):
    return selfimprove.train(Run(config, name, str(workdir)))


def same(once, twice, **close):
    assert once.keys() == twice.keys()
    for key, value in once.items():
        if isinstance(value, float):
            assert twice[key] == pytest.approx(value, nan_ok=True, **close), key


@needs_8
@pytest.mark.parametrize("staleness", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_judge_on_devices_of_its_own_says_the_same(staleness, finished, quick, tmp_path):
    places = dict(devices=4, fsdp=2, tensor=2)
    alone, apart = (begun(finished, tmp_path / n, *NEEDED) for n in ("alone", "apart"))
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        build = selfimprove.build_collector
        keep = lambda run, c, *places: seen.append(places) or build(run, c, *places)
        patch.setattr(selfimprove, "build_collector", keep)
        figures = [
            run(learned(3, staleness), alone), run(learned(3, staleness, **places), apart)
        ]  # fmt: skip
    same(*figures, rel=2e-4, abs=1e-6)
    for one, other in zip(*(lines(w, "sip_learned") for w in (alone, apart)), strict=True):
        same(one, other, rel=2e-4, abs=1e-5)
    policy, judges = ({d.id for d in mesh.devices.ravel()} for mesh in seen[1])
    assert len(judges) == places["devices"] and not policy & judges


@pytest.mark.slow  # test_stopped_and_resumed_a_step_ahead runs the same loop
def test_a_step_ahead_is_what_a_loop_by_hand_does(finished, quick, tmp_path):
    """Rollouts of step n are sampled with the parameters before update n - 1."""
    config = learned(4, staleness=1)
    workdir = begun(finished, tmp_path, *NEEDED)
    run(config, workdir)
    c = selfimprove.resolve(config, "sip_learned")
    mesh, tx = meshes.single(), optim.build(c.optim)
    run_ = Run(config, "sip_learned", str(workdir))
    fixed = selfimprove.build_collector(run_, c, mesh, mesh)
    start = workdirs.run_dir(str(workdir), "base")
    states = [session.fresh_state(c.model, tx, mesh, seed=0, init_from=start, reference=False)]
    update = selfimprove.make_update(c, tx)
    kept = []
    with jax.set_mesh(mesh):
        for at in range(4):
            writer = jax.tree.map(lambda x: x.copy(), states[max(0, at - 1)].params)
            begun_ = collect.begin(fixed, writer, at)
            batch, found, seen = collect.collect(fixed, None, begun_)
            kept += candidate_log.candidates(at + 1, seen, 4)
            new, _ = update(jax.tree.map(lambda x: x.copy(), states[-1]), put_batch(mesh, batch))
            states.append(new)
    for a, b in zip(*map(jax.tree.leaves, (state(config, workdir, "sip_learned")[0], states[-1])),
                    strict=True):  # fmt: skip
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    written = candidate_log.read(workdirs.run_dir(str(workdir), "sip_learned"))
    assert written == [line for line in kept if line["step"] in (1, 4)]
    logged = [x["rollouts/staleness"] for x in lines(workdir, "sip_learned") if "loss/rf_nll" in x]
    assert logged == [0.0, 1.0, 1.0, 1.0] and found["rollouts/staleness"] == (0.0, 16.0)


@pytest.mark.parametrize(
    "rollouts",
    [
        pytest.param(((0, 2),), marks=pytest.mark.slow),
        pytest.param(((0, 0), (3, 2)), marks=pytest.mark.slow),
        ((0, 2), (3, 1)),
    ],
    ids=["rollouts0", "rollouts1", "rollouts2"],
)
@pytest.mark.slow  # test_stages resumes the same loop
def test_stopped_and_resumed_a_step_ahead_equals_uninterrupted(
    rollouts, finished, quick, tmp_path, monkeypatch
):
    name = "dpo_ce"
    config = tiny_recipe.get_config(f"{name},truth")
    wanted = config.runs[name]
    wanted.steps, wanted.staleness, wanted.log.every_steps = 6, 1, 2
    wanted.checkpoint.every_steps = 100
    wanted.candidates.rollouts = rollouts
    once, twice = (begun(finished, tmp_path / n, "base") for n in ("once", "twice"))
    figures = run(config, once, name)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(loop.Stopped, match="stopped after step 3 of 6"):
            run(config, twice, name)
    with checkpoints.manager(workdirs.run_dir(str(twice), name)) as manager:
        saved = manager.item_metadata(3).begun
        assert saved["tokens_BCR"].shape[:2] == (8, dict(rollouts).get(3, 2))
    assert run(config, twice, name) == figures
    assert lines(once, name) == lines(twice, name)
    for a, b in zip(*(jax.tree.leaves(state(config, w, name)[0]) for w in (once, twice)),
                    strict=True):  # fmt: skip
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_what_had_begun_is_restored_on_other_devices(tmp_path):
    tree = {"tokens": np.arange(24, dtype=np.int32).reshape(8, 3)}
    saved = put_batch(meshes.build(meshes.MeshConfig()), tree)
    params = {"w": np.zeros(2, np.float32)}
    made: Any = SimpleNamespace(
        step=np.int32(1), params=params, opt_state={}, skipped=0, skipped_in_row=0, reference=None
    )
    with checkpoints.manager(str(tmp_path)) as manager:
        checkpoints.save(manager, made, {}, saved)
    with checkpoints.manager(str(tmp_path)) as manager:
        got = checkpoints.restore_begun(manager, meshes.batch_shapes(meshes.single(), tree))
    np.testing.assert_array_equal(got["tokens"], tree["tokens"])
    assert got["tokens"].sharding.device_set == {jax.devices()[0]}


WRONG = {
    "staleness": (dict(staleness=2), "staleness=2: must be one of 0, 1"),
    "nothing ahead": (dict(staleness=1, candidates=dict(rollouts=((0, 0),))), "no rollouts"),
    "negative": (dict(judge_mesh=dict(devices=-1)), "judge_mesh.devices=-1: must be >= 0"),
    "nobody there": (
        dict(judge_mesh=dict(devices=2), judge=dict(backend="truth", init_from="", proofread=dict(
            init_from=""), reference="suffix"), candidates=dict(rewrite=False)),
        "no local judge or rewriter",
    ),
}  # fmt: skip


@pytest.mark.parametrize("changes, said", WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_named(changes, said):
    config = learned()
    for key, value in changes.items():
        if isinstance(value, dict):
            config.runs.sip_learned[key].update(value)
        else:
            config.runs.sip_learned[key] = value
    with pytest.raises(UserError, match=said):
        selfimprove.resolve(config, "sip_learned")


@needs_8
@pytest.mark.parametrize("places", [dict(devices=8), dict(devices=4, tensor=3), dict(devices=9)])
def test_devices_that_are_not_there_are_named_with_the_run(places):
    config = learned(**places)
    config.runs = {"sip_learned": config.runs.sip_learned}
    config.order = ("sip_learned",)
    with pytest.raises(UserError, match="config runs.sip_learned: judge_mesh: "):
        recipe.check_meshes(config)


def test_a_first_step_has_nothing_to_restore(tmp_path):
    policy: Any = SimpleNamespace(batches=[{}], candidates=SimpleNamespace(count=lambda at: 0))
    assert collect.restored(policy, None, None, 0) is None
    with checkpoints.manager(str(tmp_path)) as manager:
        assert checkpoints.restore_begun(manager, {}) is None
