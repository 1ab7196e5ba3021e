"""The output of a shard: JSON Lines, and beside it how far the command has come.

A line has `doc` (the text's index), `part` (train, validation or test) and `text` with thoughts.
After each portion of texts the lines are on the disk before the progress is. A command that was
stopped cuts off the lines after the last progress and continues there, so that its file is that of
an uninterrupted one. Texts that a server did not answer are asked again by the next command; their
lines stand where they were answered.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sip import workdir
from sip.annotate.teachers import Yield
from sip.structs import UserError
from sip.workdir import differing, read_json, to_json, write_atomically


@dataclass(frozen=True)
class Shard:
    """One of `shards` equal parts of the texts: those whose index is `shard` modulo `shards`."""

    shard: int
    shards: int

    def path(self, out: str) -> Path:
        """Returns the shard's file: `out`, with the shard's number if there are several."""
        path = Path(out)
        if self.shards == 1:
            return path
        name = f"{path.stem}-{self.shard:05}-of-{self.shards:05}{path.suffix}"
        return path.with_name(name)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Makes this command the only one that writes an output. Raises UserError if another does, or
    if there is no directory for it."""
    if not path.parent.is_dir():
        raise UserError(f"{path}: directory {path.parent} does not exist; create it first")
    lock = f".{path.name}{workdir.LOCK}"
    with workdir.locked(str(path.parent), f"{path.name} in", lock=lock):
        yield


class Output:
    """The file of a shard. `settings` are compared with those of a stopped command.

    Raises UserError if the file is not one that this command has begun with the same settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path, self.settings = path, settings
        # A name with a dot is not read as one of the folder's files.
        self._progress = path.with_name(f".{path.name}.progress")
        self.done, self.counts, self._bytes = 0, Yield(), 0
        self.unanswered: list[int] = []  # indices of texts among the first `done`
        if self._progress.exists():
            self._continue()
        elif path.exists():
            raise UserError(
                f"{path}: file exists already and is not overwritten; choose another name"
            )

    def _continue(self) -> None:
        found = read_json(
            self._progress, settings=dict, done=int, bytes=int, texts=int, accepted=int,
            rejected=dict, thoughts=int, dropped=dict, unanswered=list,
        )  # fmt: skip
        changed = differing(self.settings, found["settings"])
        if changed:
            raise UserError(
                f"{self.path}: was begun with another {min(changed)}; choose another --out, or "
                f"delete it and {self._progress.name}"
            )
        if not self.path.exists() or self.path.stat().st_size < found["bytes"]:
            raise UserError(f"{self.path}: is shorter than when the command stopped; delete it and "
                            f"{self._progress.name}")  # fmt: skip
        os.truncate(self.path, found["bytes"])
        self.done, self._bytes = found["done"], found["bytes"]
        self.unanswered = found["unanswered"]
        self.counts = Yield(
            found["texts"],
            found["accepted"],
            Counter(found["rejected"]),
            found["thoughts"],
            Counter(found["dropped"]),
        )

    def append(self, lines: Iterable[dict[str, Any]], done: int, unanswered: list[int]) -> None:
        """Writes the lines of a portion; `done` texts of the shard are finished with it, but for
        those that are `unanswered`."""
        data = "".join(f"{to_json(line)}\n" for line in lines).encode()
        try:
            with self.path.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from None
        self.done, self.unanswered, self._bytes = done, unanswered, self._bytes + len(data)
        state = dict(settings=self.settings, done=done, bytes=self._bytes, unanswered=unanswered)
        write_atomically(self._progress, to_json({**state, **self.counts.said()}).encode())
