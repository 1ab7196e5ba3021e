"""Reads documents from a text file, JSON Lines, a TFDS data set or the micro-world."""

import contextlib
import hashlib
import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from absl import logging
from etils import epath

from sip.data.microworld.settings import WorldConfig
from sip.sections import at_least, check, one_of, section
from sip.structs import UserError
from sip.text.lines import RECODE, opened, read_lines
from sip.workdir import locked, place

BUILT = ("microworld", "tfds")  # sources whose data sets are built in a directory
PARTS = ("train", "validation", "test")  # 90, 5 and 5 % of a file, by a hash of the text
BOUND = r"\d{1,18}%?"  # of a slice; Python refuses to read thousands of digits
# Reasons why a document is left out.
NOT_UTF8, BLANK, NOT_JSON = "not UTF-8", "blank", "not a JSON object"
MISSING, NOT_TEXT = "without a field 'text'", "with a field 'text' that is no string"
# A line of these characters alone is blank.
SPACES = "\t" + "".join(c for c in map(chr, range(0x3001)) if unicodedata.category(c) == "Zs")


class Truth(Protocol):
    """Exact scores and corrections for texts of a generated world. Letter: B rows."""

    def score(self, prefixes: Sequence[str], texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Scores texts as continuations of their prefixes.

        Returns float arrays [B] by name: quality (see `compare`), safety in {0, 1}, factuality in
        {0, 0.5, 1}, and more.
        """
        ...

    def compare(self, quality_a: np.ndarray, quality_b: np.ndarray) -> np.ndarray:
        """Returns 1 if a is better, 0 if b is better, 0.5 for a tie, elementwise."""
        ...

    def rewrite(self, prefixes: Sequence[str], suffixes: Sequence[str], words: int) -> list[str]:
        """Returns suffixes without faults; a corrected one has `words` words and marks."""
        ...


@dataclass(frozen=True)
class DataConfig:
    """One split of a corpus.

    `path` is a .txt file (documents separated by blank lines), a .jsonl file (field "text"), or
    "name:field" of a TFDS data set. `split` is a part (train, validation, test) and optionally a
    slice of it, as in "train[:70%]" or "test[10:20]".
    Raises UserError for an invalid value.
    """

    source: str  # microworld | txt | jsonl | tfds
    path: str = ""  # needed by all sources except microworld
    split: str = "train"  # part and slice
    world: Any = ()  # microworld: fields of WorldConfig by name; stored as sorted pairs
    max_skipped_fraction: float = 0.1  # 0..1; error if more of the documents are unusable

    def __post_init__(self):
        check("data", self, source=one_of(tuple(LOADERS)))
        if (self.source == "microworld") == bool(self.path):
            raise UserError(
                f"data.path {self.path!r}: required by every source except microworld, which "
                "accepts none"
            )
        check("data", self, max_skipped_fraction=at_least(0, most=1))
        if self.source == "microworld":
            if not isinstance(self.world, Mapping | tuple):
                raise UserError(f"data.world={self.world!r}: must be a section")
            world = section(WorldConfig, dict(self.world), "data.world")
            # Every run is evaluated on both held-out parts.
            check("data.world", world, **dict.fromkeys(PARTS, at_least(1)))
        object.__setattr__(self, "path", place(self.path))
        # Sorted pairs make the config hashable and equal for any order of the keys.
        object.__setattr__(self, "world", tuple(sorted(dict(self.world).items())))


@dataclass(frozen=True)
class Documents:
    """The documents of a split, with their ground truth if the source has one."""

    texts: Sequence[str]
    kinds: np.ndarray | None = None  # kind of each document, a string; None: no kinds
    truth: Truth | None = None
    read: int = 0  # documents read: all of a file, or the split of a data set
    left_out: Mapping[str, int] = field(default_factory=dict)  # unusable documents by reason

    @property
    def skipped(self) -> int:
        """Number of unusable documents."""
        return sum(self.left_out.values())


def check_split(source: str, split: str) -> None:
    """Raises UserError if `split` is not a part of the documents or a slice of one.

    Of data sets that TFDS reads, several may be joined by "+".
    """
    joined = split.split("+") if source in ("microworld", "tfds") else [split]
    for one in joined:
        found = re.fullmatch(rf"(\w+)(?:\[(-?{BOUND})?:(-?{BOUND})?\])?", one)
        if not found or (source != "tfds" and found[1] not in PARTS):
            raise UserError(
                f"split {split!r}: must be one of {', '.join(PARTS)}, optionally with [a%:b%]"
            )
        low, high = found[2] or "0%", found[3] or "100%"
        if _empty(low, high):
            raise UserError(f"split {split!r}: the slice is empty or beyond 100%")


def _empty(low: str, high: str) -> bool:
    """True if nothing is from `low` to `high`, whatever the number of documents.

    A negative bound counts from the end; bounds of two kinds are not compared.
    """
    if any(x.endswith("%") and abs(int(x[:-1])) > 100 for x in (low, high)):
        return True
    if low.endswith("%") != high.endswith("%"):
        return high in ("0", "0%") or low == "100%"
    a, b = (int(x.removesuffix("%")) for x in (low, high))
    if low.endswith("%"):
        a, b = (x + 100 if x < 0 else x for x in (a, b))
    return a >= b and (a < 0) == (b < 0)


def has_truth(source: str) -> bool:
    """True if the documents of a source come with a ground truth."""
    return source == "microworld"


def check_path(cfg: DataConfig) -> None:
    """Raises UserError if the file of a text corpus does not exist."""
    if cfg.source in ("txt", "jsonl") and not Path(cfg.path).is_file():
        raise UserError(f"config data.path={cfg.path!r}: there is no such file")


def load(cfg: DataConfig, data_dir: str) -> Documents:
    """Loads the documents of cfg.split; data sets are built in or read from `data_dir`.

    Raises UserError if the source cannot be read, if the split is empty, or if more than
    cfg.max_skipped_fraction of the documents are unusable.
    """
    found = LOADERS[cfg.source](cfg, data_dir)
    if found.skipped > cfg.max_skipped_fraction * found.read:
        raise UserError(
            f"{cfg.path}: {found.skipped} of {found.read} documents cannot be used, more than "
            f"max_skipped_fraction={cfg.max_skipped_fraction} allows: {listed(found.left_out)}"
            f"{_way_out(found.left_out)}"
        )
    if not found.read:
        raise UserError(f"{cfg.path or cfg.source}: has no documents")
    if not found.texts:
        raise UserError(
            f"{cfg.path or cfg.source}: no documents in split {cfg.split!r:.80}; use a larger one"
        )
    return found


def listed(left_out: Mapping[str, int]) -> str:
    """Returns counts and reasons as text: "3 blank, 1 not UTF-8"."""
    return ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())


def _way_out(left_out: Mapping[str, int]) -> str:
    """Returns how to mend the commonest reason, "" if there is no general way."""
    reason = max(left_out, key=lambda reason: left_out[reason])
    if reason == NOT_UTF8:
        return f"; {RECODE.format('LATIN1')} if it is Latin-1"
    if reason.startswith(MISSING):
        return "; rename the field, for example with jq -c '{text: .FIELD}'"
    return ""


def _txt(cfg: DataConfig, data_dir: str) -> Documents:
    if cfg.path.endswith((".jsonl", ".json")):
        raise UserError(f"{cfg.path}: is JSON, not plain text; set data.source (--source) to jsonl")
    # Split as bytes: a document that is not UTF-8 is then left out without losing the others.
    blank = lambda line: not line.decode(errors="replace").strip(SPACES)
    lines = read_lines(opened(cfg.path, "corpus"), cfg.path)
    paragraphs = itertools.groupby(lines, key=blank)
    return _of_split(cfg, (_decode(b"\n".join(part)) for empty, part in paragraphs if not empty))


def _jsonl(cfg: DataConfig, data_dir: str) -> Documents:
    fields: Counter = Counter()  # of the objects without a text
    lines = (line for line in read_lines(opened(cfg.path, "corpus"), cfg.path) if line.strip())
    first = next(lines, b"").strip()
    if first.startswith(b"[") or first == b"{":
        raise UserError(
            f"{cfg.path}: JSON over several lines or an array, not JSON Lines; write one object "
            "per line, for example with jq -c '.[]' (an array) or jq -c . (objects)"
        )
    rows = itertools.chain([first] if first else [], lines)
    found = _of_split(cfg, (_json_text(line, fields) for line in rows))
    if MISSING not in found.left_out:
        return found
    seen = ", ".join(f"{name!r:.40}" for name, _ in fields.most_common(5)) or "none"
    named = {MISSING: f"{MISSING} (fields seen: {seen})"}
    counts = {named.get(reason, reason): count for reason, count in found.left_out.items()}
    return replace(found, left_out=counts)


def _decode(data: bytes) -> tuple[str, str]:
    """Decodes UTF-8. Returns (text, "") or ("", reason) if there is no usable text."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return "", NOT_UTF8
    return (text, "") if text.strip() else ("", BLANK)


def _json_text(line: bytes, fields: Counter) -> tuple[str, str]:
    """Returns (text, "") of a JSON line's field "text", or ("", reason) if it has none.

    Counts the fields of an object without a text in `fields`.
    """
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        return "", NOT_UTF8
    except (ValueError, RecursionError):
        return "", NOT_JSON
    if not isinstance(row, dict):
        return "", NOT_JSON
    if "text" not in row:
        fields.update(row.keys())
        return "", MISSING
    if not isinstance(row["text"], str):
        return "", NOT_TEXT
    return _decode(row["text"].encode(errors="surrogatepass"))  # a lone surrogate: not UTF-8


def _of_split(cfg: DataConfig, found: Iterable[tuple[str, str]]) -> Documents:
    """Returns the documents of a file that belong to cfg.split."""
    every = _usable(found)
    return replace(every, texts=select(every.texts, cfg.split))


def _usable(found: Iterable[tuple[str, str]]) -> Documents:
    """Returns the documents with a text, and counts the others by reason."""
    texts: list[str] = []
    left_out: Counter = Counter()
    for text, reason in found:
        if reason:
            left_out[reason] += 1
        else:
            texts.append(text)
    read = len(texts) + left_out.total()
    return Documents(texts, read=read, left_out=dict(left_out))


def select(rows: Sequence[Any], split: str, key: Callable[[Any], str] = str) -> list[Any]:
    """Selects a part and slice in TFDS notation: "train", "test[10:]", "train[70%:85%]".

    `key` returns the text that decides about a row's part.
    """
    found = re.fullmatch(rf"({'|'.join(PARTS)})(?:\[({BOUND})?:({BOUND})?\])?", split)
    if not found:
        raise UserError(
            f"data.split {split!r:.80}: must be one of {', '.join(PARTS)}, optionally with [a%:b%]"
        )
    rows = [row for row in rows if part(key(row)) == found[1]]
    return rows[_bound(found[2] or "0", len(rows)) : _bound(found[3] or "100%", len(rows))]


def part(text: str) -> str:
    """Returns the part (of PARTS) of a document, by a hash of its text.

    Equal documents are in the same part, in any file, so train and test do not share a text.
    """
    bucket = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % 20
    # Buckets 0..17 are train, 18 is validation, 19 is test.
    return PARTS[max(0, bucket - 17)]


def _bound(text: str, count: int) -> int:
    return round(int(text[:-1]) / 100 * count) if text.endswith("%") else int(text)


def _tfds(cfg: DataConfig, data_dir: str) -> Documents:
    import tensorflow_datasets as tfds  # imported here: slow, and text files do not need it

    name, _, field = cfg.path.rpartition(":")
    if not name:
        raise UserError(f"data.path {cfg.path!r}: must be 'name:field' of a TFDS data set")
    # Built by `_rows`, which turns exceptions of TFDS into UserError.
    rows = _rows(lambda: tfds.builder(name, data_dir=data_dir), cfg, cfg.path, field)
    return _usable(_decode(row[field]) for row in rows)


def _microworld(cfg: DataConfig, data_dir: str) -> Documents:
    # Imported here: world imports TFDS, which is slow and not needed for text files.
    from sip.data.microworld.oracle import MicroworldTruth
    from sip.data.microworld.world import KINDS, Microworld, WorldConfig

    try:
        world = WorldConfig(**dict(cfg.world))
    except TypeError as error:  # an unknown field or a value of a wrong type
        raise UserError(f"data.world {dict(cfg.world)}: {error}") from error
    make = lambda: Microworld(data_dir=data_dir, world=world)
    rows = _rows(make, cfg, data_dir, "text")
    kinds_B = np.array([KINDS[row["kind"]] for row in rows])
    texts = [row["text"].decode() for row in rows]
    return Documents(texts, kinds_B, MicroworldTruth(world), read=len(texts))


def _rows(make: Callable[[], Any], cfg: DataConfig, where: str, field: str) -> list[dict]:
    """Returns all examples of a TFDS builder's split; builds the data set if it does not exist.

    `where` and `field` name the path in errors and the text field.
    """
    try:
        with _quiet():
            where = str(make().data_dir)
            builder = _built(make, where)
            source = builder.as_data_source(split=cfg.split)
            rows = list(source.__getitems__(range(len(source))))  # twice as fast as one by one
    except UserError:
        raise
    except Exception as error:  # readers raise many types of exceptions for damaged files
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: cannot read split {cfg.split!r:.80}: {reason}") from error
    if rows and field not in rows[0]:
        raise UserError(f"{cfg.path}: no field {field!r}; use one of {', '.join(sorted(rows[0]))}")
    # array_record returns None for the records of a file truncated at a 64 KiB block.
    if any(row[field] is None for row in rows):
        raise UserError(
            f"{where}: a file of split {cfg.split!r} is damaged: it has empty records; delete the "
            "directory to build it again"
        )
    return rows


def _built(make: Callable[[], Any], where: str):
    """Returns a TFDS builder whose data set exists in `where`; one process at a time builds it.

    What killed attempts left beside `where` is removed first.
    """
    target = epath.Path(where)
    if target.exists():
        return make()
    with locked(str(target.parent), "data set", wait=True):
        # Without a lock (in a store), another process may be writing what looks like a leftover.
        for left in target.parent.glob("incomplete.*") if "://" not in where else ():
            left.rmtree()
        builder = make()  # anew: another process may have built it meanwhile
        builder.download_and_prepare(file_format="array_record")
        return builder


@contextlib.contextmanager
def _quiet():
    """Suppresses the lines and warnings that TFDS prints while it builds a data set."""
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
