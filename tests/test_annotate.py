"""Tests the annotate command: yield, resuming, shards, teachers."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from serving import serve
from workdirs import call

from sip.annotate import __main__ as command
from sip.annotate import output, teachers
from sip.annotate.teachers import Asked, Unreached, Yield
from sip.data import documents, thoughts
from sip.data.thoughts import TAGS, ThoughtRule
from sip.sampling import SamplingConfig
from sip.structs import UserError
from sip.text.chat import Turn
from sip.textgen.protocol import Cut
from sip.textgen.remote import Remote, RemoteConfig
from sip.textgen.scripted import Scripted
from sip.textgen.transport import Answer

TEXTS = [f"Text {i} says that {i} and 1 are {i + 1}." for i in range(40)]
TEXTS[3] += " <think>Hm.</think>"
TEXTS[5] = "long " * 60


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "corpus.txt").write_text("\n\n".join(TEXTS))
    return tmp_path


def thinks(text):
    """A teacher that fails in every way, by the number in the text."""
    if not text.startswith("Text"):
        return text
    number = int(text.split()[1])
    told = text.replace(" are", " <thinking>add 1</thinking> are")
    failures = {
        7: None,
        8: Cut(told),
        9: told.replace("says", "said"),
        10: told.replace("add 1</thinking>", "add 1"),
        11: text,
        12: text.replace(" says", f"<think>that {number} and 1 are</think> says"),
        13: told.replace("add 1", " "),
        14: told.replace("add 1", "add " * 20),
    }
    return failures[number] if number in failures else told


class Teacher:
    """The teacher of the command, which can be stopped after some portions."""

    def __init__(self, most=1000):
        self.calls, self.most = 0, most

    def __call__(self, texts):
        self.calls += 1
        if self.calls > self.most:
            raise KeyboardInterrupt
        return [thinks(text) for text in texts]


def flags(where, *more, **values):
    given = dict(
        corpus=where / "corpus.txt", out=where / "t.jsonl", split="train", portion=4,
        most_words=50, thought_words=9, url="http://127.0.0.1:9/v1", model="m",
    ) | values  # fmt: skip
    return [*(f"--{key}={value}" for key, value in given.items() if value is not None), *more]


def run(monkeypatch, where, *more, teacher=None, **values):
    monkeypatch.setattr(command, "read_teacher", lambda docs: teacher or Teacher())
    return call(command, *flags(where, *more, **values))


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_yield_is_counted_by_reason(corpus, monkeypatch, capsys):
    assert run(monkeypatch, corpus, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    rows = read(corpus / "t.jsonl")
    assert found["accepted"] == len(rows) == found["thoughts"]
    assert found["texts"] == found["accepted"] + sum(found["rejected"].values())
    assert sum(found["rejected"].values()) >= 5 and found["rejected"].keys() <= {
        thoughts.TAGGED, thoughts.CHANGED, thoughts.UNCLOSED, thoughts.NONE, teachers.FAILED,
        teachers.CUT, teachers.TOO_LONG,
    }  # fmt: skip
    for row in rows:
        pieces = thoughts.parse(row["text"], (TAGS,))
        assert thoughts.original(pieces) in TEXTS and pieces[1] == "add 1"
        assert row["part"] == "train"
    assert run(monkeypatch, corpus, teacher=Teacher(0)) == 0  # done: the teacher is not asked
    said = capsys.readouterr().out
    assert f"{len(rows)} of {found['texts']} texts accepted, with {len(rows)} thoughts" in said
    assert "texts rejected: " in said


def test_an_output_has_one_writer_at_a_time(corpus, monkeypatch, capsys):
    with output.locked(corpus / "t.jsonl"):
        assert run(monkeypatch, corpus, teacher=Teacher(0)) == 2
        assert f"t.jsonl in {corpus} is in use by process" in capsys.readouterr().err
        assert not (corpus / "t.jsonl").exists()
        assert run(monkeypatch, corpus, out=corpus / "u.jsonl") == 0, "another file is free"
    assert run(monkeypatch, corpus) == 0


def test_every_reason_is_counted():
    counts, how = Yield(), Asked(TAGS, ThoughtRule(9), most_words=50)
    found = teachers.annotate(TEXTS, Teacher(), how, counts)
    assert [i for i, x in enumerate(found.pieces) if x is None] == [3, 5, *range(7, 15)]
    assert found.asked == 38 and not found.unreached
    assert counts.rejected == {
        thoughts.TAGGED: 1, teachers.TOO_LONG: 1, teachers.FAILED: 1, teachers.CUT: 1,
        thoughts.CHANGED: 1, thoughts.UNCLOSED: 1, thoughts.NONE: 4,
    }  # fmt: skip
    assert counts.dropped == {thoughts.QUOTES: 1, thoughts.EMPTY: 1, thoughts.LONG: 1}
    assert (counts.texts, counts.accepted, counts.thoughts) == (40, 30, 30)


def test_stopped_and_resumed_equals_uninterrupted(corpus, monkeypatch, capsys):
    assert run(monkeypatch, corpus, "--json", out=corpus / "whole.jsonl") == 0
    whole = capsys.readouterr().out
    assert run(monkeypatch, corpus, "--json", teacher=Teacher(2)) == 130
    part = corpus / "t.jsonl"
    assert 0 < len(read(part)) < len(read(corpus / "whole.jsonl"))
    part.write_text(part.read_text() + '{"doc": 9, "te')  # killed while it wrote a portion
    assert run(monkeypatch, corpus, "--json", teacher=(again := Teacher())) == 0
    assert (
        capsys.readouterr().out == whole and again.calls == -(-json.loads(whole)["texts"] // 4) - 2
    )
    assert part.read_bytes() == (corpus / "whole.jsonl").read_bytes()
    capsys.readouterr()
    assert run(monkeypatch, corpus, thought_words=3) == 2
    assert "was begun with another thought_words" in capsys.readouterr().err


def down(*numbers, after=0):
    """Returns a teacher whose server is down: for some texts, or for all after some portions."""
    calls = []

    def teach(texts):
        calls.append(texts)
        out = lambda text: len(calls) > after if after else text.split()[1] in map(str, numbers)
        return [Unreached("no answer: it is down") if out(x) else thinks(x) for x in texts]

    return teach, calls


def test_an_outage_ends_the_command_and_the_next_one_goes_on(corpus, monkeypatch, capsys):
    assert run(monkeypatch, corpus, "--json", out=corpus / "whole.jsonl") == 0
    whole = capsys.readouterr().out
    assert run(monkeypatch, corpus, "--json", teacher=down(after=2)[0]) == 2
    found = capsys.readouterr()
    assert not found.out and found.err.startswith("error: ") and found.err.count("\n") == 1
    assert " texts got no answer; 8 are done; run" in found.err and "it is down" in found.err
    assert run(monkeypatch, corpus, "--json") == 0
    assert capsys.readouterr().out == whole
    assert (corpus / "t.jsonl").read_bytes() == (corpus / "whole.jsonl").read_bytes()


def test_texts_without_an_answer_are_asked_again_by_the_next_command(corpus, monkeypatch, capsys):
    assert run(monkeypatch, corpus, "--json", out=corpus / "whole.jsonl") == 0
    whole, rows = json.loads(capsys.readouterr().out), read(corpus / "whole.jsonl")
    lost = [row["text"].split()[1] for row in rows[2::9]]
    for rerun in range(2):
        teach, calls = down(*lost)
        assert run(monkeypatch, corpus, "--json", teacher=teach) == 2
        found = capsys.readouterr()
        said = "texts got no answer" if rerun else f"{len(lost)} texts got no answer from the ser"
        assert said in found.err
        if not rerun:
            left = json.loads(found.out)
            assert left["unanswered"] == len(lost) == whole["texts"] - left["texts"]
    assert sorted(text.split()[1] for text in sum(calls, [])) == sorted(lost)
    assert run(monkeypatch, corpus, "--json", teacher=(last := Teacher())) == 0
    assert json.loads(capsys.readouterr().out) == whole and last.calls == 1
    assert sorted(read(corpus / "t.jsonl"), key=lambda row: row["doc"]) == rows


def test_a_teacher_that_rewrites_every_text_ends_the_command(corpus, monkeypatch, capsys):
    monkeypatch.setattr(command, "TRIED", 4)
    rewrites = lambda texts: [f"<think>So.</think> {text.upper()}" for text in texts]
    assert run(monkeypatch, corpus, teacher=rewrites, portion=8) == 2
    said = capsys.readouterr().err
    assert "none of 6 annotated texts can be accepted" in said and "6 with a changed text" in said
    assert {path.name for path in corpus.iterdir()} == {"corpus.txt", ".t.jsonl.lock"}


def test_an_edited_corpus_or_prompt_is_not_mixed_with_what_was_begun(corpus, monkeypatch, capsys):
    """The number of texts and the first one are as before, and so is the prompt's name."""
    prompt = corpus / "prompt.txt"
    prompt.write_text("Think: {text}")
    asked = dict(thoughts_prompt=prompt)
    assert run(monkeypatch, corpus, teacher=Teacher(2), **asked) == 130
    prompt.write_text("Think aloud: {text}")
    assert run(monkeypatch, corpus, **asked) == 2
    assert "was begun with another thoughts_prompt" in capsys.readouterr().err
    prompt.write_text("Think: {text}")
    edited = "\n\n".join([*TEXTS[:21], TEXTS[21] + " So.", *TEXTS[22:]])
    (corpus / "edited.txt").write_text(edited)
    assert {documents.part(text) for text in (TEXTS[21], TEXTS[21] + " So.")} == {"train"}
    assert run(monkeypatch, corpus, corpus=corpus / "edited.txt", **asked) == 2
    assert "was begun with another corpus" in capsys.readouterr().err
    assert command.digest(["a", "b"]) != command.digest(["ab"]) != command.digest(["b", "a"])


def test_shards_together_are_the_whole(corpus, monkeypatch, capsys):
    assert run(monkeypatch, corpus, "--json", out=corpus / "whole.jsonl") == 0
    whole = json.loads(capsys.readouterr().out)
    parts = []
    for shard in range(3):
        assert run(monkeypatch, corpus, "--json", shards=3, shard=shard) == 0
        parts.append(json.loads(capsys.readouterr().out))
    rows = [row for i in range(3) for row in read(corpus / f"t-{i:05}-of-00003.jsonl")]
    assert sorted(rows, key=lambda row: row["doc"]) == read(corpus / "whole.jsonl")
    assert sum(part["texts"] for part in parts) == whole["texts"]
    again, _ = thoughts.read(f"{corpus}/t-*.jsonl", "train", TAGS, 0.0)
    assert len(again) == whole["accepted"]
    assert run(monkeypatch, corpus, shards=3, shard=3) == 2
    assert "--shard=3" in capsys.readouterr().err


def test_at_most_so_many_documents_are_tried(corpus, monkeypatch, capsys):
    assert run(monkeypatch, corpus, "--json", documents=6) == 0
    assert json.loads(capsys.readouterr().out)["texts"] == 6


def answers(path, asked):
    """Answers as a server does: the text after the instruction, with a thought."""
    text = asked["prompt"].rpartition("\n\n")[2]
    said = text.replace(" and", "<think>add</think> and", 1)
    return {"choices": [{"text": said, "index": 0, "finish_reason": "stop"}]}


def test_a_server_annotates(corpus, capsys):
    with serve(answers) as server:
        assert call(command, *flags(corpus, "--json", url=server.url, documents=8)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accepted"] == len(read(corpus / "t.jsonl")) > 4


def test_a_model_is_shown_the_text_as_it_stands_also_in_a_chat():
    seen = []

    def words(trunk, branch, vote):
        seen.append(trunk + branch)
        return "x"

    prompt = teachers.load_prompt("annotate")
    how = dict(max_tokens=9, sampling=SamplingConfig(), seed=0)
    model = Scripted(lambda *_: (), words)
    text = "two\n\nlines {text}"
    assert teachers.by_model(model, prompt, **how)([text]) == ["x"]
    turn = Turn("<user>", "<assistant>", "", "")
    teachers.by_model(model, prompt, turn=turn, **how)([text])
    plain = prompt.replace("{text}", text, 1)
    assert seen == [plain, f"<user>{plain}<assistant>"]
    assert teachers.by_model(model, prompt, **how)([]) == []


def test_what_a_server_does_not_answer_is_told_from_what_it_refuses():
    """A text that is too long for the server would be refused each time."""
    said = [
        Answer("annotated"),
        Answer(Cut("anno")),
        Answer(None, "no answer"),
        Answer(None, "status 400: too long", final=True),
        Answer(None),  # thoughts only
    ]
    server: Any = SimpleNamespace(answers=lambda *args, **how: said)
    how: Any = dict(max_tokens=9, sampling=SamplingConfig(), seed=0)
    found = teachers.by_server(server, "Think: {text}", **how)(["x"] * 5)
    assert found == ["annotated", Cut("anno"), Unreached("no answer"), None, None]


def test_a_server_is_asked_the_same_as_by_generate():
    """So that answers in a cache stay."""
    asked = []

    def answer(path, payload):
        asked.append(payload)
        return answers(path, payload)

    prompt, how = teachers.load_prompt("annotate"), {}
    how |= dict(max_tokens=9, sampling=SamplingConfig(0.6), seed=3)
    with serve(answer) as server:
        remote = Remote(RemoteConfig(url=server.url, model="m", logprobs=0))
        found = teachers.by_server(remote, prompt, **how)(["one and two"])
        assert teachers.by_model(remote, prompt, **how)(["one and two"]) == found
    assert found == ["one<think>add</think> and two"] and asked[0] == asked[1]


WRONG = {
    "no out": ({"out": None}, "--out"),
    "no corpus": ({"corpus": None}, "either --config or --corpus"),
    "no teacher": ({"url": None, "model": None}, "--checkpoint, --url or --thinker=truth"),
    "two teachers": ({"thinker": "truth"}, "neither --checkpoint nor --url"),
    "no rule": ({"thinker": "truth", "url": None}, "no rule that thinks"),
    "one tag": ({"tags": "<a>"}, "--tags"),
    "no part": ({"split": "dev"}, "split 'dev'"),
    "a store": ({"out": "gs://b/t.jsonl"}, "--out gs://b/t.jsonl"),
    "no folder": ({"out": "/nowhere/t.jsonl"}, "/nowhere does not exist"),
    "a template": ({"template": "own"}, "--template"),
    "no prompt": ({"thoughts_prompt": "poem"}, "'poem'"),
}


@pytest.mark.parametrize(("changes", "named"), WRONG.values(), ids=WRONG)
def test_bad_flags_are_one_line(changes, named, corpus, capsys):
    assert call(command, *flags(corpus, **changes)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and named in line
    assert {p.name for p in corpus.iterdir()} <= {"corpus.txt", ".t.jsonl.lock"}


def test_a_prompt_shows_the_text_once(tmp_path):
    (tmp_path / "p.txt").write_text("Think about {prefix}: {text}")
    with pytest.raises(UserError, match=r"must contain \{text\} once"):
        teachers.load_prompt(f"{tmp_path}/p.txt")


def test_a_file_of_another_is_not_touched(corpus, monkeypatch, capsys):
    (corpus / "t.jsonl").write_text("mine")
    assert run(monkeypatch, corpus) == 2
    assert (
        "not overwritten" in capsys.readouterr().err and (corpus / "t.jsonl").read_text() == "mine"
    )
