"""Tests the report of a finished recipe."""

import json
import math
import shutil

import pytest
import tiny_recipe
from workdirs import call

from sip.report import __main__ as report
from sip.report import outputs, tables
from sip.report.summary import summarise
from sip.structs import UserError

pytest_plugins = ["tiny_fixtures"]
ROWS = {"base", "standard", "tutor", "sip_learned", "sip_oracle", "sft_one_rollout"}
FIGURES = {
    "win_rate_standard", "win_rate_unsafe", "factuality", "safety", "safety_unsafe", "coherence",
    "nll_clean", "distinct", "facts_per_suffix",
}  # fmt: skip
ACCURACIES = {"safety_accuracy", "factuality_accuracy", "quality_accuracy"}
PNG = b"\x89PNG\r\n\x1a\n"


def test_the_summary_has_the_agreed_schema(finished):
    text = (finished / "summary.json").read_text()
    summary = json.loads(text, parse_constant=pytest.fail)  # no NaN
    assert summary["seed"] == 0 and summary["wall_seconds"] > 0
    assert set(summary["rows"]) == ROWS and set(summary["judge"]) >= ACCURACIES
    for row in summary["rows"].values():
        assert set(row) >= FIGURES and all(math.isfinite(x) for x in row.values())
    assert all(0 <= summary["judge"][name] <= 1 for name in ACCURACIES)
    assert sum(summary["wall_by_run"].values()) == pytest.approx(summary["wall_seconds"])
    assert set(summary["goodput_by_run"]) == set(summary["wall_by_run"])
    assert all(0 < share < 1 for share in summary["goodput_by_run"].values())
    assert set(summary["lost_steps_by_run"].values()) == {0}
    assert set(summary["left_out_by_run"]) == set(summary["wall_by_run"])


def test_the_base_draws_with_itself_and_standard_has_closed_no_headroom(finished):
    rows = json.loads((finished / "summary.json").read_text())["rows"]
    assert rows["base"]["win_rate_standard"] == rows["base"]["win_rate_unsafe"] == 0.5
    assert rows["standard"]["safety_headroom_closed"] == 0
    room, gain = (
        1 - rows["standard"]["safety"],
        rows["base"]["safety"] - rows["standard"]["safety"],
    )
    assert rows["base"]["safety_headroom_closed"] == pytest.approx(gain / room if room else 0)


@pytest.mark.parametrize("name", ["loss", "chosen", "reward", "evaluations"])
def test_the_plots_are_pictures(name, finished):
    data = (finished / "plots" / f"{name}.png").read_bytes()
    assert data[:8] == PNG and len(data) > 5000


def test_the_command_shows_the_table_again_from_a_moved_workdir(finished, capsys, tmp_path):
    moved = shutil.copytree(finished, tmp_path / "moved")
    before = json.loads((moved / "summary.json").read_text())
    shutil.rmtree(moved / "plots")
    (moved / "summary.json").unlink()
    assert call(report, str(moved), "--html=") == 0
    out = capsys.readouterr().out
    assert all(name[:10] in out for name in ROWS) and "quality_accuracy" in out
    assert json.loads((moved / "summary.json").read_text()) == before
    drawn = {path.stem for path in (moved / "plots").glob("*.png")}
    assert drawn == {"loss", "chosen", "reward", "evaluations", "judge"}


def test_tables_show_the_largest_samples_of_an_evaluation():
    known = ["nll", "mean@8", "maj@8", "pass@1", "pass@16", "pass@2", "start/mean@8", "start/maj@8"]
    assert tables._at(known) == ["start/mean@8", "mean@8", "maj@8", "pass@16"]
    assert tables._at(["nll"]) == []


def test_tables_show_the_probe_of_thoughts():
    row = {"probe/own": 0.5, "probe/own/error": 0.1, "probe/direct": 0.2, "probe/used": 1.0}
    assert tables.columns_of([row]) == ["probe/own", "probe/direct", "probe/used"]


@pytest.mark.parametrize("file", [pytest.param("done.json", marks=pytest.mark.slow), "eval.json"])
def test_an_unfinished_run_is_named_and_the_rest_is_reported(
    file, finished, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(outputs, "plots", lambda *_: None)
    moved = shutil.copytree(finished, tmp_path / "moved")
    (moved / "runs" / "standard" / file).unlink()
    (moved / "summary.json").unlink()
    with pytest.raises(UserError, match="'standard' is not finished"):
        summarise(tiny_recipe.get_config(), str(moved))
    assert call(report, str(moved), "--html=") == 0
    out = capsys.readouterr().out
    assert "│ sip_learned" in out and ("│ standard" in out) == (file == "done.json")
    assert f"standard/{file} does not exist: run 'standard' is not finished" in out
    assert not (moved / "summary.json").exists()  # it would be taken as the sign of a finished job


@pytest.mark.parametrize(
    "argv, named", [([], "usage"), (["nowhere"], "nowhere"), (["a", "b", "c"], "usage")]
)
def test_a_bad_command_is_one_line(argv, named, capsys):
    assert call(report, *argv) == 2
    assert named in capsys.readouterr().err


def test_the_directory_of_a_run_is_refused_with_its_workdir(finished, capsys):
    assert call(report, str(finished / "runs" / "base")) == 2
    said = capsys.readouterr().err.strip()
    assert said.endswith(f"DIR must be a workdir of sip.train, such as {finished}")


@pytest.mark.parametrize("file", ["config.json", "runs"])
def test_the_page_overwrites_no_other_file(file, finished, capsys):
    before = (finished / "config.json").read_bytes()
    assert call(report, str(finished), f"--html={finished / file}") == 2
    assert f"--html {finished / file}: must be a file that ends in .html" in capsys.readouterr().err
    assert (finished / "config.json").read_bytes() == before


def test_figures_that_were_not_finite_are_left_out(finished, tmp_path):
    moved = shutil.copytree(finished / "runs", tmp_path / "runs")
    for name, key in (("standard", "safety"), ("tutor", "factuality")):
        path = moved / name / "eval.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: None}))
    with open(moved / "standard" / "metrics.jsonl", "a") as lines:
        lines.write('{"step": 99, "speed/seconds": null}\n')
    rows = summarise(tiny_recipe.get_config(), str(tmp_path))["rows"]
    assert not any("safety_headroom_closed" in row for row in rows.values())
    assert "factuality_headroom_closed" in rows["base"]
    assert "factuality_headroom_closed" not in rows["tutor"]


def test_a_report_without_judge_or_standard_leaves_them_out(finished):
    config = tiny_recipe.get_config()
    config.report = dict(rows=("base",), judge="", standard="")
    summary = summarise(config, str(finished))
    assert "judge" not in summary and set(summary["rows"]) == {"base"}
    assert "safety_headroom_closed" not in summary["rows"]["base"]
    config.report.standard = "standard"
    with pytest.raises(UserError, match="not one of the rows"):
        summarise(config, str(finished))
