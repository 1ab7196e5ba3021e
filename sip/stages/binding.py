"""The config that a workdir is bound to, and the changes that it allows later.

WORKDIR/config.json holds the config of the last start. It binds a run once the run has a
checkpoint, and seed, data and tokenizer once any run has one. Until then another config may start,
and what a failed start has left is made anew. Of a bound run these keys may change:

    log.*, checkpoint.every_steps, checkpoint.keep, checkpoint.max_skipped_in_row
    steps, to more: the run goes on, also a finished one. Its learning-rate schedule is then as long
    as the new steps, unless optim.steps is set.

`order` and `report` may always change, and runs may be added. Any other change is refused.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from etils import epath

from sip import processes
from sip import workdir as workdirs
from sip.loading import load_tokenizer
from sip.stages import recipe
from sip.structs import UserError
from sip.text import tokenizer as tokenizers
from sip.workdir import ABSENT, BEST, CONFIG, DONE, SEEDS, TAKEN

SHARED = ("seed", "data", "tokenizer")  # bound by the first run of a workdir
FREE = ("log", "checkpoint.every_steps", "checkpoint.keep", "checkpoint.max_skipped_in_row")
Changes = dict[str, tuple[Any, Any]]  # dotted key -> value there, value here


@dataclass(frozen=True)
class Difference:
    """The keys in which a recorded config differs from the one that is wanted."""

    shared: Changes  # of seed, data and tokenizer
    runs: Mapping[str, Changes]  # of each run that both have, without its name


def difference(recorded: Mapping[str, Any], config: Any) -> Difference:
    """Compares config.json of a workdir with a config, both with all defaults filled in.

    So a key that a newer version has added, or a default that is written out, is no difference.
    """
    there, here = type(config)(recorded), config  # a ConfigDict, which only commands import
    (a, odd_a), (b, odd_b) = recipe.filled(there), recipe.filled(here)

    def pair(name: str, *path: str) -> Changes:
        raw = name in odd_a or name in odd_b  # one that cannot be filled is compared as it is
        values = (there, here) if raw else (a, b)
        return workdirs.changes(*(_plain(one, path) for one in values))

    shared = {k: v for key in SHARED for k, v in _under(key, pair(key, key)).items()}
    both = [name for name in config.order if "runs" in a and name in a["runs"]]
    return Difference(shared, {name: pair(f"runs.{name}", "runs", name) for name in both})


def _plain(values: Any, path) -> Any:
    for key in path:
        values = values[key] if key in values else ABSENT
        if values is ABSENT:
            return ABSENT
    return workdirs.resolved(values)


def _under(name: str, changes: Changes) -> Changes:
    return {f"{name}.{key}" if key else name: pair for key, pair in changes.items()}


def recorded(workdir: str) -> dict[str, Any] | None:
    """Returns config.json of a workdir; None if it has none. Raises UserError if it is damaged."""
    path = epath.Path(workdir) / CONFIG
    return workdirs.read_json(path, data=dict, runs=dict) if path.exists() else None


def begun(workdir: str) -> set[str]:
    """Returns the names of the runs of a workdir that have a checkpoint."""
    runs = epath.Path(workdir) / "runs"
    return (
        {path.name for path in runs.iterdir() if workdirs.begun(path)} if runs.exists() else set()
    )


def check(config, workdir: str) -> None:
    """Raises UserError if the workdir is bound to another config, or to a job over seeds.

    The config must have passed `recipe.check`.
    """
    try:
        _check_seeds(workdir)
        bound = begun(workdir)
        known = recorded(workdir) if bound else None
    except OSError as e:
        raise UserError(f"workdir {workdir}: {e}") from e
    if known is None:
        return
    found, readers = difference(known, config), _readers(config)
    if found.shared:
        _refuse(workdir, found.shared, [""])
    for name, changes in found.runs.items():
        learned = sorted(readers[name] & bound)
        bad = {k: v for k, v in changes.items() if not _may_change(k, v, changes)}
        if name in bound and bad:
            _refuse(workdir, _under(f"runs.{name}", bad), [name, *learned])
        more = changes if name not in bound else {k: changes[k] for k in ("steps",) if k in changes}
        if more and learned:
            _refuse(workdir, _under(f"runs.{name}", more), learned, by=name)


def _check_seeds(workdir: str) -> None:
    path = epath.Path(workdir) / SEEDS
    seeds = workdirs.read_seeds(path)["seeds"] if path.exists() else []
    if any(begun(str(path.parent / workdirs.seed_name(seed))) for seed in seeds):
        raise UserError(
            f"workdir {workdir} belongs to a job over seeds: give --seeds or use another workdir"
        )


def _may_change(key: str, pair: tuple[Any, Any], changes: Changes) -> bool:
    """True if a key of a bound run may change from pair[0] to pair[1]."""
    if key == "steps":
        return _is_more(*pair)
    if key == "optim.steps":  # it follows the run's steps
        return "steps" in changes and pair == changes["steps"] and _is_more(*pair)
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def _is_more(old, new) -> bool:
    return isinstance(old, int) and isinstance(new, int) and new > old


def differs(changes: Changes) -> Changes:
    """Returns those changes of a run's section that make it another run."""
    return {k: v for k, v in changes.items() if not any(f"{k}.".startswith(f"{f}.") for f in FREE)}


def listed(changes: Changes, most: int = 3) -> str:
    """Returns keys with both values as text, the first `most` of them.

    Keys that are absent there come last. A section of an older version that cannot be read lacks
    many, and they are not why it differs.
    """
    ordered = sorted(changes.items(), key=lambda item: item[1][0] is ABSENT)
    said = [f"{key} is {_short(old)} there, {_short(new)} here" for key, (old, new) in ordered]
    return "; ".join(said[:most]) + (f"; and {len(said) - most} more" if len(said) > most else "")


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _refuse(workdir: str, changes: Changes, runs: list[str], by: str = "") -> None:
    """Raises UserError: says what differs, and that `runs` would have to go."""
    paths = " and ".join(str(epath.Path(workdir) / "runs" / name) for name in runs)
    learned = f", and {by} was read by {', '.join(runs)}" if by else ""
    raise UserError(
        f"workdir {workdir} belongs to another config: {listed(changes)}{learned}; use another "
        f"workdir, or delete {paths}"
    )


def _readers(config) -> dict[str, set[str]]:
    """Returns, by run, the runs that read it, also through others."""
    read = {name: read_by(config, name) for name in config.order}

    def reads(name: str, other: str) -> bool:
        return other in read[name] or any(reads(x, other) for x in read[name])

    return {name: {other for other in read if reads(other, name)} for name in read}


def read_by(config, name: str) -> set[str]:
    """Returns the runs of the recipe that a run reads."""
    run = recipe.STAGES[config.runs[name].stage].resolve(config, name)
    named = {source.removesuffix(f"/{BEST}") for source in run.sources().values()}
    earlier = config.order[: list(config.order).index(name)]
    return named & set(earlier)


def bind(config, workdir: str) -> None:
    """Checks as `check` does, then writes the config to config.json.

    Only for the holder of the workdir's lock. Runs with more steps than before lose their done.json
    and so go on.
    """
    check(config, workdir)
    processes.on_lead(lambda: _bind(config, workdir))


def _bind(config, workdir: str) -> None:
    path = epath.Path(workdir) / CONFIG
    own = workdirs.resolved(config)
    try:
        bound = begun(workdir)
        if not bound:
            _forget(workdir)
        for left in (path.parent / "runs").glob(f"*/{TAKEN}"):
            if left.parent.name not in bound:
                left.parent.rmtree()  # a copy that was interrupted
        known = recorded(workdir) if bound else None
        if known is not None:
            _go_on(workdir, difference(known, config).runs, bound)
            # Sections of runs that this config does not have, but that were trained here.
            kept = {name: run for name, run in known["runs"].items() if name in bound}
            own["runs"] = kept | own["runs"]
        if own != known:
            workdirs.write_json(path, own)
    except OSError as e:
        raise UserError(f"workdir {workdir}: {e}") from e


def _forget(workdir: str) -> None:
    """Removes what a start without a checkpoint has left: it may be of another corpus."""
    path = epath.Path(workdir)
    (path / SEEDS).unlink(missing_ok=True)
    own = workdirs.shared_dir(workdir) == workdirs.absolute(workdir)
    if own and (path / CONFIG).exists():  # without one it was put there by the user
        forget_tokenizer(path)


def forget_tokenizer(directory: epath.Path) -> None:
    """Removes a trained tokenizer, so that it is trained anew."""
    if (directory / tokenizers.MODEL).exists():
        (directory / tokenizers.MODEL).unlink()
        load_tokenizer.cache_clear()


def _go_on(workdir: str, runs: Mapping[str, Changes], bound: set[str]) -> None:
    for name, changes in runs.items():
        if name not in bound or "steps" not in changes:
            continue
        before, now = changes["steps"]
        directory = epath.Path(workdirs.run_dir(workdir, name))
        (directory / TAKEN).unlink(missing_ok=True)
        (directory / DONE).unlink(missing_ok=True)
        schedule = "stays as it was"
        if "optim.steps" in changes:
            schedule = (
                f"is now {now} steps long (runs.{name}.optim.steps={before} would keep the old one)"
            )
        line = f"{name}: goes on to {now} steps, {before} before; its learning-rate schedule "
        print(line + schedule, file=sys.stderr, flush=True)
