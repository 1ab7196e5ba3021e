"""Tests the readers of the paper's evaluation sets, on made files and on published ones."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from sip.evals.paper import choices, sets
from sip.evals.paper.choices import Question
from sip.structs import UserError

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def lines(path: Path, *rows) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def one(name, path, limit=0):
    (found,) = sets.load(name, str(path), limit)
    return found


def test_published_formats_become_prompts(tmp_path):
    toxic = {"prompt": {"text": "The stupid", "toxicity": 0.9}, "continuation": {"text": " x"}}
    path = lines(tmp_path / "rtp.jsonl", toxic)
    assert one("realtoxicityprompts", path).prompts == ["The stupid"]
    path = lines(tmp_path / "toxigen.jsonl", {"prompt": r"- a\n- b\n-", "label": "neutral"})
    assert one("toxigen", path).prompts == ["- a\n- b\n-"]
    (tmp_path / "hate_1k.txt").write_text("- a\\n-\n- c\\n-\n")
    assert one("toxigen", tmp_path / "hate_1k.txt").prompts == ["- a\n-", "- c\n-"]
    path = lines(tmp_path / "bio.jsonl", {"input": "Question: Tell me a bio of X.", "output": "y"})
    (tmp_path / "names.txt").write_text("X\n")
    want = ["Question: Tell me a bio of X.\nAnswer:"]
    assert (
        one("factscore", path).prompts == one("factscore", tmp_path / "names.txt").prompts == want
    )
    found = one("standard", lines(tmp_path / "own.jsonl", {"prefix": "A b", "reference": " c"}))
    assert (found.prompts, found.references) == (["A b"], [" c"])
    assert one("unsafe", lines(tmp_path / "u.jsonl", {"prefix": "A"})).references == []


def test_xstest_is_divided_by_its_labels(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('id,prompt,label\n1,"Kill, a\nprocess?",safe\n2,Harm?,unsafe\n3,Hi?,safe\n')
    found = sets.load("xstest", str(path))
    assert [(s.name, list(s.prompts)) for s in found] == [
        ("xstest_safe", ["Kill, a\nprocess?", "Hi?"]),
        ("xstest_unsafe", ["Harm?"]),
    ]


def test_a_limit_takes_evenly_spaced_records():
    assert sets.some(list("abcdefgh"), 3) == ["a", "c", "f"]
    assert sets.some("ab", 0) == sets.some("ab", 5) == "ab"


RTP, HALU = "realtoxicityprompts", '{"user_query": "x", "hallucination": "no"}'
FALSE = '[{"question": "x", "mc1_targets": {"a": 0}}]'
WRONG = {  # file, its text, and what the error says
    "no field": (RTP, "a.jsonl", '{"id": 1, "sent": "x"}', "no field 'prompt.text'; .* id, sent"),
    "half a field": (RTP, "a.jsonl", '{"prompt": "x"}', "no field 'prompt.text'; .* are prompt"),
    "no text": ("toxigen", "a.jsonl", '{"prompt": 3}', "field 'prompt' must be a text, not 3"),
    "blank": ("unsafe", "a.jsonl", '{"prefix": " "}', "a.jsonl:1: field 'prefix' is blank"),
    "no reference": ("standard", "a.jsonl", '{"prefix": "x"}', "no field 'reference'"),
    "not JSON": ("toxigen", "a.jsonl", "prompt", "a.jsonl:1: not a JSON object"),
    "array": ("truthfulqa", "a.json", '{"question": 1}', "a.json: must be an array of objects"),
    "empty": ("toxigen", "a.jsonl", "\n", "a.jsonl: has no records"),
    "one label": ("xstest", "a.csv", "prompt,label\nx,safe", "no prompt has the label 'unsafe'"),
    "open quote": (
        "xstest",
        "a.csv",
        'prompt,label\n"x,safe\ny,unsafe',
        "not CSV after line 1",
    ),
    "large field": ("xstest", "a.csv", f'prompt,label\n"{"x" * 140_000}", a', "field larger than"),
    "other label": ("xstest", "a.csv", "prompt,label\nx,good", "a.csv:2: label 'good' must be"),
    "no truth": ("truthfulqa", "a.json", FALSE, "needs a true"),
    "other HaluEval": ("halueval", "a.jsonl", HALU, "no field 'knowledge'; .* user_query, hall"),
}


@pytest.mark.parametrize(("name", "file", "text", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_one_line_with_the_fields_seen(name, file, text, said, tmp_path):
    (tmp_path / file).write_text(text + "\n")
    read = choices.load if name in sets.CHOICES else sets.load
    with pytest.raises(UserError) as error:
        read(name, str(tmp_path / file))
    assert re.search(said, str(error.value)) and "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="gone.jsonl"):
        sets.load("toxigen", str(tmp_path / "gone.jsonl"))


PUBLISHED = {  # file, prompts by set
    "realtoxicityprompts": ("realtoxicityprompts/rtp_toxic_300.jsonl", [300]),
    "toxigen": ("toxigen/toxigen_prompts_sample.jsonl", [310]),
    "xstest": ("xstest/xstest_prompts.csv", [250, 200]),
    "factscore": ("factscore/prompt_entities.txt", [500]),
    "truthfulqa": ("truthfulqa/mc_task.json", [790, 790]),
    "halueval": ("halueval/qa_one-turn_500.jsonl", [500]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_files_are_read(name):
    file, counts = PUBLISHED[name]
    if not (DATA / file).exists():
        pytest.skip(f"no {file} in the data directory beside the repository")
    if name in sets.CHOICES:
        found = choices.load(name, str(DATA / file))
        assert [len(some) for some in found.values()] == counts
        assert tuple(found) == choices.MEASURES[name]
        if name == "truthfulqa":
            assert all(sum(q.true) == 1 for q in found["truthfulqa_mc1"])
    else:
        found = sets.load(name, str(DATA / file))
        assert [len(s) for s in found] == counts
        assert all(r"\n" not in text for s in found for text in s.prompts)


def test_blank_answers_are_left_out(tmp_path):
    targets = {"a": 1, "": 0, "b": 0}
    row = {"question": "Which?", "mc1_targets": targets, "mc2_targets": targets}
    (tmp_path / "mc.json").write_text(json.dumps([row]))
    found = choices.load("truthfulqa", str(tmp_path / "mc.json"))["truthfulqa_mc1"]
    assert found == [Question("Q: Which?\nA:", ("a", "b"), (True, False))]


def test_choices_by_hand():
    question = Question("Q", ("aa", "b", "cccc"), (True, False, True))
    logp_A = np.log([0.2, 0.3, 0.1])
    assert choices.mc1(question, logp_A) == 0 and choices.mc1(question, logp_A[[1, 0, 2]]) == 1
    assert choices.mc2(question, logp_A) == pytest.approx(0.3 / 0.6)
    assert choices.mc1(question, np.zeros(3)) == 0  # a tie is no choice
    pair = Question("Q", ("yes", "a longer one"), (True, False))
    assert choices.likelier(pair, np.array([-3.0, -9.0])) == 0  # -1 per byte, against -0.75
    assert choices.likelier(pair, np.array([-3.0, -13.0])) == 1
