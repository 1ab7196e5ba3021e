"""Finished runs that are copied from another workdir instead of being trained again (--from).

A run is taken if it is finished there, if its section, seed, data and tokenizer are the same in
both configs, and if the runs that it read are taken too. Log and checkpoint settings may differ.
The last checkpoint, the results and the logs are copied, and the corpus and tokenizer if they were
built.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from etils import epath

from sip import processes
from sip import workdir as workdirs
from sip.loading import load_tokenizer
from sip.stages import binding, recipe, seeds
from sip.structs import UserError
from sip.text import tokenizer as tokenizers
from sip.workdir import DONE

FLAG = "--from"


@dataclass(frozen=True)
class Plan:
    """The runs to copy from a workdir, and why the others are not."""

    source: str
    runs: tuple[str, ...]
    others: dict[str, str]  # run -> reason


def plan(config, source: str, workdir: str) -> Plan:
    """Decides which runs of `source` are taken. Raises UserError if there is nothing to take.

    A run that has begun in `workdir` stays as it is.
    """
    recipe.check(config, workdir, config.order)  # without asking servers that may be away
    return processes.broadcast(lambda: _plan(config, source, workdir))


def _plan(config, source: str, workdir: str) -> Plan:
    source = str(workdirs.absolute(_of_seed(source, config.seed)))
    if source == str(workdirs.absolute(workdir)):
        raise UserError(f"{FLAG} {source}: is the workdir itself")
    known = binding.recorded(source)
    if known is None:
        raise UserError(f"{FLAG} {source}: not a workdir of sip.train: it has no config.json")
    found, here = binding.difference(known, config), binding.begun(workdir)
    taken, others = [], {}
    for name in config.order:
        if name in here:
            continue
        reason = _reason(found, name, source)
        read = sorted(binding.read_by(config, name) - set(taken))
        missing = [x for x in read if not (x in here and _copied(x, source, workdir))]
        if not reason and missing:
            reason = f"read {', '.join(missing)}"
        if reason:
            others[name] = reason
        else:
            taken.append(name)
    if not taken and not here:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in others.items())
        raise UserError(f"{FLAG} {source}: no run of it can be taken ({reasons:.600})")
    return Plan(source, tuple(taken), others)


def _of_seed(source: str, seed: int) -> str:
    """The workdir of a seed, if `source` is a job over seeds."""
    begun = seeds.known(source)
    if begun and seed not in begun:
        raise UserError(f"{FLAG} {source}: has the seeds {', '.join(map(str, begun))}, not {seed}")
    return seeds.directory(source, seed) if begun else source


def _reason(found: binding.Difference, name: str, source: str) -> str:
    """Says why a run cannot be taken; empty if it can."""
    if not (epath.Path(workdirs.run_dir(source, name)) / DONE).exists():
        return "not finished there"
    if name not in found.runs:
        return "unknown there"
    other = found.shared or binding.differs(found.runs[name])
    return binding.listed(other) if other else ""


def _copied(name: str, source: str, workdir: str) -> bool:
    """True if a run of the workdir is a copy of the one in `source`."""
    path = epath.Path(workdirs.run_dir(workdir, name)) / workdirs.TAKEN
    return path.exists() and workdirs.read_json(path, workdir=str)["workdir"] == source


def take(wanted: Plan, workdir: str) -> None:
    """Copies the planned runs. Only for the holder of the workdir's lock."""
    processes.on_lead(lambda: _take(wanted, workdir))


def _take(wanted: Plan, workdir: str) -> None:
    if not wanted.runs:
        return
    there, here = (workdirs.shared_dir(x) for x in (wanted.source, workdir))
    # Others have read these already if a run of this workdir, or of another seed, has begun.
    first = not any(map(binding.begun, seeds.siblings(workdir)))
    try:
        if first and (there / tokenizers.MODEL).exists():
            _copy(there / tokenizers.MODEL, here / tokenizers.MODEL)
            load_tokenizer.cache_clear()
        if (there / "data").exists() and not (here / "data").exists():
            _copy(there / "data", here / "data")
        for name in wanted.runs:
            _copy_run(name, wanted.source, workdir)
    except OSError as e:
        raise UserError(f"{FLAG} {wanted.source}: {e}") from e
    said = [f"{name} ({reason})" for name, reason in wanted.others.items()]
    print(f"taken from {wanted.source}: {', '.join(wanted.runs)}", flush=True)
    if said:
        print(f"trained here: {'; '.join(said)}", flush=True)


def _copy_run(name: str, source: str, workdir: str) -> None:
    """Copies a finished run. TAKEN without DONE marks a copy that was interrupted."""
    old, new = (epath.Path(workdirs.run_dir(x, name)) for x in (source, workdir))
    if new.exists():
        new.rmtree()  # of a start that failed
    workdirs.write_json(new / workdirs.TAKEN, {"workdir": source})
    older = _older(old / "checkpoints")
    for path in old.iterdir():
        if path.name not in (DONE, workdirs.TAKEN):
            _copy(path, new / path.name, older)
    _copy(old / DONE, new / DONE)


def _copy(old: epath.Path, new: epath.Path, leave: Sequence[str] = ()) -> None:
    """Copies a file, or a directory without locks, unfinished files and those of `leave`."""
    if not old.is_dir():
        new.parent.mkdir(parents=True, exist_ok=True)
        old.copy(new, overwrite=True)
        return
    for path in old.iterdir():
        if not path.name.startswith((".", "incomplete.")) and str(path) not in leave:
            _copy(path, new / path.name, leave)


def _older(checkpoints: epath.Path) -> list[str]:
    """Paths of all checkpoints but the last."""
    inside = checkpoints.iterdir() if checkpoints.exists() else ()
    steps = sorted(int(path.name) for path in inside if path.name.isdigit())
    return [str(checkpoints / str(step)) for step in steps[:-1]]
