"""Trains what a config says: `python -m sip.train --config=configs/microworld.py --workdir=DIR`.

A config names runs in order. Finished runs are skipped, an unfinished one is resumed, so the same
command goes on after a crash, Ctrl-C or preemption (these save first). Exit codes: 0 done, or
stopped and saved; 2 the user can mend it.
"""

import signal
import time

from absl import flags
from etils import epath
from ml_collections import config_flags

from sip import cli, report, setup
from sip.stages import recipe
from sip.structs import UserError
from sip.training.loop import Stopped

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The config file, with :variant.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of everything written (local or gs://).")
_PROFILE = flags.DEFINE_bool("profile", False, "Write a trace of a few steps of each run.")


def train(config, workdir: str, profile: bool = False) -> dict:
    """Runs what is unfinished of `config`, then reports; returns the summary."""
    recipe.check(config, workdir)
    recipe.claim(config, workdir)
    for name in config.order:
        directory = epath.Path(setup.run_dir(workdir, name))
        if (directory / "done.json").exists():
            continue
        start = time.monotonic()
        traces = str(directory / "profile") if profile else ""
        recipe.STAGES[config.runs[name].stage].run(config, name, workdir, traces)
        setup.write_json(directory / "done.json", {"wall_seconds": time.monotonic() - start})
    return report.write(config, workdir)


def main(argv) -> None:
    """The command line."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}")
    for flag in (_CONFIG, _WORKDIR):
        if flag.value is None:
            raise UserError(f"--{flag.name} is needed")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # loops have their own, which saves
    try:
        train(_CONFIG.value, str(_WORKDIR.value), bool(_PROFILE.value))
    except KeyboardInterrupt:
        raise Stopped("stopped between two savings") from None


if __name__ == "__main__":
    cli.run(main)
