"""Tests that a run killed several times ends like an uninterrupted one (1 or 4 processes)."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
import tiny_recipe
from test_processes import rehearse
from workdirs import lines, state

from sip import mesh as meshes
from sip import metrics
from sip import workdir as workdirs
from sip.mesh import put_batch
from sip.stages import selfimprove
from sip.training import checkpoints, losses, optim, step

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "microworld.py"
KILLED_AFTER = (20, 30, 30)  # seconds: in the first runs, between them, in later ones


def command(workdir: Path) -> list[str]:
    return [sys.executable, "-m", "sip.train", f"--config={CONFIG}:debug", f"--workdir={workdir}"]


def kill_after(workdir: Path, seconds: float) -> None:
    """Starts the recipe and kills it after some seconds; an earlier end must be a success."""
    process = subprocess.Popen(command(workdir), cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        assert process.wait(timeout=seconds) == 0
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def timeless(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if not k.startswith("speed/")} for line in lines]


@pytest.mark.slow
def test_a_recipe_killed_three_times_ends_like_one_left_alone(tmp_path):
    killed, alone = tmp_path / "killed", tmp_path / "alone"
    for seconds in KILLED_AFTER:
        kill_after(killed, seconds)
    for workdir in (killed, alone):
        subprocess.run(command(workdir), cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    runs = sorted(path.name for path in (alone / "runs").iterdir())
    assert runs == sorted(json.loads((alone / "config.json").read_text())["order"])
    for name in runs:
        one, other = killed / "runs" / name, alone / "runs" / name
        assert timeless(metrics.read(one)) == timeless(metrics.read(other)), name
        assert (one / "eval.json").read_text() == (other / "eval.json").read_text(), name
    summaries = [json.loads((w / "summary.json").read_text()) for w in (killed, alone)]
    assert summaries[0]["rows"] == summaries[1]["rows"]


NAME, ARG = "dpo_ce", "dpo_ce,truth"
LONG = dict(steps=100, staleness=1)  # rollouts in flight are saved too
FOUR = ["--processes=4", "--patience=120"]


def four(workdir: Path, config: Path, *more: str) -> list[str]:
    return ["--", sys.executable, "-m", "sip.train", f"--config={config}", f"--workdir={workdir}",
            *more]  # fmt: skip


def long(workdir: Path) -> list[str]:
    """Returns the flags of a self-improving run that saves every other step."""
    values = {**LONG, "log.every_steps": 1, "checkpoint.every_steps": 2}
    more = [f"--config.runs.{NAME}.{key}={value}" for key, value in values.items()]
    return four(workdir, Path(f"{tiny_recipe.__file__}:{ARG}"), *more)


def config():
    found = tiny_recipe.get_config(ARG)
    found.runs[NAME].update(LONG)
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The outputs of four processes without faults."""
    workdir = tmp_path_factory.mktemp("four") / "alone"
    assert rehearse.main([*FOUR, "--faults=", *long(workdir)]) == 0
    return workdir


@pytest.mark.slow
def test_four_processes_hurt_six_times_end_like_four_left_alone(alone, tmp_path, monkeypatch):
    """Three faults are kills and three are SIGTERM; half of each come during a save."""
    monkeypatch.chdir(ROOT)
    hurt, logs = tmp_path / "hurt", tmp_path / "logs"
    faults = f"--faults={','.join(['kill', 'kill', 'term', 'term', 'kill', 'term'])}"
    flags = [*FOUR, faults, f"--watch={hurt}", "--lines=1,4", f"--logs={logs}"]
    code = rehearse.main([*flags, *long(hurt)])
    assert code == 0, [p.read_text()[-1000:] for p in sorted(logs.iterdir())]
    for name in ("base", NAME):
        assert lines(hurt, name) == lines(alone, name)
        evals = [(w / "runs" / name / "eval.json").read_text() for w in (hurt, alone)]
        assert evals[0] == evals[1]
    states = [state(config(), workdir, NAME) for workdir in (hurt, alone)]
    assert [at for _, at in states] == [LONG["steps"]] * 2
    for a, b in zip(*(jax.tree.leaves(s) for s, _ in states), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.slow
def test_a_checkpoint_of_four_processes_goes_on_on_other_devices(alone):
    c, found = selfimprove.resolve(config(), NAME), []
    tree = jax.tree.map(np.asarray, tiny.tree(B=8, T=8, C=2, R=3, vocab=200))
    ones_BC = np.ones(tree.fork_BC.shape)
    batch = losses.Branches(tree, ones_BC > 0, ones_BC, 0.0 * tree.mask_BCR, tree.mask_BT)
    for n in (1, 2, 8):
        mesh, tx = meshes.build(meshes.MeshConfig(), jax.devices()[:n]), optim.build(c.optim)
        abstract = step.abstract_state(c.model, tx, mesh, reference=True)
        with (
            jax.set_mesh(mesh),
            checkpoints.manager(workdirs.run_dir(str(alone), NAME)) as manager,
        ):
            restored, _ = checkpoints.restore(manager, abstract)
            _, figures = selfimprove.make_update(c, tx)(restored, put_batch(mesh, batch))
            found.append({k: np.asarray(v, float) for k, v in figures.items()})
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for key, value in found[0].items():
            np.testing.assert_allclose(other[key], value, rtol=2e-5, atol=1e-6)
    assert any("loss/dpo" in key for key in found[0])


@pytest.mark.slow
def test_the_micro_world_rehearses_a_pod(tmp_path, monkeypatch):
    """Four processes run the recipe with three faults: SIGKILL, SIGTERM, and a suspension.

    Its first run saves every fourth step and is longer, so that the fault that comes during a save
    does not find the recipe nearly at its end.
    """
    monkeypatch.chdir(ROOT)
    workdir = tmp_path / "pod"
    more = ("--config.runs.base.steps=60", "--config.runs.base.checkpoint.every_steps=4")
    flags = [*FOUR, "--faults=kill,term,slow", f"--watch={workdir}", "--lines=1,3"]
    assert rehearse.main([*flags, *four(workdir, Path(f"{CONFIG}:debug"), *more)]) == 0
    order = json.loads((workdir / "config.json").read_text())["order"]
    assert all((workdir / "runs" / name / "done.json").exists() for name in order)
    assert json.loads((workdir / "summary.json").read_text())["rows"]
