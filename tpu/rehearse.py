"""A pod's run rehearsed on one machine: N processes on its CPU, hurt on purpose, started again.

    python tpu/rehearse.py --processes=4 --faults=kill,term,slow -- \
        python -m sip.train --config=configs/microworld.py:debug --workdir=/tmp/sip-rehearsal

Every attempt starts the command once per process. After a while one process meets the next fault:

    kill   it dies at once (a host is lost). The others must end by themselves, not hang.
    term   it gets SIGTERM (a preemption notice). All must save at one step and exit 0.
    slow   it stands still for some seconds. All must go on.

After kill and term the same command is started again, and must go on where it was. With --watch a
fault comes when the run has logged so many lines, every other one while a checkpoint is written;
without it after some seconds. Exit codes: 0 when all faults were met and the command then ended
well; 1 otherwise, with the reason; 2 for flags that make no sense. Needs no more than Python.
"""

import argparse
import glob
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
GRACE = 5.0  # seconds before what has to be ended is killed


class Failed(Exception):
    """The rehearsal failed."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--devices", type=int, default=1, help="fake devices of each process")
    parser.add_argument("--faults", default="kill,term,slow", help="in this order; '' for none")
    parser.add_argument("--after", default="30,60", help="seconds into an attempt, from,to")
    parser.add_argument("--watch", default="", help="the command's workdir: its logs say when")
    parser.add_argument("--lines", default="1,6", help="of --watch: logged in an attempt, from,to")
    parser.add_argument("--slow_seconds", type=float, default=10.0, help="that one stands still")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds for all to end")
    parser.add_argument("--longest", type=float, default=1800.0, help="seconds of an attempt")
    parser.add_argument("--seed", type=int, default=0, help="who is hurt, and when")
    parser.add_argument("--logs", default="", help="directory of each process's output")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- python -m sip.train ...")
    flags = parser.parse_args(argv)
    flags.command = flags.command[1:] if flags.command[:1] == ["--"] else flags.command
    flags.faults = [fault for fault in flags.faults.split(",") if fault]
    if not flags.command:
        parser.error("no command: -- python -m sip.train ...")
    if flags.processes < 2 or flags.devices < 1:
        parser.error("--processes must be at least 2, --devices at least 1")
    unknown = [fault for fault in flags.faults if fault not in FAULTS]
    if unknown:
        parser.error(f"--faults: {unknown[0]!r} is not one of {', '.join(FAULTS)}")
    for name in ("after", "lines"):
        try:
            least, most = (float(x) for x in getattr(flags, name).split(","))
        except ValueError:
            parser.error(f"--{name}={getattr(flags, name)}: wanted two numbers, as in 30,60")
        setattr(flags, name, (least, most))
    return flags


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(flags, attempt: int) -> list[subprocess.Popen]:
    """The command, once per process."""
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
    """Whether all have ended within so many seconds."""
    deadline = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
    return True


def codes(processes) -> list[int | None]:
    """Exit codes; None of one that goes on, negative where a signal ended it."""
    return [process.poll() for process in processes]


def all_end(processes, seconds: float, why: str) -> list[int | None]:
    """Their exit codes; those that hang are killed, and that is a failure."""
    ended = wait(processes, seconds)
    found = codes(processes)
    if not ended:
        raise Failed(f"{why}: processes still run after {seconds:.0f} s (exit codes {found})")
    return found


def until(processes, ready: Callable[[], bool], seconds: float) -> bool:
    """Whether all still run when it is `ready`; False where all have ended well before. Neither
    within so many seconds is a failure."""
    late = passed(seconds)
    while True:
        found = codes(processes)
        if any(code not in (None, 0) for code in found):
            raise Failed(f"ended by itself with exit codes {found}")
        if all(code == 0 for code in found):
            return False
        if ready():
            return True
        if late():
            raise Failed(f"neither ended nor ready for a fault after {seconds:.0f} s")
        time.sleep(0.02)


def passed(seconds: float) -> Callable[[], bool]:
    """Ready after so many seconds."""
    deadline = time.monotonic() + seconds
    return lambda: time.monotonic() >= deadline


def found(workdir: str, pattern: str) -> list[str]:
    """Files of all runs, of all seeds too; what vanishes meanwhile is passed over."""
    folders = ("runs/*", "seed*/runs/*")
    return [p for where in folders for p in glob.glob(f"{workdir}/{where}/{pattern}")]


def logged(workdir: str) -> int:
    """Lines in all logs of a workdir."""
    return sum(Path(path).read_bytes().count(b"\n") for path in found(workdir, "metrics.jsonl"))


def saving(workdir: str) -> bool:
    """Whether a checkpoint is being written there."""
    return bool(found(workdir, "checkpoints/*.orbax-checkpoint-tmp*"))


def grown(workdir: str, lines: int, in_save: bool) -> Callable[[], bool]:
    """Ready when so many lines have been logged since now and, if wanted, a save is on its way."""
    enough = logged(workdir) + lines
    return lambda: logged(workdir) >= enough and (not in_save or saving(workdir))


def moment(flags, rng: random.Random) -> Callable[[], bool]:
    """When the next fault comes."""
    if not flags.watch:
        return passed(rng.uniform(*flags.after))
    in_save = len(flags.faults) % 2 == 0  # of those that are left
    return grown(flags.watch, rng.randint(*map(int, flags.lines)), in_save)


def meet(fault: str, processes, victim: int, flags) -> bool:
    """One process meets the fault. Whether the command has to be started again."""
    began = time.monotonic()
    seconds = lambda: f"{time.monotonic() - began:.1f} s"
    if fault == "slow":
        processes[victim].send_signal(signal.SIGSTOP)
        time.sleep(flags.slow_seconds)
        processes[victim].send_signal(signal.SIGCONT)
        print(f"  slow: process {victim} stood still for {seconds()}", flush=True)
        return False
    processes[victim].send_signal(signal.SIGKILL if fault == "kill" else signal.SIGTERM)
    found = all_end(processes, flags.patience, f"{fault} of process {victim}")
    others = [code for i, code in enumerate(found) if i != victim]
    if fault == "kill" and 0 in others:
        raise Failed(f"kill of process {victim}: another exited 0 (exit codes {found})")
    if fault == "term" and set(found) != {0}:
        raise Failed(f"term of process {victim}: not all exited 0 (exit codes {found})")
    print(
        f"  {fault}: process {victim}; all ended after {seconds()}, exit codes {found}", flush=True
    )
    return True


def attempt(flags, number: int, rng: random.Random) -> bool:
    """One start of the command, with the faults that are left. Whether it ran to its end."""
    faults = flags.faults
    print(f"attempt {number}: {flags.processes} processes", flush=True)
    processes = start(flags, number)
    try:
        while faults:
            if not until(processes, moment(flags, rng), flags.longest):
                less = "--lines" if flags.watch else "--after"
                raise Failed(f"it ended before {', '.join(faults)}: a longer run or less {less}")
            if meet(faults.pop(0), processes, rng.randrange(len(processes)), flags):
                return False
        return not until(processes, lambda: False, flags.longest)
    finally:
        for process in processes:
            process.kill()  # nothing where it has ended
        wait(processes, GRACE)


def main(argv: list[str] | None = None) -> int:
    flags = parse(argv)
    if flags.logs:
        Path(flags.logs).mkdir(parents=True, exist_ok=True)
    rng, count, number = random.Random(flags.seed), len(flags.faults), 1
    try:
        while not attempt(flags, number, rng):
            number += 1
    except Failed as e:
        print(f"failed: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"done: {count} faults, {number} attempts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
