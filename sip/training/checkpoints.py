"""Orbax checkpoints of a run: everything needed to continue it, saved asynchronously.

A checkpoint has three items: `params`, `rest` (optimiser, counters, reference) and `record` (JSON:
configs, data position). Parameters are an item of their own, so that another run, an evaluation or
a judge can read them without the rest. A fourth item, `begun`, exists if the next step's rollouts
were already sampled. An interrupted save is never listed.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from sip import processes
from sip.structs import Params, TrainState, UserError
from sip.workdir import finite

FORMAT = 1  # version of the checkpoint format; raise it if older code would misread a checkpoint


def manager(run_dir: str, *, keep: int = 2, **handlers) -> ocp.CheckpointManager:
    """Returns the Orbax manager of `run_dir`/checkpoints, a local path or a gs:// URL.

    The last `keep` checkpoints are kept. `handlers` replace the default handlers of items.
    """
    path = epath.Path(run_dir) / "checkpoints"
    if "://" not in str(run_dir):
        path = epath.Path(path).absolute()  # Orbax's background thread fails on a relative path
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
    items = dict(
        params=ocp.args.StandardSave(state.params),
        rest=ocp.args.StandardSave(_rest(state)),
        record=ocp.args.JsonSave(finite(dict(record, format=FORMAT))),
    )
    if begun is not None:
        items["begun"] = ocp.args.StandardSave(begun)
    mngr.save(step, args=ocp.args.Composite(**items))


def save_params(run_dir: str, params: Params, record: dict[str, Any], step: int = 0) -> None:
    """Writes a checkpoint that has parameters only and replaces an earlier one.

    It can be loaded or trained from (`init_from`), but a run cannot be resumed from it.
    """
    with manager(run_dir, keep=1) as mngr:
        own = finite(dict(record, format=FORMAT))
        items = dict(params=ocp.args.StandardSave(params), record=ocp.args.JsonSave(own))
        mngr.save(step, args=ocp.args.Composite(**items))


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return {name(path): tuple(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def _check(mngr: ocp.CheckpointManager, step: int, items) -> None:
    """Raises ValueError naming the first difference between a checkpoint and the expected items.

    Checked before restoring, since Orbax names no culprit and prints tracebacks of its threads.
    """
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
    stored, wanted = _shapes(metadata.params.tree), _shapes(items["params"].item)
    for name in sorted(stored.keys() | wanted.keys()):
        have, want = stored.get(name, "absent"), wanted.get(name, "absent")
        if have != want:
            raise ValueError(f"{name} is {have}, but the model has {want}")


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
    """Restores the state at `step` (default: the last) with `abstract`'s shardings.

    Returns (state, record). Raises UserError if there is none or if it does not fit `abstract`.
    """
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
    """Reads the record. Raises UserError if a newer version of the package wrote the checkpoint."""
    found = _restore(mngr, step, record=ocp.args.JsonRestore())["record"]
    written = found.pop("format", 1)  # the first checkpoints had no format number
    if written > FORMAT:
        raise UserError(
            f"checkpoint {mngr.directory}: format {written}, this version reads up to {FORMAT}; "
            "update the package"
        )
    return found


def restore_begun(mngr: ocp.CheckpointManager, abstract: Any) -> Any:
    """Restores the arrays of a begun step from the last checkpoint; None if it has none."""
    step = mngr.latest_step()
    if step is None or mngr.item_metadata(step).begun is None:
        return None
    return _restore(mngr, step, begun=ocp.args.StandardRestore(abstract))["begun"]


@contextlib.contextmanager
def reading(run_dir: str, abstract_params: Params) -> Iterator[Callable[[Params], Params]]:
    """Yields a function that reads parts of a run's last parameters.

    It takes a tree with some leaves of `abstract_params`, under their names, and returns their
    arrays with their shardings. So a large model can be read piece by piece.
    """
    if not exists(run_dir):
        raise UserError(f"no checkpoint in {run_dir}")
    checked = {"params": ocp.args.StandardRestore(abstract_params)}
    with manager(run_dir, params=ocp.PyTreeCheckpointHandler()) as mngr:

        def read(part):
            # StandardRestore cannot skip leaves; PyTreeRestore with partial_restore can.
            how = ocp.checkpoint_utils.construct_restore_args(part)
            args = ocp.args.PyTreeRestore(item=part, restore_args=how, partial_restore=True)
            return _restore(mngr, checked=checked, params=args)["params"]

        yield read


def record(run_dir: str) -> dict[str, Any]:
    """Returns the JSON record of a run's last checkpoint. Raises UserError if there is none."""
    if not exists(run_dir):
        raise UserError(f"no checkpoint in {run_dir}")
    with manager(run_dir) as mngr:
        return _record(mngr)


def restore_params(run_dir: str, abstract_params: Params) -> Params:
    """Restores only the parameters of a run's last checkpoint, with `abstract_params`' shardings.

    Raises UserError if there is no checkpoint or if it does not fit.
    """
    if not exists(run_dir):
        raise UserError(f"no checkpoint in {run_dir}")
    with manager(run_dir) as mngr:
        return _restore(mngr, params=ocp.args.StandardRestore(abstract_params))["params"]
