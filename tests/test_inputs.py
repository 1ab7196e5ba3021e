"""Tests that what a run reads is recorded, and that a change is refused by name."""

import json
import types
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from stores import store

from sip.data.problems import ProblemsConfig
from sip.stages import inputs
from sip.structs import UserError
from sip.tasks.pairs import PairsConfig
from sip.tasks.rl.prompts import Config as RL
from sip.tasks.supervised.conversations import Config as SFT
from sip.tasks.supervised.preferences import Config as DPO
from sip.tasks.thoughts import ThoughtsConfig
from sip.training.losses import PairLossConfig


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run on text, with an own tokenizer, labels and template, that reads two checkpoints."""
    for name in ("book.txt", "own.model", "labels.jsonl", "mine.txt", "kind.txt"):
        (tmp_path / name).write_text(name)
    published = tmp_path / "llama"
    published.mkdir()
    (published / "config.json").write_text('{"model_type": "llama"}')
    (published / "model.safetensors").write_text("weights")
    (published / "README.md").write_text("read me")
    path = lambda name: str(tmp_path / name)
    task = {"label_file": {"path": path("labels.jsonl"), "aspects": (path("mine.txt"),)}}
    config = ConfigDict(
        {
            "data": {"source": "txt", "path": path("book.txt")},
            "tokenizer": {"path": path("own.model")},
            "runs": {"sip": {"task": task, "judge": {"weights": ((path("kind.txt"), 1.0),)}}},
        }
    )
    monkeypatch.setattr(inputs.checkpoints, "identity", lambda path: Path(path, "is").read_text())
    monkeypatch.setattr(inputs, "source_dir", _source)
    base = tmp_path / "w" / "runs" / "base"
    base.mkdir(parents=True)
    (base / "is").write_text("first")
    return _run(config, "sip", tmp_path / "w")


def _source(workdir, source, key):
    return source if "/" in source else str(Path(workdir, "runs", source))


def _run(config, name, workdir):
    directory = str(workdir / "runs" / name)
    return types.SimpleNamespace(
        config=config, name=name, workdir=str(workdir), directory=directory
    )


def check(run, *sources, reads=lambda: {}):
    named = {f"key{i}": x for i, x in enumerate(sources)}
    c = types.SimpleNamespace(sources=lambda: named, reads=reads)
    inputs.check(run, c)
    Path(run.directory, "checkpoints", "1").mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize(
    "changed",
    ["book.txt", "own.model", "labels.jsonl", "mine.txt", "kind.txt", "llama/model.safetensors"],
)
def test_a_changed_file_is_refused_by_name(run, tmp_path, changed):
    sources = "base", str(tmp_path / "llama"), ""
    check(run, *sources)
    check(run, *sources)
    (tmp_path / "llama" / "README.md").write_text("not read")
    check(run, *sources)
    (tmp_path / changed).write_text("changed since")
    with pytest.raises(UserError, match=changed.split("/")[0]) as caught:
        check(run, *sources)
    assert "run sip" in str(caught.value) and "inputs.json" in str(caught.value)


def test_what_a_start_without_a_checkpoint_read_is_no_obstacle(run, tmp_path):
    check(run, "base")
    (tmp_path / "w" / "runs" / "sip" / "checkpoints" / "1").rmdir()
    (tmp_path / "book.txt").write_text("another book")
    check(run, "base")
    (tmp_path / "book.txt").write_text("a third")
    with pytest.raises(UserError, match=r"book\.txt has changed"):
        check(run, "base")


def test_a_record_is_read_once(run, monkeypatch):
    check(run, "base")
    read, seen = inputs.workdirs.read_json, []
    keep = lambda path, **keys: seen.append(path) or read(path, **keys)
    monkeypatch.setattr(inputs.workdirs, "read_json", keep)
    check(run, "base")
    assert len(seen) == 1


def test_a_source_that_was_trained_anew_is_refused_by_name(run, tmp_path):
    check(run, "base")
    (tmp_path / "w" / "runs" / "base" / "is").write_text("second")
    with pytest.raises(UserError, match="run sip: base has changed"):
        check(run, "base")


def test_runs_of_a_workdir_and_seeds_with_one_corpus_read_the_same(run, tmp_path):
    config = run.config
    config.runs.other = config.runs.sip
    (tmp_path / "w" / "seeds.json").write_text(json.dumps({"shared": True, "seeds": [0, 1]}))
    for seed in (0, 1):
        (tmp_path / "w" / f"seed{seed}" / "runs" / "base").mkdir(parents=True)
        (tmp_path / "w" / f"seed{seed}" / "runs" / "base" / "is").write_text(str(seed))
    first, second = (tmp_path / "w" / f"seed{seed}" for seed in (0, 1))
    check(_run(config, "sip", first), "base")
    check(_run(config, "sip", second), "base")  # each seed has a base of its own
    (tmp_path / "book.txt").write_text("another book")
    for other in (_run(config, "other", first), _run(config, "other", second)):
        with pytest.raises(UserError, match=r"book\.txt"):
            check(other)


def test_what_is_built_is_digested_without_leftovers(run, tmp_path):
    run.config.data = ConfigDict({"source": "microworld"})
    data = tmp_path / "w" / "data" / "world" / "1.0.0"
    data.mkdir(parents=True)
    (data / "train.array_record").write_text("documents")
    check(run)
    (data.parent / "incomplete.X_1.0.0").mkdir()
    (data.parent / "incomplete.X_1.0.0" / "part").write_text("half")
    (data.parent / ".lock").write_text("process 1")
    check(run)
    (data / "train.array_record").write_text("other documents")
    with pytest.raises(UserError, match="data has changed"):
        check(run)


@pytest.mark.parametrize("recorded", [None, inputs.NOTHING])
def test_a_data_set_that_a_later_run_builds_is_no_change(run, tmp_path, recorded):
    """The first run, such as instruction tuning on a file, reads none; earlier versions recorded
    the digest of no files."""
    run.config.data = ConfigDict({"source": "microworld"})
    run.config.runs.other = run.config.runs.sip
    check(run)
    path = tmp_path / "w" / "runs" / "sip" / "inputs.json"
    found = json.loads(path.read_text())
    assert "data" not in found["files"]
    if recorded:
        path.write_text(json.dumps({**found, "files": {**found["files"], "data": recorded}}))
    data = tmp_path / "w" / "data" / "world" / "1.0.0"
    data.mkdir(parents=True)
    (data / "train.array_record").write_text("documents")
    check(_run(run.config, "other", tmp_path / "w"))
    check(run)
    (data / "train.array_record").write_text("other documents")
    with pytest.raises(UserError, match="data has changed"):
        check(run)


def test_a_folder_and_an_evaluation_set_are_digested_and_a_new_file_is_a_change(run, tmp_path):
    folder, asked = tmp_path / "corpus", tmp_path / "asked.jsonl"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    asked.write_text('{"text": "one"}')
    run.config.data = ConfigDict({"source": "txt", "path": str(folder)})
    run.config.data.contamination = {"against": (("asked", str(asked)),)}
    check(run)
    (folder / "notes.md").write_text("not read")
    check(run)
    (folder / "b.txt").write_text("two")
    with pytest.raises(UserError, match="corpus has changed"):
        check(run)
    (folder / "b.txt").unlink()
    check(run)
    asked.write_text('{"text": "two"}')
    with pytest.raises(UserError, match="asked.jsonl has changed"):
        check(run)


def test_the_files_of_all_sources_of_a_mixture_are_digested(run, tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    mix = {n: dict(source="txt", path=str(tmp_path / f"{n}.txt"), weight=1.0) for n in "ab"}
    run.config.data = ConfigDict({"source": "mixture", "path": "", "mix": mix})
    check(run)
    (tmp_path / "b.txt").write_text("changed since")
    with pytest.raises(UserError, match=r"b\.txt has changed"):
        check(run)


def test_a_run_begun_without_digests_gets_them(run):
    assert not Path(run.directory, inputs.FILE).exists()
    check(run)
    found = json.loads(Path(run.directory, inputs.FILE).read_text())
    assert len(found["files"]) == 5 and not found["sources"]


@pytest.mark.parametrize("path", ["talks", "talks/a.jsonl,talks/b.jsonl", "talks/*.jsonl.gz"])
def test_a_file_that_a_task_reads_may_not_come_change_or_go(run, tmp_path, path):
    (tmp_path / "talks").mkdir()
    files = [tmp_path / "talks" / name for name in ("a.jsonl", "b.jsonl", "c.jsonl.gz")]
    for file in files:
        file.write_text("{}")
    path = ",".join(f"{tmp_path}/{part}" for part in path.split(","))
    run.config.runs.sip.task = {"path": path}
    reads = SFT(name="conversations", chat="turns", path=path).reads
    check(run, reads=reads)
    check(run, reads=reads)
    read = {file for found in reads().values() for file in found}
    for file in files:
        file.write_text("{ }")
        if str(file) in read:
            with pytest.raises(UserError, match=f"{path[:9]}.* has changed"):
                check(run, reads=reads)
        else:
            check(run, reads=reads)
        file.write_text("{}")
    if "," in path:
        return
    (tmp_path / "talks" / "d.jsonl.gz").write_text("{}")
    with pytest.raises(UserError, match="talks.* has changed"):
        check(run, reads=reads)


def test_files_in_a_store_are_digested_too(run, tmp_path):
    (tmp_path / "talks").mkdir()
    (tmp_path / "talks" / "a.jsonl").write_text("{}")
    path, labels = "gs://bucket/talks", "gs://bucket/labels.jsonl"
    run.config.runs.sip.task = {"path": path, "label_file": {"path": labels}, "model": "a.b/c://d"}
    reads = SFT(name="conversations", chat="turns", path=path).reads
    with store(tmp_path):
        check(run, reads=reads)
        check(run, reads=reads)
        (tmp_path / "labels.jsonl").write_text("changed since")
        with pytest.raises(UserError, match="gs://bucket/labels.jsonl has changed"):
            check(run, reads=reads)
        (tmp_path / "labels.jsonl").write_text("labels.jsonl")
        (tmp_path / "talks" / "b.jsonl").write_text("{}")
        with pytest.raises(UserError, match="gs://bucket/talks has changed"):
            check(run, reads=reads)


def test_each_task_says_which_files_it_reads(tmp_path):
    for name in ("a.jsonl", "b.jsonl.gz", "mine.py"):
        (tmp_path / name).write_text("def f(answers): pass\ndef g(answers): pass")
    a, b, mine = (f"{tmp_path}/{name}" for name in ("a.jsonl", "b.jsonl.gz", "mine.py"))
    named = dict(name="t", reward=f"{mine}:f*0.5,{mine}:g,other")
    assert RL(**named, prompts=f"{a},{b}").reads() == {f"{a},{b}": [a, b], mine: [mine]}
    problems = ProblemsConfig(path=a, test=b)
    assert RL(**named, problems=problems).reads() == {a: [a], b: [b], mine: [mine]}
    assert SFT(name="t", chat="turns", problems=problems).reads() == {a: [a], b: [b]}
    pairs = DPO(name="t", loss=PairLossConfig(), pairs=PairsConfig(str(tmp_path)))
    assert pairs.reads() == {str(tmp_path): [a, b]}
    thoughts = ThoughtsConfig(annotated=a)
    assert thoughts.reads() == {a: [a]} and not ThoughtsConfig(annotated="truth").reads()
