"""Tests sources of documents, their splits, skipped documents, and `python -m sip.data`."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from workdirs import call

from sip.data import __main__ as cli
from sip.data import documents
from sip.data.documents import DataConfig
from sip.run import Run
from sip.structs import UserError

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
WORLD = dict(entities=8, train=120, validation=20, test=20)


def corpus(path, data, **changes):
    path.write_bytes(data)
    return documents.load(DataConfig(path.suffix[1:], str(path), **changes), "")


def texts_of(path, data, split="train", **changes):
    return corpus(path, data, split=split, **changes).texts


def numbered(count):
    return "\n\n".join(f"document {i}" for i in range(count)).encode()


@pytest.fixture(scope="module")
def microworld(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


def load_world(data_dir, split="train", **changes):
    return documents.load(DataConfig("microworld", split=split, world=WORLD | changes), data_dir)


def test_blank_lines_separate_documents(tmp_path):
    data = b"\xef\xbb\xbf one\ntwo \r\n\r\nthree\n \t\n\n\nfive\n\x0cx\n\n\n"
    assert corpus(tmp_path / "a.txt", b" \n \n" + data[3:] + b" ").skipped == 0
    assert texts_of(tmp_path / "a.txt", data) == [" one\ntwo ", "three", "five\n\x0cx"]


def test_unreadable_documents_are_counted_and_too_many_are_an_error(tmp_path):
    path, data = tmp_path / "a.txt", numbered(18) + b"\n\n\xff\xfe\n\n\x0c\n\nend"
    assert corpus(path, data).skipped == 2
    assert corpus(path, data, max_skipped_fraction=0.1).read == 21
    with pytest.raises(UserError, match=r"a\.txt: 2 of 21 documents.*max_skipped_fraction=0.09"):
        corpus(path, data, max_skipped_fraction=0.09)


def test_the_parts_of_a_file_are_a_partition_of_about_90_5_5_percent(tmp_path):
    path, data = tmp_path / "a.txt", numbered(2000)
    parts = [texts_of(path, data, split) for split in documents.PARTS]
    assert sorted(sum(parts, [])) == sorted(data.decode().split("\n\n"))
    assert 1750 < len(parts[0]) < 1850 and all(70 < len(part) < 130 for part in parts[1:])


def test_a_document_is_in_the_same_part_whatever_surrounds_it(tmp_path):
    few = texts_of(tmp_path / "a.txt", numbered(500), "test")
    many = texts_of(tmp_path / "b.txt", numbered(1000) + b"\n\n" + numbered(400), "test")
    assert few and set(few) < set(many) and many.count(few[0]) == 2


def test_slices_of_a_split_are_disjoint_and_in_order(tmp_path):
    path, data = tmp_path / "a.txt", numbered(200)
    whole = texts_of(path, data)
    slices = [texts_of(path, data, f"train[{s}]") for s in (":33%", "33%:85%", "85%:", "3:9")]
    assert slices[0] + slices[1] + slices[2] == whole and slices[3] == whole[3:9]
    assert abs(len(slices[0]) - 0.33 * len(whole)) <= 0.5


@pytest.mark.parametrize(
    "split", ["dev", "train[", "train[:x%]", "train[5:-]", "", "train[5]", f"train[{'7' * 4500}:]"]
)
def test_an_unknown_split_is_named(tmp_path, split):
    with pytest.raises(UserError, match="data.split"):
        texts_of(tmp_path / "a.txt", numbered(30), split)


@pytest.mark.parametrize("bounds", [":-10%", "-10%:", "-7:-2", "-500:", "5:-5%", "-1%:"])
def test_negative_bounds_count_from_the_end_as_in_tfds(tmp_path, bounds):
    """The rule of TFDS: round to a number of documents, then add the size if it is negative."""
    path, data = tmp_path / "a.txt", numbered(200)
    whole = texts_of(path, data)
    size = lambda b: round(int(b[:-1]) * len(whole) / 100) if b.endswith("%") else int(b)
    low, high = (size(b) if b else None for b in bounds.split(":"))
    assert texts_of(path, data, f"train[{bounds}]") == whole[low:high]


def test_copies_are_kept_and_counted_or_left_out_if_so_asked(tmp_path):
    path, data = (
        tmp_path / "a.txt",
        b"\n\n".join([b"one", b"two", b"one", b"three", b"one", b"two"]),
    )
    every = lambda **how: sum((texts_of(path, data, p, **how) for p in parts), [])
    parts = sorted({documents.part(t) for t in ("one", "two", "three")})
    assert sorted(every()) == ["one"] * 3 + ["three"] + ["two"] * 2
    assert sorted(every(drop_duplicates=True)) == ["one", "three", "two"]
    kept, dropped = (corpus(path, data, split=parts[0], drop_duplicates=d) for d in (False, True))
    assert kept.duplicates == dropped.duplicates == 3 and not kept.left_out
    assert dropped.left_out == {documents.DUPLICATE: 3} and dropped.read == 6


def test_json_lines_without_a_text_are_skipped(tmp_path):
    good = [json.dumps({"text": t, "id": i}) for i, t in enumerate(["a\n\nb", " é\u2028", "c\r\n"])]
    bad = [
        '{"text": 3}',
        '{"no": 1}',
        "[1]",
        "{",
        '{"text": " \\n"}',
        '"text"',
        '{"text": "\\ud800"}',
    ]
    data = "\n".join([*good, "", *bad, "[" * 100_000]).encode() + b'\n{"text": "\xff"}\n'
    path = tmp_path / "a.jsonl"
    found = corpus(path, data, max_skipped_fraction=1.0)
    assert found.texts == ["a\n\nb", " é\u2028", "c\r\n"]
    assert (found.skipped, found.read) == (len(bad) + 2, len(bad) + 5)


def test_what_is_left_out_is_counted_by_reason_and_missing_fields_are_named(tmp_path):
    good = [json.dumps({"text": f"good {i}"}) for i in range(3)]
    bad = ['{"body": "x", "id": 1}', '{"body": "y"}', '{"text": []}', '{"text": " "}', "[2]", "{,"]
    data = "\n".join([*good, *bad]).encode() + b'\n{"text": "\xe9"}\n\n'
    found = corpus(tmp_path / "a.jsonl", data, max_skipped_fraction=1.0)
    assert found.left_out == {
        "without a field 'text' (fields seen: 'body', 'id')": 2,
        "with a field 'text' that is no string": 1,
        "blank": 1,
        "not a JSON object": 2,
        "not UTF-8": 1,
    }
    with pytest.raises(UserError, match="7 of 10 .*: 2 without a field 'text' .*set data.field"):
        corpus(tmp_path / "a.jsonl", data)


def test_a_latin1_corpus_is_refused_with_a_way_out(tmp_path):
    with pytest.raises(UserError, match="2 of 3 .*2 not UTF-8; convert it .*iconv -f LATIN1"):
        corpus(tmp_path / "a.txt", "mañana\n\nold\n\nniño".encode("latin-1"))


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_refused_with_a_way_out(tmp_path, indent):
    rows = json.dumps([{"text": "one"}, {"text": "two"}], indent=indent)
    for data in (rows, json.dumps({"text": "one"}, indent=1)):
        with pytest.raises(
            UserError, match=r"a\.jsonl: JSON over several lines or an array.*jq -c"
        ):
            corpus(tmp_path / "a.jsonl", data.encode())


def test_blank_lines_of_any_spaces_separate_and_old_line_ends_are_read(tmp_path):
    data = "one\n\u2003\u3000\ntwo\u2029\n\u00a0\t\n\nthree"
    found = texts_of(tmp_path / "a.txt", data.encode())
    assert found == ["one", "two\u2029", "three"]
    assert texts_of(tmp_path / "a.txt", b"one\ra\r\rtwo") == ["one\na", "two"]


@pytest.mark.parametrize("name", ["missing.txt", "folder.txt", "missing.jsonl"])
def test_a_missing_file_is_named(tmp_path, name):
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UserError, match=name):
        documents.load(DataConfig(name.split(".")[1], str(tmp_path / name)), "")


@pytest.mark.parametrize("data", [b"", b"\n\n \n", bytes(range(128, 256)) * 50])
def test_a_file_without_documents_is_an_error(tmp_path, data):
    with pytest.raises(UserError, match="a.txt"):
        corpus(tmp_path / "a.txt", data)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        (dict(source="tape"), "data.source"),
        (dict(source="txt"), "data.path"),
        (dict(source="microworld", path="a.txt"), "data.path"),
        (dict(source="txt", path="a", max_skipped_fraction=2.0), "data.max_skipped_fraction"),
        (dict(source="txt", path="a", field="body"), "data.field='body': plain text has no fields"),
        (dict(source="jsonl", path="a", field=""), "data.field: is empty"),
        (dict(source="jsonl", path="a", separator="|"), "data.separator='|': is for source txt"),
        (
            dict(source="txt", path="a", separator=""),
            "data.separator: is empty; it is 'blank line'",
        ),
        (dict(source="txt", path="a", parts="hash"), "data.parts='hash': is for tfds and hug"),
        (dict(source="tfds", path=("a", "b")), "data.path=.*only files can be several"),
        (dict(source="microworld", drop_duplicates=True), "data.drop_duplicates"),
        (dict(source="mixture"), "data.mix: source mixture"),
        (dict(source="txt", path="a", mix=dict(b={})), "data.mix: source mixture"),
        (dict(source="mixture", path="a", mix=dict(b={})), "data.path 'a'"),
        (
            dict(source="mixture", mix=dict(b=dict(path="x"))),
            "data.mix.b: .* source, path and weig",
        ),
        (
            dict(source="mixture", mix=dict(b=dict(source="txt", path="x", weight=0))),
            "mix.b.weight=0",
        ),
        (
            dict(source="mixture", mix=dict(b=dict(source="tape", path="x", weight=1))),
            "mix.b.source=",
        ),
        (
            dict(source="mixture", mix=dict(b=dict(surce="txt", weight=1))),
            "mix.b.surce: unknown key",
        ),
        (
            dict(source="mixture", mix=dict(b=dict(source="mixture", weight=1))),
            "mix.b.source: a mix",
        ),
    ],
)
def test_a_wrong_config_is_named(values, field):
    with pytest.raises(UserError, match=field):
        DataConfig(**values)


def test_configs_compare_and_hash_by_value():
    a = DataConfig("microworld", world={"train": 5, "entities": 9})
    b = DataConfig("microworld", world=(("entities", 9), ("train", 5)))
    assert a == b and hash(a) == hash(b) and a != DataConfig("microworld")


@pytest.mark.parametrize("world", ["a=" + "(" * 9999, "a={[]: 1}"])
def test_a_world_of_nonsense_is_one_short_line(world, capsys):
    assert cli.main(["--source=microworld", f"--world={world}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and len(line) < 300


@pytest.mark.parametrize("flag", ["--characters=-3", "--below=inf", "--path=ftp:/x"])
def test_numbers_out_of_range_are_refused(flag, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--source=txt", "--path=a.txt", flag])
    assert ended.value.code == 2 and flag.split("=")[0] in capsys.readouterr().err


def test_json_lines_are_no_plain_text(tmp_path):
    with pytest.raises(UserError, match=r"a\.json: is JSON, not plain text; set data.source"):
        (tmp_path / "a.json").write_text('{"text": "one"}')
        documents.load(DataConfig("txt", str(tmp_path / "a.json")), "")


def test_what_a_run_does_not_use_is_said_once_and_kept(tmp_path, capsys):
    path = tmp_path / "odd.jsonl"
    rows = [{"text": f"number {i} " + "is long " * (i % 4)} for i in range(40)] + [{"no": 1}] * 20
    path.write_text("\n".join(map(json.dumps, rows)))
    cut = dict(prefix_min=8, prefix_max=9, suffix=8)
    data = dict(source="jsonl", path=str(path), world={}, max_skipped_fraction=1.0, cut=cut)
    run = Run(ConfigDict(dict(data=data, tokenizer=dict(kind="byte"))), "r", str(tmp_path))
    for split in ("train", "train", "train[:50%]"):
        run.corpus(split)
    said = capsys.readouterr().err.splitlines()
    missing = "without a field 'text' (fields seen: 'no')"
    assert said[0] == f"{path}: 20 of 60 documents are left out: 20 {missing}"
    assert len(said) == 3 and all("shorter than prefix_min + suffix = 16" in x for x in said[1:])
    assert set(run.left_out) == {"train", "train[:50%]"}
    assert list(run.left_out["train"].values())[0] == 20 and len(run.left_out["train"]) == 2


def test_packed_runs_evaluate_what_is_long_enough(tmp_path, monkeypatch, capsys):
    path = tmp_path / "short.txt"
    path.write_text("\n\n".join(f"{i:03}" + "x" * (0 if i % 5 else 40) for i in range(400)))
    cut = dict(prefix_min=16, prefix_max=16, suffix=16)
    data = dict(source="txt", path=str(path), max_skipped_fraction=0.5, cut=cut)
    run = Run(ConfigDict(dict(data=data, tokenizer=dict(kind="byte"))), "r", str(tmp_path))
    with pytest.raises(UserError, match="documents have fewer than prefix_min"):
        run.corpus("test")
    found = run.corpus("test", any_length=True)
    assert 0 < len(found.chunks) < found.chunks.skipped
    assert f"{path}, test: {found.chunks.skipped} of" in capsys.readouterr().err
    task = importlib.import_module("sip.tasks.supervised.documents")
    seen = []
    monkeypatch.setattr(task.ground_truth, "suite", lambda *_, any_length: seen.append(any_length))
    for name in ("_packed", "_chunks", "tokens_loss"):
        monkeypatch.setattr(task, name, lambda *_: (None, None))
    for packed in (True, False):
        wanted = task.Config(name="documents", tokens="all", packed=packed)
        parts = dict(evals=None, model=None, log=SimpleNamespace(samples=0))
        task.build(run, SimpleNamespace(task=wanted, **parts), None)
    assert seen == [True, False]


def mixture(tmp_path, split="train", **weights):
    """Returns the documents of sources a, b, .. whose texts begin with their names."""
    for name, size in zip(weights, (60, 300, 90), strict=False):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(f"{name} {i}" for i in range(size)))
    mix = {
        n: dict(source="txt", path=str(tmp_path / f"{n}.txt"), weight=weights[n]) for n in weights
    }
    return documents.load(DataConfig("mixture", split=split, mix=mix), "")


def test_a_mixture_has_the_documents_of_its_sources_interleaved_by_weight(tmp_path):
    docs = mixture(tmp_path, a=3.0, b=1, c=2.0)
    for name in "abc":
        own = [text for text in docs.texts if text[0] == name]
        assert own == documents.load(DataConfig("txt", str(tmp_path / f"{name}.txt")), "").texts
        assert {
            docs.weights[i][0] for i, t in zip(docs.source_D, docs.texts, strict=True) if t in own
        } == {name}
    for n in (12, 24, 36):
        head = [text[0] for text in docs.texts[:n]]
        assert [head.count(name) for name in "abc"] == [n // 2, n // 6, n // 3]
    assert docs.read == 450 and docs.truth is None


def test_a_source_of_a_mixture_without_documents_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    mix = dict(own=dict(source="txt", path=str(tmp_path / "a.txt"), weight=1))
    split = next(part for part in documents.PARTS if part != documents.part("one"))
    with pytest.raises(
        UserError, match=rf"data\.mix\.own: .*a\.txt: no documents in split '{split}"
    ):
        documents.load(DataConfig("mixture", split=split, mix=mix), "")


def test_a_run_says_what_it_learns_from_in_one_line(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    rows = [{"text": f"{i:03}" + "x" * (1 if i % 4 else 16)} for i in range(200)]
    path.write_text("\n".join(map(json.dumps, [*rows, rows[0], {"text": None}])))
    cut = dict(prefix_min=4, prefix_max=4, suffix=8)
    data = dict(source="jsonl", path=str(path), max_skipped_fraction=1.0, cut=cut)
    run = Run(ConfigDict(dict(data=data, tokenizer=dict(kind="byte"))), "base", str(tmp_path))
    run.announce("train", 80)
    texts = [r["text"] for r in [*rows, rows[0]] if documents.part(r["text"]) == "train"]
    long = [t for t in texts if len(t) == 19]  # 20 tokens: 2 chunks each; the others have 5
    short, tokens = len(texts) - len(long), sum(len(t) + 1 for t in texts)
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"base learns from train: {len(texts)} documents, {tokens:,} tokens, median 5 tokens; "
        f"{short / len(texts):.1%} too short (fewer than 12 tokens); 0.5% of all splits left out "
        "(1 with a field 'text' that is null); 1 of all splits are copies of others, kept; "
        f"{80 / (2 * len(long)):.3g} epochs of {2 * len(long)} chunks"
    )


def test_the_line_of_a_mixture_has_the_epochs_of_each_source(tmp_path, capsys):
    for name, size in (("a", 100), ("b", 400)):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(f"{name} {i:03}" for i in range(size)))
    mix = {
        n: dict(source="txt", path=f"{tmp_path}/{n}.txt", weight=w) for n, w in (("a", 3), ("b", 1))
    }
    data = dict(source="mixture", mix=mix, cut=dict(prefix_min=2, prefix_max=2, suffix=4))
    run = Run(ConfigDict(dict(data=data, tokenizer=dict(kind="byte"))), "base", str(tmp_path))
    run.announce("train", 400)
    chunks = run.corpus("train").chunks
    sizes = np.bincount(chunks.source_B)
    assert capsys.readouterr().err.endswith(
        f"; {300 / sizes[0]:.3g} epochs of {sizes[0]} chunks of a, {100 / sizes[1]:.3g} epochs of "
        f"{sizes[1]} chunks of b\n"
    )


def test_real_text_is_cut_into_documents():
    path = DATA / "text" / "wikitext-2" / "valid.txt"
    if not path.exists():
        pytest.skip("no WikiText in the data directory beside the repository")
    parts = [documents.load(DataConfig("txt", str(path), s), "") for s in documents.PARTS]
    words = sum(len(text.split()) for docs in parts for text in docs.texts)
    assert words == len(path.read_text(encoding="utf-8").split())
    assert all(docs.skipped == 0 for docs in parts)


def test_the_microworld_has_texts_kinds_and_a_truth(microworld):
    docs = load_world(microworld)
    assert len(docs.texts) == len(docs.kinds) == 120 and docs.skipped == 0
    assert {"plain", "unsafe"} <= set(docs.kinds)
    safety = docs.truth.score([""] * 120, docs.texts)["safety"]
    assert safety[docs.kinds == "plain"].mean() > 0.99 > safety[docs.kinds == "unsafe"].mean()


def test_the_microworld_is_sliced_and_read_again(microworld):
    whole = load_world(microworld)
    parts = [load_world(microworld, f"train[{s}]") for s in (":70%", "70%:85%", "85%:")]
    assert sum((list(part.texts) for part in parts), []) == list(whole.texts)
    assert np.concatenate([part.kinds for part in parts]).tolist() == whole.kinds.tolist()
    assert not set(load_world(microworld, "test").texts) & set(whole.texts)


def test_building_the_microworld_says_nothing(microworld, capfd, caplog):
    load_world(microworld, seed=1)
    assert capfd.readouterr() == ("", "") and not caplog.records


@pytest.mark.parametrize("world", [{"towns": 3}, {"entities": "many"}, {"entities": 0}])
def test_a_wrong_world_is_named(microworld, world):
    with pytest.raises(UserError, match="world"):
        load_world(microworld, **world)


@pytest.mark.parametrize("damage", ["half", "tiny", "missing"])
def test_a_damaged_data_set_is_named(tmp_path, damage):
    load_world(str(tmp_path))
    (file,) = tmp_path.rglob("*-train.*")
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] if damage == "half" else b"tiny")
    if damage == "missing":
        file.unlink()
    with pytest.raises(UserError, match=str(file.parent)):
        load_world(str(tmp_path))


class Notes(tfds.core.GeneratorBasedBuilder):
    """A user-defined TFDS data set."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None

    def _info(self):
        features = tfds.features.FeaturesDict({"body": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": ((i, {"body": b"\xff" if i == 7 else f"note {i}"}) for i in range(20))}

    def _generate_examples(self):
        yield from ()


def test_any_tfds_data_set_is_a_source(tmp_path):
    docs = documents.load(DataConfig("tfds", "notes:body", "train[:50%]"), str(tmp_path))
    rest = documents.load(DataConfig("tfds", "notes:body", "train[50%:]"), str(tmp_path))
    assert docs.skipped + rest.skipped == 1 and docs.kinds is None and docs.truth is None
    assert sorted([*docs.texts, *rest.texts]) == sorted(f"note {i}" for i in range(20) if i != 7)


def test_a_tfds_data_set_of_one_split_is_divided_by_hash_if_so_asked(tmp_path):
    how = dict(field="body", parts="hash")
    parts = [DataConfig("tfds", "notes:1.0.0", part, **how) for part in ("train", "test")]
    found = [documents.load(part, str(tmp_path)).texts for part in parts]
    notes = [f"note {i}" for i in range(20) if i != 7]
    for part, texts in zip(("train", "test"), found, strict=True):
        assert sorted(texts) == sorted(t for t in notes if documents.part(t) == part) and texts
    with pytest.raises(UserError, match="name two fields"):
        documents.load(DataConfig("tfds", "notes:title", field="body"), str(tmp_path))


@pytest.mark.parametrize("path", ["notes", "notes:title", "no_such_set:text"])
def test_a_wrong_tfds_path_is_named(tmp_path, path):
    with pytest.raises(UserError, match=path):
        documents.load(DataConfig("tfds", path), str(tmp_path))


def test_the_command_line_describes_a_corpus(microworld, capsys):
    world = ",".join(f"{name}={value}" for name, value in WORLD.items())
    assert cli.main(["--source=microworld", f"--data_dir={microworld}", f"--world={world}"]) == 0
    out = capsys.readouterr().out
    assert "documents       120\n" in out and "  unsafe " in out and "words each" in out
    assert len([line for line in out.splitlines() if line.startswith("example")]) == 3


@pytest.mark.parametrize(
    "flags",
    [["--source=txt", "--path=none.txt"], ["--sorce=txt"], ["--source=microworld", "--world=a"]],
)
def test_bad_flags_are_one_line_and_exit_code_2(flags, capsys):
    assert call(cli, *flags) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1


def test_a_data_set_is_built_once_and_leftovers_are_removed(tmp_path):
    where, made = tmp_path / "world" / "1.0.0", []
    left = where.parent / "incomplete.ABC_1.0.0"
    left.mkdir(parents=True)

    class Builder:
        def download_and_prepare(self, file_format):
            made.append(file_format)
            assert not left.exists()
            where.mkdir()

    documents._built(Builder, str(where))
    documents._built(Builder, str(where))
    assert made == ["array_record"]


def test_outputs_are_whole_and_no_input_is_overwritten(tmp_path, monkeypatch, capsys):
    path, link = tmp_path / "a.jsonl", tmp_path / "link.jsonl"
    path.write_text(json.dumps({"text": "A river."}) + "\n")
    link.symlink_to(path)
    before, part = path.read_bytes(), documents.part("A river.")
    for flags in (["--questions", str(link)], ["--scores", "b.jsonl", "--out", str(path)]):
        with pytest.raises(SystemExit) as caught:
            cli.main(["--source=jsonl", "--path", str(path), *flags])
        assert caught.value.code == 2 and "also an input" in capsys.readouterr().err
    assert path.read_bytes() == before

    def full(path, data):
        path.write_bytes(data[:3])
        raise OSError(28, "No space left on device", str(path))

    for out in (["--questions", str(path)], ["--questions", str(link)]):
        assert cli.main(["--source=jsonl", "--path", str(tmp_path), *out, f"--split={part}"]) == 2
        assert "is an input, which is never overwritten" in capsys.readouterr().err
    assert path.read_bytes() == before
    monkeypatch.setattr("sip.workdir._put", full)
    asked = tmp_path / "asked.jsonl"
    flags = ["--source=jsonl", "--path", str(path), "--questions", str(asked)]
    assert cli.main([*flags, f"--split={part}"]) == 2
    assert sorted(tmp_path.iterdir()) == [path, link]
