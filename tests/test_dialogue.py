"""Tests talking with a model: turns, what is forgotten, stops, and what reaches the terminal."""

import dataclasses
from types import SimpleNamespace

import chats
import numpy as np
import pytest
import tiny

from sip import mesh
from sip.data.conversations import Conversation, examples, open_format
from sip.loading import LoadedModel
from sip.sampling import SamplingConfig
from sip.structs import Rollouts, UserError
from sip.text import chat
from sip.text.chat import Template
from sip.text.tokenizer import Byte
from sip.textgen import dialogue
from sip.textgen.dialogue import Partner, Talk

pytest.importorskip("jinja2", reason="needs jinja2")
BYTE = Byte()
CFG = tiny.model(vocab_size=264, max_len=96)


def partner(max_tokens=16, cfg=CFG, template=None):
    form = open_format(template or chat.load("turns", BYTE), BYTE)
    nothing = LoadedModel(None, cfg, BYTE, mesh.single())
    return Partner(nothing, form, SamplingConfig(), max_tokens, seed=5)


@pytest.fixture
def scripted(monkeypatch):
    """Replaces the model by a list of answers; returns (answers to come, calls)."""
    answers, calls = [], []

    def draw(model, prompts, *, num, max_tokens, **how):
        calls.append(SimpleNamespace(prompts=prompts, num=num, max_tokens=max_tokens, **how))
        ids = [[*BYTE.encode(answers.pop(0)), BYTE.eos] for _ in range(len(prompts) * num)]
        R = max(map(len, ids))
        tokens = np.array([row + [0] * (R - len(row)) for row in ids]).reshape(-1, num, R)
        mask = np.array([[i < len(row) for i in range(R)] for row in ids]).reshape(-1, num, R)
        return Rollouts(tokens, mask, np.zeros(mask.shape), np.zeros(mask.shape))

    monkeypatch.setattr(dialogue, "draw", draw)
    return answers, calls


def text(call, b=0):
    return bytes(i for i in call.prompts[b] if i < 256).decode()


def test_a_question_is_asked_after_the_earlier_turns(scripted):
    answers, calls = scripted
    answers += [" yes", "no"]
    talk = Talk("be brief")
    assert dialogue.answer(partner(), talk, "a?") == ("yes", 0)
    assert dialogue.answer(partner(), talk, "b?") == ("no", 0)
    first = "<|system|>be brief<|user|>a?<|assistant|>"
    assert text(calls[0]) == first and text(calls[1]) == f"{first}yes<|user|>b?<|assistant|>"
    assert calls[1].prompts[0].count(BYTE.eos) == 1, "the token that ends an answer"
    assert [call.seed for call in calls] == [5, 6] and calls[0].stops == (BYTE.eos,)


def test_the_prompt_is_that_of_training(scripted):
    talk = Talk("s", [("a", "b")])
    said = [*talk.messages(0, "c"), {"role": "assistant", "content": "d"}]
    for name in ("llama2", "qwen3", "harmony"):
        source = chats.templates()[name].replace("<|im_end|>", "</s>").replace("<|end|>", "</s>")
        one = partner(template=Template(source, chats.NAMES, name))
        asked = dialogue.asked(one, talk.messages(0, "c"))
        (*_, last) = examples(one.form, Conversation(tuple(said)))
        assert last.ids[: len(asked)] == asked
        lead = len(BYTE.encode(one.form.lead))
        assert last.learned.index(True, len(asked) - lead) == len(asked) - lead
        assert bool(lead) == (name != "llama2")


def test_the_oldest_turns_are_forgotten_first_and_the_system_message_stays(scripted):
    answers, calls = scripted
    answers += ["x"] * 4
    talk, one = Talk("s"), partner(max_tokens=8, cfg=dataclasses.replace(CFG, max_len=90))
    forgotten = [dialogue.answer(one, talk, f"{i}?")[1] for i in range(4)]
    assert forgotten == [0, 0, 1, 1] and len(talk.turns) == 2
    assert text(calls[2]) == "<|system|>s<|user|>1?<|assistant|>x<|user|>2?<|assistant|>"
    before = list(talk.turns)
    with pytest.raises(UserError, match="the question has .* tokens"):
        dialogue.answer(one, talk, "y" * 99)
    assert talk.turns == before and len(calls) == 4


def test_a_thought_is_shown_and_not_remembered(scripted):
    scripted[0].append("<think>hm</think>\n\nyes")
    talk = Talk()
    assert "hm" in dialogue.answer(partner(), talk, "a?")[0] and talk.turns == [("a?", "yes")]


def test_a_model_cannot_command_the_terminal():
    said = "\x1b[31mred\x07 \u202eback\nline\ttab\x9b é \U0001f468\u200d\U0001f469 no\xa0break"
    assert dialogue.shown(said) == (
        "\\x1b[31mred\\x07 \\u202eback\nline\ttab\\x9b é \U0001f468\u200d\U0001f469 no\xa0break"
    )
    assert dialogue.shown("a\nb\rc", keep="\t") == "a\\nb\\rc"
    assert dialogue.shown("\x85\x1c\u2028") == "\\x85\\x1c\\u2028"


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt, "/quit"])
def test_a_talk_in_the_terminal_ends_politely(end, scripted, capsys):
    answers, calls = scripted
    answers += ["one\x1b[2J", "two"]
    typed = iter(["", "a?", "/new", "z" * 99, "b?", end])

    def read(prompt):
        if isinstance(word := next(typed), str):
            return word
        raise word

    dialogue.in_terminal(partner(), "", read)
    said = capsys.readouterr()
    assert said.out.split() == ["one\\x1b[2J", "two"] and said.err.count("error: ") == 1
    assert text(calls[1]) == "<|user|>b?<|assistant|>", "/new has forgotten the first turn"


def test_a_pipe_gives_one_line_per_question(scripted):
    answers, calls = scripted
    answers += ["a\nb", "c"]
    lines = [b"one?", b" ", "zw\u00f6lf?".encode()]
    assert list(dialogue.in_pipe(partner(), "", lines)) == ["a\\nb", "c"]
    assert text(calls[1]).startswith("<|user|>one?<|assistant|>a\nb<|user|>")
    for line, reason in ((b"\xff", "not UTF-8"), (b"y" * 99, "the question has")):
        with pytest.raises(UserError, match=f"stdin:2: {reason}"):
            list(dialogue.in_pipe(partner(), "", [b"", line]))


def test_prompts_are_conversations_of_their_own(scripted):
    answers, calls = scripted
    answers += ["a", "b", "c", "d"]
    rows = dialogue.of_prompts(partner(), "s", ["one?", "two?"], 2)
    assert [[one["text"] for one in row] for row in rows] == [["a", "b"], ["c", "d"]]
    assert rows[1][0]["prompt"] == "two?" and rows[1][0]["tokens"] == [ord("c"), BYTE.eos]
    assert text(calls[0], 1) == "<|system|>s<|user|>two?<|assistant|>"
