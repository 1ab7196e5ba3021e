"""Trains what a config says: `python -m sip.train --config=configs/microworld.py --workdir=DIR`.

A config names runs in order. Finished runs are skipped, an unfinished one is resumed, so the same
command goes on after a crash, Ctrl-C or preemption (these save first). With --seeds=0,1,2 all of
it is done for each seed in turn, in DIR/seed0 and so on, and their spread is reported. Exit codes:
0 done, or stopped and saved; 2 the user can mend it.
"""

import signal
from collections.abc import Sequence

from absl import flags
from etils import epath

from sip import cli, report, seeds, setup
from sip.stages import recipe
from sip.structs import UserError
from sip.training.loop import Stopped

_CONFIG = cli.config_flag()
_WORKDIR = cli.workdir_flag()
_SEEDS = flags.DEFINE_string("seeds", None, "Seeds, such as 0,1,2, in place of the config's.")
_PROFILE = flags.DEFINE_bool("profile", False, "Write a trace of a few steps of each run.")


def train(config, workdir: str, profile: bool = False) -> dict:
    """Runs what is unfinished of `config`, then reports; returns the summary."""
    cli.keep_memory()
    recipe.check(config, workdir)
    recipe.check_meshes(config)
    recipe.claim(config, workdir)
    for name in config.order:
        directory = epath.Path(setup.run_dir(workdir, name))
        if (directory / "done.json").exists():
            continue
        clock = setup.Clock(str(directory))
        traces = str(directory / "profile") if profile else ""
        try:
            recipe.STAGES[config.runs[name].stage].run(config, name, workdir, traces)
        finally:
            if directory.exists():  # the run has begun
                clock.save()
        setup.write_json(directory / "done.json", {"wall_seconds": clock.seconds()})
    return report.write(config, workdir)


def train_seeds(config, wanted: Sequence[int], workdir: str, profile: bool = False) -> dict:
    """Trains the recipe once per seed, then reports over all of them; returns the summary."""
    seeds.claim(config, wanted, workdir)
    for seed in wanted:
        directory = seeds.directory(workdir, seed)
        if not (epath.Path(directory) / "summary.json").exists():
            print(f"seed {seed}: {directory}", flush=True)
            train(seeds.of(config, seed), directory, profile)
    return report.write_seeds(config, wanted, workdir)


def main(argv) -> None:
    """The command line."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}")
    for flag in (_CONFIG, _WORKDIR):
        if flag.value is None:
            raise UserError(f"--{flag.name} is needed")
    wanted = None if _SEEDS.value is None else seeds.parse(_SEEDS.value)
    if wanted and "config.seed" in flags.FLAGS and flags.FLAGS["config.seed"].present:
        raise UserError("--config.seed and --seeds: only one of them can be given")
    config, workdir, profile = _CONFIG.value, str(_WORKDIR.value), bool(_PROFILE.value)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # loops have their own, which saves
    try:
        if wanted:
            train_seeds(config, wanted, workdir, profile)
        else:
            train(config, workdir, profile)
    except KeyboardInterrupt:
        raise Stopped("stopped between two savings") from None


if __name__ == "__main__":
    cli.run(main)
