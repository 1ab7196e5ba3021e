"""Manages TPU VMs with gcloud: creates a pod, runs a command on all workers, deletes the pod.

    python tpu/pod.py create --name=sip --zone=us-west4-a --type=v5litepod-64 --spot
    python tpu/pod.py sync --name=sip --zone=us-west4-a
    python tpu/pod.py run --name=sip --zone=us-west4-a -- \
        python -m sip.train --config=configs/text.py --workdir=gs://BUCKET/run
    python tpu/pod.py logs | stop | status | delete --name=sip --zone=us-west4-a
    python tpu/pod.py keep --name=sip --zone=us-west4-a --type=v5litepod-64 --spot -- python -m ...

`sync` copies the working tree to all workers and installs it, with the optional packages of
--extras=hf,serve,data (pyproject.toml lists them). --type is a name of gcloud, such as v4-8,
v5litepod-8 or v6e-8; v5e-8 is another name of v5litepod-8. `run` starts a command on all workers
and returns at once. `stop` sends SIGTERM, so sip saves a checkpoint and exits.

`keep` syncs and runs the command. After a preemption it deletes the pod, creates a new one, syncs
and runs again, until the command exits 0 on all workers. It does not restart a command that fails
for another reason. NAME=VALUE lines in tpu/pod.env (name, zone, project, type) replace flags.
--dry-run prints the gcloud commands instead of running them. Exit codes: 0 done, 1 the pod or the
command failed, 2 invalid flags, 130 interrupted.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
RUNTIMES = {  # prefix of the accelerator type: VM software version
    "v5litepod-": "v2-alpha-tpuv5-lite",
    "v5p-": "v2-alpha-tpuv5",
    "v6e-": "v2-alpha-tpuv6e",
    "v4-": "tpu-ubuntu2204-base",
}
ALIASES = {"v5e-": "v5litepod-"}  # the chip's name: gcloud's
OLD = {  # types that gcloud may still offer, with the size of a device's memory
    f"{name}-": f"TPU {name} is not supported: each of its two cores is a device of its own with "
    f"{gib} GiB of memory, and no config was made or compiled for it; use v4 or later"
    for name, gib in (("v2", 8), ("v3", 16))
}
# Not copied by `sync`.
LEFT_OUT = (".git", ".venv", "runs", "__pycache__", "*.egg-info", "pod.env")
# States of a queued resource that never become ACTIVE; "" means that it does not exist.
GONE = ("SUSPENDED", "SUSPENDING", "FAILED", "")
LONGEST = 86400  # seconds between two polls
ABORTED = "134"  # exit code (SIGABRT) of a JAX process that lost its peers
AGAIN = "run the same command to continue"  # end of sip's last line after a stop with a checkpoint
# Prints sip-exit=running, =again (stopped and saved) or =EXIT_CODE; `outcome` parses it.
ENDED = (
    "if [ ! -f sip-exit ]; then echo sip-exit=running; "
    f'elif tail -n 3 sip.log | grep -q "{AGAIN}"; '
    'then echo sip-exit=again; else echo "sip-exit=$(cat sip-exit)"; fi'
)
STOP = 'kill -TERM "$(cat sip-pid)"'


class Failed(Exception):
    """A gcloud command or the pod failed."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def settings(path: Path) -> dict[str, str]:
    """Reads the NAME=VALUE lines of a file into a dict; empty if the file does not exist."""
    lines = path.read_text(encoding="utf-8-sig").split("\n") if path.is_file() else []
    pairs = [line.split("=", 1) for line in lines if "=" in line and not line.startswith("#")]
    return {name.strip().lower(): value.strip() for name, value in pairs}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the flags; everything after `--` becomes `flags.command`."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=tuple(ACTIONS))
    parser.add_argument("--settings", default=str(ROOT / "tpu" / "pod.env"))
    for name in ("name", "zone", "project"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--type", default="", help="v4-N, v5litepod-N (or v5e-N), v5p-N, v6e-N")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--spot", action="store_true", help="use cheaper VMs that may be preempted")
    how.add_argument("--reserved", action="store_true")
    parser.add_argument("--extras", default="", help="optional packages to install: hf,serve,data")
    parser.add_argument("--env", action="append", default=[], help="environment variable to copy")
    parser.add_argument("--worker", default="0", help="logs: worker index, or 'all'")
    parser.add_argument("--lines", type=int, default=100, help="logs: number of lines")
    parser.add_argument("--attempts", type=int, default=20, help="keep: maximum number of runs")
    parser.add_argument("--every", type=float, default=60.0, help="polling interval, seconds")
    parser.add_argument(
        "--patience", type=int, default=1440, help="create: number of polls before giving up"
    )
    parser.add_argument("--dry-run", action="store_true")
    argv = sys.argv[1:] if argv is None else argv
    at = argv.index("--") if "--" in argv else len(argv)
    flags = parser.parse_args(argv[:at])
    flags.command = argv[at + 1 :]
    check(parser, flags)
    check_numbers(parser, flags)
    return flags


def check(parser: Parser, flags: argparse.Namespace) -> None:
    """Fills in flags from the settings file and exits with one line if they are invalid."""
    try:
        known = settings(Path(flags.settings).expanduser())
    except (OSError, UnicodeDecodeError) as e:
        parser.error(f"--settings={flags.settings}: cannot be read as UTF-8 text: {e}")
    for name in ("name", "zone", "project", "type"):
        setattr(flags, name, getattr(flags, name) or known.get(name, ""))
    wanted = ["name", "zone"] + ["type"] * (flags.action in ("create", "keep"))
    for name in wanted:
        if not getattr(flags, name):
            parser.error(f"--{name} is needed (or set it in {flags.settings})")
    check_type(parser, flags)
    check_extras(parser, flags)
    if (flags.action in ("run", "keep")) != bool(flags.command):
        parser.error(f"{flags.action}: `run` and `keep` need a command after --, others take none")
    for name in flags.env:
        if name not in os.environ:
            parser.error(f"--env={name}: this environment variable is not set")


def check_type(parser: Parser, flags: argparse.Namespace) -> None:
    """Replaces a chip's name by gcloud's; exits with one line for an unknown or old type."""
    for alias, name in ALIASES.items():
        if flags.type.startswith(alias):
            flags.type = name + flags.type.removeprefix(alias)
    for old, reason in OLD.items():
        if flags.type.startswith(old):
            parser.error(f"--type={flags.type}: {reason}")
    if flags.type and not runtime(flags.type):
        parser.error(f"--type={flags.type}: not one of {', '.join(f'{k}N' for k in RUNTIMES)}")


def check_extras(parser: Parser, flags: argparse.Namespace) -> None:
    """Makes a list of --extras; exits with one line for one that pyproject.toml does not have."""
    flags.extras = [name.strip() for name in flags.extras.split(",") if name.strip()]
    if not flags.extras:
        return
    text = (ROOT / "pyproject.toml").read_text()
    known = tomllib.loads(text)["project"]["optional-dependencies"]
    for name in flags.extras:
        if name not in known:
            parser.error(f"--extras: {name!r} is not one of {', '.join(known)}")


def check_numbers(parser: Parser, flags: argparse.Namespace) -> None:
    """Exits with one line if a number is out of range."""
    if min(flags.lines, flags.attempts, flags.patience) < 1:
        parser.error("--lines, --attempts and --patience must be at least 1")
    if not 0 <= flags.every <= LONGEST:
        parser.error(f"--every={flags.every}: must be in 0..{LONGEST} seconds")


def runtime(kind: str) -> str:
    """Returns the VM software version of an accelerator type, "" for an unknown type."""
    return next((r for begin, r in RUNTIMES.items() if kind.startswith(begin)), "")


def gcloud(flags, *args: str, quiet: bool = False, can_fail: bool = False) -> str:
    """Runs `gcloud compute tpus ...` in the pod's project and zone; returns its stdout.

    `quiet` does not print stdout. Raises Failed on a non-zero exit code, unless `can_fail`.
    """
    where = [f"--zone={flags.zone}"] + [f"--project={flags.project}"] * bool(flags.project)
    command = ["gcloud", "compute", "tpus", *args, *where]
    if flags.dry_run:
        print(shlex.join(command))
        return ""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE)
    if done.returncode and not can_fail:
        raise Failed(f"gcloud {' '.join(args[:3])} failed with exit code {done.returncode}")
    if not quiet:
        print(done.stdout, end="", flush=True)
    return done.stdout


def ssh(flags, command: str, worker: str = "all", **how) -> str:
    """Runs a shell command on one worker or on all; returns the output."""
    args = ("tpu-vm", "ssh", flags.name, f"--worker={worker}", f"--command={command}")
    return gcloud(flags, *args, **how)


def copy(flags, path: str, to: str) -> None:
    """Copies a local file to all workers."""
    gcloud(flags, "tpu-vm", "scp", path, f"{flags.name}:{to}", "--worker=all")


def state(flags) -> str:
    """Returns the state of the queued resource (ACTIVE, ...), or "" if it does not exist."""
    args = ("queued-resources", "describe", flags.name, "--format=value(state.state)")
    return gcloud(flags, *args, quiet=True, can_fail=True).strip()


def create(flags) -> None:
    """Requests the pod and waits until it is ACTIVE.

    Raises Failed if the request fails or is still queued after --patience polls.
    """
    args = [f"--node-id={flags.name}", f"--accelerator-type={flags.type}"]
    args += [f"--runtime-version={runtime(flags.type)}"]
    args += ["--spot"] * flags.spot + ["--reserved"] * flags.reserved
    gcloud(flags, "queued-resources", "create", flags.name, *args)
    for _ in range(flags.patience):
        now = state(flags)
        if now == "ACTIVE" or flags.dry_run:
            return
        if now in GONE:
            raise Failed(f"{flags.name} is {now or 'gone'}: run `python tpu/pod.py status`")
        print(f"{flags.name}: {now}", flush=True)
        time.sleep(flags.every)
    raise Failed(f"{flags.name} not ACTIVE after {flags.patience} polls; it stays queued")


def status(flags) -> None:
    """Prints gcloud's description of the queued resource."""
    gcloud(flags, "queued-resources", "describe", flags.name)


def sync(flags) -> None:
    """Copies the working tree to all workers and installs it there."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{'DIR' if flags.dry_run else folder}/sip.tar.gz"
        left = [f"--exclude={name}" for name in LEFT_OUT]
        command = ["tar", "-czf", path, *left, "-C", str(ROOT), "."]
        print(shlex.join(command)) if flags.dry_run else subprocess.run(command, check=True)
        copy(flags, path, "sip.tar.gz")
    ssh(flags, install(flags.extras))


def install(extras: list[str]) -> str:
    """Returns the shell line that installs the copied tree with optional packages.

    With uv: the VM's Python is older than the one that sip needs.
    """
    wanted = ",".join(dict.fromkeys(("tpu", *extras)))
    return (
        "mkdir -p sip && tar -xzf sip.tar.gz -C sip && cd sip && "
        "python3 -m pip install -q --user uv && "
        "PATH=$HOME/.local/bin:$PATH && { [ -d .venv ] || uv venv -q --python 3.12 .venv; } && "
        f"uv pip install -q -e '.[{wanted}]'"
    )


def detached(command: list[str]) -> str:
    """Returns a shell line that starts the command detached from the SSH session.

    The command writes its log, pid and exit code to sip.log, sip-pid and sip-exit in the home
    directory, next to the code.
    """
    inner = (
        f"{shlex.join(command)} > ../sip.log 2>&1 & echo $! > ../sip-pid; "
        "wait $!; echo $? > ../sip-exit"
    )
    return (
        "rm -f sip-exit && cd sip && . .venv/bin/activate && "
        "if [ -f ../.sip-env ]; then . ../.sip-env; fi && "
        f"nohup setsid bash -c {shlex.quote(inner)} < /dev/null > /dev/null 2>&1 &"
    )


def run(flags) -> None:
    """Starts the command on all workers.

    Environment variables are copied in a file: on a command line other users could read them.
    """
    if flags.env:
        with tempfile.NamedTemporaryFile("w", suffix=".env") as file:
            for name in flags.env:
                file.write(f"export {name}={shlex.quote(os.environ[name])}\n")
            file.flush()
            copy(flags, "ENVIRONMENT" if flags.dry_run else file.name, ".sip-env")
    ssh(flags, detached(flags.command))


def logs(flags) -> None:
    """Prints the last lines of the log of one worker or of all."""
    ssh(flags, f"tail -n {flags.lines} sip.log", worker=flags.worker)


def stop(flags) -> None:
    """Sends SIGTERM on all workers: all sip processes save the same step and exit 0."""
    ssh(flags, STOP)


def delete(flags) -> None:
    """Deletes the pod, which also ends its billing."""
    gcloud(flags, "queued-resources", "delete", flags.name, "--force", "--quiet")


def outcome(flags) -> str:
    """Returns the status of the command over all workers.

    One of: running, done, again (stopped and saved, or a worker was lost), failed, lost (no worker
    answers).
    """
    names = {"0": "done", ABORTED: "again", "running": "running", "again": "again"}
    said = ssh(flags, ENDED, quiet=True, can_fail=True)
    # The worst status of any worker counts.
    found = {names.get(x, "failed") for x in re.findall(r"sip-exit=(\w+)", said)} or {"lost"}
    return next(x for x in ("failed", "again", "running", "done", "lost") if x in found)


def watch(flags) -> str:
    """Waits until the command is done, failed or preempted; returns that word."""
    while True:
        now = outcome(flags)
        if now in ("done", "failed"):
            return now
        if now == "again" or state(flags) in GONE:
            return "preempted"
        time.sleep(flags.every)


def keep(flags) -> None:
    """Runs the command until it exits 0 on all workers, on a new pod after every preemption.

    Raises Failed if the command fails for another reason, or after --attempts runs.
    """
    for number in range(1, flags.attempts + 1):
        now = state(flags)
        if now != "ACTIVE":
            if now:
                delete(flags)
            create(flags)
        sync(flags)
        run(flags)
        if flags.dry_run:
            return
        ended = watch(flags)
        print(f"attempt {number}: {ended}", flush=True)
        if ended == "done":
            return
        if ended == "failed":
            raise Failed("the command failed; run `python tpu/pod.py logs --worker=all`")
    raise Failed(f"not done after {flags.attempts} attempts")


ACTIONS = {f.__name__: f for f in (create, status, sync, run, logs, stop, keep, delete)}


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    flags = parse(argv)
    try:
        ACTIONS[flags.action](flags)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of stdout closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Failed, subprocess.CalledProcessError, OSError) as e:
        print(f"failed: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
