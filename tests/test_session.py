"""Tests starting a run from another one: added layers, and rejected models."""

import contextlib
import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import optax
import pytest
import tiny

from sip import mesh
from sip import run as runs
from sip.data.microworld.world import WorldConfig
from sip.models import decoder
from sip.stages import clock, session
from sip.stages.clock import Clock
from sip.structs import UserError
from sip.training import checkpoints, loop, step


def saved(tmp_path, cfg):
    """Saves a run directory with one checkpoint of tiny parameters."""
    where = mesh.single()
    state = step.state_of(tiny.params(cfg), cfg, optax.sgd(0.1), where, reference=False)
    with checkpoints.manager(str(tmp_path)) as manager:
        checkpoints.save(manager, state, {"model": dataclasses.asdict(cfg)})
        manager.wait_until_finished()
    return str(tmp_path)


def start(tmp_path, cfg, init_from):
    with checkpoints.manager(str(tmp_path)) as manager:
        return session.start_state(
            manager,
            cfg,
            optax.sgd(0.1),
            mesh.single(),
            seed=1,
            init_from=init_from,
            reference=False,
        )


def test_a_clock_counts_logged_steps_that_are_done_again(tmp_path):
    run, command = (Clock(str(tmp_path)) for _ in range(2))
    (tmp_path / "metrics.jsonl").write_text('{"step": 4}\n{"step": 9}\n')
    for after, lost in ((9, 0), (6, 3), (12, 3), (4, 8)):
        run.resumed(after)
        assert run.lost_steps == lost
    run.save()
    command.save()  # it has read nothing of the log
    assert command.lost_steps == Clock(str(tmp_path)).lost_steps == 8


@pytest.mark.slow
def test_a_deeper_model_starts_as_the_shallower_one_it_comes_from(tmp_path):
    shallow, deep = tiny.model(), tiny.model(layers=4)
    state, first, _ = start(tmp_path / "new", deep, saved(tmp_path / "old", shallow))
    tree = tiny.tree()
    before = tiny.forward(tiny.params(shallow), shallow, tree)
    after = tiny.forward(state.params, deep, tree)
    assert first == 0 and state.params["blocks"]["block"]["wq"].shape[0] == 4
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_fresh_layers_learn_though_their_outputs_are_zero():
    deep = tiny.model(layers=4)
    params = decoder.deepen(tiny.params(), deep)
    loss = lambda params: tiny.forward(params, deep, tiny.tree())[3].sum()
    blocks = jax.grad(loss)(params)["blocks"]["block"]
    assert all(
        float(abs(blocks[name][layer]).max()) > 0 for name in ("wo", "w_down") for layer in (2, 3)
    )


@pytest.mark.parametrize(
    "changes",
    [
        dict(width=32),
        *(pytest.param(x, marks=pytest.mark.slow) for x in (dict(layers=1), dict(hidden=16))),
    ],
)
def test_a_model_of_another_shape_is_refused(tmp_path, changes):
    source = saved(tmp_path / "old", tiny.model())
    with pytest.raises(UserError, match="init_from"):
        start(tmp_path / "new", tiny.model(**changes), source)


def test_a_clock_adds_up_the_attempts_and_a_crash_loses_those_since_the_last_save(
    tmp_path, monkeypatch
):
    now = iter([10.0, 14.0, 19.0, 100.0, 103.0, 0.0, 1.0])
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: next(now)))
    first = Clock(str(tmp_path / "run"))
    assert first.lost_steps == 0
    first.save()
    assert first.seconds() == 9.0  # then it was killed: 5 seconds after the save
    second = Clock(str(tmp_path / "run"))
    second.save()
    assert Clock(str(tmp_path / "run")).seconds() == 4 + 3 + 1


@pytest.mark.parametrize(
    ("batch", "microbatches", "shape", "fits"),
    [
        (8, 1, (1, -1, 1), True),
        (8, 2, (1, -1, 1), False),
        (8, 2, (1, 4, 2), True),
        (8, 2, (2, 2, 2), True),
        (12, 3, (2, 4, 1), False),
        (4, 1, (8, 1, 1), False),
        (3, 1, (1, 1, 8), True),
    ],
)
def test_a_microbatch_divides_among_replica_and_fsdp(batch, microbatches, shape, fits):
    run = SimpleNamespace(batch=batch, microbatches=microbatches, mesh=mesh.MeshConfig(*shape))
    if fits:
        assert runs.build_mesh(run).size == 8
        return
    named = rf"batch {batch} in microbatches {microbatches}: .*mesh \(replica {shape[0]}, fsdp"
    with pytest.raises(UserError, match=named):
        runs.build_mesh(run)


def test_the_micro_worlds_config_writes_out_the_frozen_world(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[1] / "configs"), *sys.path])
    import microworld

    assert dict(microworld.get_config().data.world) == dataclasses.asdict(WorldConfig())


def test_nothing_is_saved_while_updates_are_skipped_but_at_the_end(monkeypatch):
    """Updates 3 and 4 of 5 are skipped, then 5 too: the last step has the run's parameters."""
    saved = []
    keep = lambda manager, state, record, begun: saved.append(int(state.step))
    monkeypatch.setattr(session.checkpoints, "save", keep)
    nothing: Any = SimpleNamespace(save=lambda: None, step=lambda state: None)
    c: Any = SimpleNamespace(steps=5, model=None, checkpoint=loop.CheckpointConfig(every_steps=1))
    run: Any = SimpleNamespace(record=lambda model, pending: {}, name="r")
    for skipped_in_row, asked in (
        ((0, 0, 1, 2, 0), False),
        ((0, 0, 1, 2, 3), False),
        ((0, 4), True),
    ):
        saved.clear()
        s = session.Session(run, c, 0, [], None, False, *[nothing] * 6)
        with pytest.raises(loop.Stopped) if asked else contextlib.nullcontext():
            for done, count in enumerate(skipped_in_row, 1):
                state: Any = SimpleNamespace(step=done, skipped_in_row=count)
                session.end_step(dataclasses.replace(s, stop=asked and done == 2), done, state)
        assert saved == ([1] if asked else [1, 2, 5])
