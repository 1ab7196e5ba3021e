"""Tests the finished runs that another workdir's job takes over (--from)."""

import json
import shutil

import pytest
import tiny_recipe
from workdirs import files

from sip import workdir as workdirs
from sip.stages import binding, reuse
from sip.structs import UserError


def config(**changes):
    found = tiny_recipe.get_config()
    found.order, found.report.rows = ("base", "tutor", "standard"), ("base",)
    found.report.judge = found.report.rewriter = found.report.standard = ""
    for run, lr in changes.items():
        found.runs[run].optim.lr = lr
    return found


@pytest.fixture
def other(tmp_path):
    """A workdir with two finished runs and one that has begun."""
    workdir = tmp_path / "other"
    binding.bind(config(), str(workdir))
    (workdir / "tokenizer.model").write_text("tokens")
    (workdir / "data" / "world").mkdir(parents=True)
    (workdir / "data" / "world" / "a.array_record").write_text("documents")
    for name in ("base", "tutor", "standard"):
        for step in ("2", "10"):
            (workdir / "runs" / name / "checkpoints" / step).mkdir(parents=True)
            (workdir / "runs" / name / "checkpoints" / step / "arrays").write_text(name + step)
        (workdir / "runs" / name / "eval.json").write_text("{}")
    for name in ("base", "tutor"):
        (workdir / "runs" / name / "done.json").write_text('{"wall_seconds": 1.0}')
    return workdir


def take(config, other, workdir):
    plan = reuse.plan(config, str(other), str(workdir))
    binding.bind(config, str(workdir))
    reuse.take(plan, str(workdir))
    return plan


def test_finished_runs_are_copied_with_all_they_need(other, tmp_path, capsys):
    new = tmp_path / "new"
    plan = take(config(), other, new)
    assert plan.runs == ("base", "tutor") and plan.others == {"standard": "not finished there"}
    got, want = files(new), files(other)
    assert not [path for path in got if "runs/standard" in path or path.endswith("/2/arrays")]
    assert got["runs/base/checkpoints/10/arrays"] == b"base10"
    same = ("tokenizer.model", "data/world/a.array_record", "runs/tutor/done.json")
    assert all(got[path] == want[path] for path in same)
    assert json.loads(got["runs/base/from.json"]) == {"workdir": str(other)}
    out = capsys.readouterr().out
    assert "base, tutor" in out and "standard (not finished there)" in out
    assert reuse.plan(config(), str(other), str(new)).runs == (), "the same command again"


def test_a_run_of_another_config_and_what_read_it_are_trained_here(other, tmp_path):
    (other / "runs" / "standard" / "done.json").write_text('{"wall_seconds": 1.0}')
    changed = config(standard=0.5)
    with changed.ignore_type():
        changed.runs.base.log.every_steps = 7  # changes nothing
    plan = reuse.plan(changed, str(other), str(tmp_path / "new"))
    assert plan.runs == ("base", "tutor")
    assert plan.others["standard"].startswith("optim.lr is ")
    with pytest.raises(UserError, match=r"no run of it can be taken \(base: optim.lr is .* there, "
                       r"0.5 here; tutor: read base; standard: read base\)"):  # fmt: skip
        reuse.plan(config(base=0.5), str(other), str(tmp_path / "new"))


def test_a_corpus_of_another_seed_is_named(other, tmp_path):
    wanted = config()
    wanted.data.world.entities = 9
    with pytest.raises(UserError, match=r"base: data.world.entities is 8 there, 9 here"):
        reuse.plan(wanted, str(other), str(tmp_path / "new"))


def test_what_read_a_run_of_this_workdir_is_trained_here(other, tmp_path):
    """The base of this workdir is another one, with the same config."""
    new = tmp_path / "new"
    binding.bind(config(), str(new))
    shutil.copytree(other / "runs" / "base", new / "runs" / "base")
    assert reuse.plan(config(), str(other), str(new)).others["tutor"] == "read base"


def test_an_interrupted_copy_is_made_again(other, tmp_path, monkeypatch):
    new, copy = tmp_path / "new", reuse._copy

    def broken(old, to, leave=()):
        if old.name == "eval.json" and old.parent.name == "tutor":
            raise KeyboardInterrupt
        copy(old, to, leave)

    with monkeypatch.context() as patch:
        patch.setattr(reuse, "_copy", broken)
        with pytest.raises(KeyboardInterrupt):
            take(config(), other, new)
    assert binding.begun(str(new)) == {"base"}
    assert take(config(), other, new).runs == ("tutor",)
    assert binding.begun(str(new)) == {"base", "tutor"}


def test_what_is_no_workdir_is_named(other, tmp_path):
    for source, said in ((tmp_path / "typo", "not a workdir"), (other, "is the workdir itself")):
        with pytest.raises(UserError, match=f"--from {source}: {said}"):
            reuse.plan(config(), str(source), str(other))


def test_a_seed_takes_from_its_own_seed(other, tmp_path):
    job = tmp_path / "job"
    shutil.copytree(other, job / "seed0")
    workdirs.write_json(job / "seeds.json", {"seeds": [0], "shared": False})
    assert reuse.plan(config(), str(job), str(tmp_path / "new")).source == str(job / "seed0")
    wanted = config()
    wanted.seed = 3
    with pytest.raises(UserError, match="has the seeds 0, not 3"):
        reuse.plan(wanted, str(job), str(tmp_path / "new"))
