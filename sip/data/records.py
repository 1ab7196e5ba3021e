"""Records of files: objects of JSON Lines, rows of Parquet, records of array_record, texts of .txt.

`read(path, source)` yields (record, reason): a dict of fields and "", or {} and the reason why
there is no record. Values are as the file has them; `text_of` makes a text of one.

Rules for odd contents, the same for every file of a corpus:
- Byte order mark: dropped at the start of a line.
- Lines end at \\n; one \\r before it is dropped. A file without any \\n is split at \\r.
  U+2028, U+0085, form feeds and other carriage returns are part of a line.
- NUL is a character like any other; a file full of them is refused as UTF-16.
- Strings of JSON, Parquet and array_record are never changed.
- A line, a document or a value may have any length; it is held in memory whole.
- null, and values that are no text, are left out and counted, each by its reason.
"""

import contextlib
import json
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from sip.data import files
from sip.data.files import SAID
from sip.structs import UserError
from sip.text.lines import read_lines

Record = tuple[dict[str, Any], str]
BLANK_LINE, WHOLE_FILE = "blank line", "whole file"  # values of `separator`; others are text
# Reasons why there is no record or no text.
NOT_UTF8, BLANK, NOT_JSON = "not UTF-8", "blank", "not a JSON object"
NOT_RECORD = "neither JSON nor a tf.train.Example"
# A line of these characters alone is blank.
SPACES = "\t" + "".join(c for c in map(chr, range(0x3001)) if unicodedata.category(c) == "Zs")
# JSON over several lines, or an array: a line that only opens one, or also its first string.
JSON_BEGINS = re.compile(rb"\s*(\[\s*([{\"\n]|$)|\{\s*([\"\n]|$))")
ROWS = 1024  # rows of Parquet and array_record that are read at once


def read(
    path: str, source: str, *, separator: str = BLANK_LINE, columns: Sequence[str] | None = None
) -> Iterator[Record]:
    """Yields (record, "") or ({}, reason) for each record of one file of format `source`.

    Documents of a .txt file, divided at `separator`, have the field "text". With `columns`, others
    may be left out. Raises UserError if the file cannot be read or has another format.
    """
    if source == "txt":
        yield from _txt(path, separator)
    elif source == "jsonl":
        yield from _jsonl(path)
    elif source == "parquet":
        yield from _parquet(path, columns)
    else:
        yield from _array_record(path, columns)


def text_of(value: Any) -> tuple[str, str]:
    """Returns (text, "") of a string or of UTF-8 bytes, or ("", reason) if it is no usable text."""
    if not isinstance(value, str | bytes):
        return "", "null" if value is None else "no string"
    try:
        text = value.decode() if isinstance(value, bytes) else value
        text.encode()  # a lone surrogate, from JSON, is not UTF-8
    except UnicodeError:
        return "", NOT_UTF8
    return (text, "") if text.strip() else ("", BLANK)


def strings(value: Any) -> Iterator[str]:
    """Yields the texts in a record at any depth: of fields, lists and inner records."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        text, _ = text_of(value)
        value = ()
        if text:
            yield text
    for inner in value:
        yield from strings(inner)


def _txt(path: str, separator: str) -> Iterator[Record]:
    lines = read_lines(files.lines(path, SAID["txt"]), path)
    lines = _not_json(lines, path)
    # Split as bytes: a document that is not UTF-8 is then left out without losing the others.
    if separator == BLANK_LINE:
        parts = _paragraphs(lines)
    elif separator == WHOLE_FILE:
        parts = iter([b"\n".join(lines)])
    else:
        parts = _separated(lines, separator.encode())
    yield from (({"text": part}, "") for part in parts if part.strip(b" \t\n"))


def _not_json(lines: Iterator[bytes], path: str) -> Iterator[bytes]:
    """Yields the lines. Raises UserError if they begin with two JSON objects, are one, or an array
    of objects or strings."""
    begun: list[bytes] = []
    for line in lines:
        begun.append(line)
        if line.strip() and (not _is_object(line) or sum(map(bool, begun)) > 1):
            break
    if all(map(_is_object, filter(None, begun))) and any(begun):
        raise UserError(f"{path}: is JSON, not plain text; set data.source (--source) to jsonl")
    if JSON_BEGINS.match(b"\n".join(begun)):
        begun += lines
        if _is_json(b"\n".join(begun)):
            raise UserError(
                f"{path}: is JSON, not plain text; write one object per line, for example with jq "
                "-c '.[]' (an array) or jq -c . (objects), and set data.source (--source) to jsonl"
            )
    yield from begun
    yield from lines


def _is_json(data: bytes) -> bool:
    """True for an array of objects or strings, or for objects after each other."""
    try:
        text = data.decode().lstrip()
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    if isinstance(value, list):
        return not text[end:].strip() and all(isinstance(x, dict | str) for x in value)
    return isinstance(value, dict) and text[end:].lstrip()[:1] in ("", "{")


def _is_object(line: bytes) -> bool:
    line = line.strip()
    return line.startswith(b"{") and line.endswith(b"}") and isinstance(_json(line), dict)


def _json(line: bytes) -> Any:
    """Returns the value of a JSON line, or a reason, which is never a dict."""
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        return NOT_UTF8
    except (ValueError, RecursionError):
        return NOT_JSON


def _paragraphs(lines: Iterator[bytes]) -> Iterator[bytes]:
    part: list[bytes] = []
    for line in lines:
        if line.decode(errors="replace").strip(SPACES):
            part.append(line)
        elif part:
            yield b"\n".join(part)
            part = []
    if part:
        yield b"\n".join(part)


def _separated(lines: Iterator[bytes], separator: bytes) -> Iterator[bytes]:
    """Splits a text at each `separator`; line ends at both ends of a document are dropped."""
    # A line of its own, as in "\n---\n", may follow another one, or begin the file.
    shared = len(separator) > 1 and separator[:1] == separator[-1:] == b"\n"
    held = bytearray(b"\n")
    for line in lines:
        start = max(0, len(held) - len(separator))  # where the separator may begin
        held += line + b"\n"
        while (at := held.find(separator, start)) >= 0:
            yield bytes(held[:at]).strip(b"\n")
            del held[: at + len(separator) - shared]
            start = 0
    yield bytes(held).strip(b"\n")


def _jsonl(path: str) -> Iterator[Record]:
    for _, line in _lines(path):
        value = _json(line)
        reason = value if value == NOT_UTF8 else NOT_JSON
        yield (value, "") if isinstance(value, dict) else ({}, reason)


def json_lines(path: str) -> Iterator[tuple[str, bytes]]:
    """Yields (FILE:LINE, line) of JSON Lines, without blank lines.

    `path` names files as in `files.listed`. Raises UserError if one cannot be read, or begins with
    an array or an object over several lines.
    """
    for file in files.listed(path, "jsonl"):
        yield from ((f"{file}:{number}", line) for number, line in _lines(file))


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    begun = False
    for number, line in enumerate(read_lines(files.lines(path, "JSON Lines"), path), 1):
        if not (line := line.strip()):
            continue
        if not begun and (line.startswith(b"[") or line == b"{"):
            raise UserError(
                f"{path}: JSON over several lines or an array, not JSON Lines; write one object "
                "per line, for example with jq -c '.[]' (an array) or jq -c . (objects), or leave "
                "the file out by a glob"
            )
        begun = True
        yield number, line


def _parquet(path: str, columns: Sequence[str] | None) -> Iterator[Record]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError("Parquet needs pyarrow: pip install 'sip-jax[data]'") from None
    try:
        with files.binary(path) as file:
            table = pq.ParquetFile(file)
            names = table.schema_arrow.names
            # Without the columns every row is a record without them, as in JSON Lines.
            wanted = [name for name in names if columns is None or name in columns] or names
            for rows in table.iter_batches(ROWS, columns=wanted):
                yield from ((row, "") for row in rows_of(rows))
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a whole Parquet file: {reason}") from error


def rows_of(batch) -> Iterator[dict[str, Any]]:
    """Yields the rows of an Arrow record batch; strings that are not UTF-8 stay bytes."""
    columns = [_values(column) for column in batch.columns]
    names = batch.schema.names
    return (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))


def _values(column) -> list[Any]:
    import pyarrow as pa

    try:
        return column.to_pylist()
    except UnicodeDecodeError:  # Arrow does not check what a file calls a string
        if isinstance(column, pa.DictionaryArray):
            column = column.dictionary_decode()
        try:
            return column.cast(pa.large_binary()).to_pylist()
        except pa.ArrowException:  # strings inside lists or structs
            return [b"\xff"] * len(column)  # each counts as not UTF-8


def _array_record(path: str, columns: Sequence[str] | None) -> Iterator[Record]:
    from array_record.python.array_record_module import ArrayRecordReader

    files.binary(path).close()  # the reader takes a missing file for an empty one
    with _local(path) as name:
        reader = ArrayRecordReader(name)
        count = reader.num_records()
        for start in range(0, count, ROWS):
            for record in reader.read(start, min(start + ROWS, count)):
                # The records of a file truncated at a 64 KiB block are None.
                yield ({}, NOT_RECORD) if record is None else _example(record, columns == ("",))
        if not reader.ok():
            raise UserError(f"{path}: not a whole array_record file; copy or download it again")


@contextlib.contextmanager
def _local(path: str) -> Iterator[str]:
    """Yields the path of a local copy of a file in a store, or the path itself."""
    if "://" not in path:
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=".array_record") as copy:
        with files.binary(path) as file:
            shutil.copyfileobj(file, copy)
        copy.flush()
        yield copy.name


def _example(record: bytes, whole: bool) -> Record:
    """Reads one record: JSON, a tf.train.Example, or with `whole` a text by itself, field ""."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    kinds: Any = tf_example_pb2  # generated at run time, so pyright knows no class of it
    if whole:
        return {"": record}, ""
    if record.startswith(b"{"):
        value = _json(record)
        return (value, "") if isinstance(value, dict) else ({}, NOT_RECORD)
    try:
        found = kinds.Example.FromString(record).features.feature
    except DecodeError:
        return {}, NOT_RECORD
    return {name: _one(feature) for name, feature in found.items()}, ""


def _one(feature) -> Any:
    """Returns the value of a feature with one value, a list of several, None if there is none."""
    kind = feature.WhichOneof("kind")
    values = list(getattr(feature, kind).value) if kind else []
    return values[0] if len(values) == 1 else (values or None)
