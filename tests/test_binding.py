"""Tests which config a workdir is bound to: from when on, what may change, and the ways out."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny_recipe
from workdirs import begun, lines, state

from sip import train
from sip import workdir as workdirs
from sip.stages import binding
from sip.structs import UserError

pytest_plugins = ["tiny_fixtures"]


def save(workdir, *runs):
    for name in runs:
        (workdir / "runs" / name / "checkpoints" / "2").mkdir(parents=True)


def changed(**values):
    config = tiny_recipe.get_config()
    with config.ignore_type():
        for key, value in values.items():
            path, _, last = key.replace("__", ".").rpartition(".")
            section = config
            for name in path.split("."):
                section = section[name] if name else section
            section[last] = value
    return config


@pytest.fixture
def bound(tmp_path):
    """A workdir whose runs base, standard and tutor have checkpoints."""
    binding.bind(tiny_recipe.get_config(), str(tmp_path))
    save(tmp_path, "base", "standard", "tutor")
    return tmp_path


def test_a_start_without_a_checkpoint_binds_nothing(tmp_path):
    binding.bind(tiny_recipe.get_config(), str(tmp_path))
    (tmp_path / "tokenizer.model").write_text("of a wrong corpus")
    (tmp_path / "seeds.json").write_text('{"seeds": [0], "shared": true}')
    (tmp_path / "runs" / "base").mkdir(parents=True)
    (tmp_path / "runs" / "base" / "inputs.json").write_text("{}")
    binding.bind(changed(seed=7, runs__base__optim__lr=0.5), str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 7
    assert not (tmp_path / "tokenizer.model").exists() and not (tmp_path / "seeds.json").exists()


def test_a_tokenizer_that_the_user_put_there_stays(tmp_path):
    (tmp_path / "tokenizer.model").write_text("mine")
    binding.bind(tiny_recipe.get_config(), str(tmp_path))
    assert (tmp_path / "tokenizer.model").read_text() == "mine"


REFUSED = {  # change: what the line says
    "seed": (dict(seed=7), r"seed is 0 there, 7 here; .* delete \S*/runs$"),
    "data": (dict(data__cut__suffix=20), r"data.cut.suffix is 24 there, 20 here"),
    "tokenizer": (dict(tokenizer__documents=9), r"tokenizer.documents is 600 there, 9 here"),
    "fewer steps": (dict(runs__standard__steps=1), r"runs.standard.steps is 2 there, 1 here; .*"
                    r"or delete \S*/runs/standard$"),
    "learning rate": (dict(runs__tutor__optim__lr=0.5), r"runs.tutor.optim.lr is .* there, 0.5 "),
    "best": (dict(runs__standard__checkpoint__best="eval/safety"), r"checkpoint.best is '' there"),
    "of the base": (dict(runs__base__optim__lr=0.5), r"/base and \S*/standard and \S*/tutor$"),
    "more steps of what others read": (
        dict(runs__base__steps=4),
        r"runs.base.steps is 2 there, 4 here, and base was read by standard, tutor; .*/tutor$"),
    "own length of the schedule": (dict(runs__standard__optim__steps=9), "optim.steps is 2 there"),
}  # fmt: skip


@pytest.mark.parametrize(("values", "said"), REFUSED.values(), ids=REFUSED)
def test_another_run_is_refused_by_its_keys(values, said, bound):
    before = (bound / "config.json").read_bytes()
    with pytest.raises(UserError, match=f"belongs to another config: .*{said}"):
        binding.bind(changed(**values), str(bound))
    assert (bound / "config.json").read_bytes() == before


ALLOWED = {
    "log": dict(runs__base__log__every_steps=5, runs__base__log__progress=True),
    "saves": dict(runs__base__checkpoint__every_steps=1, runs__standard__checkpoint__keep=7),
    "a run that has not begun": dict(runs__judge__optim__lr=0.5, runs__sip_oracle__steps=1),
    "report": dict(report__rows=("base",), report__standard=""),
    "fewer runs": dict(order=("base", "tutor"), report=dict(rows=("base",), judge="", standard="")),
}


@pytest.mark.parametrize("values", ALLOWED.values(), ids=ALLOWED)
def test_what_changes_no_run_may_change(values, bound):
    binding.bind(changed(**values), str(bound))
    found = json.loads((bound / "config.json").read_text())
    assert found == workdirs.resolved(changed(**values))
    binding.check(changed(), str(bound))  # and back


def test_a_deleted_run_is_free_unless_another_has_learned_from_it(bound):
    other = changed(runs__base__optim__lr=0.5)
    shutil.rmtree(bound / "runs" / "base")
    with pytest.raises(
        UserError, match=r"base was read by standard, tutor; .* delete \S*/standard "
    ):
        binding.check(other, str(bound))
    for name in ("standard", "tutor"):
        shutil.rmtree(bound / "runs" / name)
    binding.check(other, str(bound))


def test_a_run_that_is_left_out_of_the_config_stays_bound(bound):
    less = changed(order=("base",), report=dict(rows=("base",), judge="", standard=""))
    del less.runs.standard
    binding.bind(less, str(bound))
    with pytest.raises(UserError, match=r"runs.standard.optim.lr"):
        binding.check(changed(runs__standard__optim__lr=0.5), str(bound))


def test_a_config_of_an_older_version_is_the_same_one(bound):
    """Keys that were added since have their defaults; a section that cannot be read is compared
    as it is."""
    found = json.loads((bound / "config.json").read_text())
    del found["runs"]["base"]["lora"], found["data"]["max_skipped_fraction"]
    del found["runs"]["base"]["optim"]["eps"]
    (bound / "config.json").write_text(json.dumps(found))
    binding.check(changed(data__max_skipped_fraction=0.1), str(bound))
    found["runs"]["base"]["optim"]["gone"] = 1
    (bound / "config.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"runs.base.optim.gone is 1 there, absent here"):
        binding.check(changed(data__max_skipped_fraction=0.1), str(bound))


def test_keys_that_an_older_version_lacks_are_named_last(bound):
    """Its section cannot be read, so that all defaults added since differ, too."""
    found = json.loads((bound / "config.json").read_text())
    base = found["runs"]["base"]
    base["checkpoint"] = {key: base["checkpoint"][key] for key in ("every_steps",)}
    base["examples"] = base.pop("task")["name"]
    (bound / "config.json").write_text(json.dumps(found))
    with pytest.raises(
        UserError,
        match=r"config: runs.base.examples is 'documents' there, absent here; .* is absent there",
    ):
        binding.check(tiny_recipe.get_config(), str(bound))


def test_an_interrupted_copy_is_no_run(bound):
    (bound / "runs" / "tutor" / "from.json").write_text('{"workdir": "x"}')
    binding.bind(changed(runs__tutor__optim__lr=0.5), str(bound))
    assert not (bound / "runs" / "tutor").exists() and (bound / "runs" / "base").exists()


@pytest.mark.slow
def test_a_finished_run_goes_on_to_more_steps_as_if_it_had_had_them(
    finished, quick, tmp_path, capfd
):
    """Two and then four steps equal four, under a schedule of four."""
    one = tiny_recipe.get_config()
    one.order = one.report.rows = ("base",)
    one.report.judge = one.report.rewriter = one.report.standard = ""
    with one.ignore_type():
        one.runs.base.optim.steps = 4
        four = one.copy_and_resolve_references()
    four.runs.base.steps = 4
    a, b = begun(finished, tmp_path / "a"), begun(finished, tmp_path / "b")
    train.train(one, str(a))
    first = json.loads((a / "runs" / "base" / "eval.json").read_text())
    train.train(four, str(a))
    assert (
        "base: goes on to 4 steps, 2 before; its learning-rate schedule stays"
        in capfd.readouterr().err
    )
    train.train(four, str(b))
    ours, theirs = state(four, a, "base"), state(four, b, "base")
    assert ours[1] == theirs[1] == 4
    jax.tree.map(np.testing.assert_array_equal, ours[0].params, theirs[0].params)
    assert [x["step"] for x in lines(a, "base")] == [2, 4]
    assert json.loads((a / "runs" / "base" / "eval.json").read_text()) != first


def test_a_schedule_that_grows_with_the_steps_is_told(bound, capsys):
    (bound / "runs" / "standard" / "done.json").write_text("{}")
    binding.bind(changed(runs__standard__steps=4), str(bound))
    assert "now 4 steps long (runs.standard.optim.steps=2 would keep" in capsys.readouterr().err
    assert not (bound / "runs" / "standard" / "done.json").exists()
