"""Tests fault tolerance on one machine: runs a job as N CPU processes, injects faults, restarts it.

    python tpu/rehearse.py --processes=4 --faults=kill,term,slow -- \
        python -m sip.train --config=configs/microworld.py:debug --workdir=/tmp/sip-rehearsal

Each attempt starts the command once per process. After some time one process gets the next fault:

    kill   The process gets SIGKILL (a host is lost). The other processes must exit, not hang.
    term   The process gets SIGTERM (a preemption notice). All must save the same step and exit 0.
    slow   The process is suspended for some seconds. All processes must continue afterwards.

After kill and term the same command is started again and must continue from its checkpoint. Without
--watch a fault comes after a random number of seconds. With --watch it comes after a random number
of logged lines, and every other fault comes during a checkpoint save. Exit codes: 0 all faults were
injected and the command then exited 0; 1 otherwise, with the reason; 2 invalid flags; 130
interrupted. Needs only Python's standard library.
"""

import argparse
import glob
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

FAULTS = ("kill", "term", "slow")
MOST = 1024  # processes, and devices of each: more than a machine can simulate
GRACE = 5.0  # seconds to wait for killed processes at the end of an attempt


class Failed(Exception):
    """The rehearsal failed."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses and checks the flags."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--devices", type=int, default=1, help="simulated devices per process")
    parser.add_argument("--faults", default="kill,term,slow", help="faults in order, '' for none")
    parser.add_argument("--after", default="30,60", help="seconds before a fault, MIN,MAX")
    parser.add_argument("--watch", default="", help="the command's workdir, to time faults by logs")
    parser.add_argument("--lines", default="1,6", help="watch: log lines before a fault, MIN,MAX")
    parser.add_argument("--slow_seconds", type=float, default=10.0, help="seconds of a suspension")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds for all to exit")
    parser.add_argument("--longest", type=float, default=1800.0, help="maximum seconds per attempt")
    parser.add_argument("--seed", type=int, default=0, help="random seed of victims and times")
    parser.add_argument("--logs", default="", help="directory for the output of each process")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- python -m sip.train ...")
    flags = parser.parse_args(argv)
    check(parser, flags)
    return flags


def check(parser: Parser, flags: argparse.Namespace) -> None:
    """Checks the flags and parses their lists; exits with one line if they are invalid."""
    flags.command = flags.command[1:] if flags.command[:1] == ["--"] else flags.command
    flags.faults = [fault for fault in flags.faults.split(",") if fault]
    if not flags.command:
        parser.error("no command; add -- python -m sip.train ...")
    if not (2 <= flags.processes <= MOST and 1 <= flags.devices <= MOST):
        parser.error(f"--processes must be in 2..{MOST}, --devices in 1..{MOST}")
    for name in ("slow_seconds", "patience", "longest"):
        if not 0 <= getattr(flags, name) < math.inf:
            parser.error(f"--{name}={getattr(flags, name)}: must be a number from 0")
    unknown = [fault for fault in flags.faults if fault not in FAULTS]
    if unknown:
        parser.error(f"--faults: {unknown[0]!r} is not one of {', '.join(FAULTS)}")
    for name in ("after", "lines"):
        setattr(flags, name, span(parser, name, getattr(flags, name)))
    try:
        if flags.logs:
            Path(flags.logs).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        parser.error(f"--logs={flags.logs}: {e.strerror}")


def span(parser: Parser, name: str, text: str) -> tuple[float, float]:
    """Parses MIN,MAX; exits with one line if it cannot."""
    try:
        least, most = map(float, text.split(","))
    except ValueError:
        parser.error(f"--{name}={text}: must be two numbers, such as 30,60")
    if not 0 <= least <= most < math.inf:
        parser.error(f"--{name}={text}: must be MIN,MAX with 0 <= MIN <= MAX")
    return least, most


def free_port() -> int:
    """Returns a free TCP port of this machine."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(flags, attempt: int) -> list[subprocess.Popen]:
    """Starts the command once per process, with the flags of sip.train for several processes."""
    flag = f"--xla_force_host_platform_device_count={flags.devices}"
    own = os.environ["XLA_FLAGS"] if "XLA_FLAGS" in os.environ else ""
    environ = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS=f"{own} {flag}")
    shared = [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={flags.processes}"]
    found = []
    for index in range(flags.processes):
        log = Path(flags.logs) / f"attempt{attempt}-{index}.log" if flags.logs else os.devnull
        with open(log, "w") as out:
            command = [*flags.command, *shared, f"--process={index}"]
            found.append(subprocess.Popen(command, env=environ, stdout=out, stderr=out))
    return found


def wait(processes, seconds: float) -> bool:
    """Waits up to `seconds`; returns True if all processes have exited."""
    deadline = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
    return True


def codes(processes) -> list[int | None]:
    """Returns the exit codes: None for a running process, negative if a signal ended it."""
    return [process.poll() for process in processes]


def all_end(processes, seconds: float, why: str) -> list[int | None]:
    """Waits up to `seconds` for all processes; returns their exit codes.

    Raises Failed if a process is still running.
    """
    ended = wait(processes, seconds)
    found = codes(processes)
    if not ended:
        raise Failed(f"{why}: processes still run after {seconds:.0f} s (exit codes {found})")
    return found


def until(processes, ready: Callable[[], bool], seconds: float) -> bool:
    """Waits for `ready()`; returns True then, or False if all processes exited 0 before.

    Raises Failed if a process exits with another code, or after `seconds`.
    """
    late = passed(seconds)
    while True:
        found = codes(processes)
        if any(code not in (None, 0) for code in found):
            raise Failed(f"a process failed without a fault; exit codes {found}")
        if all(code == 0 for code in found):
            return False
        if ready():
            return True
        if late():
            raise Failed(f"neither finished nor ready for the next fault after {seconds:.0f} s")
        time.sleep(0.02)


def passed(seconds: float) -> Callable[[], bool]:
    """Returns a function that is True once `seconds` have passed."""
    deadline = time.monotonic() + seconds
    return lambda: time.monotonic() >= deadline


def found(workdir: str, pattern: str) -> list[str]:
    """Returns the files of all runs and seeds that match the pattern."""
    folders = ("runs/*", "seed*/runs/*")
    return [p for where in folders for p in glob.glob(f"{workdir}/{where}/{pattern}")]


def logged(workdir: str) -> int:
    """Counts the lines of all metrics.jsonl files of a workdir."""
    return sum(Path(path).read_bytes().count(b"\n") for path in found(workdir, "metrics.jsonl"))


def saving(workdir: str) -> bool:
    """Returns True while a checkpoint is being written in the workdir."""
    return bool(found(workdir, "checkpoints/*.orbax-checkpoint-tmp*"))


def grown(workdir: str, lines: int, in_save: bool) -> Callable[[], bool]:
    """Returns a function that is True after `lines` new log lines (`in_save`: during a save)."""
    enough = logged(workdir) + lines
    return lambda: logged(workdir) >= enough and (not in_save or saving(workdir))


def moment(flags, rng: random.Random) -> Callable[[], bool]:
    """Draws the time of the next fault; returns a function that is True from then on."""
    if not flags.watch:
        return passed(rng.uniform(*flags.after))
    in_save = len(flags.faults) % 2 == 0  # `faults` shrinks by one per fault: alternates
    return grown(flags.watch, rng.randint(*map(int, flags.lines)), in_save)


def meet(fault: str, processes, victim: int, flags) -> bool:
    """Injects a fault into one process; returns True if the command must be started again.

    Raises Failed if the processes do not react as the module's docstring requires.
    """
    began = time.monotonic()
    seconds = lambda: f"{time.monotonic() - began:.1f} s"
    if fault == "slow":
        processes[victim].send_signal(signal.SIGSTOP)
        time.sleep(flags.slow_seconds)
        processes[victim].send_signal(signal.SIGCONT)
        print(f"  slow: process {victim} suspended for {seconds()}", flush=True)
        return False
    processes[victim].send_signal(signal.SIGKILL if fault == "kill" else signal.SIGTERM)
    found = all_end(processes, flags.patience, f"{fault} of process {victim}")
    others = [code for i, code in enumerate(found) if i != victim]
    if fault == "kill" and 0 in others:
        raise Failed(f"kill of process {victim}: another process exited 0 (exit codes {found})")
    if fault == "term" and set(found) != {0}:
        raise Failed(f"term of process {victim}: not all processes exited 0 (exit codes {found})")
    print(
        f"  {fault}: process {victim}; all exited after {seconds()}, exit codes {found}", flush=True
    )
    return True


def attempt(flags, number: int, rng: random.Random) -> bool:
    """Starts the command once and injects the remaining faults; returns True if it finished."""
    faults = flags.faults
    print(f"attempt {number}: {flags.processes} processes", flush=True)
    processes = start(flags, number)
    try:
        while faults:
            if not until(processes, moment(flags, rng), flags.longest):
                less = "--lines" if flags.watch else "--after"
                raise Failed(f"finished before {', '.join(faults)}: run longer or lower {less}")
            if meet(faults.pop(0), processes, rng.randrange(len(processes)), flags):
                return False
        return not until(processes, lambda: False, flags.longest)
    finally:
        for process in processes:
            process.kill()  # no effect on a process that has exited
        wait(processes, GRACE)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    flags = parse(argv)
    rng, count, number = random.Random(flags.seed), len(flags.faults), 1
    try:
        while not attempt(flags, number, rng):
            number += 1
    except Failed as e:
        print(f"failed: {e}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of stdout closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as e:  # the command cannot be started, or its log cannot be written
        print(f"error: {e.filename or flags.command[0]}: {e.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"done: {count} faults, {number} attempts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
