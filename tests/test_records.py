"""Tests the records of files, and the rules for odd contents."""

import io
import json

import pytest

from sip.data import records
from sip.data.records import BLANK_LINE, WHOLE_FILE
from sip.structs import UserError

MB = 1 << 20


def texts(path, data, separator=BLANK_LINE):
    path.write_bytes(data)
    found = records.read(str(path), "txt", separator=separator)
    return [row["text"].decode() for row, _ in found]


@pytest.mark.parametrize(
    ("data", "separator", "wanted"),
    [
        (b"a\nb\n\n \t\nc", BLANK_LINE, ["a\nb", "c"]),
        (b"\n\na\n\nb\n\n", WHOLE_FILE, ["\n\na\n\nb"]),
        (b"a\n<|end|>\nb<|end|>c\n\nd\n<|end|>", "<|end|>", ["a", "b", "c\n\nd"]),
        (b"a\n\nb\nc\n", "\n", ["a", "b", "c"]),
        (b"---\na\n---\nb --- c\n---\n---\n", "\n---\n", ["a", "b --- c"]),
        ("a§§§b".encode(), "§§", ["a", "§b"]),
        (b" a \n", "x", [" a "]),
        (b"\xef\xbb\xbfa\n\n\xef\xbb\xbfb", BLANK_LINE, ["a", "b"]),  # files put together
        (b"a\r\nb\r\n\r\nc\r\r\n", BLANK_LINE, ["a\nb", "c\r"]),
        (b"a\rb\r\rc", BLANK_LINE, ["a\nb", "c"]),  # no \n at all
        (b"a\rb\n\nc", BLANK_LINE, ["a\rb", "c"]),
        ("a\u2028b\x85\n\nc\x0c".encode(), BLANK_LINE, ["a\u2028b\x85", "c\x0c"]),
        (b"a\0b\n\nmore words", BLANK_LINE, ["a\0b", "more words"]),
        (b'{"a": 1}\nis JSON, this is not\n\n{"b": 1}', BLANK_LINE, None),
        (b'{\n"a": 1\n}\nis JSON, this is not', BLANK_LINE, None),
        (b'["Never,"\nshe said]', BLANK_LINE, None),
        (b"[\nVerse\n]", BLANK_LINE, None),
        (b'["a"] is a list', BLANK_LINE, None),
    ],
)
def test_where_the_documents_of_a_text_end(tmp_path, data, separator, wanted):
    if wanted is None:
        wanted = data.decode().split("\n\n")
    assert texts(tmp_path / "a.txt", data, separator) == wanted


def test_lines_of_any_length_are_read_whole(tmp_path):
    long = "word " * (MB // 2)  # more than two pieces of a file
    for made in ([long], ["a", long, "b"], [long, long]):
        assert texts(tmp_path / "a.txt", "\n\n".join(made).encode()) == made
        assert texts(tmp_path / "a.txt", "|".join(made).encode(), "|") == made
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": long}) + "\n" + '{"text": "b"}')
    found = [row["text"] for row, _ in records.read(str(tmp_path / "a.jsonl"), "jsonl")]
    assert found == [long, "b"]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("a\r\n\u2028\0\ufeff", ("a\r\n\u2028\0\ufeff", "")),  # never changed
        (b"\xc3\xa9", ("é", "")),
        (" \n\u2003", ("", "blank")),
        (b"\xe9", ("", "not UTF-8")),
        ("\ud800", ("", "not UTF-8")),
        (None, ("", "null")),
        (3, ("", "no string")),
        (["a"], ("", "no string")),
    ],
)
def test_what_is_a_text(value, wanted):
    assert records.text_of(value) == wanted


def test_all_strings_of_a_record_at_any_depth():
    row = {"a": "one", "b": [{"c": "two", "d": None}, 3, " "], "e": {"f": ("three", b"four")}}
    assert list(records.strings(row)) == ["one", "two", "three", "four"]


def test_rows_of_parquet_keep_odd_strings(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    odd = ["a\r\n\0", None, "\ufeffb", ""]
    path, sink = tmp_path / "a.parquet", io.BytesIO()
    kinds = dict(s=pa.string(), l=pa.large_string(), d=pa.dictionary(pa.int32(), pa.string()))
    columns = {name: pa.array(odd, kind) for name, kind in kinds.items()}
    wrong = pa.StringArray.from_buffers(
        4, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\2\0\0\0\2\0\0\0"), pa.py_buffer(b"\xe9a")
    )
    pq.write_table(pa.table(columns | {"w": wrong, "n": [1, 2, 3, 4]}), sink, row_group_size=3)
    path.write_bytes(sink.getvalue())
    rows = [row for row, _ in records.read(str(path), "parquet")]
    assert all([row[name] for row in rows] == odd for name in kinds)
    assert [row["w"] for row in rows] == [b"\xe9", b"a", b"", ""] and rows[3]["n"] == 4
    only = [row for row, _ in records.read(str(path), "parquet", columns=("l",))]
    assert only == [{"l": value} for value in odd]


def test_records_of_array_record_are_examples_json_or_texts(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    example.features.feature["text"].bytes_list.value.append(b"one")
    example.features.feature["ids"].int64_list.value.extend([1, 2])
    example.features.feature["none"].bytes_list.SetInParent()
    path = tmp_path / "a.array_record-00000-of-00001"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for row in (example.SerializeToString(), b'{"text": "two"}', b"three", b"{"):
        writer.write(row)
    writer.close()
    found = list(records.read(str(path), "array_record"))
    assert found == [
        ({"text": b"one", "ids": [1, 2], "none": None}, ""),
        ({"text": "two"}, ""),
        ({}, records.NOT_RECORD),
        ({}, records.NOT_RECORD),
    ]
    whole = [row[""] for row, _ in records.read(str(path), "array_record", columns=("",))]
    assert whole[1:] == [b'{"text": "two"}', b"three", b"{"]
    path.write_bytes(path.read_bytes()[:70_000])
    with pytest.raises(UserError, match="not a whole array_record file"):
        list(records.read(str(path), "array_record"))
