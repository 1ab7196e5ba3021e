"""Digests of what the runs of a workdir read, in RUN_DIR/inputs.json.

A run that begins or continues compares what it reads now with what it and the other runs of the
workdir read before. What differs is refused by name. These are: the corpus, the tokenizer, other
files that the config names (labels, templates), and the parameters of `init_from` and all other
sources. Process 0 reads the files whole, about 1 GB/s; of a run with checksums it reads only the
record of the last checkpoint. A run begun before there were digests gets them when it continues.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from sip import processes
from sip import workdir as workdirs
from sip.data.documents import BUILT
from sip.hf import configs
from sip.loading import source_dir
from sip.run import Run, RunConfig
from sip.sections import plain
from sip.structs import UserError
from sip.training import checkpoints

FILE = "inputs.json"
PUBLISHED = (".json", ".safetensors", ".model", ".jinja")  # files of a Hugging Face checkpoint


def check(run: Run, c: RunConfig) -> None:
    """Compares what the run reads with inputs.json of all runs of the workdir, then writes its own.

    Called when corpus and tokenizer are there. Raises UserError naming what has changed.
    """
    processes.on_lead(lambda: _check(run, c))


def _check(run: Run, c: RunConfig) -> None:
    now = {"files": dict(_files(run)), "sources": dict(_sources(run, c))}
    for path, kind, known in _recorded(run):
        for name, digest in now[kind].items():
            if name in known and known[name] != digest:
                raise UserError(
                    f"run {run.name}: {name} has changed since {path.parent} read it ({path}); "
                    "restore it or use another workdir"
                )
    path = epath.Path(run.directory) / FILE
    if not path.exists() or _record(path) != now:
        workdirs.write_json(path, now)


def _recorded(run: Run) -> Iterator[tuple[Any, str, dict[str, str]]]:
    """Yields (path, kind, digests by name) of runs of this workdir; seeds share their files."""
    shared, own = workdirs.shared_dir(run.workdir), epath.Path(run.workdir)
    for path in _records(own):
        for kind, known in _record(path).items():
            yield path, kind, known
    for other in shared.iterdir() if shared.name != own.name else ():
        for path in _records(other) if other.name != own.name else ():
            yield path, "files", _record(path)["files"]


def _records(workdir) -> list[Any]:
    paths = [epath.Path(folder) / FILE for folder in workdirs.folders(str(workdir))]
    return [path for path in paths if path.exists()]


def _record(path) -> dict[str, dict[str, str]]:
    return workdirs.read_json(path, files=dict, sources=dict)


def _files(run: Run) -> Iterator[tuple[str, str]]:
    """Yields (name, digest) of the files that corpus, tokenizer and the run's config name."""
    shared = workdirs.shared_dir(run.workdir)
    if run.config.data.source in BUILT:
        yield "data", _digest(_below(shared / "data"))
    sections = (run.config.data, run.config.tokenizer, run.config.runs[run.name])
    for name in sorted(set(_named(plain(sections)))):
        path = Path(workdirs.place(name))
        if path.is_file() or path.is_dir():
            yield name, _digest([path] if path.is_file() else _published(path))
    if (shared / "tokenizer.model").exists():
        yield "tokenizer.model", _digest([shared / "tokenizer.model"])


def _named(value, key: str = "") -> Iterator[str]:
    """Yields the strings of a config that may be paths: values of a key `path`, and strings that
    end like a file. Of FILE.py:FUNCTION, a reward, it is the file."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _named(name)
            yield from _named(inner, name)
    elif isinstance(value, tuple):
        for inner in value:
            yield from _named(inner)
    elif isinstance(value, str) and value and "://" not in value:
        value = value.rpartition(":")[0] if re.search(r"\.py:\w+$", value) else value
        if key == "path" or Path(value).suffix:
            yield value


def _sources(run: Run, c: RunConfig) -> Iterator[tuple[str, str]]:
    """Yields (name, digest) of the checkpoints that the run reads."""
    for key, source in c.sources().items():
        if source and source != run.name:
            yield source, _identity(source_dir(run.workdir, source, key))


def _identity(directory: str) -> str:
    """Returns a digest of a checkpoint's parameters and tokenizer."""
    path = epath.Path(directory)
    if configs.exists(directory):
        return _digest(_published(Path(directory)))
    beside = [path / name for name in ("tokenizer.json", "tokenizer.model")]
    parts = [_digest(x for x in beside if x.exists()), checkpoints.identity(directory)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _published(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.suffix in PUBLISHED and path.is_file()]


def _below(directory) -> list[Any]:
    """Returns all files below a directory, without hidden and unfinished ones."""
    found = []
    for path in directory.iterdir() if directory.exists() else ():
        if not path.name.startswith((".", "incomplete.")):
            found += _below(path) if path.is_dir() else [path]
    return found


def _digest(paths) -> str:
    """The digest of files; several runs of one command read large ones once."""
    return _of(tuple(sorted((str(path), *_version(path)) for path in paths)))


def _version(path) -> tuple[int, int]:
    if "://" in str(path):
        return (found := epath.Path(path).stat()).length, found.mtime
    return (found := os.stat(path)).st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=64)
def _of(files: tuple[tuple[str, int, int], ...]) -> str:
    return workdirs.digest(path for path, _, _ in files)
