"""The line reader of every text input: corpora, prompts, labels, scores and requests.

A line ends at \\n alone: U+2028, U+0085 and form feeds are part of it. One \\r before the \\n is
dropped, and so is a byte order mark at the start of a line (files that were concatenated have one
in the middle). Blank lines at the end are ignored. A file without any \\n is split at \\r.
"""

from collections.abc import Iterable, Iterator

from etils import epath

from sip.structs import UserError
from sip.workdir import check_reachable

BOM = b"\xef\xbb\xbf"
RECODE = "convert it to UTF-8, for example with iconv -f {} -t UTF-8"
UNPACK = "unpack it first"
# First bytes of files that are not UTF-8 text. UTF-32 stands first: its mark begins like UTF-16's.
FOREIGN = {
    b"\xff\xfe\0\0": f"UTF-32, not UTF-8; {RECODE.format('UTF-32')}",
    b"\0\0\xfe\xff": f"UTF-32, not UTF-8; {RECODE.format('UTF-32')}",
    b"\xff\xfe": f"UTF-16, not UTF-8; {RECODE.format('UTF-16')}",
    b"\xfe\xff": f"UTF-16, not UTF-8; {RECODE.format('UTF-16')}",
    b"\x1f\x8b": f"compressed by gzip; {UNPACK} (gunzip)",
    b"BZh91AY&SY": f"compressed by bzip2; {UNPACK} (bunzip2)",
    b"\xfd7zXZ\0": f"compressed by xz; {UNPACK} (unxz)",
    b"(\xb5/\xfd": f"compressed by zstd; {UNPACK} (unzstd)",
    b"PK\x03\x04": f"a zip file; {UNPACK} (unzip)",
    b"PAR1": "a Parquet file; convert it to JSON Lines",
}


def read_lines(stream: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Yields the lines of a binary stream, an open file or sys.stdin.buffer, without their ends.

    Raises UserError, naming the stream by `name`, if it begins like UTF-16, UTF-32 or a compressed
    file. The lines are bytes, as the caller knows whether one that is not UTF-8 is an error.
    """
    begun, blank = False, []  # blank lines so far, yielded only if another line follows
    for number, line in enumerate(stream):
        if not begun:
            _check(line, name)
            begun = bool(line.strip(b"\0\r\n"))
        alone = not number and not line.endswith(b"\n")  # the whole stream has no \n
        for part in line.removesuffix(b"\r").split(b"\r") if alone else (line,):
            part = part.removesuffix(b"\n").removesuffix(b"\r").removeprefix(BOM)
            blank.append(part)
            if part.strip():
                yield from blank
                blank.clear()


def read_texts(path: str, what: str) -> list[str]:
    """Returns the lines of a UTF-8 file; `what` names its contents in errors.

    Raises UserError if the file cannot be read, naming the line if one is not UTF-8.
    """
    lines = read_lines(opened(path, what), path)
    return [_decoded(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def read_text(path: str, what: str) -> str:
    """Returns a whole UTF-8 file, such as a prompt, with blank lines at its end.

    Line ends become \\n, a byte order mark is left out. Raises UserError as `read_texts` does.
    """
    lines = list(opened(path, what))
    _check(lines[0] if lines else b"", path)
    texts = (_decoded(line, f"{path}:{number}") for number, line in enumerate(lines, 1))
    return "".join(texts).removeprefix(BOM.decode()).replace("\r\n", "\n")


def opened(path: str, what: str) -> Iterator[bytes]:
    """Yields the raw lines of a file, local or in a store, for `read_lines`.

    Raises UserError if it cannot be read.
    """
    check_reachable(str(path), what)
    try:
        with epath.Path(path).open("rb") as file:
            yield from file
    except OSError as error:
        raise UserError(f"{path}: cannot read the {what}: {error.strerror}") from error


def _decoded(line: bytes, at: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{at}: not UTF-8 (byte 0x{line[error.start]:02x}); {RECODE.format('LATIN1')} "
            "if it is Latin-1"
        ) from None


def _check(line: bytes, name: str) -> None:
    for start, problem in FOREIGN.items():
        if line.startswith(start):
            raise UserError(f"{name}: {problem}")
    # ASCII letters have one NUL each in UTF-16 and three in UTF-32; without a mark these tell.
    if line.count(0) * 3 > len(line):
        raise UserError(
            f"{name}: full of NUL bytes, as UTF-16 without a byte order mark; "
            f"{RECODE.format('UTF-16LE')}"
        )
