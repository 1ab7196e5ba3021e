"""Tests preference pairs: formats of files, what is left out and why, token ids, batches, DPO."""

import importlib
import json
import math

import numpy as np
import pytest
from published import PAIRWISE
from workdirs import lines, stop_after

from sip.data import conversations, preferences
from sip.data.preferences import Pair, Tokens
from sip.run import Run
from sip.stages import recipe, supervised
from sip.structs import UserError
from sip.tasks import pairs
from sip.text import chat
from sip.text.tokenizer import Byte
from sip.training import loop

pytest_plugins = ["tiny_fixtures"]

HI = "\n\nHuman: hi\n\nAssistant:"
ASKED = dict(role="user", content="Why?")
GOOD, BAD = dict(role="assistant", content="So."), dict(role="assistant", content="No.")


def write(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def read(tmp_path, *rows, most=1.0):
    return preferences.read(write(tmp_path / "p.jsonl", rows), max_skipped_fraction=most)


@pytest.mark.parametrize(
    ("row", "want"),
    [
        (dict(prompt="p", chosen="a", rejected="b"), Pair("p", "a", "b")),
        (dict(prompt="p", chosen="a", rejected="b", margin=2), Pair("p", "a", "b", 2.0)),
        (dict(chosen="say one two", rejected="say one ten"), Pair("say one ", "two", "ten")),
        (
            dict(chosen=f"{HI} Oh no", rejected=f"{HI} Oh"),
            Pair(HI, " Oh no", " Oh"),
        ),
        (
            dict(prompt=[ASKED], chosen=[GOOD], rejected=[BAD]),
            Pair((ASKED,), (GOOD,), (BAD,)),
        ),
        (dict(prompt=[ASKED], chosen="So.", rejected="No."), Pair((ASKED,), (GOOD,), (BAD,))),
        (dict(chosen=[ASKED, GOOD], rejected=[ASKED, BAD]), Pair((ASKED,), (GOOD,), (BAD,))),
        (  # the prompt once more, as in UltraFeedback
            dict(prompt="Why?", chosen=[ASKED, GOOD], rejected=[ASKED, BAD]),
            Pair((ASKED,), (GOOD,), (BAD,)),
        ),
        (
            dict(question="q", response_A="a", response_B="b", label="B>A"),
            Pair("q", "b", "a"),
        ),
        (dict(input="q", output_1="a", output_2="b", label=1), Pair("q", "a", "b")),
    ],
)  # fmt: skip
def test_a_line_is_a_pair(row, want, tmp_path):
    assert read(tmp_path, row).pairs == [want]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (dict(prompt="p", chosen="a", rejected=" "), "with an empty side"),
        (dict(prompt="p", chosen="a", rejected="a "), "with equal sides"),
        (dict(prompt="p", chosen="a"), "without a field 'rejected' (fields seen: 'prompt', 'chos"),
        (dict(text="p"), "without a field 'chosen' (fields seen: 'text')"),
        (dict(prompt="p", chosen="a", rejected=3), "with a side that is neither text nor messages"),
        (dict(prompt=3, chosen="a", rejected="b"), "with a prompt that is neither text nor"),
        (dict(prompt="p", chosen="a", rejected=[BAD]), "with sides of two kinds"),
        (dict(prompt="p", chosen="a", rejected="b", margin=-1), "with a margin that is no number"),
        (dict(prompt="p", chosen="a", rejected="b", margin="1"), "with a margin that is no number"),
        (
            dict(prompt="p", chosen="a", rejected="b", margin=1e39),
            "with a margin that is no number",
        ),
        (
            dict(prompt="p", chosen="a", rejected="b", margin=10**400),
            "with a margin that is no number",
        ),
        (dict(chosen=[GOOD], rejected=[BAD]), "without a common beginning"),
        (dict(chosen=[ASKED, GOOD], rejected=[ASKED]), "with an empty side"),
        (dict(question="q", response_A="a", response_B="b", label="A=B"), "a tie"),
        (dict(input="q", output_1="a", output_2="b", label=3), "with an unknown label"),
        (dict(input="q", output_1="a", output_2="b", label=True), "with an unknown label"),
        (7, "not a JSON object"),
        (dict(prompt="\ud83d", chosen="a", rejected="b"), "not UTF-8"),
        (dict(prompt="p", chosen="a", rejected="b", id={"\ud83d": ["c"]}), "not UTF-8"),
    ],
)
def test_a_line_that_teaches_nothing_is_counted_with_its_reason(row, reason, tmp_path):
    found = read(tmp_path, row, dict(prompt="p", chosen="a", rejected="b"))
    assert (len(found.pairs), found.read) == (1, 2)
    ((why, count),) = found.left_out.items()
    assert why.startswith(reason) and count == 1
    with pytest.raises(UserError, match=r"1 of 2 lines cannot be used, more than .*0\.1 allows"):
        read(tmp_path, row, dict(prompt="p", chosen="a", rejected="b"), most=0.1)


def test_a_file_without_a_line_and_an_array_are_named(tmp_path):
    with pytest.raises(UserError, match="p.jsonl: has no lines"):
        read(tmp_path)
    (tmp_path / "p.jsonl").write_text('[{"prompt": "p"}]\n')
    with pytest.raises(UserError, match="an array, not JSON Lines"):
        preferences.read(str(tmp_path / "p.jsonl"), max_skipped_fraction=1.0)
    with pytest.raises(UserError, match="nowhere: there is no such file"):
        preferences.read(str(tmp_path / "nowhere"), max_skipped_fraction=1.0)


@pytest.mark.parametrize("name", ["judgebench_gpt4o", "judgebench_claude35sonnet"])
def test_published_files_are_read(name):
    path = PAIRWISE / f"{name}.jsonl"
    if not path.exists():
        pytest.skip("needs the published data in shared/data/pairwise")
    found = preferences.read(str(path), max_skipped_fraction=0.1)
    rows = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    right = {row["question"]: row["response_A" if row["label"] == "A>B" else "response_B"]
             for row in rows}  # fmt: skip
    assert len(found.pairs) >= len(rows) - 1
    assert sum(right[pair.prompt] == pair.chosen for pair in found.pairs) >= len(found.pairs) - 3


def tokens(found, max_len=64, most=1.0):
    encode = preferences.plain(Byte())
    return preferences.tokens(found, encode, path="p", max_len=max_len, max_skipped_fraction=most)


def test_answers_end_with_eos_and_parts_are_by_prompt(tmp_path):
    rows = [dict(prompt=f"p{i // 2}", chosen="a", rejected=f"b{i}") for i in range(200)]
    parts, left_out = tokens(read(tmp_path, *rows))
    assert not left_out and sum(map(len, parts.values())) == 200
    assert all(len(rows) % 2 == 0 and rows for rows in parts.values()), "two pairs per prompt"
    first = parts["train"][0]
    assert first.prompt[0] == Byte.bos and first.chosen == [ord("a"), Byte.eos]


def test_pairs_longer_than_the_model_and_messages_without_a_template(tmp_path):
    good = [dict(prompt=f"p{i}", chosen="a", rejected="b") for i in range(9)]
    found = read(tmp_path, *good, dict(prompt="p", chosen="a" * 70, rejected="b"))
    assert tokens(found)[1] == {"longer than 64 tokens (model.max_len)": 1}
    with pytest.raises(UserError, match="1 longer than 64 tokens"):
        tokens(found, most=0.05)
    with pytest.raises(UserError, match="pairs.chat is empty"):
        tokens(read(tmp_path, dict(chosen=[ASKED, GOOD], rejected=[ASKED, BAD])))


def turns():
    return conversations.open_format(chat.load("turns", Byte()), Byte())


def test_messages_are_rendered_by_the_template_and_only_the_answer_is_a_branch(tmp_path):
    row = dict(prompt=[ASKED], chosen=[GOOD], rejected=[BAD])
    (pair,) = read(tmp_path, row).pairs
    found = preferences.chatted(turns())(pair)
    text = lambda ids: bytes(i for i in ids if i < 256).decode()
    assert text(found.prompt) == "<|user|>Why?<|assistant|>" and found.prompt[0] == Byte.bos
    assert found.chosen == [*b"So.", Byte.eos] and found.rejected == [*b"No.", Byte.eos]
    (plain,) = read(tmp_path, dict(prompt="Why?", chosen="So.", rejected="No.")).pairs
    assert preferences.chatted(turns())(plain) == found


@pytest.mark.parametrize(
    ("prompt", "chosen", "reason"),
    [
        ((ASKED, GOOD), (BAD,), "that end with an answer"),
        ((ASKED, ASKED), (GOOD,), "with roles out of order"),
        ((ASKED,), (GOOD, ASKED, GOOD), "with a side of other messages than one answer"),
        ((ASKED,), (ASKED,), "with a side of other messages than one answer"),
        ((), (GOOD,), "with messages that are no list"),
    ],
)
def test_a_conversation_out_of_order_is_counted(prompt, chosen, reason):
    pairs_of = [Pair(prompt, chosen, (dict(role="assistant", content="x"),)), Pair("p", "a", "b")]
    found = preferences.Pairs(pairs_of * 20, 40, {})
    _, left_out = preferences.tokens(
        found, preferences.chatted(turns()), path="p", max_len=64, max_skipped_fraction=0.5
    )
    ((why, count),) = left_out.items()
    assert why.startswith(reason) and count == 20


def pair(i, **changes):
    return Tokens([1, i], [i] * 3, [7] * (i % 4 + 1), **changes)


def test_batches_have_one_shape_and_held_out_ones_end_with_invalid_rows():
    found = pairs.PairSet(
        {"learned": [pair(i, margin=float(i)) for i in range(6)], "validation": [pair(9)] * 5}, 0
    )
    batch = found.batch(0, 4, seed=3)
    assert batch.valid_B.all() and batch.tree.tokens_BCR.shape == (4, 2, 8)
    at_B = batch.tree.tokens_BT[:, 1]
    np.testing.assert_array_equal(batch.margin_B, at_B.astype(np.float32))
    np.testing.assert_array_equal(batch.tree.tokens_BCR[:, 0, 2], at_B)
    np.testing.assert_array_equal(batch.tree.mask_BCR[:, 1].sum(-1), at_B % 4 + 1)
    seen = [found.batch(step, 3, seed=3).tree.tokens_BT[:, 1] for step in (0, 1)]
    assert sorted(np.concatenate(seen)) == list(range(6)), "an epoch is a permutation"
    last = list(found.held_out("validation", 4))[-1]
    assert last.valid_B.tolist() == [True, False, False, False]


class Longer:
    """A ground truth that prefers longer texts; lengths that differ by one are a tie."""

    def score(self, prefixes, texts):
        return {"quality": np.array([len(text) for text in texts], float)}

    def compare(self, a, b):
        return np.where(np.abs(a - b) <= 1, 0.5, (a > b).astype(float))


def test_the_better_of_two_candidates_is_chosen_and_ties_are_no_pairs():
    texts = [["abcd", "a", "ab"], ["x", "xy"]]
    found = pairs.compared(Longer(), ["p", "q"], texts, per_prefix=4, seed=0)
    assert sorted(found) == [(0, "abcd", "a"), (0, "abcd", "ab")]
    assert len(pairs.compared(Longer(), ["p", "q"], texts, per_prefix=1, seed=0)) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(path="x", chat="no.such"), "pairs.chat 'no.such'"),
        (dict(path="x", max_skipped_fraction=2.0), "max_skipped_fraction=2.0: must be"),
    ],
)
def test_wrong_settings_of_a_file_are_named(values, message):
    with pytest.raises(UserError, match=message):
        pairs.PairsConfig(**values)


def test_wrong_settings_of_labels_are_named():
    with pytest.raises(UserError, match="labels.source names who samples"):
        pairs.PairLabelConfig("", rollouts=2)
    with pytest.raises(UserError, match="exactly one of pairs, labels and answers"):
        pairs.PairTaskConfig(name="preferences")
    for path, message in (("", "needed; a JSON Lines"), ("nowhere", "there is no such file")):
        with pytest.raises(UserError, match=f"task.pairs.path.*{message}"):
            pairs.PairTaskConfig(name="preferences", pairs=pairs.PairsConfig(path)).reach()
    assert math.isclose(pairs.PairLabelConfig("", rollouts=0).temperatures[0], 1.0)


def of_files(start, tmp_path):
    """Returns configs/dpo.py:CHECKPOINT,debug for a file of pairs."""
    config = importlib.import_module("dpo").get_config(f"{start},debug")
    rows = [dict(prompt=f"is it {i}?", chosen=" yes", rejected=f" no {i}") for i in range(80)]
    config.runs.dpo.task.pairs.path = write(tmp_path / "pairs.jsonl", rows)
    run = config.runs.dpo
    run.update(steps=4)
    run.log.update(every_steps=1, tensorboard=False, progress=False)
    run.evals.every_steps, run.optim.lr = 2, 1e-3
    return config


@pytest.mark.slow  # test_sft runs the stage
def test_a_checkpoint_and_a_file_of_pairs_learn_preferences(of_bytes, quick, tmp_path):
    config = of_files(of_bytes("start"), tmp_path)
    run = Run(config, "dpo", str(tmp_path / "work"))
    recipe.check(config, run.workdir)
    figures = supervised.train(run)
    first, *_, last = lines(tmp_path / "work", "dpo")
    assert first["loss/dpo"] == pytest.approx(math.log(2)), "the policy is the reference"
    assert last["eval/margin"] != 0 and figures["pairs"] > 0
    assert run.left_out == {"pairs": {}}


@pytest.mark.slow  # the loop of the task "documents" is resumed in the fast suite
def test_stopped_and_resumed_offline_dpo_equals_uninterrupted_bit_for_bit(
    of_bytes, quick, tmp_path, monkeypatch
):
    config = of_files(of_bytes("start"), tmp_path)
    once, twice = (Run(config, "dpo", str(tmp_path / name)) for name in ("once", "twice"))
    figures = supervised.train(once)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(loop.Stopped, match="dpo: stopped after step 2 of 4"):
            supervised.train(twice)
    assert supervised.train(twice) == figures, "the reference is kept"
    assert lines(tmp_path / "once", "dpo") == lines(tmp_path / "twice", "dpo")
