"""Paths inside a workdir, and atomic JSON files.

WORKDIR/config.json       the recipe
WORKDIR/data, tokenizer.model   built corpus and trained tokenizer (shared_dir)
WORKDIR/runs/NAME         a run: checkpoints, tokenizer, metrics.jsonl, eval.json, done.json
WORKDIR/runs/NAME/best    the parameters with the best evaluation (checkpoint.best)
WORKDIR/seed0, seed1 ..   a workdir per seed, with WORKDIR/seeds.json (--seeds)
"""

import json
import os
import uuid

from etils import epath

from sip import processes

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


def write_json(path, value) -> None:
    """Writes a JSON file atomically, on process 0 alone."""
    if processes.lead():
        write_atomically(path, json.dumps(value, indent=1).encode())


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
