"""Paths inside a workdir, its locks and its atomic files.

WORKDIR/config.json       the recipe of the last start (sip/stages/binding.py)
WORKDIR/data, tokenizer.model   built corpus and trained tokenizer (shared_dir)
WORKDIR/runs/NAME         a run: checkpoints, tokenizer, metrics.jsonl, eval.json, done.json
WORKDIR/runs/NAME/best    the parameters with the best evaluation (checkpoint.best)
WORKDIR/seed0, seed1 ..   a workdir per seed, with WORKDIR/seeds.json (--seeds)
WORKDIR/.lock             held by the process that writes here (`locked`)
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from etils import epath

from sip import processes
from sip.sections import plain
from sip.structs import UserError

SEEDS = "seeds.json"  # the seeds of a job over several seeds, and whether they share a corpus
BEST = "best"  # a run's directory of its best parameters
LOCK = ".lock"
CONFIG, DONE = "config.json", "done.json"
TAKEN = "from.json"  # in a run's directory: the workdir that the run was copied from (--from)


class _Absent:
    """The value of a key that is not there; unlike None, equal to no value of a config."""

    def __repr__(self):
        return "absent"


ABSENT = _Absent()
SCHEMES = ("gs", "s3", "hf")  # of the URLs that are not local


def place(path: str) -> str:
    """Returns a path as the user means it: ~ is expanded, file:// is removed.

    Every path of a flag or a config comes through here. Raises UserError for a scheme that cannot
    be read, such as a mistyped one.
    """
    scheme, colon, rest = path.partition(":")
    if not (colon and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme) and rest.startswith("/")):
        return os.path.expanduser(path)
    url = urlsplit(path)
    if scheme == "file" and url.netloc in ("", "localhost"):
        return unquote(url.path)
    if scheme not in SCHEMES or not rest.startswith("//"):
        known = ", ".join(f"{known}://" for known in ("file", *SCHEMES))
        raise UserError(f"{path}: must be a local path or begin with one of {known}")
    return path


def run_dir(workdir: str, name: str) -> str:
    """The directory of a run."""
    return str(epath.Path(workdir) / "runs" / name)


def workdir_of(directory: str) -> str:
    """The workdir that holds a run's directory, or the directory of its best parameters."""
    path = epath.Path(directory).absolute()
    run = path.parent if path.name == BEST else path
    return str(run.parent.parent)


def absolute(workdir: str) -> epath.Path:
    """The path of a workdir from the root."""
    return epath.Path(workdir if "://" in workdir else os.path.abspath(workdir))


def shared_dir(workdir: str) -> epath.Path:
    """The directory of corpus and tokenizer: the workdir, or its parent if seeds share them."""
    own = absolute(workdir)
    path = own.parent / SEEDS
    found = read_seeds(path) if path.exists() else {"shared": False, "seeds": []}
    return own.parent if found["shared"] and own.name in map(seed_name, found["seeds"]) else own


def read_seeds(path) -> dict[str, Any]:
    """Reads seeds.json. Raises UserError if it is damaged."""
    return read_json(path, seeds=list, shared=bool)


def seed_name(seed: int) -> str:
    """The name of one seed's workdir inside the workdir of a job over several seeds."""
    return f"seed{seed}"


def read_json(path, **keys: type | tuple[type, ...]) -> dict[str, Any]:
    """Reads a JSON object that has `keys` of the given types.

    Raises UserError if the file is cut, empty or unreadable, or if a key is missing or of another
    type.
    """
    try:
        found = json.loads(epath.Path(path).read_text())
    except (OSError, ValueError, RecursionError) as e:
        reason = "it is empty or damaged" if isinstance(e, ValueError) else str(e)
        raise UserError(
            f"{path}: cannot be read: {reason}; restore it, or delete it and run sip.train again"
        ) from e
    if not isinstance(found, dict):
        raise UserError(f"{path}: must hold a JSON object; restore it or delete it")
    for key, kind in keys.items():
        if key not in found or not isinstance(found[key], kind):
            raise UserError(f"{path}: {key!r} is missing or of a wrong type; restore or delete it")
    return found


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

    A local file is on the disk before it gets its name, so a power cut leaves no empty one. Several
    processes may write the same file at once; the last one wins.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f".{path.name}.{uuid.uuid4().hex}.part"
    try:
        _put(part, data)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _put(path: epath.Path, data: bytes) -> None:
    if "://" in str(path):
        path.write_bytes(data)
        return
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def locked(
    directory: str, what: str = "workdir", *, wait: bool = False, lock: str = LOCK
) -> Iterator[None]:
    """Makes this job the only one that writes in a directory; creates the directory.

    Process 0 holds a lock of the operating system (flock) on DIRECTORY/`lock`, which ends with the
    process, however it ends. On NFS this needs a server with locks. A store (gs://) has no lock
    that a dead process cannot hold, so nothing is locked there: start one job per workdir.
    Raises UserError if another process holds the lock, unless `wait`.
    """
    held: list[Any] = []
    if "://" not in directory:
        processes.on_lead(lambda: held.append(_lock(directory, what, wait, lock)))
    try:
        yield
    finally:
        for file in held:
            file.close()


def _lock(directory: str, what: str, wait: bool, lock: str):
    try:
        os.makedirs(directory, exist_ok=True)
        file = open(os.path.join(directory, lock), "a+")
    except OSError as e:
        raise UserError(f"{what} {directory}: {e}") from e
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        return file
    except OSError as e:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        busy = f"is in use by {owner}; wait for it or stop it"
        reason = busy if isinstance(e, BlockingIOError) else f"cannot be locked: {e}"
        raise UserError(f"{what} {directory} {reason}") from e
    except BaseException:  # interrupted while it waits
        file.close()
        raise


def clean(workdir: str) -> None:
    """Removes temporary files that killed processes left. Only for the holder of the lock."""
    if not processes.lead():
        return
    own = re.compile(r"\..+\.[0-9a-f]{32}\.part")
    for folder in (workdir, *folders(workdir)):
        for path in epath.Path(folder).iterdir():
            if own.fullmatch(path.name):
                path.unlink()


def folders(workdir: str) -> list[str]:
    """Returns the directories of all runs of a workdir and of their best parameters."""
    runs = epath.Path(workdir) / "runs"
    found = [path for path in runs.iterdir() if path.is_dir()] if runs.exists() else []
    best = [path / BEST for path in found if (path / BEST).exists()]
    return [str(path) for path in sorted((*found, *best))]


def existing(workdir: str, flag: str = "--workdir") -> str:
    """Returns `workdir`. Raises UserError if it is no workdir of sip.train, perhaps mistyped."""
    path = epath.Path(workdir)
    if not any((path / name).exists() for name in ("config.json", "data", "tokenizer.model")):
        raise UserError(f"{flag} {workdir}: not a workdir of sip.train; nothing is made there")
    return workdir


def digest(paths: Iterable[Any]) -> str:
    """Returns the SHA-256 of files' names and contents. It reads them whole, about 1 GB/s."""
    found = hashlib.sha256()
    for path in sorted(map(epath.Path, paths)):
        found.update(path.name.encode() + b"\0")
        own = hashlib.sha256()
        with path.open("rb") as file:
            while some := file.read(1 << 24):
                own.update(some)
        found.update(own.digest())
    return found.hexdigest()


def begun(directory) -> bool:
    """Returns True if a run's directory has a checkpoint, or says that the run is finished."""
    path = epath.Path(directory)
    if (path / DONE).exists():
        return True
    if (path / TAKEN).exists():  # a copy that was interrupted
        return False
    saved = path / "checkpoints"
    # Orbax gives a finished checkpoint its step as its name.
    return saved.exists() and any(one.name.isdigit() for one in saved.iterdir())


def resolved(config) -> dict[str, Any]:
    """Returns the config as plain JSON values, as config.json stores it."""
    return json.loads(to_json(plain(config)))


def differing(a, b) -> set[str]:
    """Returns the dotted names of keys in which two nested dicts differ."""
    return set(changes(a, b))


def changes(a, b, at: str = "") -> dict[str, tuple[Any, Any]]:
    """Returns the values (in a, in b) by dotted key in which two nested dicts differ.

    The value of a key that is not there is ABSENT.
    """
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return {} if a == b else {at: (a, b)}
    found: dict[str, tuple[Any, Any]] = {}
    for k in dict.fromkeys((*a, *b)):
        inner = a[k] if k in a else ABSENT, b[k] if k in b else ABSENT
        found |= changes(*inner, f"{at}.{k}" if at else k)
    return found


def never_an_input(outputs: Mapping[str, str], inputs: Iterable[str]) -> None:
    """Raises UserError if a file that a command writes is one that it reads, also through links, or
    if two outputs are one file. `outputs` are paths by flag; an empty one is not written."""
    given = {flag: path for flag, path in outputs.items() if path}
    read = [path for path in inputs if path]
    for flag, path in given.items():
        if any(_is_same(path, other) for other in read):
            raise UserError(f"--{flag} {path}: is an input, which is never overwritten")
        for other in given:
            if other < flag and _is_same(path, given[other]):
                raise UserError(f"--{other} and --{flag} are both {path}")


def _is_same(a: str, b: str) -> bool:
    if "://" in a or "://" in b:
        return a == b
    linked = os.path.exists(a) and os.path.exists(b) and os.path.samefile(a, b)
    return linked or os.path.realpath(a) == os.path.realpath(b)


def check_reachable(path: str, name: str) -> None:
    """Raises UserError if a path in a store (gs://...) cannot be read; `name` says what it is.

    Causes are a missing package, missing credentials or no network.
    """
    if "://" not in path:
        return
    try:
        epath.Path(path).exists()
    except Exception as e:  # every storage library raises its own exceptions
        reason = " ".join(str(e).split())[:200] or type(e).__name__
        raise UserError(f"{name} {path} cannot be reached: {reason}") from e
