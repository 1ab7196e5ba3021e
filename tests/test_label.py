"""Tests the label command: labels of a file or a config, by a rule, a run or a server."""

import json
import random

import pytest
import tiny_recipe
from serving import serve
from workdirs import call

from sip import label
from sip.judge import prompts
from sip.judge.labels import file as label_file
from sip.text.tokenizer import Byte
from sip.textgen import transport
from sip.textgen.scripted import Scripted

pytest_plugins = ["tiny_fixtures"]


@pytest.fixture
def corpus(tmp_path):
    rng = random.Random(0)
    words = "Ann Bob the of and river 12 three Paris said found old".split()
    texts = [" ".join(rng.choice(words) for _ in range(30)) + "." for _ in range(60)]
    (tmp_path / "corpus.txt").write_text("\n\n".join(texts))
    return tmp_path


def flags(where, *more, **values):
    given = dict(
        corpus=where / "corpus.txt", tokenizer="byte", split="train", prefix_min=20,
        prefix_max=40, suffix=30, chunks=20, max_tokens=40, temperature=0.6, top_p=1.0, seed=0,
        out=where / "labels.jsonl",
    ) | values  # fmt: skip
    return [*(f"--{key}={value}" for key, value in given.items() if value is not None), *more]


def read(path, *aspects):
    return label_file.read(str(path), [prompts.load(a) for a in aspects], Byte(), max_len=4096)


def test_pairs_by_rule_are_made_counted_and_trained_on(corpus, capsys):
    argv = flags(corpus, make="spoiled", aspect="quality", spoilers="shuffle,number", chunks=200)
    assert call(label, *argv) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in shown] == ["shuffle", "number"]
    kept = [int(line.split(": ")[1].split(" of ")[0]) for line in shown]
    lines = [json.loads(line) for line in (corpus / "labels.jsonl").read_text().splitlines()]
    assert len(lines) == sum(kept) and {line["label"] for line in lines} == {"one"}
    assert " kept; dropped: " in shown[1] and "as it was" in shown[1]
    assert all(len(text) <= 30 for line in lines for text in line["candidates"])
    found = read(corpus / "labels.jsonl", "quality")
    assert sum(int(by["quality"].mask_NC.sum()) for by in found.values()) == 2 * len(lines)


def answers(path, asked):
    """Answers as a server: worse passages, and votes that disagree on texts with "Paris"."""
    prompt, n = asked["prompt"], asked.get("n", 1)
    said = "worse, no sense in this passage at all\nbye"
    votes = "FINAL DECISION" in prompt
    texts = ["FINAL DECISION: YES" if votes else said] * n
    if votes and "Paris" in prompt:
        texts[-1] = "FINAL DECISION: NO"
    return {"choices": [{"text": text, "index": i} for i, text in enumerate(texts)]}


def test_a_server_spoils(corpus, capsys):
    with serve(answers) as server:
        argv = flags(corpus, "--json", make="spoiled", aspect="reasoned_quality", spoilers="model",
                     url=server.url, model="m")  # fmt: skip
        assert call(label, *argv) == 0
    (counts,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert counts == {"labels": "model", "kept": 20, "of": 20, "dropped": {}}
    lines = [json.loads(line) for line in (corpus / "labels.jsonl").read_text().splitlines()]
    for line in lines:
        suffix, version = line["candidates"]
        assert len(version) <= len(suffix) == 30 and version[0].isspace() == suffix[0].isspace()
        assert version.strip().startswith("worse, no sense in this pass")
    assert all(line["label"] == "Option 1" for line in lines)


def test_a_server_votes(corpus, capsys):
    with serve(answers) as server:
        argv = flags(corpus, "--json", make="safety", aspect="reasoned_safety", votes=3,
                     label_for="safety", url=server.url, model="m")  # fmt: skip
        assert call(label, *argv) == 0
    (counts,) = map(json.loads, capsys.readouterr().out.splitlines())
    lines = [json.loads(line) for line in (corpus / "labels.jsonl").read_text().splitlines()]
    assert counts["of"] == 20 and counts["kept"] == len(lines) == 20 - counts["dropped"]["split"]
    assert 0 < len(lines) < 20 and not any("Paris" in line["candidates"][0] for line in lines)
    assert {(line["aspect"], line["label"]) for line in lines} == {("safety", "safe")}


def test_a_configs_corpus_and_its_runs_rollouts_are_voted_on(
    finished, quick, tmp_path, monkeypatch
):
    """A script stands in for the run; it prefers the text with more letters e."""

    def words(trunk, branch, vote):
        first, second = (branch.split(f"Option {i}:")[1].split("\n")[0].count("e") for i in (1, 2))
        return f"Conclusion: Option {1 if first >= second else 2}"

    monkeypatch.setattr(label, "read_model", lambda: Scripted(lambda *_: (), words))
    out, config = tmp_path / "l.jsonl", f"{tiny_recipe.__file__}"
    argv = [f"--config={config}", f"--workdir={finished}", f"--policy={finished}/runs/base",
            "--rollouts=2", "--make=voted", "--aspect=reasoned_quality", "--chunks=8", "--votes=2",
            "--temperature=0.6", "--top_p=1", "--max_tokens=8", "--split=validation", "--seed=0",
            f"--out={out}"]  # fmt: skip
    assert call(label, *argv) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines
    for line in lines:
        a, b = (text.count("e") for text in line["candidates"])
        assert a != b and line["label"] == f"Option {1 if a > b else 2}"


def test_an_existing_file_is_not_touched_and_ctrl_c_leaves_none(corpus, capsys, monkeypatch):
    argv = flags(corpus, make="spoiled", aspect="quality", spoilers="shuffle")
    with monkeypatch.context() as patch:
        patch.setattr(
            label.synthesis, "by_rule", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        assert call(label, *argv) == 130
    assert [p.name for p in corpus.iterdir()] == ["corpus.txt"]
    (corpus / "labels.jsonl").write_text("mine")
    assert call(label, *argv) == 2
    assert "not overwritten" in capsys.readouterr().err
    assert (corpus / "labels.jsonl").read_text() == "mine"


WRONG = {
    "no kind": ({"make": None}, "--make"),
    "no aspect": ({"aspect": None}, "--aspect"),
    "no out": ({"out": None}, "--out"),
    "another kind": ({"make": "guessed"}, "make"),
    "no corpus": ({"corpus": None}, "either --config or --corpus"),
    "no tokenizer": ({"tokenizer": None}, "--tokenizer"),
    "not a corpus": ({"corpus": "a.csv"}, "a.csv"),
    "no file": ({"corpus": "none.txt"}, "none.txt"),
    "no model": ({"spoilers": "model"}, "--checkpoint or --url"),
    "no run": ({"spoilers": "model", "checkpoint": "none"}, "none"),
    "no server": ({"spoilers": "model", "url": "http://127.0.0.1:1/v1", "model": "m"}, ":1/v1"),
    "no spoiler": ({"spoilers": "rhyme"}, "'rhyme'"),
    "no prompt": ({"aspect": "beauty"}, "'beauty'"),
    "no pair": ({"make": "voted", "checkpoint": "none"}, "--policy"),
    "pointwise": ({"aspect": "safety"}, "'safety'"),
    "temperature": ({"temperature": -1}, "temperature"),
    "votes": ({"votes": 0}, "--votes"),
    "no chunk": ({"suffix": 3000}, "3020 tokens"),
}


@pytest.mark.parametrize("changes, named", WRONG.values(), ids=WRONG)
def test_bad_flags_are_one_line(changes, named, corpus, capsys, monkeypatch):
    monkeypatch.setattr(transport, "_wait", lambda attempt, after: 0.0)
    values = dict(make="spoiled", aspect="quality", spoilers="shuffle") | changes
    assert call(label, *flags(corpus, **values)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and named in line
    assert [p.name for p in corpus.iterdir()] == ["corpus.txt"]


def test_nothing_kept_is_an_error_that_says_why(corpus, capsys):
    argv = flags(corpus, make="spoiled", aspect="quality", spoilers="name", chunks=1, suffix=3)
    assert call(label, *argv) == 2
    assert "all examples were dropped (1 as it was)" in capsys.readouterr().err
