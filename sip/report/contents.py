"""Reads a workdir, finished or not, for the HTML page."""

import fcntl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from sip import metrics
from sip import workdir as workdirs
from sip.report import candidates
from sip.stages import recipe, seeds
from sip.structs import UserError


@dataclass(frozen=True)
class Opened:
    """A workdir of sip.train: its config, and the seeds begun in it (empty without --seeds)."""

    path: str
    config: Any
    begun: tuple[int, ...]

    @property
    def directories(self) -> list[str]:
        """The workdirs of all seeds; without seeds the workdir itself."""
        return [seeds.directory(self.path, seed) for seed in self.begun] or [self.path]


def opened(path: str) -> Opened:
    """Opens a workdir. Raises UserError if it is none, or if its config cannot be read."""
    begun = seeds.known(path)
    directories = [seeds.directory(path, seed) for seed in begun] or [path]
    files = [epath.Path(where) / workdirs.CONFIG for where in directories]
    there = [file for file in files if file.exists()]
    if not there:
        home = workdirs.workdir_of(path)  # if DIR is the directory of a run
        hint = f", such as {home}" if (epath.Path(home) / workdirs.CONFIG).exists() else ""
        raise UserError(f"{files[0]} does not exist; DIR must be a workdir of sip.train{hint}")
    recorded = workdirs.read_json(there[0], order=list, runs=dict, report=dict, seed=int)
    config: Any = ConfigDict(recipe.filled(ConfigDict(recorded))[0])
    if unknown := [name for name in config.order if name not in config.runs]:
        raise UserError(f"{there[0]}: order has {unknown[0]!r}, which is not among its runs")
    return Opened(path, config, begun)


@dataclass(frozen=True)
class RunFiles:
    """The files that a run has written, as they were read."""

    name: str
    seed: int | None  # None: a workdir without seeds
    directory: str
    steps: int  # of the config
    lines: list[dict]  # of metrics.jsonl
    figures: dict[str, Any]  # of eval.json; empty if it is not written yet
    texts: list[str]  # final greedy continuations of unselected prefixes
    alarms: list[str]  # of the watch for reward hacking, in words
    done: bool
    unsafe: int = 0  # number of final continuations of unsafe prefixes

    @property
    def step(self) -> int:
        """The last step in the log."""
        return max((line["step"] for line in self.lines), default=0)

    @property
    def title(self) -> str:
        """The name, with the seed if there are several."""
        return self.name if self.seed is None else f"{workdirs.seed_name(self.seed)}/{self.name}"


def runs(place: Opened, missing: list[str]) -> list[RunFiles]:
    """Reads all runs of a workdir. Damaged files are left out and named in `missing`."""
    return [
        _run(place, seed, where, name, missing)
        for seed, where in zip(place.begun or (None,), place.directories, strict=True)
        for name in place.config.order
    ]


def in_use(path: str) -> bool:
    """Returns True if a process holds the workdir's lock; False in a store, which has no lock."""
    lock = epath.Path(path) / workdirs.LOCK
    if "://" in path or not lock.exists():
        return False
    with open(lock, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def progress(every: Sequence[RunFiles], running: bool) -> list[str]:
    """Says which runs are not finished, one sentence each."""
    first = next((run for run in every if not run.done), None)
    found = []
    for run in every:
        if run.done:
            continue
        at = f"step {run.step} of {run.steps}"
        if running and run is first:
            found.append(f"Run {run.title} is still going: {at}.")
        elif not run.lines:
            said = "cannot be read" if _logged(run.directory) else "has not begun"
            found.append(f"Run {run.title} {said}.")
        else:
            found.append(f"Run {run.title} is not finished: {at}. Run sip.train again.")
    return found


def _run(place: Opened, seed: int | None, where: str, name: str, missing: list[str]) -> RunFiles:
    directory = workdirs.run_dir(where, name)
    evaluated = _json(directory, "eval.json", missing)
    texts = _json(directory, "continuations.json", missing)
    test = texts["test"] if isinstance(texts.get("test"), dict) else {}
    kept, unsafe = (
        [x for x in some if isinstance(x, str)] if isinstance(some := test.get(key), list) else []
        for key in ("standard", "unsafe")
    )
    lines = metrics.read(directory)
    if not lines and _logged(directory):
        missing.append(f"{directory}/metrics.jsonl: damaged, none of its lines can be read")
    return RunFiles(
        name=name,
        seed=seed,
        directory=directory,
        steps=int(place.config.runs[name].steps),
        lines=lines,
        figures=evaluated,
        texts=kept,
        alarms=_alarms(directory),
        done=(epath.Path(directory) / workdirs.DONE).exists(),
        unsafe=len(unsafe),
    )


def _logged(directory: str) -> bool:
    """Returns True if the run has written a line, or what once was one."""
    path = epath.Path(directory) / "metrics.jsonl"
    return path.exists() and path.stat().length > 0


def _alarms(directory: str) -> list[str]:
    rows, _ = candidates.read(directory, candidates.ALARMS)
    return [f"Alarm at step {row['step']}: {row['said']}" for row in rows]


def _json(directory: str, file: str, missing: list[str]) -> dict[str, Any]:
    path = epath.Path(directory) / file
    if not path.exists():
        return {}
    try:
        return workdirs.read_json(path)
    except UserError as e:
        missing.append(str(e))
        return {}
