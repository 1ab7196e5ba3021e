"""Digests of what the runs of a workdir read, in RUN_DIR/inputs.json.

A run that begins or continues compares what it reads now with what it and the other runs of the
workdir read before, if they have a checkpoint. What differs is refused by name. These are: the
corpus, the tokenizer, what the task reads (conversations, pairs, prompts, rewards), other files
that the config names (labels, templates), and the parameters of `init_from` and all other sources.
Process 0 reads the files whole, about 1 GB/s; of a run with checksums it reads only the record of
the last checkpoint. A run begun before there were digests gets them when it continues.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from sip import processes
from sip import workdir as workdirs
from sip.data import contamination, documents, files, huggingface
from sip.data import corpus as corpora
from sip.hf import configs
from sip.loading import source_dir
from sip.run import Run, RunConfig
from sip.sections import plain
from sip.structs import UserError
from sip.training import checkpoints

FILE = "inputs.json"
NOTHING = workdirs.digest(())  # earlier versions wrote it for a data set that was not built
PUBLISHED = (".json", ".safetensors", ".model", ".jinja")  # files of a Hugging Face checkpoint


def check(run: Run, c: RunConfig) -> None:
    """Compares what the run reads with inputs.json of all runs of the workdir, then writes its own.

    Called when corpus and tokenizer are there. Raises UserError naming what has changed.
    """
    # All processes: Orbax reads a checkpoint together, and process 0 alone would wait for the rest.
    sources = dict(_sources(run, c))
    processes.on_lead(lambda: _check(run, c, sources))


def _check(run: Run, c: RunConfig, sources: dict[str, str]) -> None:
    now = {"files": dict(_files(run, c)), "sources": sources}
    own = epath.Path(run.directory) / FILE
    before = None
    for path, kinds in _recorded(run):
        before = kinds if path == own else before
        for kind, known in kinds.items():
            for name, digest in now[kind].items():
                if name in known and known[name] not in (digest, NOTHING):
                    raise UserError(
                        f"run {run.name}: {name} has changed since {path.parent} read it ({path}); "
                        "restore it or use another workdir"
                    )
    if before != now:
        workdirs.write_json(own, now)


def _recorded(run: Run) -> Iterator[tuple[Any, dict[str, dict[str, str]]]]:
    """Yields (path, digests by kind and name) of the runs of this workdir; seeds share files."""
    shared, own = workdirs.shared_dir(run.workdir), workdirs.absolute(run.workdir)
    for path in _records(epath.Path(run.workdir)):
        yield path, _record(path)
    for other in shared.iterdir() if shared != own else ():
        for path in _records(other) if other.name != own.name else ():
            yield path, {"files": _record(path)["files"]}


def _records(workdir) -> list[Any]:
    """Returns inputs.json of the runs that have begun: what a failed start read binds nobody."""
    paths = [epath.Path(folder) / FILE for folder in workdirs.folders(str(workdir))]
    return [path for path in paths if path.exists() and workdirs.begun(path.parent)]


def _record(path) -> dict[str, dict[str, str]]:
    return workdirs.read_json(path, files=dict, sources=dict)


def _files(run: Run, c: RunConfig) -> Iterator[tuple[str, str]]:
    """Yields (name, digest) of the files that corpus, tokenizer and the run's config name."""
    shared = workdirs.shared_dir(run.workdir)
    yield from _corpus(corpora.data_config(run.config.data, "train"), shared / "data")
    read = c.reads()
    yield from ((name, _digest(paths)) for name, paths in read.items())
    sections = (run.config.tokenizer, run.config.runs[run.name])
    for name in sorted(set(_named(plain(sections)))):
        place = workdirs.place(name)
        if place in read:
            continue
        # os.path: a text that is too long for a path, such as a template, is none.
        if os.path.isfile(place) or ("://" in place and epath.Path(place).is_file()):
            yield name, _digest([place])
        elif os.path.isdir(place):
            yield name, _digest(_published(Path(place)))
    if (shared / "tokenizer.model").exists():
        yield "tokenizer.model", _digest([shared / "tokenizer.model"])


def _corpus(data: documents.DataConfig, built) -> Iterator[tuple[str, str]]:
    """Yields (name, digest) of what the corpus is read from and compared with.

    `built` is the directory of data sets that are built. If there are none, the run does not read
    them, and a later run may build them. A folder or a glob has changed if a file
    was added, too. Of a data set on the hub the texts are digested, as its cache may move.
    """
    sources = documents.sources(data)
    if any(one.source in documents.BUILT for one in sources) and (there := _below(built)):
        yield "data", _digest(there)
    for one in sources:
        if one.source in documents.FILES:
            yield one.name, _digest(files.listed(one.path, one.source))
        elif one.source == "huggingface" and Path(one.name).is_dir():
            yield one.name, _digest(_below(Path(one.name)))
        elif one.source == "huggingface":
            yield one.name, huggingface.digest(one.name, one.field)
    for _, path in data.contamination.against:
        yield path, _digest(contamination.paths(path))


def _named(value, key: str = "") -> Iterator[str]:
    """Yields the strings of a config that may be paths: values of a key `path`, and strings that
    end like a file."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _named(name)
            yield from _named(inner, name)
    elif isinstance(value, tuple):
        for inner in value:
            yield from _named(inner)
    elif isinstance(value, str) and value and _may_be_path(value):
        if key == "path" or Path(value).suffix:
            yield value


def _may_be_path(text: str) -> bool:
    scheme, colon, _ = text.partition("://")
    return not colon or scheme in workdirs.SCHEMES


def _sources(run: Run, c: RunConfig) -> Iterator[tuple[str, str]]:
    """Yields (name, digest) of the checkpoints that the run reads."""
    for key, source in c.sources().items():
        if source and source != run.name:
            yield source, _identity(source_dir(run.workdir, source, key))


def _identity(directory: str) -> str:
    """Returns a digest of a checkpoint's parameters and tokenizer."""
    path = epath.Path(directory)
    if configs.exists(directory):
        return processes.broadcast(lambda: _digest(_published(Path(directory))))
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
