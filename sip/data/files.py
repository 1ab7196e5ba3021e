"""Files of a corpus: those that a path names, and their contents, decompressed.

A path is a file, a folder, a glob, or several of these (a tuple, or one string with commas). Each
may be local or in a store (gs://). A folder stands for its files of one format, those in folders
below it included. The files of a folder or a glob are read in order of their paths; names that
begin with "." or "_" are left out. A file whose name ends with .gz or .zst is decompressed.
What contradicts the format, by name or by first bytes, is refused.
"""

import gzip
import io
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from sip.sections import named
from sip.structs import UserError
from sip.workdir import place

# Formats by the endings of their files.
ENDINGS = {
    "txt": (".txt",),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "parquet": (".parquet",),
    "array_record": (".array_record", ".arrayrecord"),
}
SAID = {"txt": "plain text", "jsonl": "JSON", "parquet": "Parquet", "array_record": "array_record"}
PACKED = {".gz": b"\x1f\x8b", ".zst": b"(\xb5/\xfd"}  # first bytes of compressed files
CONVERT = "convert it to JSON Lines or Parquet, for example with pandas"
UNREAD = {  # endings of files that are not read, and the way out
    ".csv": f"CSV is not read; {CONVERT}",
    ".tsv": f"TSV is not read; {CONVERT}",
    ".arrow": "Arrow is not read alone; set data.source to huggingface, data.path to its folder",
    ".bz2": "bzip2 is not read; unpack it (bunzip2), or pack it with gzip or zstd",
    ".xz": "xz is not read; unpack it (unxz), or pack it with gzip or zstd",
    ".zip": "zip archives are not read; unpack it (unzip)",
    ".tar": "tar archives are not read; unpack it (tar -xf) and name its folder",
    ".tgz": "tar archives are not read; unpack it (tar -xf) and name its folder",
    ".pdf": "PDF is not read; extract its text, for example with pdftotext",
    ".docx": "Word files are not read; save it as plain text",
}
MAGIC = {  # first bytes of files that are not text
    b"PAR1": "is Parquet, not {}; set data.source (--source) to parquet, or convert it",
    b"%PDF-": "is a PDF, not {}; extract its text, for example with pdftotext",
    b"ARROW1": "is an Arrow file, not {}; set data.source to huggingface, data.path to its folder",
}
GLOB = re.compile(r"[*?\[]")
SHARD = re.compile(r"-\d+-of-\d+$")
PIECE = 1 << 20  # bytes that are read at once


def listed(path: str | tuple[str, ...], source: str) -> list[str]:
    """Returns the files that `path` names, in reading order, each once.

    `source` is their format, a key of ENDINGS. Raises UserError if there is no such file, or if a
    name contradicts the format.
    """
    parts = [path] if isinstance(path, str) else path
    found = [file for part in parts for one in _several(part) for file in _named(one, source)]
    for file in found:
        _check_name(file, source)
    return list(dict.fromkeys(found))


def ignored(path: str | tuple[str, ...], source: str) -> list[str]:
    """Returns a line for each folder in `path` with files of other formats, which are not read."""
    said = []
    for part in [path] if isinstance(path, str) else path:
        for folder in _several(part):
            every = _inside(folder) or []
            others = Counter(_ending(file) for file in every if format_of(file) != source)
            if others:
                kinds = ", ".join(f"{count:,} {end}" for end, count in others.most_common(4))
                said.append(
                    f"{folder}: {others.total():,} of {len(every):,} files are not {SAID[source]} "
                    f"by their names and are not read ({kinds})"
                )
    return said


def _ending(path: str) -> str:
    return Path(_unpacked(path)).suffix or "without an ending"


def check_json(key: str, path: str) -> None:
    """Raises UserError, naming the config key, if JSON Lines do not exist; "" is no path."""
    if path:
        with named(key):
            listed(path, "jsonl")


def json_files(*paths: str) -> dict[str, list[str]]:
    """Returns the files of JSON Lines that each path names, by the path; "" is no path."""
    return {path: listed(path, "jsonl") for path in paths if path}


def listed_any(path: str) -> list[str]:
    """Returns the files that `path` names, whatever their formats; of a folder those of a known
    one. Raises UserError if there is no such file."""
    found = [file for one in _several(path) for file in _named(one, "")]
    for file in found:
        _check_name(file, format_of(file))
    return list(dict.fromkeys(found))


def _several(path: str) -> list[str]:
    """Splits a path at its commas, unless they belong to the name of a file."""
    if "," not in path or _asked(path, lambda: epath.Path(path).exists()):
        return [path]
    return [place(part.strip()) for part in path.split(",") if part.strip()]


def _named(path: str, source: str) -> list[str]:
    """Returns the files of one path: itself, those of a folder, or those of a glob."""
    where = epath.Path(path)
    if (below := _inside(path)) is not None:
        found = [file for file in below if format_of(file) in ((source,) if source else ENDINGS)]
        if not found and not source:
            raise UserError(f"{path}: has no file of a known format ({', '.join(ENDINGS)})")
        if not found:
            raise UserError(f"{path}: has no file of {SAID[source]} ({_hint(below, source)})")
        return found
    if _asked(path, where.exists):
        return [path]
    if not GLOB.search(path):
        raise UserError(f"{path}: there is no such file")
    found = _asked(path, lambda: sorted(_matches(path)))
    if not found:
        raise UserError(f"{path}: no file has such a name; quote the glob and check its folder")
    return found


def _inside(path: str) -> list[str] | None:
    """Returns the files below a folder in order, whatever their formats; None if it is none."""
    where = epath.Path(path)
    if not _asked(path, where.is_dir):
        return None
    return _asked(path, lambda: sorted(_below(where, set())))


def _asked(path: str, ask) -> Any:
    """Returns ask(). Raises UserError if a store cannot be reached or a folder cannot be read."""
    try:
        return ask()
    except Exception as error:  # every storage library raises its own exceptions
        raise UserError(f"{path}: cannot be reached: {_words(error)}") from error


def _below(folder, seen: set[str]) -> Iterator[str]:
    """Yields the files below a folder; `seen` are its parents, so that circles of links end."""
    real = str(folder) if "://" in str(folder) else os.path.realpath(folder)
    for path in folder.iterdir() if real not in seen else ():
        if path.name.startswith((".", "_")):
            continue
        if path.is_dir():
            yield from _below(path, seen | {real})
        else:
            yield str(path)


def _matches(path: str) -> Iterator[str]:
    """Yields the files that match a glob; ** stands for folders of any depth."""
    parts = path.split("/")
    first = next(i for i, part in enumerate(parts) if GLOB.search(part))
    root = "/".join(parts[:first]) or ("/" if first else "")
    # epath has no **, since it would be slow in a store.
    kind = epath.Path if "://" in path else Path
    for found in kind(root).glob("/".join(parts[first:])):
        below = str(found).removeprefix(root)
        if not found.is_dir() and not re.search(r"(^|/)[._]", below):
            yield str(found)


def format_of(path: str) -> str:
    """Returns the format that a file's name tells, a key of ENDINGS; "" if none."""
    name = SHARD.sub("", _unpacked(path).lower())
    return next((kind for kind, ends in ENDINGS.items() if name.endswith(ends)), "")


def _unpacked(path: str) -> str:
    return path.removesuffix(_packing(path))


def _packing(path: str) -> str:
    """Returns .gz or .zst if a file's name ends so, else ""."""
    return next((end for end in PACKED if path.endswith(end)), "")


def _hint(files: list[str], source: str) -> str:
    """Says which formats the files of a folder have instead of `source`."""
    kinds = Counter(format_of(file) for file in files)
    others = [f"{count} of {SAID[kind]}" for kind, count in kinds.most_common() if kind]
    if not others:
        return (
            f"the files' names must end with {' or '.join(ENDINGS[source])}, .gz or .zst after it"
        )
    wanted = next(kind for kind, _ in kinds.most_common() if kind)
    return f"it has {', '.join(others)}; {_way_out(wanted, source)}"


def _way_out(kind: str, source: str) -> str:
    """Says what to do with files of the format `kind` in the place of `source`."""
    others = " for a corpus; convert other inputs to JSON Lines" if source == "jsonl" else ""
    return f"set data.source (--source) to {kind}{others}"


def _check_name(path: str, source: str) -> None:
    """Raises UserError if a file's name tells another format than `source`."""
    for end, way_out in UNREAD.items():
        if path.lower().endswith((end, f"{end}.gz", f"{end}.zst")):
            raise UserError(f"{path}: {way_out}")
    kind = format_of(path)
    # JSON Lines in a .txt file are told by their contents.
    if kind not in ("", source) and (kind, source) != ("txt", "jsonl"):
        raise UserError(f"{path}: is {SAID[kind]}, not {SAID[source]}; {_way_out(kind, source)}")
    if source == "array_record" and _packing(path):
        raise UserError(f"{path}: array_record is compressed inside; unpack the file")


def lines(path: str, said: str) -> Iterator[bytes]:
    """Yields the raw lines of a text file, decompressed, with their \\n; for `read_lines`.

    A line may have any length. `said` is the format in errors. Raises UserError if the file cannot
    be read, is damaged, or is no text.
    """
    rest: list[bytes] = []  # pieces of a line without its end, joined once
    for piece in _pieces(path, said):
        first, *others = piece.split(b"\n")
        rest.append(first)
        if others:
            yield b"".join(rest) + b"\n"
            yield from (line + b"\n" for line in others[:-1])
            rest = [others[-1]]
    if last := b"".join(rest):
        yield last


def binary(path: str):
    """Opens a file for random access; a compressed one is decompressed in memory.

    Raises UserError if the file cannot be read or is damaged.
    """
    if _packing(path):
        return io.BytesIO(b"".join(_pieces(path, "")))
    return _opened(path)


def _pieces(path: str, said: str) -> Iterator[bytes]:
    """Yields a file's contents, decompressed; `said` as in `lines`, empty if it is no text."""
    packing = _packing(path)
    with _opened(path) as file:
        raw = iter(lambda: _read(file, path, PIECE), b"")
        begun = next(raw, b"")
        _check_packing(path, packing, begun)
        unpack = {"": lambda pieces: pieces, ".gz": _gunzip, ".zst": _unzstd}[packing]
        try:
            for number, piece in enumerate(unpack(_again(begun, raw))):
                if not number and said:
                    _check_magic(path, piece, said)
                yield piece
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(
                f"{path}: damaged or cut short ({_words(error)}); copy or download it again"
            ) from error


def _again(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def _opened(path: str):
    try:
        return epath.Path(path).open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot read the corpus: {error.strerror or error}") from error
    except Exception as error:  # of a store's library
        raise UserError(f"{path}: cannot be reached: {_words(error)}") from error


def _read(file, path: str, size: int) -> bytes:
    try:
        return file.read(size)
    except OSError as error:
        raise UserError(f"{path}: cannot read the corpus: {error.strerror or error}") from error


def _check_packing(path: str, packing: str, begun: bytes) -> None:
    """Raises UserError if a file's name and first bytes disagree about its compression."""
    if packing and begun and not begun.startswith(PACKED[packing]):
        raise UserError(
            f"{path}: not compressed, although its name ends with {packing}; rename it to "
            f"{_unpacked(path)}"
        )
    for end, magic in PACKED.items():
        if not packing and begun.startswith(magic):
            raise UserError(f"{path}: is compressed; rename it to {path}{end}, or unpack it")


def _check_magic(path: str, begun: bytes, said: str) -> None:
    for magic, problem in MAGIC.items():
        if begun.startswith(magic):
            raise UserError(f"{path}: {problem.format(said)}")


def _gunzip(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Decompresses gzip; a file may have several members. Raises EOFError or zlib.error."""
    return _inflate(pieces, lambda: zlib.decompressobj(wbits=31))


def _unzstd(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Decompresses zstd; a file may have several frames. Raises EOFError or zlib.error."""
    try:
        import zstandard
    except ImportError:
        raise UserError(".zst files need zstandard: pip install 'sip-jax[data]'") from None
    try:
        yield from _inflate(pieces, lambda: zstandard.ZstdDecompressor().decompressobj())
    except zstandard.ZstdError as error:
        raise zlib.error(str(error)) from error


def _inflate(pieces: Iterator[bytes], make) -> Iterator[bytes]:
    """Decompresses a sequence of streams; make() gives a decompressor of one stream."""
    unpack = None
    for piece in pieces:
        while piece:
            # Zeros after the last stream pad files on tapes and disks.
            if unpack is None and not piece.strip(b"\0"):
                break
            unpack = unpack or make()
            if out := unpack.decompress(piece):
                yield out
            piece = unpack.unused_data if unpack.eof else b""
            unpack = None if unpack.eof else unpack
    if unpack is not None:
        raise EOFError("it ends inside the compressed data")


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
