"""Trains what a config says: `python -m sip.train --config=configs/microworld.py --workdir=DIR`.

A config names runs in order. Finished runs are skipped, an unfinished one is resumed, so the same
command goes on after a crash, Ctrl-C or preemption (these save first). With --seeds=0,1,2 all of
it is done for each seed in turn, in DIR/seed0 and so on, and their spread is reported. Exit codes:
0 done, or stopped and saved; 2 the user can mend it.

On several hosts the same command runs on each, with a workdir that all of them see. Hosts of a TPU
pod find each other; elsewhere --distributed asks the cluster (Slurm, GKE, Open MPI), or say
--coordinator=HOST:PORT --processes=4 --process=0 (1, 2, 3 on the others). One that is told to end
(SIGTERM) is enough: all save at one step. One that dies ends all; the same command goes on.
"""

import signal
from collections.abc import Sequence

from absl import flags
from etils import epath

from sip import cli, processes
from sip import workdir as workdirs
from sip.report import outputs
from sip.run import Run
from sip.stages import recipe, seeds
from sip.stages.clock import Clock
from sip.structs import UserError
from sip.training.loop import Stopped

_CONFIG = cli.config_flag()
_WORKDIR = cli.workdir_flag()
_SEEDS = flags.DEFINE_string("seeds", None, "Seeds, such as 0,1,2, in place of the config's.")
_PROFILE = flags.DEFINE_bool("profile", False, "Write a trace of a few steps of each run.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "Of several: HOST:PORT of the first.")
_PROCESSES = flags.DEFINE_integer("processes", 0, "How many there are.")
_PROCESS = flags.DEFINE_integer("process", -1, "Which this is, from 0.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Several processes, as the cluster says; unasked on hosts with TPUs."
)


def train(config, workdir: str, profile: bool = False) -> dict:
    """Runs what is unfinished of `config`, then reports; returns the summary."""
    cli.keep_memory()
    recipe.check_reachable(workdir)
    recipe.check(config, workdir)
    recipe.check_meshes(config)
    recipe.claim(config, workdir)
    for name in config.order:
        directory = epath.Path(workdirs.run_dir(workdir, name))
        if processes.broadcast((directory / "done.json").exists):
            continue
        clock = Clock(str(directory))
        traces = str(directory / "profile") if profile else ""
        try:
            recipe.STAGES[config.runs[name].stage].train(Run(config, name, workdir), traces)
        finally:
            if directory.exists():  # the run has begun
                clock.save()
        done = {"wall_seconds": clock.seconds(), "lost_steps": clock.lost_steps}
        workdirs.write_json(directory / "done.json", done)
    return outputs.write(config, workdir)


def train_seeds(config, wanted: Sequence[int], workdir: str, profile: bool = False) -> dict:
    """Trains the recipe once per seed, then reports over all of them; returns the summary."""
    seeds.claim(config, wanted, workdir)
    for seed in wanted:
        directory = seeds.directory(workdir, seed)
        if not processes.broadcast((epath.Path(directory) / "summary.json").exists):
            if processes.lead():
                print(f"seed {seed}: {directory}", flush=True)
            train(seeds.of(config, seed), directory, profile)
    return outputs.write_seeds(config, wanted, workdir)


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
    processes.start(
        str(_COORDINATOR.value),
        int(_PROCESSES.value),
        int(_PROCESS.value),
        bool(_DISTRIBUTED.value),
    )
    config, workdir, profile = _CONFIG.value, str(_WORKDIR.value), bool(_PROFILE.value)
    if not processes.is_distributed():  # where the runtime listens
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # loops have their own, and save
    try:
        if wanted:
            train_seeds(config, wanted, workdir, profile)
        else:
            train(config, workdir, profile)
    except KeyboardInterrupt:
        raise Stopped("stopped between two savings") from None


if __name__ == "__main__":
    cli.run(main)
