"""Tests a recipe over several seeds: each as if alone, one shared corpus, spreads by hand."""

import importlib
import json
import math
import shutil
from pathlib import Path

import pytest
import tiny_recipe
from workdirs import call, files, lines, quickly, stop_after

from sip import train
from sip import workdir as workdirs
from sip.report import __main__ as report
from sip.report import outputs, panels, statistics
from sip.report.summary import comparable
from sip.run import open_tokenizer
from sip.stages import binding, seeds
from sip.structs import UserError
from sip.text import tokenizer as tokenizers
from sip.training import loop

pytest_plugins = ["tiny_fixtures"]  # quick
PAIR = "\n".join((
    "import tiny_recipe",
    "def get_config(arg=''):",
    "    config = tiny_recipe.get_config()",
    "    config.order = config.report.rows = ('base', 'standard')",
    "    config.report.judge = config.report.rewriter = ''",
    "    config.runs.standard.evals.every_steps = 1",
    "    return config",
))  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A config file of two runs that compile fast, and its module."""
    path = tmp_path_factory.mktemp("config") / "tiny_pair.py"
    path.write_text(PAIR)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        yield path, importlib.import_module("tiny_pair").get_config


@pytest.fixture(scope="module")
def two(pair, tmp_path_factory):
    """A finished job over seeds 0 and 1; tests must not write to it."""
    workdir = tmp_path_factory.mktemp("two") / "work"
    with quickly(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "plots", lambda *_: None)
        train.train_seeds(pair[1](), (0, 1), str(workdir))
    return workdir


def test_seeds_are_told_from_what_is_none():
    assert seeds.parse("0") == (0,) and seeds.parse("7, 0,12") == (7, 0, 12)
    for text, named in (
        ("", "''"), ("0,x", "'x'"), ("0,", "''"), ("0,0", "0 is repeated"), ("1,01", "repeated"),
        ("-1", "'-1'"), ("1.5", "'1.5'"), ("1_0", "'1_0'"), ("2147483648", "2147483648"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"^--seeds={text}: .*{named}"):
            seeds.parse(text)
    with pytest.raises(UserError, match=r"^--seeds=7{100}: .{,90}$"):
        seeds.parse("7" * 4500)


@pytest.mark.slow  # trains the tiny recipe once more
def test_a_seed_runs_as_it_does_alone(pair, two, quick, tmp_path):
    alone = pair[1]()
    alone.seed = 1
    summary = train.train(alone, str(tmp_path))
    for name in ("base", "standard"):
        assert lines(tmp_path, name) == lines(two / "seed1", name) != lines(two / "seed0", name)
        for file in ("eval.json", "continuations.json", "tokenizer.model"):
            path = Path("runs", name, file)
            assert (tmp_path / path).read_bytes() == (two / "seed1" / path).read_bytes(), path
    own = [json.loads((d / "config.json").read_text()) for d in (tmp_path, two / "seed1")]
    assert own[0] == own[1] and own[0]["seed"] == 1
    there = json.loads((two / "summary.json").read_text())["runs"]["1"]
    assert there["rows"] == summary["rows"] and there["seed"] == 1


@pytest.mark.slow
def test_the_corpus_and_the_tokenizer_are_made_once(two):
    below = {p.relative_to(two).parts[:2] for p in two.rglob("*") if p.name == "data"}
    assert below == {("data",)}
    assert json.loads((two / "seeds.json").read_text()) == {"seeds": [0, 1], "shared": True}
    assert not (two / "seed0" / "tokenizer.model").exists() and (two / "tokenizer.model").exists()
    assert workdirs.shared_dir(str(two / "seed1")) == two
    assert workdirs.shared_dir(str(two / "seed2")) == two / "seed2", "a stranger shares nothing"


@pytest.mark.slow
def test_what_hangs_on_the_seed_is_not_shared(pair, tmp_path):
    config = pair[1]()
    config.data.world = {**config.data.world.to_dict(), "seed": config.get_ref("seed")}
    assert seeds.of(config, 3).data.world.seed == 3 and config.data.world.seed == 0
    assert not seeds.shared(config, (0,)) and seeds.shared(pair[1](), (0, 1))
    seeds.claim(config, (0, 1), str(tmp_path))
    for seed in (0, 1):
        own = str(tmp_path / f"seed{seed}")
        assert workdirs.shared_dir(own) == Path(own)
        open_tokenizer(seeds.of(config, seed), own)
    assert [(tmp_path / d / "data").exists() for d in ("seed0", "seed1", ".")] == [1, 1, 0]
    a, b = ((tmp_path / d / "tokenizer.model").read_bytes() for d in ("seed0", "seed1"))
    assert a != b


@pytest.mark.slow
def test_a_finished_seed_is_skipped_and_an_unfinished_one_resumed(
    pair, two, quick, tmp_path, monkeypatch, capsys
):
    workdir = shutil.copytree(two, tmp_path / "work")
    shutil.rmtree(workdir / "seed1" / "runs" / "standard")
    for gone in (workdir / "summary.json", workdir / "seed1" / "summary.json"):
        gone.unlink()
    monkeypatch.setattr(tokenizers, "train_sentencepiece", None)
    kept = files(workdir / "seed0")
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(loop.Stopped, match="standard: stopped after step 1 of 2"):
            train.train_seeds(pair[1](), (0, 1), str(workdir))
    assert not (workdir / "summary.json").exists()
    train.train_seeds(pair[1](), (0, 1), str(workdir))
    out = capsys.readouterr().out
    assert files(workdir / "seed0") == kept and "seed 0:" not in out and "seed 1:" in out
    assert lines(workdir / "seed1", "standard") == lines(two / "seed1", "standard")
    rows = [json.loads((w / "summary.json").read_text())["rows"] for w in (workdir, two)]
    assert rows[0] == rows[1]


def summary(**figures):
    """Returns one seed's summary: given figures for standard, fixed ones for base and judge."""
    base = {"a": 0.0, "b": 1.0}
    return {"wall_seconds": 2.0, "rows": {"base": base, "standard": figures}, "judge": {"q": 0.5}}


def test_means_and_spreads_of_hand_worked_figures():
    """1, 2, 6: mean 3, deviation sqrt((4 + 1 + 9) / 2) = sqrt 7, standard error sqrt(7 / 3)."""
    runs = {4: summary(a=1.0, b=0.5), 0: summary(a=2.0), 9: summary(a=6.0, b=0.5)}
    found = json.loads(json.dumps(statistics.combine(runs, ["base"], "standard")))
    assert found["seeds"] == [4, 0, 9] and list(found["runs"]) == ["4", "0", "9"]
    assert found["wall_seconds"] == 6.0 and found["runs"]["0"] == runs[0]
    a = {"mean": 3.0, "std": pytest.approx(math.sqrt(7)), "values": [1, 2, 6]}
    b = {"mean": 0.5, "std": 0.0, "values": [0.5, None, 0.5]}
    assert found["rows"]["standard"] == {"a": a, "b": b}
    assert found["judge"] == {"q": {"mean": 0.5, "std": 0.0, "values": [0.5] * 3}}
    less = {"mean": -3.0, "se": pytest.approx(math.sqrt(7 / 3)), "values": [-1, -2, -6]}
    more = {"mean": 0.5, "se": 0.0, "values": [0.5, None, 0.5]}
    assert found["paired"] == {"against": "standard", "rows": {"base": {"a": less, "b": more}}}


def test_differences_vary_less_than_figures_that_vary_together():
    rows = statistics.over([{"x": 1.0}, {"x": 5.0}]), statistics.over([{"x": 0.5}, {"x": 4.5}])
    assert statistics.differences(*rows) == {"x": {"mean": 0.5, "se": 0.0, "values": [0.5, 0.5]}}


def test_one_seed_has_no_spread_and_without_a_standard_nothing_is_paired():
    found = statistics.combine({3: summary(a=1.0)}, [], "")
    assert found["rows"]["standard"] == {"a": {"mean": 1.0, "std": None, "values": [1.0]}}
    assert statistics.error([1.0, None]) is None and statistics.mean([None]) is None
    assert "paired" not in found


def test_only_rows_evaluated_on_the_same_prefixes_are_paired(pair):
    config = tiny_recipe.get_config()
    rows = ["base", "tutor", "sip_learned", "sip_oracle", "sft_one_rollout"]
    assert comparable(config) == rows
    config.runs.sip_oracle.evals.split = "validation"
    config.runs.base.evals.unsafe = 4
    assert comparable(config) == ["tutor", "sip_learned", "sft_one_rollout"]
    config.report.standard = ""
    assert comparable(config) == []


def test_curves_are_means_of_the_steps_that_all_seeds_have():
    one = [
        {"step": 1, "x": 1.0},
        {"step": 1, "y": 3.0},
        {"step": 2, "x": None},
        {"step": 4, "x": 2},
    ]
    other = [{"step": s, "x": 3.0 + s} for s in (1, 2, 4)]
    steps, mean, deviation = panels.series([one, other], "x")
    assert steps == [1, 4] and mean.tolist() == [2.5, 4.5]
    assert deviation.tolist() == pytest.approx([3 / math.sqrt(2), 5 / math.sqrt(2)])
    assert panels.series([one], "x")[1:] == (pytest.approx([1.0, 2.0]), None)
    assert panels.series([one, other], "y")[0] == []


@pytest.mark.slow  # test_report moves a workdir
def test_the_report_is_made_again_from_a_moved_workdir(two, capsys, tmp_path):
    workdir = shutil.copytree(two, tmp_path / "moved")
    before = json.loads((workdir / "summary.json").read_text())
    (workdir / "summary.json").unlink()
    assert call(report, str(workdir)) == 0
    out = capsys.readouterr().out
    assert json.loads((workdir / "summary.json").read_text()) == before
    assert (workdir / "plots" / "evaluations.png").exists()
    row = before["rows"]["base"]["nll_clean"]
    less = before["paired"]["rows"]["base"]["nll_clean"]
    for label, figure in (
        ("mean", row["mean"]), ("std", row["std"]), ("seed 0", row["values"][0]),
        ("seed 1", row["values"][1]), ("- standard", less["mean"]), ("std. error", less["se"]),
    ):  # fmt: skip
        assert any(f" {label} " in line and f"{figure:.3f}" in line for line in out.splitlines())
    assert (
        less["values"][1] == row["values"][1] - before["rows"]["standard"]["nll_clean"]["values"][1]
    )
    shutil.rmtree(workdir / "seed1" / "runs" / "standard")
    assert call(report, str(workdir)) == 0  # of what is there
    assert "Run seed1/standard has not begun." in capsys.readouterr().out


def refused(capsys, workdir, *argv):
    """Returns the one line of a rejected command; the workdir must be unchanged."""
    capsys.readouterr()
    before = files(workdir)
    assert call(train, *argv, f"--workdir={workdir}") == 2
    assert files(workdir) == before
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_bad_seeds_are_one_line_and_write_nothing(pair, two, capsys, tmp_path):
    config = f"--config={pair[0]}"
    for text in ("0,x", "0,0", ""):
        assert f"--seeds={text}: " in refused(capsys, tmp_path, config, f"--seeds={text}")
    both = refused(capsys, tmp_path, config, "--seeds=0", "--config.seed=1")
    assert "--config.seed and --seeds" in both
    wrong = refused(capsys, tmp_path, config, "--seeds=0,1", "--config.order=('base', 'bass')")
    assert "no run 'bass'" in wrong and not list(tmp_path.iterdir())
    other = [config, "--config.runs.base.optim.lr=0.5"]
    for text in ("0,1", "2"):  # a new seed has to be of the same recipe as those before
        line = refused(capsys, two, *other, f"--seeds={text}")
        assert "seed0 belongs to another config: runs.base.optim.lr is " in line
    (tmp_path / "file").write_text("kept")
    assert call(train, config, "--seeds=0", f"--workdir={tmp_path / 'file'}") == 2
    assert (tmp_path / "file").read_text() == "kept"


def test_a_workdir_is_of_one_run_or_of_seeds(pair, two, capsys, tmp_path):
    config = f"--config={pair[0]}"
    (tmp_path / "runs" / "base" / "checkpoints" / "2").mkdir(parents=True)
    assert "belongs to a run without --seeds" in refused(capsys, tmp_path, config, "--seeds=0")
    inside = refused(capsys, two / "seed0", config, "--seeds=0")
    assert "seed0 belongs to a run without --seeds" in inside
    assert "belongs to a job over seeds: give --seeds" in refused(capsys, two, config)


def test_a_seed_that_is_added_joins_the_others(pair, two, tmp_path):
    workdir = shutil.copytree(two, tmp_path / "work")
    seeds.claim(pair[1](), (2,), str(workdir))
    assert seeds.known(str(workdir)) == (0, 1, 2)
    binding.bind(seeds.of(pair[1](), 2), str(workdir / "seed2"))
    assert workdirs.shared_dir(str(workdir / "seed2")) == workdir
