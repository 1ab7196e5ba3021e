"""Tests metrics: pairs are summed before division; a resumed file equals an uninterrupted one."""

import contextlib
import json

import numpy as np
import pytest

from sip import metrics, workdir
from sip.metrics import Writer, read


def writer(path, resume=None, **changes):
    options = dict(name="run", steps=10, resume_step=resume, progress=False)
    return Writer(path, **options | changes)


def run(path, first, last, **changes):
    log = writer(path, **changes)
    for step in range(first, last + 1):
        log.write(step, {"loss/total": 1 / step, "seen": (step, 2)})
    log.close()


def test_what_counted_nothing_has_no_value():
    assert metrics.ratio((0.0, 0)) is None
    assert metrics.values({"a": (0.0, 0), "b": (np.float32(1), np.float32(4)), "c": 2}) == {
        "b": 0.25,
        "c": 2.0,
    }


def test_a_log_in_a_store_is_the_log_in_a_file(tmp_path, monkeypatch):
    """Object stores cannot append, so each write contains the whole log."""
    run(tmp_path / "file", 1, 5)
    run(tmp_path / "file", 4, 7, resume=3)
    monkeypatch.setattr(metrics, "appends", lambda path: False)
    run(tmp_path / "store", 1, 5)
    run(tmp_path / "store", 4, 7, resume=3)
    assert read(tmp_path / "store") == read(tmp_path / "file")
    assert len(read(tmp_path / "store")) == 7


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.processes, "lead", lambda: False)
    run(tmp_path / "run", 1, 3)
    assert not (tmp_path / "run").exists()


def test_lines_hold_what_was_written(tmp_path):
    log = writer(tmp_path / "deep" / "run")
    log.write(1, {"loss": np.float32(0.5), "rate": (3, 4), "none": (0, 0)})
    log.write(2, {"loss": float("nan"), "up": float("inf")})
    assert read(tmp_path / "deep" / "run") == [
        {"step": 1, "loss": 0.5, "rate": 0.75},
        {"step": 2, "loss": None, "up": None},
    ]
    log.close()
    lines = (tmp_path / "deep" / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line, parse_constant=pytest.fail) for line in lines)


def test_a_resumed_file_equals_an_uninterrupted_one(tmp_path):
    run(tmp_path / "whole", 1, 9)
    run(tmp_path / "cut", 1, 7)
    with open(tmp_path / "cut" / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')  # killed while it wrote
    assert len(read(tmp_path / "cut")) == 7
    run(tmp_path / "cut", 5, 9, resume=4)
    whole, cut = (tmp_path / name / "metrics.jsonl" for name in ("whole", "cut"))
    assert cut.read_bytes() == whole.read_bytes()
    assert [p.name for p in cut.parent.iterdir()] == ["metrics.jsonl"]


def test_a_correlation_by_hand_and_in_parts():
    """x = 1 2 3 4 and y = 1 3 2 4 have covariance 1 and variances 5/4."""
    x, y = np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4])
    whole = metrics.moments("r", x, y)
    assert set(whole.values()) == {(10.0, 4.0), (30.0, 4.0), (29.0, 4.0)}
    assert metrics.values({**whole, "a": (1, 2)}) == {"a": 0.5, "r": pytest.approx(0.8)}
    parts = [metrics.moments("r", x[i], y[i]) for i in (slice(1), slice(1, 4))]
    added = {k: tuple(map(sum, zip(*(p[k] for p in parts), strict=True))) for k in whole}
    assert added == whole and metrics.values(metrics.values(whole)) == metrics.values(whole)


@pytest.mark.parametrize("y", [[0.7, 0.7, 0.7], [], [0.7]])
def test_what_does_not_vary_has_no_correlation(y):
    y = np.array(y)
    x = np.arange(len(y)) + 100.0
    assert metrics.values(metrics.moments("r", x, y)) == {}
    assert metrics.values(metrics.moments("r", y, x)) == {}
    exact = metrics.values(metrics.moments("r", x, -x))
    assert exact == ({"r": pytest.approx(-1)} if len(y) > 1 else {})


def test_starting_over_empties_the_file(tmp_path):
    for resume in (None, 0):
        run(tmp_path, 1, 3, resume=resume)
        assert [row["step"] for row in read(tmp_path)] == [1, 2, 3]


def test_a_run_without_metrics_reads_as_empty(tmp_path):
    assert read(tmp_path) == []


def test_without_a_terminal_progress_is_lines(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(metrics, "QUIET_SECS", 0.0)
    log = writer(tmp_path, progress=True, resume=4)
    for step in (5, 6):
        log.write(step, {metrics.LOSS: 2.5, metrics.SPEED: 1234.5})
    log.write(6, {"eval/win_rate": 0.5})
    log.close()
    out, err = capfd.readouterr()
    assert out == "" and "\r" not in err and "\x1b" not in err
    lines = err.splitlines()
    assert lines[0].startswith("run 4/10 [") and lines[1].startswith("run 5/10 [")
    assert lines[-1].startswith("run 6/10 [") and "loss 2.500, 1,234 tokens/s" in lines[-1]


def test_progress_keeps_quiet_between_lines_and_when_off(tmp_path, capfd):
    for progress in (True, False):
        log = writer(tmp_path, progress=progress)
        for step in range(1, 10):
            log.write(step, {metrics.LOSS: 1.0})
        log.close()
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == (2 if progress else 0)  # the first and the last


def test_what_can_be_read_of_a_torn_log_is_kept(tmp_path, capsys):
    lines = [json.dumps({"step": at, "loss/total": 1.0}) for at in (1, 2, 3)]
    torn = ["", lines[0], "\0" * 9, lines[1][:9], "[1]", '{"step": null}', "\0\0" + lines[1]]
    text = "\n".join([*torn, lines[2]]).encode() + b"\n\xff\xfe\n" + b"\0" * 20
    (tmp_path / "metrics.jsonl").write_bytes(text)
    assert [row["step"] for row in read(tmp_path)] == [1, 2, 3]
    with contextlib.closing(writer(tmp_path, resume_step=2)):
        pass
    assert "6 unreadable lines" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(f"{x}\n" for x in lines[:2])


def test_json_is_strict():
    value = {
        "a": float("nan"),
        "b": [1.5, float("-inf"), {"c": np.float64("inf")}],
        "d": (1, "NaN"),
    }
    wanted = {"a": None, "b": [1.5, None, {"c": None}], "d": [1, "NaN"]}
    refuse = lambda name: pytest.fail(f"{name} is no JSON")
    assert json.loads(workdir.to_json(value), parse_constant=refuse) == wanted
