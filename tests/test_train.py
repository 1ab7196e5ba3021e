"""Tests the command line: one-line errors for bad input, and stopped jobs that continue."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_recipe
from workdirs import begun, call, files, stop_after

from sip import train
from sip.report import outputs
from sip.run import Run
from sip.stages import binding, clock, recipe
from sip.stages.clock import Clock
from sip.training import loop

pytest_plugins = ["tiny_fixtures"]
RECIPE = Path(tiny_recipe.__file__)
TEXT = tiny_recipe.ROOT / "configs" / "text.py"


def complaint(capsys, *argv):
    """Returns the one line that a rejected command line writes to stderr."""
    capsys.readouterr()
    assert call(train, *argv) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and "Traceback" not in line
    return line


REFUSED = {  # flags: what the line has to name
    "unknown key": (["--config.runs.base.optim.lrr=1"], "runs.base.optim.lrr"),
    "unknown section": (["--config.runs.judge.labels.documents=3"], "runs.judge.labels.documents"),
    "wrong type": (["--config.runs.base.steps=many"], "runs.base.steps"),
    "unknown flag": (["--colour=red"], "colour"),
    "stray argument": (["more"], "more"),
    "prefix longer than the context": (["--config.data.cut.prefix_max=400"], "model.max_len"),
    "batch and microbatches": (["--config.runs.base.microbatches=3"], "microbatches 3"),
    "a microbatch of five rows for eight devices": (
        ["--config.runs.standard.batch=40", "--config.runs.standard.microbatches=8"],
        "runs.standard: batch 40 in microbatches 8: 5 rows",
    ),
    "no judge": (
        ["--config.runs.sip_learned.judge.init_from=nowhere"],
        "judge.init_from 'nowhere'",
    ),
    "no base": (["--config.runs.standard.init_from=nowhere"], "standard.init_from 'nowhere'"),
    "tokenizer file": (["--config.tokenizer.path=no.model"], "no.model"),
    "negative seed": (["--config.seed=-5"], "seed=-5: must be in 0.."),
    "unknown order": (["--config.order=('base', 'bass')"], "bass"),
}


@pytest.mark.parametrize("flags, named", REFUSED.values(), ids=REFUSED)
def test_bad_flags_are_one_line_and_write_nothing(flags, named, finished, capsys, tmp_path):
    new = tmp_path / "new"
    assert named in complaint(capsys, f"--config={RECIPE}", f"--workdir={new}", *flags)
    written = files(new) if new.exists() else {}
    assert not [name for name in written if name.startswith(("runs", "tokenizer"))]


VARIANTS = {
    "no config": ([], "--config is needed"),
    "no workdir": ([f"--config={RECIPE}"], "--workdir is needed"),
    "no such file": (["--config=nowhere.py", "--workdir=x"], "nowhere.py"),
    "no such variant": ([f"--config={RECIPE}:dop", "--workdir=x"], "'dop'"),
    "no candidates": (
        [f"--config={RECIPE}:dpo_rollouts,truth", "--workdir=x",
         "--config.runs.dpo_rollouts.candidates.rollouts=((0, 0),)"], "K = 0"),
    "no text file": (
        [f"--config={TEXT}:debug", "--workdir={tmp}/t", "--config.data.path={tmp}/no.txt"],
        "no.txt"),
    "a file as workdir": ([f"--config={RECIPE}", "--workdir={tmp}/file"], "file"),
}  # fmt: skip


@pytest.mark.parametrize("flags, named", VARIANTS.values(), ids=VARIANTS)
def test_what_is_missing_is_named(flags, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    before = files(tmp_path)
    assert named in complaint(capsys, *(flag.replace("{tmp}", str(tmp_path)) for flag in flags))
    after = files(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) <= {"t/config.json", "t/.lock"}


def test_a_workdir_of_another_config_is_left_alone(finished, capsys):
    before = files(finished)
    line = complaint(capsys, f"--config={RECIPE}", f"--workdir={finished}", "--config.seed=7")
    assert str(finished) in line and "seed is 0 there, 7 here; use another" in line
    assert files(finished) == before


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_data_set_is_named_and_left_alone(damage, finished, capsys, tmp_path):
    workdir = begun(finished, tmp_path / "work")
    file = next(p for p in (workdir / "data").rglob("*train*array_record*"))
    file.write_bytes(file.read_bytes()[: 1 << 12]) if damage == "cut" else file.unlink()
    before = files(workdir)
    line = complaint(capsys, f"--config={RECIPE}", f"--workdir={workdir}")
    assert str(workdir / "data") in line
    after = files(workdir)
    assert {name: after[name] for name in before} == before


def test_a_tokenizer_too_large_for_the_model_is_named(finished, capsys, tmp_path):
    argv = [f"--config={RECIPE}:standard", f"--workdir={begun(finished, tmp_path / 'work')}"]
    argv += ["--config.tokenizer.kind=byte"]
    argv += [f"--config.runs.{name}.model.vocab_size=128" for name in ("base", "standard")]
    line = complaint(capsys, *argv)
    assert "model.vocab_size=128" in line and "259" in line


def test_a_broken_tokenizer_file_is_named(finished, capsys, tmp_path):
    workdir = begun(finished, tmp_path / "work")
    (workdir / "tokenizer.model").write_bytes(b"none")
    assert "tokenizer.model" in complaint(capsys, f"--config={RECIPE}", f"--workdir={workdir}")


def test_a_finished_job_runs_nothing_again(finished, quick, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "plots", lambda *_: None)  # test_report has them drawn again
    workdir = shutil.copytree(finished, tmp_path / "work")
    before = files(workdir)
    assert call(train, f"--config={RECIPE}", f"--workdir={workdir}") == 0
    assert files(workdir) == before
    assert "win rate" in capsys.readouterr().out


@pytest.mark.slow
def test_the_seconds_of_a_run_are_those_of_all_its_attempts(finished, quick, tmp_path, monkeypatch):
    """The fake clock adds one second per call, so sums are known except for the number of calls."""
    workdir, config = begun(finished, tmp_path / "work", "base"), tiny_recipe.get_config()
    config.order = config.report.rows = ("base", "standard")
    config.report.judge = config.report.rewriter = ""
    config.runs.standard.update(steps=3)
    now = itertools.count(1000)
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: float(next(now))))
    kept, save = [], Clock.save
    with monkeypatch.context() as patch:
        patch.setattr(Clock, "save", lambda one: kept.append(save(one)))
        stop_after(patch, 2)
        with pytest.raises(loop.Stopped):
            train.train(config, str(workdir))
    assert len(kept) == 2, "by the checkpoint, and at the end of the attempt"
    wall = workdir / "runs" / "standard" / "wall.json"
    first = json.loads(wall.read_text())["seconds"]
    assert 0 < first < 20
    wall.write_text(json.dumps({"seconds": first + 500}))
    summary = train.train(config, str(workdir))
    done = json.loads((workdir / "runs" / "standard" / "done.json").read_text())["wall_seconds"]
    assert first + 500 < done < first + 520 and summary["wall_by_run"]["standard"] == done


@pytest.mark.parametrize("name", ["standard", "sip_oracle"])
@pytest.mark.slow  # test_the_seconds_of_a_run has attempts
def test_every_checkpoint_keeps_the_seconds(name, finished, quick, tmp_path, monkeypatch):
    """A run killed after its second checkpoint has recorded the seconds up to there."""
    workdir, config = begun(finished, tmp_path / "work", "base"), tiny_recipe.get_config()
    run = config.runs[name]
    run.steps, run.checkpoint.every_steps = 6, 2
    kept, save = [], Clock.save
    monkeypatch.setattr(Clock, "save", lambda one: kept.append(save(one)))
    recipe.STAGES[run.stage].train(Run(config, name, str(workdir)))
    assert len(kept) == 3 and (workdir / "runs" / name / "wall.json").exists()


def start(workdir, *flags):
    command = [sys.executable, "-m", "sip.train", f"--config={RECIPE}", f"--workdir={workdir}"]
    env = os.environ | {"PYTHONPATH": str(tiny_recipe.ROOT)}
    env |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    return subprocess.Popen([*command, *flags], env=env, text=True, stderr=subprocess.PIPE)


def wait_for(process, path, seconds=240):
    for _ in range(seconds * 20):
        if path.exists() and path.stat().st_size:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise AssertionError(f"{path} was not written")


INTERRUPTED = pytest.param(signal.SIGINT, marks=pytest.mark.slow)  # the same handler


@pytest.mark.parametrize("how", [signal.SIGTERM, INTERRUPTED])
@pytest.mark.slow  # test_stages stops and resumes in this process
def test_a_signal_saves_exits_0_and_leaves_a_workdir_that_goes_on(how, finished, quick, tmp_path):
    workdir = begun(finished, tmp_path / "work")
    long = ["--config.runs.base.steps=5000"]
    process = start(workdir, *long)
    wait_for(process, workdir / "runs/base/metrics.jsonl")
    process.send_signal(how)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "base: stopped after step" in err and "run the same command to continue" in err
    saved = [int(p.name) for p in (workdir / "runs/base/checkpoints").iterdir()]
    assert len(saved) == 1 and 0 < saved[0] < 5000
    assert not (workdir / "runs/base/done.json").exists()
    process = start(workdir, *long)
    log = workdir / "runs/base/metrics.jsonl"
    last = len(log.read_text().splitlines())
    for _ in range(2400):
        time.sleep(0.05)
        if len(log.read_text().splitlines()) > last:
            break
    process.send_signal(how)
    _, err = process.communicate(timeout=120)
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert process.returncode == 0 and steps == sorted(set(steps)) and steps[-1] > saved[0]


def test_a_signal_between_runs_exits_0(finished, tmp_path, capsys, monkeypatch):
    def interrupted(config, workdir):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(binding, "bind", interrupted)
    assert call(train, f"--config={RECIPE}", f"--workdir={tmp_path}") == 0
    assert "run the same command to continue" in capsys.readouterr().err
