"""Tests what a run says on the terminal: notices, evaluations, its place, tables that fit."""

import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from sip import train
from sip.report import tables
from sip.stages.notices import evaluation, notices


def test_nothing_is_said_about_a_run_that_learns():
    assert notices({"chosen/none": 0.9, "rl/flat_groups": 0.5, "judge/valid": 0.95}) == {}
    assert notices({"loss/total": 1.0}) == {}


def test_ties_and_invalid_verdicts_are_told_apart():
    tied = notices({"chosen/none": 0.95, "judge/valid": 1.0})
    assert set(tied) == {"chosen"} and "95% of the prefixes" in tied["chosen"]
    assert "their scores tie" in tied["chosen"]
    figures = {"chosen/none": 1.0, "judge/valid": 0.25, "judge/invalid_cut/quality": 0.5,
               "judge/invalid_failed/quality": 0.0, "judge/invalid_cut/quality/suffix": 0.7,
               "judge/invalid_other_words/safety": 0.75}  # fmt: skip
    found = notices(figures)
    why = ("quality: 50% cut before their end (max_tokens); safety: 75% where the judge was about "
           "to write other words (min_mass)")  # fmt: skip
    assert found["chosen"].endswith(f"(chosen/none): invalid verdicts ({why})")
    assert found["invalid"] == f"75% of the verdicts are invalid: {why}"
    assert notices({"judge/valid": 0.5})["invalid"] == "50% of the verdicts are invalid"


def test_flat_groups_are_named_with_the_way_out():
    assert "easier or harder prompts" in notices({"rl/flat_groups": 1.0})["flat"]


def test_answers_without_a_reward_are_explained_long_before_the_run_ends():
    figures = {"rl/invalid": 0.3, "reward/steps/skipped": 0.25, "reward/answers/skipped": 0.0,
               "reward/steps": 0.5, "reward/all": 0.5, "rl/cut": 0.05}  # fmt: skip
    assert notices(figures) == {"unrewarded": (
        "30% of the answers have no reward (rl/invalid) and teach nothing: reward steps skips 25%; "
        "5% did not end, which task.mask_cut leaves out"
    )}  # fmt: skip
    assert notices({**figures, "rl/invalid": 0.1}) == {}
    alone = notices({"rl/invalid": 0.2})["unrewarded"]
    assert alone.endswith("no reward (rl/invalid) and teach nothing")


def test_an_evaluation_is_one_line():
    assert evaluation({"eval/win_rate_standard": 0.5, "eval/nll": 2}) == (
        "win rate standard 0.500, nll 2.000")  # fmt: skip
    assert evaluation({f"eval/x{i}": i for i in range(8)}).endswith("x5 5.000 and 2 more")


def recipe(**steps):
    runs = {name: SimpleNamespace(steps=n, stage="rl") for name, n in steps.items()}
    return SimpleNamespace(order=tuple(steps), runs=runs)


def test_a_run_says_its_place_and_a_forecast_at_the_pace_so_far(tmp_path):
    config = recipe(a=100, b=300, c=1500)
    assert train._progress(config, str(tmp_path), 0) == "run 1 of 3: a (rl, 100 steps)"
    done = tmp_path / "runs" / "a" / "done.json"
    done.parent.mkdir(parents=True)
    done.write_text(json.dumps({"wall_seconds": 50}))  # half a second a step, 1,800 left
    assert train._progress(config, str(tmp_path), 1) == (
        "run 2 of 3: b (rl, 300 steps); about 15 min to the end of all runs, at the pace so far"
    )
    assert [train._minutes(x) for x in (0.1, 89, 90, 6000)] == [
        "1 min",
        "89 min",
        "1.5 h",
        "4.2 days",
    ]


def test_figures_of_a_few_updates_are_said_to_mean_nothing():
    assert "more than 40 updates" in tables.untrained(recipe(a=4, b=40))
    assert tables.untrained(recipe(a=4, b=50)) == ""


ROWS = [{"win_rate_standard": 0.5, "factuality": 0.25, "safety": 1.0, "nll": 2.0}, {"nll": 3.0}]


@pytest.mark.parametrize(("width", "groups"), [(180, 1), (40, 2), (24, 4)])
def test_a_table_is_as_wide_as_the_terminal_and_shows_every_figure(width, groups, capsys):
    console = Console(width=width)
    tables._print(console, "seed 0", ("run",), [("base",), ("sip",)], ROWS)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert all(x in out for x in ("0.500", "0.250", "1.000", "2.000", "3.000")) and "…" not in out
    assert out.count("base") == groups and out.count("┏") == groups


def test_columns_go_to_as_few_tables_as_fit():
    names = ["factuality", "safety", "nll"]  # 13, 9 and 8 characters wide
    assert tables._fitting(names, ROWS, 30) == [names]
    assert tables._fitting(names, ROWS, 22) == [["factuality", "safety"], ["nll"]]
    assert tables._fitting(names, ROWS, 1) == [["factuality"], ["safety"], ["nll"]]
