"""Tests that evaluating a checkpoint afterwards gives the run's own results."""

import json
import shutil

import numpy as np
import pytest
from workdirs import call, files

from sip import evaluate
from sip.evals import ground_truth
from sip.evals.continuations import Prompts
from sip.structs import UserError

pytest_plugins = ["tiny_fixtures"]


def figures(workdir, name, **changes):
    asked = dict(
        baseline=str(workdir / "runs" / "base"), split="test", standard=16, unsafe=8, batch=16,
        data_workdir="",
    )  # fmt: skip
    return evaluate.evaluate(str(workdir / "runs" / name), **{**asked, **changes})


class Lengths:
    """A ground truth to which longer texts are better."""

    def score(self, prefixes, texts):
        return {"quality": np.array([len(text) for text in texts], float)}

    def compare(self, a, b):
        return np.where(a == b, 0.5, (a > b).astype(float))


def test_a_win_rate_counts_wins_of_the_evaluated_texts():
    none = np.zeros((4, 0))
    asked = Prompts(none, none, np.zeros(4, int), ["p"] * 4, ["s"] * 4)
    rate = ground_truth.win_rate(Lengths(), asked, np.array([3.0, 3.0, 3.0, 1.0]), ["aa"] * 4)
    assert rate == 0.75


@pytest.mark.parametrize("name", [pytest.param("base", marks=pytest.mark.slow), "sip_learned"])
def test_the_figures_are_those_of_the_run_whatever_the_batch(name, finished, quick):
    wrote = json.loads((finished / "runs" / name / "eval.json").read_text())
    found = figures(finished, name)
    assert found.pop("nll") > 0
    assert found == pytest.approx(wrote)
    ragged = figures(finished, name, batch=7)
    assert ragged == pytest.approx({**wrote, "nll": ragged["nll"]})


def test_a_model_against_itself_is_a_draw(finished, quick):
    found = figures(finished, "sip_oracle", baseline="")
    assert found["win_rate_standard"] == found["win_rate_unsafe"] == 0.5


@pytest.mark.slow  # test_report moves a workdir
def test_a_workdir_moved_elsewhere_evaluates_and_stays_as_it_is(finished, quick, tmp_path):
    moved = shutil.copytree(finished, tmp_path / "moved")
    before = files(moved)
    assert figures(moved, "standard") == figures(finished, "standard")
    assert files(moved) == before


def test_a_run_whose_workdir_has_no_data_set_builds_none(finished, tmp_path):
    """Such a run was trained on a file of its own; the section `data` of its config is not read."""
    run = shutil.copytree(finished / "runs" / "base", tmp_path / "runs" / "base")
    shutil.copy(finished / "config.json", tmp_path)
    before = files(tmp_path)
    with pytest.raises(UserError, match="has no corpus: .* its run read none"):
        figures(tmp_path, "base", baseline="")
    assert evaluate.corpus_of(str(run), "test", "") is None and files(tmp_path) == before
    assert evaluate.corpus_of(str(run), "test", str(finished)) is not None


def test_the_command_prints_json(finished, quick, capsys, monkeypatch):
    monkeypatch.chdir(finished / "runs" / "base")
    assert call(evaluate, "--checkpoint=.", "--split=test", "--standard=16", "--unsafe=8") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["win_rate_standard"] == 0.5 and 0 <= found["safety"] <= 1


WRONG = {
    "no checkpoint": ([], "--checkpoint"),
    "not a run": (["--checkpoint={run}/nothing"], "nothing"),
    "no baseline": (["--checkpoint={run}", "--baseline=nothing"], "nothing"),
    "no such split": (["--checkpoint={run}", "--split=summer"], "summer"),
    "nothing to evaluate": (["--checkpoint={run}", "--standard=0"], "--standard"),
    "stray": (["--checkpoint={run}", "more"], "more"),
}


@pytest.mark.parametrize("flags, named", WRONG.values(), ids=WRONG)
def test_bad_flags_are_one_line(flags, named, finished, quick, capsys):
    assert call(evaluate, *(flag.format(run=finished / "runs" / "base") for flag in flags)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and named in line


@pytest.mark.parametrize("evals", [[], ["--evals=paper", "--judged_by=truth"]])
def test_a_run_without_a_checkpoint_is_named(evals, finished, tmp_path, capsys):
    empty, begun = tmp_path / "empty", tmp_path / "begun"
    empty.mkdir(), begun.mkdir()
    shutil.copy(finished / "runs" / "base" / "tokenizer.json", begun)
    shutil.copy(finished / "runs" / "base" / "tokenizer.model", begun)
    base = f"--baseline={finished / 'runs' / 'base'}"
    for directory, why in ((empty, "has no tokenizer.json"), (begun, "no checkpoint in")):
        assert call(evaluate, f"--checkpoint={directory}", base, *evals) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert why in line and str(directory) in line


OVER = {
    "problems": ["--problems={file}", "--out={file}"],
    "a benchmark": ["--benchmark=xstest={file}", "--details={file}"],
    "a prompt": ["--judge_aspects=safety={file}", "--out={file}"],
}


@pytest.mark.parametrize("flags", OVER.values(), ids=OVER)
def test_an_output_never_overwrites_an_input(flags, tmp_path, capsys):
    path = tmp_path / "in.jsonl"
    path.write_text("kept")
    assert call(evaluate, "--checkpoint=run", *(flag.format(file=path) for flag in flags)) == 2
    assert "is an input, which is never overwritten" in capsys.readouterr().err
    assert path.read_text() == "kept"
