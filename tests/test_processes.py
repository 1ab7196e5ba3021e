"""Tests that several processes compute the same as one, agree, and write from one process."""

import functools
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from sip import cli, processes
from sip.structs import UserError

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("rehearse", ROOT / "tpu" / "rehearse.py")
assert spec and spec.loader
rehearse = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rehearse)


def begin(devices: int, *args: str) -> subprocess.Popen:
    flags = os.environ["XLA_FLAGS"] + f" --xla_force_host_platform_device_count={devices}"
    environ = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, str(ROOT / "tests" / "peers.py"), *args]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environ, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def end(process: subprocess.Popen) -> dict:
    out, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors[-2000:]
    return json.loads(out.splitlines()[-1])


@functools.cache
def runs(count: int = 2):
    """Returns the results of one process with four devices, and of processes that share them."""
    where = f"127.0.0.1:{rehearse.free_port()}"
    begun = [begin(4 // count, where, str(count), str(i)) for i in range(count)]
    return [end(process) for process in [begin(4), *begun]]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_compute_what_one_does_and_say_where_they_differ(count):
    one, *several = runs(count)
    _check_agreement(one, several)
    assert [found["processes"] for found in (one, *several)] == [1, *[count] * count]
    for found in several:
        assert found["words"] == one["words"]
        np.testing.assert_allclose(found["choose"], one["choose"], atol=1e-5)
        np.testing.assert_allclose(found["unembed"], one["unembed"], atol=1e-5)
        for mine, other in zip(found["metrics"], one["metrics"], strict=True):
            assert mine.keys() == other.keys()
            for key in mine:
                np.testing.assert_allclose(mine[key], other[key], rtol=1e-4, atol=1e-5)
    assert one["metrics"][0] != one["metrics"][1], "the second update sees what the first did"


def _check_agreement(one, several):
    """Checks that all processes hear what the first says, and that differences are named."""
    count = len(several)
    assert [found["lead"] for found in several] == [True, *[False] * (count - 1)] and one["lead"]
    assert one["cache"] and not any(found["cache"] for found in several)
    others = list(range(1, count))
    for found in several:
        assert found["told"] == 0 and found["error"] == "said by process 0"
        assert found["same"] == "None" and not found["preempted"]
        assert found["shares"] == one["shares"] and found["odd"] == "1 is odd"
        assert found["differ"].startswith(f"step 2: processes {others} have another batch")
    assert one["told"] == 0 and one["error"] == "said by process 0" and one["differ"] == "None"
    done = [found["done"] for found in several]
    assert done == [list("abcde")[i::count] for i in range(count)] and one["odd"] == "1 is odd"
    assert one["shares"] == [text * 100 for text in one["done"]] and one["done"] == list("abcde")


@pytest.mark.slow  # a judge's own devices in one process: test_ahead
def test_a_judge_on_devices_of_every_process_says_what_it_says_in_one():
    one, *two = runs()
    for found in two:
        np.testing.assert_allclose(found["apart"], one["apart"], atol=1e-5)
    assert np.std(one["apart"]) > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("h:1",), "must be given together"),
        (("", 2, 0), "must be given together"),
        (("h:1", 2, 2), "--process=2"),
        (("host", 2, 0), "must have the form HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit_are_named(flags, message):
    with pytest.raises(UserError, match=message):
        processes.start(*flags)


def test_a_coordinator_out_of_reach_is_one_line(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("DEADLINE_EXCEEDED: barrier\ntimed out")

    monkeypatch.setattr(processes.jax.distributed, "initialize", refuse)
    with pytest.raises(UserError, match=r"other processes \(h:1\): DEADLINE_EXCEEDED: barrier"):
        processes.start("h:1", 2, 0)


def test_what_process_0_asks_for_an_answer_is_not_sent(monkeypatch):
    sent = []
    monkeypatch.setattr(processes, "is_distributed", lambda: True)
    monkeypatch.setattr(processes, "_broadcast", lambda data: sent.append(data) or data)

    def fail():
        raise UserError("no")

    assert processes.broadcast(lambda: processes.broadcast(lambda: 3) + 1) == 4
    with pytest.raises(UserError, match="no"):
        processes.on_lead(lambda: processes.on_lead(fail))
    assert processes.broadcast(lambda: 5) == 5 and len(sent) == 3


def test_alone_nothing_is_asked_of_others():
    assert processes.lead() and not processes.is_distributed() and not processes.preempted()
    assert processes.broadcast(lambda: 3) == 3
    processes.agree(1, {"x": np.zeros(2)})
    processes.start()


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (UserError("no such file"), 2, "error: no such file"),
        (KeyError("a bug"), 1, "this process failed; run the same command to continue"),
        (jax.errors.JaxRuntimeError("closed by peer"), 1, processes.GONE),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_one_of_several_that_fails_does_not_wait_for_the_others(
    monkeypatch, capsys, error, exit_code, message
):
    class Left(Exception):
        pass

    def leave(code):
        raise Left(code)

    def main(argv):
        raise error

    monkeypatch.setattr(processes, "is_distributed", lambda: True)
    monkeypatch.setattr(cli.os, "_exit", leave)
    with pytest.raises(Left, match=str(exit_code)):
        cli.code(main, [])
    assert message in capsys.readouterr().err


# What a rehearsal does with a command: stand-ins for its processes, two in each attempt.


class Stand:
    """A stub process whose exit code is set at the start, or by a signal to any process."""

    def __init__(self, code=None, own=None, others=None):
        self.code, self.own, self.others = code, own or {}, others or {}
        self.beside, self.got = [], []

    def poll(self):
        return self.code

    def wait(self, timeout):
        if self.code is None:
            raise subprocess.TimeoutExpired("stand", timeout)

    def kill(self):
        self.code = -signal.SIGKILL if self.code is None else self.code

    def send_signal(self, number):
        self.got.append(number)
        self.code = self.own.get(number)
        for other in self.beside:
            other.code = self.others.get(number)


SAVES = dict(
    own={signal.SIGTERM: 0, signal.SIGKILL: -9}, others={signal.SIGTERM: 0, signal.SIGKILL: 1}
)
DONE = dict(code=0)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--after=9,2", "--after=9,2: must be MIN,MAX"),
        ("--lines=nan,1", "--lines=nan,1"),
        ("--longest=inf", "--longest=inf"),
        ("--processes=99999", "--processes"),
        (f"--logs={__file__}/logs", "Not a directory"),
    ],
)
def test_a_rehearsal_of_nonsense_is_refused(flag, said, capsys):
    with pytest.raises(SystemExit) as ended:
        rehearse.main([flag, "--", "true"])
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_rehearsal_of_no_command_is_one_line(capsys):
    assert rehearse.main(["--faults=", "--", "/no/such command"]) == 2
    assert capsys.readouterr().err == "error: /no/such command: No such file or directory\n"


def rehearsal(monkeypatch, capsys, faults: str, *attempts):
    """Returns (exit code, output, signals sent), with one setting of `Stand` per attempt."""
    begun = [[Stand(**how) for _ in range(2)] for how in attempts]
    for one, other in begun:
        one.beside, other.beside = [other], [one]
    monkeypatch.setattr(rehearse, "start", lambda flags, number: begun[number - 1])
    quick = ["--after=0,0", "--patience=0", "--slow_seconds=0", "--processes=2", "--longest=9"]
    code = rehearse.main([*quick, f"--faults={faults}", "--", "x"])
    return (
        code,
        "".join(capsys.readouterr()),
        [s for pair in begun for one in pair for s in one.got],
    )


def test_a_rehearsal_meets_every_fault_and_starts_again(monkeypatch, capsys):
    code, said, sent = rehearsal(monkeypatch, capsys, "kill,term", SAVES, SAVES, DONE)
    assert code == 0 and "done: 2 faults, 3 attempts" in said
    assert sent == [signal.SIGKILL, signal.SIGTERM]
    assert "exit codes [0, 0]" in said and ("[-9, 1]" in said or "[1, -9]" in said)


def test_one_that_stands_still_goes_on_in_the_same_attempt(monkeypatch, capsys):
    code, said, sent = rehearsal(monkeypatch, capsys, "slow,term", SAVES, DONE)
    assert code == 0 and "done: 2 faults, 2 attempts" in said
    assert sent == [signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM]


@pytest.mark.parametrize(
    ("fault", "how", "reason"),
    [
        ("kill", dict(own={signal.SIGKILL: -9}), "processes still run after 0 s"),
        (
            "kill",
            dict(own={signal.SIGKILL: -9}, others={signal.SIGKILL: 0}),
            "another process exited 0",
        ),
        ("term", dict(own={signal.SIGTERM: 0}), "processes still run after 0 s"),
        (
            "term",
            dict(own={signal.SIGTERM: 0}, others={signal.SIGTERM: 1}),
            "not all processes exited 0",
        ),
        ("term", dict(code=3), "a process failed without a fault; exit codes [3, 3]"),
        ("slow", DONE, "finished before slow"),
    ],
)
def test_a_rehearsal_fails_where_the_command_does_not_behave(
    monkeypatch, capsys, fault, how, reason
):
    code, said, _ = rehearsal(monkeypatch, capsys, fault, how)
    assert code == 1 and "failed: " in said and reason in said


def test_a_command_that_neither_ends_nor_goes_on_is_a_failure():
    with pytest.raises(
        rehearse.Failed, match="neither finished nor ready for the next fault after 0 s"
    ):
        rehearse.until([Stand(), Stand()], lambda: False, 0.0)
    assert rehearse.until([Stand(), Stand()], lambda: True, 0.0)


def test_the_log_says_when_and_every_other_fault_comes_in_a_save(tmp_path):
    log = tmp_path / "runs" / "a" / "metrics.jsonl"
    save = log.parent / "checkpoints" / "7.orbax-checkpoint-tmp"
    log.parent.mkdir(parents=True)
    log.write_text("1\n2\n")
    flags = SimpleNamespace(watch=str(tmp_path), lines=(2, 2), faults=["kill"])
    any_time = rehearse.moment(flags, random.Random(0))
    flags.faults = ["kill", "term"]
    in_save = rehearse.moment(flags, random.Random(0))
    assert not any_time() and not in_save()
    log.write_text("1\n2\n3\n4\n")
    assert any_time() and not in_save()
    save.mkdir(parents=True)
    assert in_save()


@pytest.mark.parametrize("flags", [["--faults=rain", "--", "x"], ["--processes=1", "--", "x"], [],
                                   ["--lines=a", "--", "x"]])  # fmt: skip
def test_a_rehearsal_names_flags_that_make_no_sense(flags, capsys):
    with pytest.raises(SystemExit) as e:
        rehearse.main(flags)
    assert e.value.code == 2 and "error: " in capsys.readouterr().err
