"""Helpers for workdirs of the tiny recipe, and for running command lines in this process."""

import contextlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import jax
import pytest
from absl import flags

from sip import cli
from sip import mesh as meshes
from sip import workdir as workdirs
from sip.stages import recipe, rl, selfimprove, supervised
from sip.training import checkpoints, loop, optim, step

STAGES = (supervised, selfimprove, rl)
_updates = {}


def _shared(stage, make):
    """Returns `make_update` of a stage, with one program for all runs that ask for the same."""

    def shared(c, tx, *loss):
        asked = [c.task.name, *sorted(loss[1].items()), c.z_loss] if loss else [c.objective]
        asked += [c.task.loss] if loss and c.task.name == "preferences" else []
        key = (stage.__name__, c.model, c.optim, c.microbatches, *asked)
        if key not in _updates:
            _updates[key] = make(c, tx, *loss)
        return _updates[key]

    return shared


@contextlib.contextmanager
def quickly():
    """Uses one device, few XLA optimisations and one update for equal runs: a tiny run spends most
    time on tracing and compilation."""
    build, before = meshes.build, jax.config.read("jax_disable_most_optimizations")
    first = lambda cfg, devices=None: build(cfg, devices or jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meshes, "build", first)
        for stage in STAGES:
            patch.setattr(stage, "make_update", _shared(stage, stage.make_update))
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", before)


def begun(finished: Path, to: Path, *runs: str) -> Path:
    """Copies corpus, tokenizer and some finished runs to `to`, for another config to continue."""
    shutil.copytree(finished / "data", to / "data")
    shutil.copy(finished / "tokenizer.model", to)
    for name in runs:
        shutil.copytree(finished / "runs" / name, to / "runs" / name)
    return to


def files(directory: Path) -> dict[str, bytes]:
    """Returns the contents of all files in a directory, by relative path."""
    found = sorted(Path(directory).rglob("*"))
    return {str(p.relative_to(directory)): p.read_bytes() for p in found if p.is_file()}


def lines(workdir: Path, name: str) -> list[dict]:
    """Returns the lines of a run's metrics.jsonl without the timings (speed/*)."""
    text = (Path(workdir) / "runs" / name / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in rows]


def state(config, workdir: Path, name: str):
    """Returns (state, step) of a run's last checkpoint."""
    run = recipe.STAGES[config.runs[name].stage].resolve(config, name)
    reference = run.stage != "supervised" and run.objective.needs_reference
    reference |= run.stage == "rl" and run.needs_reference
    abstract = step.abstract_state(
        run.model, optim.build(run.optim), meshes.single(), reference=reference
    )
    with checkpoints.manager(workdirs.run_dir(str(workdir), name)) as manager:
        return checkpoints.restore(manager, abstract)[0], manager.latest_step()


def stop_after(monkeypatch, steps, *, of=loop.Meter, method="count"):
    """Patches `method` of class `of` so that its call number `steps` sends SIGTERM."""
    original, seen = getattr(of, method), []

    def counted(self, argument):
        seen.append(argument)
        if len(seen) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, argument)

    monkeypatch.setattr(of, method, counted)


def call(module, *argv: str) -> int:
    """Runs a command line in this process and returns its exit code."""
    flags.FLAGS.unparse_flags()
    for name in list(flags.FLAGS):
        if name.startswith("config."):  # an override, which absl would define a second time
            delattr(flags.FLAGS, name)
        else:
            flags.FLAGS[name].unparse()
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module.__name__, *argv])  # ml_collections reads overrides here
        patch.setattr(sys, "path", list(sys.path))
        try:
            return cli.code(module.main, cli._parse(sys.argv))
        except SystemExit as e:
            return e.code
        finally:
            if cli.PRINT in flags.FLAGS:  # other commands are called without flags
                flags.FLAGS[cli.PRINT].unparse()
            for s, handler in handlers.items():
                signal.signal(s, handler)
