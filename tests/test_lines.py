"""Tests the line reader: where lines end, byte order marks, and files that are not UTF-8 text."""

import gzip
import io
from pathlib import Path

import pytest

from sip.structs import UserError
from sip.text import chat, template
from sip.text import lines as reader
from sip.text.lines import BOM, read_lines, read_texts


def lines(data):
    return list(read_lines(io.BytesIO(data), "in.txt"))


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"", []),
        (b"\n\r\n", []),
        (b"a\nb", [b"a", b"b"]),
        (b"a\r\r\nb\r\n", [b"a\r", b"b"]),
        (b"a\rb\nc", [b"a\rb", b"c"]),
        (b"a\rb\r", [b"a", b"b"]),  # no \n at all
        (b"a\n\n \nb\n \n\n", [b"a", b"", b" ", b"b"]),
        (BOM + b"a\n" + BOM + b"b" + BOM, [b"a", b"b" + BOM]),
        (b"a\x0b\x0c\x1d\xc2\x85\xe2\x80\xa9b\n", [b"a\x0b\x0c\x1d\xc2\x85\xe2\x80\xa9b"]),
        (b"a\0b\n", [b"a\0b"]),
    ],
)
def test_lines_end_at_newlines_alone(data, wanted):
    assert lines(data) == wanted


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ("one\ntwo".encode("utf-16-be"), "UTF-16"),
        ("\n\none\n".encode("utf-32-le"), "UTF-16"),
        (b"\xfe\xff" + "\u4e16".encode("utf-16-be"), "UTF-16, not UTF-8; .*iconv"),
        ("one".encode("utf-32"), "UTF-32, not UTF-8; .*iconv"),
        (gzip.compress(b"one\n", mtime=0), "gzip; unpack"),
        (b"PK\x03\x04..", "zip"),
        (b"PAR1..", "Parquet"),
    ],
)
def test_what_is_not_utf8_text_is_refused_with_a_way_out(data, named):
    with pytest.raises(UserError, match=rf"^in\.txt: .*{named}"):
        lines(data)


def test_a_stream_is_read_as_it_comes():
    def stream():
        yield b"one\n"
        raise AssertionError("read ahead")

    assert next(read_lines(stream(), "stdin")) == b"one"


def test_texts_of_a_file_and_the_line_that_is_not_utf8(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("é\u2028x\r\n".encode() + b"\n\xe9\n")
    with pytest.raises(UserError, match=r"a\.txt:3: not UTF-8 \(byte 0xe9\)"):
        read_texts(str(path), "prompts")
    path.write_bytes("é\u2028x\r\n".encode())
    assert read_texts(str(path), "prompts") == ["é\u2028x"]
    with pytest.raises(UserError, match="cannot read the prompts: Is a directory"):
        read_texts(str(tmp_path), "prompts")


def test_files_in_a_store_are_read_like_local_ones(tmp_path, monkeypatch):
    """Texts, labels, prompts and chat templates: every kind of file may be a gs:// path."""
    store = lambda path: Path(str(path).replace("gs://bucket", str(tmp_path)))
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\n")
    (tmp_path / "a.jinja").write_text("{{ messages }}")
    monkeypatch.setattr(reader.epath, "Path", store)
    assert list(read_texts("gs://bucket/a.txt", "labels")) == ["one", "two"]
    assert template.read("aspect", "gs://bucket/a.txt", "judge") == "one\ntwo\n"
    chat.check("gs://bucket/a.jinja", "judge.chat")
    for path in ("gs://bucket/b.txt", "gs://bucket/b.jinja"):
        with pytest.raises(UserError, match=path):
            list(read_texts(path, "labels"))
        with pytest.raises(UserError, match=path):
            chat.check(path, "judge.chat")
