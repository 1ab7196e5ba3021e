"""Tests labelled examples from a file: labels, both orders, split by prefix, errors by line."""

import dataclasses
import json

import pytest

from sip.judge import prompts
from sip.judge.labels import file as label_file
from sip.structs import UserError
from sip.text.tokenizer import Byte

QUALITY, SAFETY, FACTS = (prompts.load(n) for n in ("reasoned_quality", "safety", "factuality"))
ASPECTS = [QUALITY, SAFETY, FACTS]


def rows(count=120):
    for i in range(count):
        yield dict(aspect="reasoned_quality", prefix=f"p{i}", candidates=[f"a{i}", f"b{i}"],
                   label=["Option 1", "Option 2"][i % 2])  # fmt: skip
        yield dict(aspect="safety", prefix=f"p{i}", candidates=[f"t{i}"], label="unsafe")
        yield dict(aspect="factuality", prefix=f"p{i}", candidates=[f"f{i}"], label="possible",
                   reference=f"r{i}")  # fmt: skip


def write(path, lines):
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + "\n")
    return str(path)


def read(path, aspects=ASPECTS, max_len=2048):
    return label_file.read(path, aspects, Byte(), max_len=max_len)


def examples(found):
    for (trunk, branches), labels, live in zip(
        found.prompts, found.labels_NC, found.mask_NC, strict=True
    ):
        assert live.sum() == len(branches)
        yield from ((trunk, branch, int(o)) for branch, o in zip(branches, labels, strict=False))


def test_a_pair_is_asked_in_both_orders_with_opposite_labels(tmp_path):
    found = read(write(tmp_path / "l.jsonl", rows()))
    seen = [x for split in found.values() for x in examples(split["reasoned_quality"])]
    assert len(seen) == 240
    for trunk, branch, label in seen:
        i = int(trunk[1][1:])
        first = branch[1] == f"a{i}"
        assert {branch[1], branch[3]} == {f"a{i}", f"b{i}"}
        assert label == (i % 2 if first else 1 - i % 2)


def test_all_lines_on_a_prefix_are_in_one_split_and_every_split_has_some(tmp_path):
    found = read(write(tmp_path / "l.jsonl", rows()))
    prefixes = {
        split: {n: {t[1] for t, *_ in examples(by[n])} for n in ("reasoned_quality", "factuality")}
        for split, by in found.items()
    }
    for split, names in prefixes.items():
        assert names["reasoned_quality"] == names["factuality"], split
    train, validation, test = (names["factuality"] for names in prefixes.values())
    assert len(train) > 80 and validation and test
    assert not train & (validation | test) and not validation & test


def test_the_reference_is_shown_and_a_shared_trunk_is_cut_into_rows(tmp_path):
    found = read(write(tmp_path / "l.jsonl", rows()))["train"]
    trunk, _, label = next(examples(found["factuality"]))
    assert trunk[3] == "r" + trunk[1][1:] and label == 1
    sizes = [len(branches) for _, branches in found["safety"].prompts]
    assert len(sizes) > 1 and set(sizes[:-1]) == {label_file.PER_ROW}
    assert len({t for t, *_ in examples(found["safety"])}) == 1


def test_prompts_that_are_too_long_are_left_out_pairs_as_a_whole(tmp_path):
    lines = [*rows(), dict(aspect="reasoned_quality", prefix="p1", candidates=["x" * 900, "y"],
                           label="Option 1")]  # fmt: skip
    path = write(tmp_path / "l.jsonl", lines)
    all_of = lambda found: sum(x["reasoned_quality"].mask_NC.sum() for x in found.values())
    assert all_of(read(path)) == 242 and all_of(read(path, max_len=900)) == 240
    with pytest.raises(UserError, match="no train example of aspect 'reasoned_quality' fits 40"):
        read(path, max_len=40)


GOOD = dict(aspect="safety", prefix="p", candidates=["t"], label="safe")


@pytest.mark.parametrize(
    "line",
    [
        "{", "[]", '"text"', "3",
        json.dumps(GOOD | {"label": "fine"}),
        json.dumps(GOOD | {"label": 0}),
        json.dumps(GOOD | {"aspect": "beauty"}),
        json.dumps(GOOD | {"candidates": ["a", "b"]}),
        json.dumps(GOOD | {"candidates": [3]}),
        json.dumps(GOOD | {"prefix": None}),
        json.dumps(GOOD | {"prefix": "a\ud800"}),
        json.dumps({"aspect": "safety", "prefix": "p", "candidates": ["t"]}),
        json.dumps(GOOD | {"aspect": "factuality", "label": "none"}),  # no reference
    ],
)  # fmt: skip
def test_a_line_that_is_no_example_is_named(line, tmp_path):
    path = tmp_path / "l.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(UserError, match=rf"{path}:2: ") as error:
        read(str(path))
    assert "\n" not in str(error.value)


def test_a_missing_file_and_an_aspect_without_lines_are_named(tmp_path):
    with pytest.raises(UserError, match="cannot read the labels"):
        read(str(tmp_path / "none.jsonl"))
    other = dataclasses.replace(SAFETY, name="calm")
    with pytest.raises(UserError, match="no train example of aspect 'calm'"):
        read(write(tmp_path / "l.jsonl", rows()), [*ASPECTS, other])
