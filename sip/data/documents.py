"""Where documents come from: a text file, JSON lines, a TFDS data set or the micro-world."""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from absl import logging

from sip.structs import UserError

PARTS = ("train", "validation", "test")  # of a file, by a hash of the text: 90, 5 and 5 %


class Truth(Protocol):
    """What is exactly known of texts in a generated world. B rows."""

    def score(self, prefixes: Sequence[str], texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Float arrays [B] by name: quality (to be compared), safety 0/1, factuality 0/.5/1, ..."""
        ...

    def compare(self, quality_a: np.ndarray, quality_b: np.ndarray) -> np.ndarray:
        """1 where a is better, 0 where b is, 0.5 for a tie."""
        ...

    def rewrite(self, prefixes: Sequence[str], suffixes: Sequence[str], words: int) -> list[str]:
        """Corrected suffixes of at least `words` words."""
        ...


@dataclass(frozen=True)
class DataConfig:
    """One split of one corpus.

    path: a .txt file (documents are separated by blank lines), a .jsonl file (field "text"), or
    "name:field" of a TFDS data set. split: a part and a slice of it, as in "train[:70%]".
    """

    source: str  # microworld | txt | jsonl | tfds
    path: str = ""
    split: str = "train"
    world: Any = ()  # of the micro-world: its parameters by name; kept as sorted pairs
    max_skipped_fraction: float = 0.1  # more unusable documents than this are an error

    def __post_init__(self):
        if self.source not in LOADERS:
            raise UserError(f"data.source {self.source!r}: not one of {', '.join(LOADERS)}")
        if (self.source == "microworld") == bool(self.path):
            raise UserError(f"data.path {self.path!r}: wanted by every source but microworld")
        if not 0 <= self.max_skipped_fraction <= 1:
            raise UserError(f"data.max_skipped_fraction {self.max_skipped_fraction}: not in 0..1")
        object.__setattr__(self, "world", tuple(sorted(dict(self.world).items())))


@dataclass(frozen=True)
class Documents:
    texts: Sequence[str]
    kinds: np.ndarray | None = None  # name of each document's kind, where the source has kinds
    truth: Truth | None = None
    read: int = 0  # documents looked at: of a file all, of a data set the split's
    skipped: int = 0  # of these: not UTF-8, empty, or (jsonl) without a text


def load(cfg: DataConfig, data_dir: str) -> Documents:
    """The documents of cfg.split; data sets are built or looked for in `data_dir`."""
    found = LOADERS[cfg.source](cfg, data_dir)
    if found.skipped > cfg.max_skipped_fraction * found.read:
        raise UserError(
            f"{cfg.path}: {found.skipped} of {found.read} documents are empty or not readable as "
            f"text, more than max_skipped_fraction={cfg.max_skipped_fraction}"
        )
    if not found.texts:
        raise UserError(f"{cfg.path or cfg.source}: no documents in split {cfg.split!r}")
    return found


def _txt(cfg: DataConfig, data_dir: str) -> Documents:
    data = _read(cfg.path).removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    parts = re.split(rb"\n(?:[ \t]*\n)+", b"\n%b\n" % data)
    return _from_file(cfg, [_decode(part.strip(b"\n")) for part in parts if part.strip(b"\n")])


def _jsonl(cfg: DataConfig, data_dir: str) -> Documents:
    lines = _read(cfg.path).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return _from_file(cfg, [_json_text(line) for line in lines if line.strip()])


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read the corpus: {error.strerror}") from error


def _decode(data: bytes) -> str | None:
    """The text, or None where it is no UTF-8 or blank."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return text if text.strip() else None


def _json_text(line: bytes) -> str | None:
    try:
        text = json.loads(line)["text"]
        return text if _decode(text.encode()) else None  # a lone surrogate does not encode
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _from_file(cfg: DataConfig, texts: list[str | None]) -> Documents:
    kept = [text for text in texts if text is not None]
    selected = _select(kept, cfg.split)
    return Documents(selected, read=len(texts), skipped=len(texts) - len(kept))


def _select(texts: list[str], split: str) -> list[str]:
    """Part and slice as TFDS writes them: "train", "test[10:]", "train[70%:85%]"."""
    found = re.fullmatch(rf"({'|'.join(PARTS)})(?:\[(\d+%?)?:(\d+%?)?\])?", split)
    if not found:
        raise UserError(f"data.split {split!r}: not one of {', '.join(PARTS)}, or one with [a%:b%]")
    texts = [text for text in texts if part(text) == found[1]]
    return texts[_bound(found[2] or "0", len(texts)) : _bound(found[3] or "100%", len(texts))]


def part(text: str) -> str:
    """One of PARTS by the text alone: equal documents share it, whatever file they stand in."""
    bucket = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % 20
    return PARTS[max(0, bucket - 17)]


def _bound(text: str, count: int) -> int:
    return round(int(text[:-1]) / 100 * count) if text.endswith("%") else int(text)


def _tfds(cfg: DataConfig, data_dir: str) -> Documents:
    import tensorflow_datasets as tfds  # here, since a text file needs none of it

    name, _, field = cfg.path.rpartition(":")
    if not name:
        raise UserError(f"data.path {cfg.path!r}: a TFDS data set is given as 'name:field'")
    rows = _rows(lambda: tfds.builder(name, data_dir=data_dir), cfg, cfg.path, field)
    texts = [_decode(row[field]) for row in rows]
    kept = [text for text in texts if text is not None]
    return Documents(kept, read=len(texts), skipped=len(texts) - len(kept))


def _microworld(cfg: DataConfig, data_dir: str) -> Documents:
    from sip.data.microworld.oracle import MicroworldTruth
    from sip.data.microworld.world import KINDS, Microworld, WorldConfig

    try:
        world = WorldConfig(**dict(cfg.world))
    except TypeError as error:  # a field that it does not have, or a value of another type
        raise UserError(f"data.world {dict(cfg.world)}: {error}") from error
    make = lambda: Microworld(data_dir=data_dir, world=world)
    rows = _rows(make, cfg, data_dir, "text")
    kinds_B = np.array([KINDS[row["kind"]] for row in rows])
    texts = [row["text"].decode() for row in rows]
    return Documents(texts, kinds_B, MicroworldTruth(world), read=len(texts))


def _rows(make: Callable[[], Any], cfg: DataConfig, where: str, field: str) -> list[dict]:
    """All examples of a TFDS builder's split; the data set is built if it is not there."""
    try:
        with _quiet():
            builder = make()
            where = str(builder.data_dir)
            builder.download_and_prepare(file_format="array_record")
            source = builder.as_data_source(split=cfg.split)
            rows = list(source.__getitems__(range(len(source))))  # by one, it takes twice as long
    except UserError:
        raise
    except Exception as error:  # readers of damaged files raise a little of everything
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: cannot read split {cfg.split!r}: {reason}") from error
    if rows and field not in rows[0]:
        raise UserError(f"{cfg.path}: no field {field!r}, only {', '.join(sorted(rows[0]))}")
    if any(row[field] is None for row in rows):  # array_record, of a file cut at a 64 KiB block
        raise UserError(f"{where}: a file of split {cfg.split!r} is damaged: it has empty records")
    return rows


@contextlib.contextmanager
def _quiet():
    """TFDS says in two lines on stdout and in a warning that it builds what it was asked for."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        logging.set_verbosity(level)


LOADERS = {"microworld": _microworld, "txt": _txt, "jsonl": _jsonl, "tfds": _tfds}
