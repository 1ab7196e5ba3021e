"""Orbax checkpoints of a run: everything needed to continue it, saved asynchronously.

A checkpoint has three items: `params`, `rest` (optimiser, counters, reference) and `record` (JSON:
configs, data position). Parameters are an item of their own, so that another run, an evaluation or
a judge can read them without the rest. A fourth item, `begun`, exists if the next step's rollouts
were already sampled. An interrupted save is never listed.

The record has a checksum of every array (sip/training/checksums.py, which states the cost) and one
of itself. Both are compared whenever something is read, so that a damaged file is noticed.
Checkpoints written before there were checksums are read without this comparison. A run whose last
checkpoint is damaged continues from the one before.
"""

import contextlib
import functools
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from sip import processes, workdir
from sip.structs import Params, TrainState, UserError
from sip.training import checksums
from sip.workdir import finite

FORMAT = 1  # version of the checkpoint format; raise it if older code would misread a checkpoint
DIGEST, SUMS = "sha256", "checksums"  # keys of the record: of itself, and of the arrays by item
WAY = "; to use checkpoint"  # begins the advice in an error
ASIDE = "damaged-"  # a damaged checkpoint is renamed to this and its step
# Errors of a store or a device that say nothing about the files.
PASSING = "UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|RESOURCE_EXHAUSTED"


class Damaged(UserError):
    """A checkpoint cannot be read, or not as it was written."""


def manager(
    run_dir: str, *, keep: int = 2, alone: bool = False, **handlers
) -> ocp.CheckpointManager:
    """Returns the Orbax manager of `run_dir`/checkpoints, a local path or a gs:// URL.

    The last `keep` checkpoints are kept. `alone` says that no other process writes here: what an
    interrupted save left is removed. `handlers` replace the default handlers of items.
    """
    path = epath.Path(run_dir) / "checkpoints"
    if "://" not in str(run_dir):
        path = epath.Path(path).absolute()  # Orbax's background thread fails on a relative path
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=alone
    )
    handlers = {
        "params": ocp.StandardCheckpointHandler(),
        "rest": ocp.StandardCheckpointHandler(),
        "record": ocp.JsonCheckpointHandler(),
        "begun": ocp.StandardCheckpointHandler(),
        **handlers,
    }
    return ocp.CheckpointManager(path, options=options, item_handlers=handlers)


def exists(run_dir: str) -> bool:
    """Returns True if the run has a finished checkpoint."""
    # Process 0 decides for all. Otherwise a process might see a directory that another one has just
    # created, and enter the manager's collective calls alone.
    if not processes.broadcast((epath.Path(run_dir) / "checkpoints").exists):
        return False
    with manager(run_dir) as mngr:
        return mngr.latest_step() is not None


def _rest(state: TrainState) -> dict[str, Any]:
    rest = {
        "step": state.step,
        "opt_state": state.opt_state,
        "skipped": state.skipped,
        "skipped_in_row": state.skipped_in_row,
    }
    return rest if state.reference is None else {**rest, "reference": state.reference}


def save(
    mngr: ocp.CheckpointManager, state: TrainState, record: dict[str, Any], begun: Any = None
) -> None:
    """Starts an asynchronous save of `state` under its step; does nothing if that step is saved.

    `record` is JSON; `begun` are the arrays of a step whose rollouts are sampled, or None.
    """
    step = int(state.step)
    if step in mngr.all_steps():
        return
    arrays = {"params": state.params, "rest": _rest(state)}
    _save(mngr, step, arrays if begun is None else {**arrays, "begun": begun}, record)


def _save(mngr: ocp.CheckpointManager, step: int, arrays: dict[str, Any], record) -> None:
    """Starts a save of items of arrays, and of the record with the checksums."""
    items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
    sums = {name: checksums.of(tree) for name, tree in arrays.items()}
    own = finite({**record, "format": FORMAT, SUMS: sums})
    own[DIGEST] = _digest(own)
    mngr.save(step, args=ocp.args.Composite(record=ocp.args.JsonSave(own), **items))


def _digest(record: dict[str, Any]) -> str:
    """Returns the SHA-256 of a record's JSON."""
    plain = json.loads(json.dumps(record))  # keys become strings before they are sorted
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def save_params(run_dir: str, params: Params, record: dict[str, Any], step: int = 0) -> None:
    """Writes a checkpoint that has parameters only and replaces an earlier one.

    It can be loaded or trained from (`init_from`), but a run cannot be resumed from it.
    """
    with manager(run_dir, keep=1) as mngr:
        _save(mngr, step, {"params": params}, record)


def _check(mngr: ocp.CheckpointManager, step: int, items) -> None:
    """Raises ValueError naming the first difference between a checkpoint and the expected items.

    Checked before restoring, since Orbax names no culprit and prints tracebacks of its threads.
    """
    if not items.keys() & {"params", "rest"}:
        return  # nothing to compare; the metadata of all arrays takes longer to read than a record
    metadata = mngr.item_metadata(step)
    if "rest" in items and metadata.rest is not None:
        stored, wanted = ("reference" in x for x in (metadata.rest.tree, items["rest"].item))
        if stored != wanted:
            said = {True: "a reference", False: "no reference"}
            raise ValueError(f"it has {said[stored]}, but the run's objective needs {said[wanted]}")
    if "params" in items and metadata.params is not None:
        _check_shapes(metadata, items)
    if "rest" in items and metadata.rest is not None:
        _check_optimiser(metadata.rest.tree["opt_state"], items["rest"].item["opt_state"])


def _check_optimiser(stored, wanted) -> None:
    """Compares the number of arrays; Orbax renames the nodes of a stored optimiser state."""
    have, want = len(jax.tree.leaves(stored)), len(jax.tree.leaves(wanted))
    if have != want:
        raise ValueError(f"opt_state has {have} arrays, but the run's optimiser needs {want}")


def _check_shapes(metadata, items) -> None:
    of = lambda tree: {name: tuple(x.shape) for name, x in checksums.names(tree).items()}
    stored, wanted = of(metadata.params.tree), of(items["params"].item)
    for name in sorted(stored.keys() | wanted.keys()):
        have, want = stored.get(name, "absent"), wanted.get(name, "absent")
        if have != want:
            raise ValueError(f"{name} is {have}, but the model has {want}")


def _last(mngr: ocp.CheckpointManager, step: int | None = None) -> int:
    """Returns `step`, or the last step saved. Raises UserError if nothing is."""
    found = mngr.latest_step() if step is None else step
    if found is None:
        raise UserError(f"no checkpoint in {mngr.directory}")
    return found


def _restore(mngr: ocp.CheckpointManager, step: int, *, checked=None, **items):
    """Restores items of a checkpoint. Raises Damaged, or UserError if it does not fit `checked`."""
    try:
        _check(mngr, step, checked or items)
    except ValueError as e:
        raise UserError(_sentence(mngr, step, e)) from e
    except Exception as e:  # Orbax raises anything for files that are cut, empty or overwritten
        raise _error(mngr, step, e) from e
    try:
        return mngr.restore(step, args=ocp.args.Composite(**items))
    except Exception as e:
        raise _error(mngr, step, e) from e


def _error(mngr: ocp.CheckpointManager, step: int, error: Exception) -> Exception:
    """Returns Damaged, or another error if the files are not to blame.

    With several processes an error may be known to one of them only, which therefore cannot choose
    another checkpoint.
    """
    if isinstance(error, jax.errors.JaxRuntimeError | MemoryError):
        return error
    while isinstance(error.__cause__, Exception):  # Orbax's own message is long and says no more
        error = error.__cause__
    passing = isinstance(error, PermissionError) or re.search(PASSING, str(error))
    kind = UserError if passing or processes.is_distributed() else Damaged
    return kind(_sentence(mngr, step, error))


def _sentence(mngr: ocp.CheckpointManager, step: int, reason: object) -> str:
    """Says which checkpoint cannot be restored, why, and which one is there besides."""
    said = (str(reason).strip() or repr(reason)).splitlines()[0][:200]
    before = max((at for at in mngr.all_steps() if at < step), default=None)
    way = "" if before is None else f"{WAY} {before}, move {step} elsewhere"
    return f"checkpoint {mngr.directory}/{step} cannot be restored: {said}{way}"


def _compare(mngr: ocp.CheckpointManager, step: int, item: str, tree, kept) -> None:
    """Raises Damaged if an array of `tree` differs from its checksum in the record `kept`."""
    if SUMS not in kept or item not in kept[SUMS]:
        return
    if wrong := checksums.differing(tree, kept[SUMS][item]):
        reason = f"{item}/{wrong[0]} is not as it was saved (its checksum differs)"
        raise Damaged(_sentence(mngr, step, reason))


def restore(mngr: ocp.CheckpointManager, abstract: TrainState, step: int | None = None):
    """Restores the state at `step` (default: the last) with `abstract`'s shardings.

    Returns (state, record). Raises UserError if there is none or if it does not fit `abstract`, and
    Damaged if it cannot be read as it was written.
    """
    step = _last(mngr, step)
    kept = _record(mngr, step)
    got = _restore(
        mngr,
        step,
        params=ocp.args.StandardRestore(abstract.params),
        rest=ocp.args.StandardRestore(_rest(abstract)),
    )
    for item in ("params", "rest"):
        _compare(mngr, step, item, got[item], kept)
    if (found := int(got["rest"]["step"])) != step:
        raise Damaged(_sentence(mngr, step, f"it holds step {found}"))
    reference = None if abstract.reference is None else got["rest"]["reference"]
    rest = {k: v for k, v in got["rest"].items() if k != "reference"}
    return TrainState(params=got["params"], reference=reference, **rest), _own(kept)


def restore_last(mngr: ocp.CheckpointManager, abstract: TrainState):
    """Restores the last state that is not damaged, as `restore` does.

    The damaged ones after it are renamed to damaged-STEP, with a line on stderr. Raises Damaged,
    about the last one, if all are damaged.
    """
    damaged: dict[int, Damaged] = {}
    for at in sorted(mngr.all_steps(), reverse=True):
        try:
            found = restore(mngr, abstract, at)
        except Damaged as e:
            damaged[at] = e
            continue
        if damaged:
            processes.on_lead(functools.partial(_put_aside, mngr, damaged, at))
            mngr.reload()
        return found
    raise (
        next(iter(damaged.values())) if damaged else UserError(f"no checkpoint in {mngr.directory}")
    )


def _put_aside(mngr: ocp.CheckpointManager, damaged: dict[int, Damaged], good: int) -> None:
    for at, error in damaged.items():
        path = epath.Path(mngr.directory) / f"{ASIDE}{at}"
        if path.exists():
            path.rmtree()
        (path.parent / str(at)).rename(path)
        said = str(error).partition(WAY)[0]
        print(f"{said}; renamed to {path.name}, continuing from step {good}", file=sys.stderr)


def _record(mngr: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """Reads the record, with checksums. Raises UserError if a newer version of the package wrote
    the checkpoint, Damaged if the record is not as it was written."""
    found = _restore(mngr, step, record=ocp.args.JsonRestore())["record"]
    if not isinstance(found, dict):
        raise Damaged(_sentence(mngr, step, "its record is empty"))
    if DIGEST in found and found.pop(DIGEST) != _digest(found):
        raise Damaged(_sentence(mngr, step, "its record is not as it was saved"))
    sums = found[SUMS] if SUMS in found else {}
    if not (isinstance(sums, dict) and all(isinstance(x, dict) for x in sums.values())):
        raise Damaged(_sentence(mngr, step, "its record has no valid checksums"))
    written = found.pop("format", 1)  # the first checkpoints had no format number
    if not isinstance(written, int):
        raise Damaged(_sentence(mngr, step, f"its record has the format {written!r}"))
    if written > FORMAT:
        raise UserError(
            f"checkpoint {mngr.directory}: format {written}, this version reads up to {FORMAT}; "
            "update the package"
        )
    return found


def _own(kept: dict[str, Any]) -> dict[str, Any]:
    """Returns a record without its checksums."""
    return {k: v for k, v in kept.items() if k != SUMS}


def restore_begun(mngr: ocp.CheckpointManager, abstract: Any) -> Any:
    """Restores the arrays of a begun step from the last checkpoint; None if it has none."""
    step = mngr.latest_step()
    if step is None or mngr.item_metadata(step).begun is None:
        return None
    found = _restore(mngr, step, begun=ocp.args.StandardRestore(abstract))["begun"]
    _compare(mngr, step, "begun", found, _record(mngr, step))
    return found


@contextlib.contextmanager
def reading(run_dir: str, abstract_params: Params) -> Iterator[Callable[[Params], Params]]:
    """Yields a function that reads parts of a run's last parameters.

    It takes a tree with some leaves of `abstract_params`, under their names, and returns their
    arrays with their dtypes and shardings. So a large model can be read piece by piece.
    """
    if not exists(run_dir):
        raise UserError(f"no checkpoint in {run_dir}")
    checked = {"params": ocp.args.StandardRestore(abstract_params)}
    with manager(run_dir, params=ocp.PyTreeCheckpointHandler()) as mngr:
        step = _last(mngr)
        kept = _record(mngr, step)

        def read(part):
            # StandardRestore cannot skip leaves; PyTreeRestore with partial_restore can.
            saved = _as_saved(mngr, step, part)
            how = ocp.checkpoint_utils.construct_restore_args(saved)
            args = ocp.args.PyTreeRestore(item=saved, restore_args=how, partial_restore=True)
            found = _restore(mngr, step, checked=checked, params=args)["params"]
            _compare(mngr, step, "params", found, kept)
            return _cast(found, part)

        yield read


def _as_saved(mngr: ocp.CheckpointManager, step: int, part: Params) -> Params:
    """Returns abstract parameters with the dtypes that are stored: checksums are of these."""
    try:
        found = mngr.item_metadata(step).params
        if found is None:
            raise ValueError("its params are missing or damaged")
        stored = checksums.names(found.tree)
    except Exception as e:
        raise _error(mngr, step, e) from e
    names = iter(checksums.names(part))
    dtype = lambda x, name: stored[name].dtype if name in stored else x.dtype
    one = lambda x: jax.ShapeDtypeStruct(x.shape, dtype(x, next(names)), sharding=x.sharding)
    return jax.tree.map(one, part)


def _cast(found: Params, wanted: Params) -> Params:
    return jax.tree.map(
        lambda x, to: x if x.dtype == to.dtype else x.astype(to.dtype), found, wanted
    )


def record(run_dir: str) -> dict[str, Any]:
    """Returns the JSON record of a run's last checkpoint. Raises UserError if there is none."""
    if not exists(run_dir):
        raise UserError(f"no checkpoint in {run_dir}")
    with manager(run_dir) as mngr:
        return _own(_record(mngr, _last(mngr)))


def identity(run_dir: str) -> str:
    """Returns a digest of a run's last parameters: of their checksums, or of the files of a
    checkpoint without any."""
    if not exists(run_dir):
        raise UserError(f"no checkpoint in {run_dir}")
    with manager(run_dir) as mngr:
        step = _last(mngr)
        kept = _record(mngr, step)
        if SUMS in kept:
            return _digest(kept[SUMS]["params"])
        return workdir.digest(_files(epath.Path(mngr.directory) / str(step) / "params"))


def _files(directory: epath.Path) -> list[epath.Path]:
    inner = list(directory.iterdir())
    return [x for x in inner if x.is_file()] + [y for x in inner if x.is_dir() for y in _files(x)]


def restore_params(run_dir: str, abstract_params: Params) -> Params:
    """Restores only the parameters of a run's last checkpoint, with `abstract_params`' shardings.

    Raises UserError if there is no checkpoint or if it does not fit.
    """
    if not exists(run_dir):
        raise UserError(f"no checkpoint in {run_dir}")
    with manager(run_dir) as mngr:
        step = _last(mngr)
        kept = _record(mngr, step)
        saved = ocp.args.StandardRestore(_as_saved(mngr, step, abstract_params))
        found = _restore(mngr, step, params=saved)["params"]
        _compare(mngr, step, "params", found, kept)
        return _cast(found, abstract_params)
