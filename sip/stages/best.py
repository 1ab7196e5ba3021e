"""The parameters with which a run's evaluation was best, beside the run's own checkpoints.

They lie in DIR/best, a directory that all readers of checkpoints take (`init_from=NAME/best`).
"""

import math
from collections.abc import Mapping

from etils import epath

from sip import setup
from sip.structs import Params, UserError
from sip.training import checkpoints

FOLDER = "best"


def workdir_of(directory: str) -> str:
    """The workdir around a run's directory, or around that of its best parameters."""
    path = epath.Path(directory).absolute()
    run = path.parent if path.name == FOLDER else path
    return str(run.parent.parent)


def keep(
    config,
    name: str,
    workdir: str,
    c: setup.RunConfig,
    params: Params,
    figures: Mapping[str, float],
    done: int,
) -> None:
    """Keeps the parameters of step `done` where `checkpoint.best`, one of its `figures`, is better
    than ever before; of equals the first stays, what is not finite is none. Raises UserError
    where there is none of that name."""
    wanted = c.checkpoint.best
    if not wanted:
        return
    if wanted not in figures:
        raise UserError(f"checkpoint.best {wanted!r} is none of {', '.join(sorted(figures))}")
    value = float(figures[wanted])
    if not math.isfinite(value):
        return
    sign = -1 if c.checkpoint.lowest else 1
    directory = setup.run_dir(workdir, f"{name}/{FOLDER}")
    if checkpoints.exists(directory):
        before = checkpoints.record(directory)["best"]
        if sign * before["value"] >= sign * value:
            return
    kept = setup.record(config, name, c.model, [])
    kept["best"] = {"metric": wanted, "value": value, "step": done}
    checkpoints.save_params(directory, params, kept, done)
    setup.keep_tokenizer(config, workdir, directory)
