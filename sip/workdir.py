"""Paths inside a workdir, the config that it belongs to, and atomic files.

WORKDIR/config.json       the recipe
WORKDIR/data, tokenizer.model   built corpus and trained tokenizer (shared_dir)
WORKDIR/runs/NAME         a run: checkpoints, tokenizer, metrics.jsonl, eval.json, done.json
WORKDIR/runs/NAME/best    the parameters with the best evaluation (checkpoint.best)
WORKDIR/seed0, seed1 ..   a workdir per seed, with WORKDIR/seeds.json (--seeds)
"""

import json
import math
import os
import uuid
from typing import Any

from etils import epath

from sip import processes
from sip.sections import plain
from sip.structs import UserError

SEEDS = "seeds.json"  # the seeds of a job over several seeds, and whether they share a corpus
BEST = "best"  # a run's directory of its best parameters


def run_dir(workdir: str, name: str) -> str:
    """The directory of a run."""
    return str(epath.Path(workdir) / "runs" / name)


def workdir_of(directory: str) -> str:
    """The workdir that holds a run's directory, or the directory of its best parameters."""
    path = epath.Path(directory).absolute()
    run = path.parent if path.name == BEST else path
    return str(run.parent.parent)


def shared_dir(workdir: str) -> epath.Path:
    """The directory of corpus and tokenizer: the workdir, or its parent if seeds share them."""
    own = epath.Path(workdir if "://" in workdir else os.path.abspath(workdir))
    path = own.parent / SEEDS
    found = json.loads(path.read_text()) if path.exists() else {"shared": False, "seeds": []}
    return own.parent if found["shared"] and own.name in map(seed_name, found["seeds"]) else own


def seed_name(seed: int) -> str:
    """The name of one seed's workdir inside the workdir of a job over several seeds."""
    return f"seed{seed}"


def finite(value: Any) -> Any:
    """Returns a JSON value with None in place of numbers that are not finite, recursively."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(value: Any, **how: Any) -> str:
    """Returns strict JSON: numbers that are not finite are null. `how` is passed to json.dumps."""
    return json.dumps(finite(value), allow_nan=False, **how)


def write_json(path, value) -> None:
    """Writes a JSON file atomically, on process 0 alone."""
    if processes.lead():
        write_atomically(path, to_json(value, indent=1).encode())


def write_atomically(path, data: bytes) -> None:
    """Writes a file whole or not at all: a temporary file beside it is renamed to it.

    Several processes may write the same file at once; the last one wins.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f".{path.name}.{uuid.uuid4().hex}.part"
    try:
        part.write_bytes(data)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def claim(config, workdir: str) -> None:
    """Writes the resolved config to WORKDIR/config.json. Raises UserError as `check_claim` does."""
    check_claim(config, workdir)
    try:
        write_json(epath.Path(workdir) / "config.json", resolved(config))
    except OSError as e:
        raise UserError(f"workdir {workdir}: {e}") from e


def check_claim(config, workdir: str) -> None:
    """Raises UserError if a workdir belongs to another config or to a job over seeds."""
    path, wanted = epath.Path(workdir) / "config.json", resolved(config)
    if (path.parent / SEEDS).exists():
        raise UserError(
            f"workdir {workdir} belongs to a job over seeds: give --seeds or use another workdir"
        )
    try:
        tokenizer = shared_dir(workdir) / "tokenizer.model"
        begun = (path.parent / "runs").exists() or tokenizer.exists()
        found = json.loads(path.read_text()) if path.exists() and begun else wanted
    except (OSError, ValueError) as e:
        raise UserError(f"workdir {workdir}: {e}") from e
    if found != wanted:
        keys = ", ".join(sorted(differing(found, wanted))[:5])
        raise UserError(
            f"workdir {workdir} belongs to another config, which differs in {keys}; use another "
            "workdir"
        )


def resolved(config) -> dict[str, Any]:
    """Returns the config as plain JSON values, as config.json stores it."""
    return json.loads(to_json(plain(config)))


def differing(a, b, at: str = "") -> set[str]:
    """Returns the dotted names of keys in which two nested dicts differ."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return set() if a == b else {at}
    keys = set(a) | set(b)
    missing = object()  # unlike None, equal to no value of a config
    return {
        found
        for k in keys
        for found in differing(
            a[k] if k in a else missing, b[k] if k in b else missing, f"{at}.{k}" if at else k
        )
    }
