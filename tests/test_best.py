"""Tests the best and the last parameters, and checkpoints that cannot be read or written."""

import errno
import json
from typing import Any

import jax
import numpy as np
import pytest
import tiny_recipe
from workdirs import begun, lines, state

from sip import cli, loading, mesh, processes, train
from sip.evals import ground_truth
from sip.run import Run
from sip.stages import recipe, session, supervised
from sip.structs import UserError
from sip.training import checkpoints, loop
from sip.workdir import check_reachable, workdir_of

pytest_plugins = ["tiny_fixtures"]
METRIC = "eval/safety"
NOTHING: Any = None  # in the place of what is never looked at


def config(**checkpoint):
    found = tiny_recipe.get_config()
    run = found.runs.base
    run.steps, run.optim.lr = 6, 0.3  # so high that something changes
    run.evals.every_steps, run.log.every_steps = 1, 1
    run.checkpoint.update(dict(every_steps=1, keep=6, best=METRIC) | checkpoint)
    return found


def values(workdir):
    return {x["step"]: x[METRIC] for x in lines(workdir, "base") if METRIC in x}


@pytest.mark.slow
def test_the_best_parameters_are_kept_and_read_like_a_runs(finished, quick, tmp_path):
    workdir = begun(finished, tmp_path)
    supervised.train(Run(config(), "base", str(workdir)))
    seen = values(workdir)
    step = max(seen, key=lambda at: seen[at])  # the first of equals
    assert 1 < step < 6, "there is a choice"
    directory = str(workdir / "runs" / "base" / "best")
    record = checkpoints.record(directory)
    assert record["best"] == {"metric": METRIC, "value": pytest.approx(seen[step]), "step": step}
    one = mesh.single()
    got, cfg = loading.load_params(directory, one)
    with checkpoints.manager(str(workdir / "runs" / "base")) as manager:
        run = supervised.resolve(config(), "base")
        want = checkpoints.restore(manager, _abstract(run), step)[0].params
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert loading.kept_tokenizer(directory).encode("a") == loading.kept_tokenizer(
        str(workdir / "runs" / "base")
    ).encode("a")
    assert loading.source_dir(str(workdir), "base/best") == directory
    for place in (directory, str(workdir / "runs" / "base")):
        assert workdir_of(place) == str(workdir)
    assert state(config(), workdir, "base")[1] == 6, "a resumed run goes on from the last"


def _abstract(run):
    from sip.training import optim, step

    return step.abstract_state(run.model, optim.build(run.optim), mesh.single(), reference=False)


@pytest.mark.slow  # test_the_best_parameters_are_kept has one attempt
def test_another_attempt_keeps_what_was_best(finished, quick, tmp_path):
    """Repeated steps do not replace the best checkpoint; a run without `best` has none."""
    workdir = begun(finished, tmp_path / "a")
    supervised.train(Run(config(), "base", str(workdir)))
    before = checkpoints.record(str(workdir / "runs" / "base" / "best"))
    for step in (4, 5, 6):
        (workdir / "runs" / "base" / "checkpoints" / str(step)).rename(tmp_path / str(step))
    supervised.train(Run(config(), "base", str(workdir)))
    assert checkpoints.record(str(workdir / "runs" / "base" / "best")) == before
    other = begun(finished, tmp_path / "b")
    supervised.train(Run(config(best=""), "base", str(other)))
    assert not (other / "runs" / "base" / "best").exists()
    assert values(other) == values(workdir)


def test_what_is_no_number_is_not_the_best(tmp_path):
    run = supervised.resolve(config(), "base")
    for value in (float("nan"), float("inf")):
        session.keep_best(Run(config(), "base", str(tmp_path)), run, {}, {METRIC: value}, 1)
    assert not (tmp_path / "runs").exists()


def test_a_best_that_cannot_be_found_is_named(finished, quick, tmp_path):
    wanted = config(best="eval/beauty")
    with pytest.raises(UserError, match=r"checkpoint.best 'eval/beauty' is none of .*eval/safety"):
        supervised.train(Run(wanted, "base", str(begun(finished, tmp_path))))
    for name in ("base", "sip_oracle"):
        never = tiny_recipe.get_config()
        never.runs[name].checkpoint.best, never.runs[name].evals.every_steps = METRIC, 0
        with pytest.raises(UserError, match="evals.every_steps is 0"):
            recipe.STAGES[never.runs[name].stage].resolve(never, name)


def test_a_later_run_of_the_recipe_starts_from_the_best(tmp_path):
    wanted = config()
    wanted.runs.standard.init_from = "base/best"
    recipe.check(wanted, str(tmp_path))
    wanted.runs.standard.init_from = "bass/best"
    with pytest.raises(UserError, match="bass/best"):
        recipe.check(wanted, str(tmp_path))


def test_a_newer_format_is_refused_by_its_number(tmp_path, monkeypatch):
    params = {"w": np.zeros(2, np.float32)}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "FORMAT", 7)
        checkpoints.save_params(str(tmp_path), params, {"model": {}})
    with pytest.raises(UserError, match=r"checkpoints: format 7, this version reads up to 1"):
        checkpoints.record(str(tmp_path))
    with (
        checkpoints.manager(str(tmp_path)) as manager,
        pytest.raises(UserError, match="format 7"),
    ):
        checkpoints.restore(manager, NOTHING)


def test_one_of_several_that_is_told_to_end_leaves_an_evaluation(monkeypatch):
    monkeypatch.setattr(processes, "preempted", lambda: True)
    with pytest.raises(loop.Stopped, match="stopped between two checkpoints"):
        ground_truth.finish(NOTHING, NOTHING)


@pytest.mark.slow
def test_what_finish_asks_is_asked_of_all_processes_alike(finished, quick, tmp_path, monkeypatch):
    """A stop after the validation texts writes nothing; the same command then writes everything."""
    workdir, calls = begun(finished, tmp_path), []
    told = lambda: calls.append(1) or len(calls) == 2
    with monkeypatch.context() as patch:
        patch.setattr(loop, "leave", lambda: told() and _raise(loop.Stopped("told")))
        with pytest.raises(loop.Stopped, match="told"):
            supervised.train(Run(config(), "base", str(workdir)))
    assert not (workdir / "runs" / "base" / "eval.json").exists()
    figures = supervised.train(Run(config(), "base", str(workdir)))
    assert json.loads((workdir / "runs" / "base" / "eval.json").read_text()) == figures


def _raise(error):
    raise error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/data/x"),
        ValueError('RESOURCE_EXHAUSTED: writing "/data/x": No space left on device [28]'),
        RuntimeError("behind it"),
    ],
)
def test_a_full_disk_is_one_line_that_names_it(error, capsys):
    def main(argv):
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/data/x")
        except OSError as e:
            raise error from e

    assert cli.code(main, []) == cli.MENDABLE
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no space left on the disk of /data/x" in said


def test_another_error_is_not_taken_for_a_full_disk(capsys):
    assert cli.code(lambda argv: _raise(OSError(errno.EACCES, "denied", "/data/x")), []) == 2
    assert capsys.readouterr().err == "error: /data/x: denied\n"


def test_a_store_out_of_reach_is_one_line(monkeypatch):
    class Nowhere:
        def __init__(self, path):
            pass

        def exists(self):
            raise ImportError("Please install gcsfs\nto access Google Storage")

    monkeypatch.setattr(recipe.epath, "Path", Nowhere)
    with pytest.raises(
        UserError, match="workdir gs://b/x cannot be reached: Please install gcsfs to"
    ):
        train.train(tiny_recipe.get_config(), "gs://b/x")
    check_reachable("/a/path", "workdir")
