"""Tests the doors of a corpus: which files a path names, and which files are refused."""

import gzip
import io
import json
import shutil
from types import SimpleNamespace

import pytest
from etils import epath
from stores import store

from sip.data import __main__ as cli
from sip.data import conversations, documents, files, preferences, problems
from sip.data import corpus as corpora
from sip.data import prompts as prompt_files
from sip.data.documents import DataConfig
from sip.stages import session
from sip.structs import UserError
from sip.tasks.pairs import PairsConfig
from sip.tasks.rl.prompts import Config as RL
from sip.tasks.supervised.conversations import Config as SFT
from sip.tasks.supervised.preferences import Config as DPO
from sip.text.tokenizer import Byte
from sip.training.losses import PairLossConfig

TEXTS = [f"document {i} of the corpus" for i in range(40)]


def zst(data):
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


PACK = {"": lambda data: data, ".gz": gzip.compress, ".zst": zst}


def txt(texts):
    return "\n\n".join(texts).encode()


def jsonl(texts):
    return "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts)).encode()


def parquet(texts, **columns):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    sink = io.BytesIO()
    pq.write_table(pa.table(columns or {"id": list(range(len(texts))), "text": texts}), sink)
    return sink.getvalue()


MAKE = {"txt": txt, "jsonl": jsonl, "parquet": parquet}


def every(source, path, **changes):
    """Returns the documents of all parts, sorted."""
    how = dict(source=source, path=path, **changes)
    parts = [documents.load(DataConfig(split=part, **how), "").texts for part in documents.PARTS]
    return sorted(sum(parts, []))


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("source", MAKE)
def test_every_format_is_read_plain_and_compressed(tmp_path, source, packing):
    path = tmp_path / f"a.{source}{packing}"
    path.write_bytes(PACK[packing](MAKE[source](TEXTS)))
    assert every(source, str(path)) == sorted(TEXTS)


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_compressed_file_may_have_several_parts_and_padding(tmp_path, packing):
    pack = PACK[packing]
    path = tmp_path / f"a.jsonl{packing}"
    path.write_bytes(pack(jsonl(TEXTS[:20])) + pack(b"") + pack(jsonl(TEXTS[20:])) + bytes(99))
    assert every("jsonl", str(path)) == sorted(TEXTS)


@pytest.fixture
def folder(tmp_path):
    """Returns a folder of JSON Lines: two files in it, one below, and others that do not count."""
    made = tmp_path / "corpus"
    (made / "more").mkdir(parents=True)
    (made / "b.jsonl").write_bytes(jsonl(TEXTS[:10]))
    (made / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(TEXTS[10:20])))
    (made / "more" / "c.ndjson").write_bytes(jsonl(TEXTS[20:]))
    (made / "README.md").write_text("about")
    (made / "_SUCCESS.jsonl").write_text("x")
    (made / ".a.jsonl").write_text("x")
    (made / "more" / "up").symlink_to(made)  # a circle
    return made


def names(path, source="jsonl"):
    return [file.rpartition("/")[2] for file in files.listed(path, source)]


def test_folders_globs_and_several_files_are_listed_in_order(folder):
    assert names(str(folder)) == ["a.jsonl.gz", "b.jsonl", "c.ndjson"]
    assert names(f"{folder}/*.jsonl*") == ["a.jsonl.gz", "b.jsonl"]
    assert names(f"{folder}/**/*.ndjson")[:1] == ["c.ndjson"]
    both = (f"{folder}/b.jsonl", f"{folder}/a.jsonl.gz", f"{folder}/b.jsonl")
    assert names(both) == ["b.jsonl", "a.jsonl.gz"]
    assert names(",".join(both)) == names(both)
    assert every("jsonl", both) == sorted(TEXTS[:20])
    assert every("jsonl", str(folder)) == sorted(TEXTS)


def test_files_of_a_folder_that_are_not_read_are_said(folder, capsys):
    (folder / "more" / "b.md.gz").write_text("about")
    (folder / "LICENSE").write_text("x")
    said = f"{folder}: 3 of 6 files are not JSON by their names and are not read (2 .md, 1 without"
    (line,) = files.ignored((f"{folder}/b.jsonl", str(folder)), "jsonl")
    assert line == f"{said} an ending)"
    assert files.ignored(f"{folder}/a.jsonl.gz,{folder}/*.jsonl", "jsonl") == []
    assert cli.main(["--source=jsonl", f"--path={folder}"]) == 0
    assert capsys.readouterr().err.startswith(said)
    data = dict(source="jsonl", path=str(folder), cut=dict(prefix_min=1, prefix_max=1, suffix=1))
    corpora._print.cache_clear()
    for _ in range(2):
        corpora.load_documents(data, "train", "")
    assert capsys.readouterr().err.count("by their names") == 1
    kept = []
    run = SimpleNamespace(say=kept.append)
    session._say_ignored(run, SimpleNamespace(reads=lambda: {str(folder): [], "mine.py": []}))
    assert kept == [line]


def test_a_name_with_a_comma_is_one_file(tmp_path):
    path = tmp_path / "a, b.txt"
    path.write_bytes(txt(TEXTS))
    assert every("txt", str(path)) == sorted(TEXTS)


def test_documents_do_not_depend_on_how_their_files_are_divided(folder, tmp_path):
    whole = tmp_path / "whole.jsonl"
    whole.write_bytes(jsonl(TEXTS))
    for part in documents.PARTS:
        one, many = (
            documents.load(DataConfig("jsonl", str(path), part), "") for path in (whole, folder)
        )
        assert sorted(one.texts) == sorted(many.texts) and one.texts


@pytest.mark.parametrize("source", [*MAKE, "array_record"])
def test_files_in_a_store_are_read_alike(tmp_path, source):
    made = tmp_path / "corpus"
    made.mkdir()
    if source == "array_record":
        write_records(made / "a.array_record", [json.dumps({"text": t}).encode() for t in TEXTS])
    else:
        (made / f"a.{source}").write_bytes(MAKE[source](TEXTS))
    (made / "_other").write_text("x")
    with store(tmp_path):
        for path in ("gs://bucket/corpus", f"gs://bucket/corpus/a.{source}", "gs://bucket/*/a.*"):
            assert every(source, path) == sorted(TEXTS)
        with pytest.raises(UserError, match="gs://bucket/no.txt: there is no such file"):
            files.listed("gs://bucket/no.txt", "txt")


EXAMPLES = {  # readers of JSON Lines, an object of each, and the number of those read
    "conversations": (
        lambda path: len(conversations.read(path, max_skipped_fraction=0.0).rows),
        dict(prompt="a", completion="b"),
    ),
    "pairs": (
        lambda path: len(preferences.read(path, max_skipped_fraction=0.0).pairs),
        dict(prompt="a", chosen="b", rejected="c"),
    ),
    "prompts": (
        lambda path: sum(map(len, prompt_files.read(
            path, prompt_files.plain(Byte()), max_len=9, max_skipped_fraction=0.0)[0].values())),
        dict(prompt="a"),
    ),
    "problems": (lambda path: len(problems.read(path, 0.0)[0]), dict(problem="a", answer="b")),
}  # fmt: skip


@pytest.mark.parametrize("kind", EXAMPLES)
def test_examples_come_through_the_doors_of_a_corpus(tmp_path, kind):
    count, row = EXAMPLES[kind]
    made = tmp_path / "made"
    (made / "more").mkdir(parents=True)
    line = f"{json.dumps(row)}\n".encode()
    (made / "a.jsonl").write_bytes(line)
    (made / "b.json.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + line * 2))
    (made / "more" / "c.jsonl.zst").write_bytes(zst(line * 4))
    (made / "_x.jsonl").write_bytes(b"no")
    found = [count(f"{made}/{name}") for name in ("a.jsonl", "b.json.gz", "more/c.jsonl.zst", "")]
    assert found == [1, 2, 4, 7]
    assert count(f"{made}/*.js*") == 3 and count(f"{made}/a.jsonl,{made}/more") == 5
    with store(tmp_path):
        assert count("gs://bucket/made") == 7 and count("gs://bucket/made/a.jsonl") == 1


def test_the_keys_of_examples_name_a_path_that_does_not_exist(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "test.jsonl").write_bytes(b"{}")
    pairs = lambda path: DPO(name="preferences", loss=PairLossConfig(), pairs=PairsConfig(path))
    reach = {
        "task.pairs.path": lambda path: pairs(path).reach(),
        "task.prompts": lambda path: RL(name="prompts", reward="run", prompts=path).reach(),
        "task.path": lambda path: SFT(name="conversations", chat="turns", path=path).reach(),
        "problems.path": lambda path: problems.ProblemsConfig(path=path).reach(),
    }
    for key, of in reach.items():
        of(f"{tmp_path}/a.jsonl.gz")
        of(f"{tmp_path}/*.gz,{tmp_path}/a.jsonl.gz")
        with pytest.raises(UserError, match=f"{key}: .*nowhere: there is no such file"):
            of(f"{tmp_path}/nowhere")
        if key == "problems.path":  # problems may be Parquet
            of(f"{tmp_path}/a.parquet")
            continue
        with pytest.raises(UserError, match=f"{key}: .*parquet for a corpus; convert other inputs"):
            of(f"{tmp_path}/a.parquet")
    with pytest.raises(UserError, match="test.jsonl: is a test set"):
        reach["problems.path"](f"{tmp_path}/sets/,{tmp_path}/a.jsonl.gz")


def write_records(path, rows):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for row in rows:
        writer.write(row)
    writer.close()


def big(path):
    """A gzip that is cut in the middle of its data."""
    return gzip.compress(txt([str(hash((path, i))) for i in range(2000)]))[:4000]


# name of the file, its source, its contents, and what its one line of error must say
WRONG = {
    "missing": ("no.txt", "txt", None, "there is no such file"),
    "empty": ("a.txt", "txt", b"", "has no documents"),
    "blank": ("a.jsonl", "jsonl", b"\n \n\n", "has no documents"),
    "JSON Lines as text": ("a.txt", "txt", jsonl(TEXTS), "is JSON.*data.source .*jsonl"),
    "one object as text": ("a.md", "txt", b'{"text": "a"}', "is JSON.*data.source .*jsonl"),
    "an array as text": ("a.txt", "txt", b'[{"text": "a"}]', "is JSON.*jq.*data.source .*jsonl"),
    "a pretty array as text": ("a.txt", "txt", b'[\n  "one",\n  "two"\n]\n', "is JSON.*jq"),
    "a pretty object as text": ("a.txt", "txt", b'{\n "text":\n  "a"\n}', "is JSON.*jq"),
    "pretty objects as text": ("a.txt", "txt", b'{\n"a": 1\n}\n{\n"a": 2\n}', "is JSON.*jq"),
    "named as JSON": ("a.jsonl", "txt", jsonl(TEXTS), "is JSON, not plain text; set data.source"),
    "text as JSON Lines": (
        "a.txt",
        "jsonl",
        txt(TEXTS),
        "not a JSON object; set data.source .*txt",
    ),
    "a JSON array": ("a.jsonl", "jsonl", b'[{"text": "a"}]', "an array, not JSON Lines.*jq"),
    "a pretty object": ("a.json", "jsonl", b'{\n "text": "a"\n}', "JSON over several lines.*jq"),
    "cut JSON": ("a.jsonl", "jsonl", b'{"text": "a\n' * 9, "9 not a JSON object"),
    "no such field": (
        "a.jsonl",
        "jsonl",
        b'{"body": "a"}\n',
        r"fields seen: 'body'\); set data.fi",
    ),
    "null": ("a.jsonl", "jsonl", b'{"text": null}\n', "'text' that is null; set data.field"),
    "a list": ("a.jsonl", "jsonl", b'{"text": ["a"]}\n', "'text' that is no string; set data.fie"),
    "Latin-1": ("a.txt", "txt", "né".encode("latin-1"), "not UTF-8; convert it .*iconv"),
    "UTF-16": ("a.txt", "txt", "one".encode("utf-16"), "UTF-16, not UTF-8; convert it"),
    "binary": ("a.txt", "txt", bytes(1000), "full of NUL bytes"),
    "Parquet as text": ("a.txt", "txt", b"PAR1....", "is Parquet, .*data.source .*parquet"),
    "named as Parquet": ("a.parquet", "txt", b"PAR1....", "is Parquet, .*data.source .*parquet"),
    "text as Parquet": ("a.parquet", "parquet", txt(TEXTS), "not a whole Parquet file"),
    "text as array_record": ("a.array_record", "array_record", b"tiny", "not a whole array_record"),
    "gzip without its name": ("a.txt", "txt", gzip.compress(b"one"), "rename it to .*a.txt.gz"),
    "no gzip": ("a.txt.gz", "txt", b"one\n", r"not compressed, .*rename it to .*a\.txt"),
    "cut gzip": ("a.txt.gz", "txt", big("a"), "damaged or cut short .*download it again"),
    "damaged gzip": ("a.txt.gz", "txt", b"\x1f\x8b" + b"x" * 99, "damaged or cut short"),
    "CSV": ("a.csv", "txt", b"text\na\n", "CSV is not read; convert it"),
    "an archive": ("a.tar.gz", "txt", gzip.compress(b"x"), "tar archives are not read; unpack it"),
    "zip": ("a.zip", "jsonl", b"PK\x03\x04..", "zip archives are not read; unpack it"),
    "a hidden zip": ("a.txt", "txt", b"PK\x03\x04..", "a zip file; unpack it"),
    "PDF": ("a.pdf", "txt", b"%PDF-1.7", "PDF is not read; extract its text"),
    "a hidden PDF": ("a.txt", "txt", b"%PDF-1.7", "is a PDF, .*pdftotext"),
    "Arrow": ("a.arrow", "jsonl", b"ARROW1", "data.source to huggingface"),
    "folder of others": ("f/a.jsonl", "txt", jsonl(TEXTS), "it has 1 of JSON; set data.source"),
    "folder of nothing": ("f/a.jpg", "txt", b"x", "no file of plain text .*must end with .txt"),
    "a glob of nothing": ("f/*.txt", "txt", None, "no file has such a name"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_file_is_one_line_that_names_it_and_the_way_out(tmp_path, capsys, wrong):
    name, source, data, said = WRONG[wrong]
    if source == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if data is not None:
        path.write_bytes(data)
    path = path.parent if wrong.startswith("folder") else path
    assert cli.main([f"--source={source}", f"--path={path}"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"error: {path}") and err.count("\n") == 1
    with pytest.raises(UserError, match=said):
        documents.load(DataConfig(source, str(path)), "")


def test_a_cut_or_damaged_zstd_file_is_named(tmp_path):
    path, data = tmp_path / "a.txt.zst", zst(txt(TEXTS * 50))
    for wrong in (data[:-9], data[:9], data[:20] + b"xxxx" + data[24:], data + b"more"):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match=r"a\.txt\.zst: damaged or cut short"):
            every("txt", str(path))


def test_a_parquet_column_that_is_no_text_is_named_with_the_columns(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet([], body=["a", "b"], id=[1, 2]))
    with pytest.raises(UserError, match=r"2 of 2 .*without a field 'text' \(fields seen: 'body', "):
        every("parquet", str(path))
    with pytest.raises(UserError, match="with a field 'id' that is no string"):
        every("parquet", str(path), field="id")
    split = documents.part("b")
    found = documents.load(DataConfig("parquet", str(path), split, field="body"), "")
    assert found.texts == [text for text in "ab" if documents.part(text) == split]


def test_an_unreachable_store_is_named(monkeypatch):
    def unreachable(*_):
        raise RuntimeError("Please install gcsfs\nto use it")

    with epath.testing.mock_epath(isdir=unreachable, exists=unreachable):
        with pytest.raises(UserError, match="^gs://b/a.txt: cannot be reached: Please install gcs"):
            files.listed("gs://b/a.txt", "txt")


def test_missing_packages_name_the_extra(tmp_path, monkeypatch):
    for module, name in (("zstandard", "a.txt.zst"), ("pyarrow", "a.parquet")):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        (tmp_path / name).write_bytes(files.PACKED[".zst"] + b"x")
        with pytest.raises(UserError, match=rf"need.* {module}: pip install 'sip-jax\[data\]'"):
            documents.load(DataConfig(name.split(".")[1], str(tmp_path / name)), "")


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one")
    shutil.copy(path, tmp_path / "b.txt")
    error = PermissionError(13, "Permission denied", str(path))
    monkeypatch.setattr(epath.Path(path).__class__, "open", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(UserError, match=r"a\.txt: cannot read the corpus: Permission denied"):
        every("txt", str(path))
