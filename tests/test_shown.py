"""Tests which prompts of a task are answered to be read, and that their answers are."""

from types import SimpleNamespace

import tiny

from sip.data import packing
from sip.evals.continuations import SAMPLES
from sip.mesh import single
from sip.tasks import pairs, shown
from sip.tasks.pairs import AnswerPairConfig, PairLabelConfig, PairsConfig, PairTaskConfig
from sip.tasks.rl.task import AnswerWriter
from sip.tasks.supervised import conversations
from sip.text.tokenizer import Byte
from sip.training.loop import LogConfig

RUN = SimpleNamespace(tokenizer=Byte(), workdir="")
PROMPTS = [[Byte.bos, *b"a?"], [9] * 60, [Byte.bos, *b"b?"], [Byte.bos, *b"c?"]]


def settings(samples):
    return SimpleNamespace(model=tiny.BYTES, log=LogConfig(samples=samples))


def test_the_first_prompts_with_room_for_an_answer_are_answered(monkeypatch):
    asked = []

    def greedy(self, params, some, batch):
        asked.append((params, list(some), batch, self.steps, self.stops))
        return [[*b" yes"], [*b" no", Byte.eos]]

    monkeypatch.setattr(AnswerWriter, "greedy_ids", greedy)
    show = shown.answers(RUN, settings(2), single(), iter(PROMPTS), [Byte.eos])
    half = tiny.BYTES.max_len // 2
    assert 60 + half > tiny.BYTES.max_len and half < shown.TOKENS
    assert show("theta") == {SAMPLES: [("a?", " yes"), ("b?", " no")]}
    assert asked == [("theta", [PROMPTS[0], PROMPTS[2]], 2, half, (Byte.eos,))]


def test_without_a_prompt_there_is_no_text():
    for samples, prompts in ((0, PROMPTS), (4, []), (4, PROMPTS[1:2])):
        assert shown.answers(RUN, settings(samples), single(), prompts, [])({}) == {}


def test_prompts_of_conversations_end_where_the_first_answer_begins():
    texts = [([5, 6, 7, 8], [0, 0, 1, 0]), ([5, 9], [0, 0]), ([1, 2, 3, 4], [0, 1, 0, 1])]
    rows = packing.pack(packing.joined(texts), width=8, pad=0)
    assert list(conversations.prompts(rows)) == [[5, 6], [1]]
    assert all(isinstance(i, int) for ids in conversations.prompts(rows) for i in ids)


def test_answers_to_pairs_end_as_the_chosen_ones_do(monkeypatch):
    monkeypatch.setattr(pairs.prompt_files, "encoding", lambda name, *_: (None, (f"of {name}",)))
    task = lambda **kind: PairTaskConfig(name="preferences", **kind)
    kinds = {
        "": [dict(pairs=PairsConfig("f")), dict(labels=PairLabelConfig("", rollouts=0))],
        "turns": [dict(pairs=PairsConfig("f", "turns"))],
        "harmony": [dict(answers=AnswerPairConfig(("base",), "harmony"))],
    }
    for name, some in kinds.items():
        assert [pairs.stops(RUN, task(**kind)) for kind in some] == [(f"of {name}",)] * len(some)
