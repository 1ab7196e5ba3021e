"""Trains what a config says: `python -m sip.train --config=configs/microworld.py --workdir=DIR`.

A config names runs in order. Finished runs are skipped, an unfinished one is resumed, so the same
command goes on after a crash, Ctrl-C or preemption (these save first). Exit codes: 0 done, or stopped and
saved; 2 the user can mend it.
"""

import json
import time

from absl import flags
from etils import epath
from ml_collections import config_flags

from sip import cli, report, setup
from sip.stages import selfimprove, supervised
from sip.structs import UserError
from sip.training.loop import Stopped

STAGES = {"supervised": supervised.run, "selfimprove": selfimprove.run}
_CONFIG = config_flags.DEFINE_config_file("config", None, "The config file, with :variant.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of everything written (local or gs://).")
_PROFILE = flags.DEFINE_bool("profile", False, "Write a trace of a few steps of each run.")


def train(config, workdir: str, profile: bool = False) -> dict:
    """Runs what is unfinished of `config`, then reports; returns the summary."""
    check_names(config)
    claim(config, workdir)
    for name in config.order:
        finished = epath.Path(setup.run_dir(workdir, name)) / "done.json"
        if finished.exists():
            continue
        stage = config.runs[name].stage
        if stage not in STAGES:
            raise UserError(f"config runs.{name}.stage must be one of {sorted(STAGES)}, not {stage!r}")
        start = time.monotonic()
        traces = str(epath.Path(setup.run_dir(workdir, name)) / "profile") if profile else ""
        STAGES[stage](config, name, workdir, traces)
        setup.write_json(finished, {"wall_seconds": time.monotonic() - start})
    return report.write(config, workdir)


def claim(config, workdir: str) -> None:
    """Writes the resolved config into a new workdir; one of another config is not touched."""
    path = epath.Path(workdir) / "config.json"
    wanted = json.loads(json.dumps(setup.plain(config)))
    if not path.exists():
        setup.write_json(path, wanted)
        return
    found = json.loads(path.read_text())
    if found != wanted:
        key = ", ".join(sorted(differing(found, wanted))[:5])
        raise UserError(f"workdir {workdir} belongs to another config; it differs in {key}")


def differing(a, b, at: str = "") -> set[str]:
    """Dotted names of what differs between two nested dicts."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return set() if a == b else {at}
    keys = set(a) | set(b)
    missing = object()
    return {found for k in keys for found in differing(
        a[k] if k in a else missing, b[k] if k in b else missing, f"{at}.{k}" if at else k)}


def check_names(config) -> None:
    """Every run of the order exists."""
    for name in config.order:
        if name not in config.runs:
            raise UserError(f"config order: no run {name!r}; there are {sorted(config.runs)}")


def main(argv) -> None:
    """The command line."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}")
    for flag in (_CONFIG, _WORKDIR):
        if flag.value is None:
            raise UserError(f"--{flag.name} is needed")
    train(_CONFIG.value, _WORKDIR.value, _PROFILE.value)


if __name__ == "__main__":
    cli.run(main)
