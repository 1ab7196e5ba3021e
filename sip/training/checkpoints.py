"""Orbax checkpoints of a run: everything needed to go on, saved asynchronously.

A checkpoint is three items: `params`, `rest` (optimiser, counters, reference) and `record` (JSON:
configs, data position). Parameters are an item of their own, so that another run, an evaluation
or a judge reads them alone. A fourth, `begun`, is there where a step had begun before the last
update. A save that was cut off is never listed.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from sip import processes
from sip.structs import Params, TrainState, UserError

FORMAT = 1  # of what is saved: greater where an older version would misread it


def manager(run_dir: str, *, keep: int = 2, **handlers) -> ocp.CheckpointManager:
    """The checkpoints of a run, in `run_dir`/checkpoints (a local path or gs://); `handlers`: of
    items that are not to be read as they are written."""
    path = epath.Path(run_dir) / "checkpoints"
    if "://" not in str(run_dir):
        path = epath.Path(path).absolute()  # orbax fails in its background thread otherwise
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
    handlers = {
        "params": ocp.StandardCheckpointHandler(),
        "rest": ocp.StandardCheckpointHandler(),
        "record": ocp.JsonCheckpointHandler(),
        "begun": ocp.StandardCheckpointHandler(),
        **handlers,
    }
    return ocp.CheckpointManager(path, options=options, item_handlers=handlers)


def exists(run_dir: str) -> bool:
    """Whether a run has a finished checkpoint."""
    # Process 0 says, or one would see what another is about to make, and open it alone.
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
    """Starts saving `state` under its step, and arrays of a step that has `begun`; nothing is done
    where that step is saved already."""
    step = int(state.step)
    if step in mngr.all_steps():
        return
    items = dict(
        params=ocp.args.StandardSave(state.params),
        rest=ocp.args.StandardSave(_rest(state)),
        record=ocp.args.JsonSave(dict(record, format=FORMAT)),
    )
    if begun is not None:
        items["begun"] = ocp.args.StandardSave(begun)
    mngr.save(step, args=ocp.args.Composite(**items))


def save_params(run_dir: str, params: Params, record: dict[str, Any], step: int = 0) -> None:
    """Writes a checkpoint of parameters alone, in the place of an earlier one: to use or to start
    from, not to go on."""
    with manager(run_dir, keep=1) as mngr:
        own = dict(record, format=FORMAT)
        items = dict(params=ocp.args.StandardSave(params), record=ocp.args.JsonSave(own))
        mngr.save(step, args=ocp.args.Composite(**items))


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return {name(path): tuple(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def _check(mngr: ocp.CheckpointManager, step: int, items) -> None:
    """Names what differs; orbax names nothing, and prints its threads' tracebacks."""
    metadata = mngr.item_metadata(step)
    if "rest" in items and metadata.rest is not None:
        stored, wanted = ("reference" in x for x in (metadata.rest.tree, items["rest"].item))
        if stored != wanted:
            said = {True: "a reference", False: "no reference"}
            raise ValueError(f"it holds {said[stored]}, the run's objective wants {said[wanted]}")
    if "params" in items and metadata.params is not None:
        _check_shapes(metadata, items)
    if "rest" in items and metadata.rest is not None:
        _check_optimiser(metadata.rest.tree["opt_state"], items["rest"].item["opt_state"])


def _check_optimiser(stored, wanted) -> None:
    """By their number: of a stored state orbax names the nodes in its own way."""
    have, want = len(jax.tree.leaves(stored)), len(jax.tree.leaves(wanted))
    if have != want:
        raise ValueError(f"opt_state holds {have} arrays, the run's optimiser keeps {want}")


def _check_shapes(metadata, items) -> None:
    stored, wanted = _shapes(metadata.params.tree), _shapes(items["params"].item)
    for name in sorted(stored.keys() | wanted.keys()):
        have, want = stored.get(name, "absent"), wanted.get(name, "absent")
        if have != want:
            raise ValueError(f"{name} is {have}, the model's is {want}")


def _restore(mngr: ocp.CheckpointManager, step: int | None = None, *, checked=None, **items):
    step = mngr.latest_step() if step is None else step
    if step is None:
        raise UserError(f"no checkpoint in {mngr.directory}")
    try:
        _check(mngr, step, checked or items)
        return mngr.restore(step, args=ocp.args.Composite(**items))
    except (ValueError, KeyError, FileNotFoundError, OSError) as e:
        reason = (str(e).strip() or repr(e)).splitlines()[0][:200]
        raise UserError(f"checkpoint {mngr.directory}/{step} cannot be restored: {reason}") from e


def restore(mngr: ocp.CheckpointManager, abstract: TrainState, step: int | None = None):
    """The state at `step` (default: the last) on `abstract`'s shardings -> (state, record)."""
    kept = _record(mngr, step)
    got = _restore(
        mngr,
        step,
        params=ocp.args.StandardRestore(abstract.params),
        rest=ocp.args.StandardRestore(_rest(abstract)),
    )
    reference = None if abstract.reference is None else got["rest"]["reference"]
    rest = {k: v for k, v in got["rest"].items() if k != "reference"}
    return TrainState(params=got["params"], reference=reference, **rest), kept


def _record(mngr: ocp.CheckpointManager, step: int | None = None) -> dict[str, Any]:
    """The record, which says first whether the rest can be read."""
    found = _restore(mngr, step, record=ocp.args.JsonRestore())["record"]
    written = found.pop("format", 1)  # there was no number before
    if written > FORMAT:
        raise UserError(
            f"checkpoint {mngr.directory}: format {written}, this version reads up to {FORMAT}"
        )
    return found


def restore_begun(mngr: ocp.CheckpointManager, abstract: Any) -> Any:
    """What the last checkpoint holds of a step that had begun; None where it holds nothing."""
    step = mngr.latest_step()
    if step is None or mngr.item_metadata(step).begun is None:
        return None
    return _restore(mngr, step, begun=ocp.args.StandardRestore(abstract))["begun"]


@contextlib.contextmanager
def reading(run_dir: str, abstract_params: Params) -> Iterator[Callable[[Params], Params]]:
    """What reads parts of a run's last parameters: a tree with some of the leaves of
    `abstract_params`, under their names -> arrays on their shardings."""
    if not exists(run_dir):
        raise UserError(f"no checkpoint in {run_dir}")
    checked = {"params": ocp.args.StandardRestore(abstract_params)}
    with manager(run_dir, params=ocp.PyTreeCheckpointHandler()) as mngr:

        def read(part):
            how = ocp.checkpoint_utils.construct_restore_args(part)
            args = ocp.args.PyTreeRestore(item=part, restore_args=how, partial_restore=True)
            return _restore(mngr, checked=checked, params=args)["params"]

        yield read


def record(run_dir: str) -> dict[str, Any]:
    """The JSON record of a run's last checkpoint. Raises UserError where there is none."""
    if not exists(run_dir):
        raise UserError(f"no checkpoint in {run_dir}")
    with manager(run_dir) as mngr:
        return _record(mngr)


def restore_params(run_dir: str, abstract_params: Params) -> Params:
    """The parameters alone of a run's last checkpoint, on `abstract_params`' shardings."""
    if not exists(run_dir):
        raise UserError(f"no checkpoint in {run_dir}")
    with manager(run_dir) as mngr:
        return _restore(mngr, params=ocp.args.StandardRestore(abstract_params))["params"]
