"""TPU VMs by gcloud: create them, run a command on all workers, keep it running, delete them.

    python tpu/pod.py create --name=sip --zone=us-west4-a --type=v5litepod-64 --spot
    python tpu/pod.py sync --name=sip --zone=us-west4-a
    python tpu/pod.py run --name=sip --zone=us-west4-a -- \
        python -m sip.train --config=configs/text.py --workdir=gs://BUCKET/run
    python tpu/pod.py logs | stop | status | delete --name=sip --zone=us-west4-a
    python tpu/pod.py keep --name=sip --zone=us-west4-a --type=v5litepod-64 --spot -- python -m ...

`keep` syncs and runs, and after a preemption deletes, creates, syncs and runs again, until the
command has ended well on all workers; one that fails by itself is not run again. NAME=VALUE lines
in tpu/pod.env (name, zone, project, type) stand in for flags. --dry-run prints what would be run.
Exit codes: 0, 1 where the pod or the command failed, 2 for flags that make no sense.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
RUNTIMES = {  # by how a type begins
    "v5litepod-": "v2-alpha-tpuv5-lite",
    "v5p-": "v2-alpha-tpuv5",
    "v6e-": "v2-alpha-tpuv6e",
    "v4-": "tpu-ubuntu2204-base",
}
LEFT_OUT = (".git", ".venv", "runs", "__pycache__", "*.egg-info", "pod.env")
GONE = ("SUSPENDED", "SUSPENDING", "FAILED", "")
ABORTED = "134"  # how jax ends a process whose peers it lost
AGAIN = "the same command goes on"  # what sip says at the end of a run that was stopped, and saved
INSTALL = (  # by uv, since the VMs' own Python is older than sip's
    "mkdir -p sip && tar -xzf sip.tar.gz -C sip && cd sip && "
    "python3 -m pip install -q --user uv && "
    "PATH=$HOME/.local/bin:$PATH && { [ -d .venv ] || uv venv -q --python 3.12 .venv; } && "
    "uv pip install -q -e '.[tpu]'"
)
ENDED = (
    "if [ ! -f sip-exit ]; then echo sip-exit=running; "
    f'elif tail -n 3 sip.log | grep -q "{AGAIN}"; '
    'then echo sip-exit=again; else echo "sip-exit=$(cat sip-exit)"; fi'
)
STOP = 'kill -TERM "$(cat sip-pid)"'


class Failed(Exception):
    """A command of gcloud's, or the pod, failed."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def settings(path: Path) -> dict[str, str]:
    """The NAME=VALUE lines of a file, if it is there."""
    lines = path.read_text().splitlines() if path.is_file() else []
    pairs = [line.split("=", 1) for line in lines if "=" in line and not line.startswith("#")]
    return {name.strip().lower(): value.strip() for name, value in pairs}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=tuple(ACTIONS))
    parser.add_argument("--settings", default=str(ROOT / "tpu" / "pod.env"))
    for name in ("name", "zone", "project", "type"):
        parser.add_argument(f"--{name}", default="")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--spot", action="store_true", help="cheaper, may be preempted")
    how.add_argument("--reserved", action="store_true")
    parser.add_argument("--env", action="append", default=[], help="a variable to pass on, by name")
    parser.add_argument("--worker", default="0", help="logs: whose, a number or 'all'")
    parser.add_argument("--lines", type=int, default=100, help="logs: how many")
    parser.add_argument("--attempts", type=int, default=20, help="keep: runs at most")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two looks")
    parser.add_argument(
        "--patience", type=int, default=1440, help="create: looks until it gives up"
    )
    parser.add_argument("--dry-run", action="store_true")
    argv = sys.argv[1:] if argv is None else argv
    at = argv.index("--") if "--" in argv else len(argv)
    flags = parser.parse_args(argv[:at])
    flags.command = argv[at + 1 :]
    check(parser, flags)
    return flags


def check(parser: Parser, flags: argparse.Namespace) -> None:
    """What is missing or does not fit, in one line."""
    known = settings(Path(flags.settings))
    for name in ("name", "zone", "project", "type"):
        setattr(flags, name, getattr(flags, name) or known.get(name, ""))
    wanted = ["name", "zone"] + ["type"] * (flags.action in ("create", "keep"))
    for name in wanted:
        if not getattr(flags, name):
            parser.error(f"--{name} is needed (or a line in {flags.settings})")
    if flags.type and not runtime(flags.type):
        parser.error(f"--type={flags.type}: none of {', '.join(f'{kind}N' for kind in RUNTIMES)}")
    if (flags.action in ("run", "keep")) != bool(flags.command):
        parser.error(f"{flags.action}: a command after -- is for run and keep, and they want one")
    for name in flags.env:
        if name not in os.environ:
            parser.error(f"--env={name}: there is no such variable here")


def runtime(kind: str) -> str:
    """The software of a type's VMs; empty for a type that is not known."""
    return next((r for begin, r in RUNTIMES.items() if kind.startswith(begin)), "")


def gcloud(flags, *args: str, quiet: bool = False, can_fail: bool = False) -> str:
    """Runs a command on the pod's project and zone; what it printed."""
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
    """A shell command on the workers."""
    args = ("tpu-vm", "ssh", flags.name, f"--worker={worker}", f"--command={command}")
    return gcloud(flags, *args, **how)


def copy(flags, path: str, to: str) -> None:
    """A file to all workers."""
    gcloud(flags, "tpu-vm", "scp", path, f"{flags.name}:{to}", "--worker=all")


def state(flags) -> str:
    """Of the queued resource: ACTIVE, WAITING_FOR_RESOURCES, ...; empty where there is none."""
    args = ("queued-resources", "describe", flags.name, "--format=value(state.state)")
    return gcloud(flags, *args, quiet=True, can_fail=True).strip()


def create(flags) -> None:
    """Asks for the pod, and waits until it is there."""
    args = [f"--node-id={flags.name}", f"--accelerator-type={flags.type}"]
    args += [f"--runtime-version={runtime(flags.type)}"]
    args += ["--spot"] * flags.spot + ["--reserved"] * flags.reserved
    gcloud(flags, "queued-resources", "create", flags.name, *args)
    for _ in range(flags.patience):
        now = state(flags)
        if now == "ACTIVE" or flags.dry_run:
            return
        if now in GONE:
            raise Failed(f"{flags.name} is {now or 'gone'}: see python tpu/pod.py status")
        print(f"{flags.name}: {now}", flush=True)
        time.sleep(flags.every)
    raise Failed(f"{flags.name} is not there after {flags.patience} looks; it stays queued")


def status(flags) -> None:
    """All that is known of the queued resource."""
    gcloud(flags, "queued-resources", "describe", flags.name)


def sync(flags) -> None:
    """The working tree to all workers, installed there."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{'DIR' if flags.dry_run else folder}/sip.tar.gz"
        left = [f"--exclude={name}" for name in LEFT_OUT]
        command = ["tar", "-czf", path, *left, "-C", str(ROOT), "."]
        print(shlex.join(command)) if flags.dry_run else subprocess.run(command, check=True)
        copy(flags, path, "sip.tar.gz")
    ssh(flags, INSTALL)


def detached(command: list[str]) -> str:
    """A shell line that starts the command apart from the session; its log, pid and exit code lie
    beside the code."""
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
    """Starts the command on all workers. Variables travel in a file, not on command lines."""
    if flags.env:
        with tempfile.NamedTemporaryFile("w", suffix=".env") as file:
            for name in flags.env:
                file.write(f"export {name}={shlex.quote(os.environ[name])}\n")
            file.flush()
            copy(flags, "ENVIRONMENT" if flags.dry_run else file.name, ".sip-env")
    ssh(flags, detached(flags.command))


def logs(flags) -> None:
    """The end of a worker's log, or of all workers'."""
    ssh(flags, f"tail -n {flags.lines} sip.log", worker=flags.worker)


def stop(flags) -> None:
    """SIGTERM on all workers: sip saves a common step and exits 0."""
    ssh(flags, STOP)


def delete(flags) -> None:
    """Ends the pod, and what it costs."""
    gcloud(flags, "queued-resources", "delete", flags.name, "--force", "--quiet")


def outcome(flags) -> str:
    """Of the command on all workers: running, done, again (stopped and saved, or a worker was
    lost), failed; or lost where they do not answer."""
    names = {"0": "done", ABORTED: "again", "running": "running", "again": "again"}
    said = ssh(flags, ENDED, quiet=True, can_fail=True)
    found = {names.get(x, "failed") for x in re.findall(r"sip-exit=(\w+)", said)} or {"lost"}
    return next(x for x in ("failed", "again", "running", "done", "lost") if x in found)


def watch(flags) -> str:
    """Waits for an outcome: done, failed, or preempted."""
    while True:
        now = outcome(flags)
        if now in ("done", "failed"):
            return now
        if now == "again" or state(flags) in GONE:
            return "preempted"
        time.sleep(flags.every)


def keep(flags) -> None:
    """Runs the command until it has ended well, on a new pod after every preemption."""
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
            raise Failed("the command failed by itself; see python tpu/pod.py logs --worker=all")
    raise Failed(f"not done after {flags.attempts} attempts")


ACTIONS = {f.__name__: f for f in (create, status, sync, run, logs, stop, keep, delete)}


def main(argv: list[str] | None = None) -> int:
    flags = parse(argv)
    try:
        ACTIONS[flags.action](flags)
    except (Failed, subprocess.CalledProcessError, FileNotFoundError) as e:
        print(f"failed: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
