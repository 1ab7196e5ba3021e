"""Trains the runs of a config: `python -m sip.train --config=configs/microworld.py --workdir=DIR`.

A config lists its runs in order. The command skips finished runs and resumes an unfinished one, so
after a crash, Ctrl-C or a preemption you run the same command again. Ctrl-C and SIGTERM save a
checkpoint before the program exits. --from=DIR copies finished runs of another workdir that this
config would train alike. --seeds=0,1,2 trains all runs once per seed, in DIR/seed0,
DIR/seed1, and so on, and reports the spread over the seeds. Exit codes: 0 done, or stopped and
saved; 2 an error that you can fix, printed as one line.

To train on several hosts, run the same command on each host, with a workdir that all hosts can
read and write. The hosts of a TPU pod find each other. On other clusters (Slurm, GKE, Open MPI) add
--distributed, or pass --coordinator=HOST:PORT --processes=4 --process=0 (1, 2, 3 on the other
hosts). SIGTERM to one process is enough: all processes save at the same step. If one process dies,
all processes exit; run the same command again to continue from the last checkpoint.
"""

import functools
from collections.abc import Sequence

from absl import flags
from etils import epath

from sip import cli, processes
from sip import workdir as workdirs
from sip.gap import settings as gap
from sip.report import outputs
from sip.run import Run
from sip.stages import binding, recipe, reuse, seeds
from sip.stages.clock import Clock
from sip.structs import UserError
from sip.training import loop

_CONFIG = cli.config_flag()
_WORKDIR = cli.workdir_flag()
_SEEDS = flags.DEFINE_string(
    "seeds", None, "Comma-separated seeds, such as 0,1,2; replaces config.seed."
)
_FROM = cli.path_flag(
    "from",
    "",
    "Another workdir: its finished runs are copied, if this config would train the same.",
)
_PROFILE = flags.DEFINE_bool("profile", False, "Write a profiler trace of a few steps of each run.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "Address of process 0, HOST:PORT.")
_PROCESSES = flags.DEFINE_integer("processes", 0, "Number of processes.")
_PROCESS = flags.DEFINE_integer("process", -1, "Index of this process, from 0.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Detect the other processes from the cluster (Slurm, GKE, Open MPI). Always on for TPU hosts.",
)


def train(config, workdir: str, profile: bool = False, source: str = "") -> dict:
    """Trains all unfinished runs of `config`, then writes the report.

    Args:
        config: The whole config (a ConfigDict).
        workdir: Output directory, local or gs://.
        profile: Writes a profiler trace of a few steps of each run.
        source: Another workdir, whose finished runs are copied (sip/stages/reuse.py), or "".

    Returns:
        The summary that is also written to summary.json.

    Raises:
        UserError: The config is invalid, or the workdir belongs to another config or is in use.
        Stopped: The process was asked to stop; the state is saved.
    """
    cli.keep_memory()
    workdirs.check_reachable(workdir, "workdir")
    plan = reuse.plan(config, source, workdir) if source else None
    recipe.check(config, workdir, plan.runs if plan else ())
    gap.check_section(config)
    recipe.check_files(config)
    recipe.check_meshes(config)
    binding.check(config, workdir)  # before anything is made
    with workdirs.locked(workdir):
        workdirs.clean(workdir)
        binding.bind(config, workdir)
        if plan:
            reuse.take(plan, workdir)
        _train_runs(config, workdir, profile)
        return outputs.write(config, workdir)


def _train_runs(config, workdir: str, profile: bool) -> None:
    for i, name in enumerate(config.order):
        loop.leave()
        directory = epath.Path(workdirs.run_dir(workdir, name))
        # Process 0 looks for the file, so that all processes skip the same runs.
        if processes.broadcast(functools.partial(_done, directory)):
            continue
        run = Run(config, name, workdir)
        run.say(processes.broadcast(functools.partial(_progress, config, workdir, i)))
        clock = Clock(str(directory))
        traces = str(directory / "profile") if profile else ""
        try:
            recipe.check_tokens(config, run.tokenizer, workdir)
            recipe.STAGES[config.runs[name].stage].train(run, traces)
        finally:
            if directory.exists():  # absent if the run failed before it wrote anything
                clock.save()
        done = {"wall_seconds": clock.seconds(), "lost_steps": clock.lost_steps}
        done["left_out"] = run.left_out
        workdirs.write_json(directory / workdirs.DONE, done)


def _progress(config, workdir: str, i: int) -> str:
    """Returns a line about run `i`: its place, and a forecast for it and the runs after it.

    The forecast is at the mean pace of the finished runs, in seconds per update.
    """
    seconds, steps, left = 0.0, 0, 0
    for name in config.order:
        path = epath.Path(workdirs.run_dir(workdir, name)) / workdirs.DONE
        if path.exists():
            seconds += workdirs.read_json(path, wall_seconds=(int, float))["wall_seconds"]
            steps += config.runs[name].steps
        else:
            left += config.runs[name].steps
    run = config.runs[config.order[i]]
    line = (
        f"run {i + 1} of {len(config.order)}: {config.order[i]} ({run.stage}, {run.steps:,} steps)"
    )
    if not steps:
        return line
    minutes = left * seconds / steps / 60
    return f"{line}; about {_minutes(minutes)} to the end of all runs, at the pace so far"


def _minutes(minutes: float) -> str:
    """Returns a time that is rounded to what a forecast is worth."""
    if minutes < 90:
        return f"{max(1, round(minutes))} min"
    return f"{minutes / 60:.1f} h" if minutes < 48 * 60 else f"{minutes / 60 / 24:.1f} days"


def _done(directory: epath.Path) -> bool:
    path = directory / workdirs.DONE
    return path.exists() and bool(workdirs.read_json(path, wall_seconds=(int, float)))


def train_seeds(
    config, wanted: Sequence[int], workdir: str, profile: bool = False, source: str = ""
) -> dict:
    """Trains all runs of the config once per seed, then reports means and spread over the seeds.

    Args:
        config: The whole config; its `seed` is replaced.
        wanted: The seeds.
        workdir: Output directory; seed S is trained in workdir/seedS.
        profile: As in `train`.
        source: As in `train`; of a job over seeds, each seed takes its own.

    Returns:
        The summary over the seeds.
    """
    workdirs.check_reachable(workdir, "workdir")
    every = [(seed, seeds.of(config, seed), seeds.directory(workdir, seed)) for seed in wanted]
    plans = [reuse.plan(own, source, where) for _, own, where in every] if source else []
    taken = set.intersection(*(set(plan.runs) for plan in plans)) if plans else set()
    seeds.check_claim(config, wanted, workdir, taken)  # before anything is made
    with workdirs.locked(workdir):
        workdirs.clean(workdir)
        seeds.claim(config, wanted, workdir, taken)
        for seed, own, where in every:
            if not processes.broadcast(functools.partial(_finished, own, where)):
                if processes.lead():
                    print(f"seed {seed}: {where}", flush=True)
                train(own, where, profile, source)
        return outputs.write_seeds(config, wanted, workdir)


def _finished(config, workdir: str) -> bool:
    """True if a seed has its summary, of this very config."""
    path = epath.Path(workdir) / "summary.json"
    return path.exists() and binding.recorded(workdir) == workdirs.resolved(config)


def main(argv) -> None:
    """Runs the command line."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}")
    for flag in (_CONFIG, _WORKDIR):
        if not str(flag.value or "").strip():
            raise UserError(f"--{flag.name} is needed")
    wanted = None if _SEEDS.value is None else seeds.parse(_SEEDS.value)
    if wanted and "config.seed" in flags.FLAGS and flags.FLAGS["config.seed"].present:
        raise UserError("--config.seed and --seeds exclude each other; pass only one of them")
    if recipe.read(_CONFIG.value).compile == "quick":
        cli.compile_quickly()
    processes.start(
        str(_COORDINATOR.value),
        int(_PROCESSES.value),
        int(_PROCESS.value),
        bool(_DISTRIBUTED.value),
    )
    config, workdir, profile = _CONFIG.value, str(_WORKDIR.value), bool(_PROFILE.value)
    source = str(_FROM.value)
    try:
        with loop.stopping():
            if wanted:
                train_seeds(config, wanted, workdir, profile, source)
            else:
                train(config, workdir, profile, source)
    except BrokenPipeError:  # of a listing the reader has seen enough; this is not done
        raise UserError(
            "the reader of the output has closed it; run the same command to continue"
        ) from None


if __name__ == "__main__":
    cli.run(main)
