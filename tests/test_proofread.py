"""Tests proofreading: a mark where the most likely word is much more likely than the actual one."""

import dataclasses

import hostile
import jax
import numpy as np
import pytest
import tiny
from test_labels import ASPECTS, POOLS, PREFIXES, SUFFIXES, FakeTruth

from sip import mesh as meshes
from sip.judge import prompts
from sip.judge.labels import ground_truth as labels
from sip.judge.labels import sentence_grades
from sip.judge.proofread import ProofreadConfig, Proofreader, plain
from sip.judge.scoring import TextJudge
from sip.loading import LoadedModel
from sip.models import decoder
from sip.objectives import logprobs
from sip.structs import Tree, UserError
from sip.text.tokenizer import Byte
from sip.textgen.scripted import Scripted

CFG = tiny.model(vocab_size=259)
MARK = "¿"
TEXTS = [[" a b", "", " longer than that"], [" é", " b"], ["x"]]
STARTS = ["One", "Another one", ""]


def _reader(mesh=None, params=None, **changes):
    config = ProofreadConfig("somewhere", **{"gap": 1.0, "most": 99, **changes})
    params = tiny.params(CFG) if params is None else params
    return Proofreader(LoadedModel(params, CFG, Byte(), mesh or meshes.single()), config)


def _gaps(prefix, text):
    """Computes gaps from one plain sequence at a time and all its logits."""
    tok, params = Byte(), tiny.params(CFG)
    ids = [tok.bos, *tok.encode(prefix), *tok.encode(text)]
    padded = np.pad(ids, (0, 64 - len(ids)), constant_values=-1)  # one length, one program
    out = np.asarray(tiny.forward(params, CFG, tiny.trunk_only([padded]))[0])[0, : len(ids)]
    logits_TV = (out @ np.asarray(decoder.unembed(params, CFG)))[:-1]
    gap_T = logits_TV.max(-1) - logits_TV[np.arange(len(ids) - 1), ids[1:]]
    return gap_T[len(tok.encode(prefix)) :]


def test_marks_stand_where_a_plain_sequence_has_a_gap():
    found = _reader().read(STARTS, TEXTS)
    for prefix, row, marked in zip(STARTS, TEXTS, found, strict=True):
        for text, shown in zip(row, marked, strict=True):
            data = text.encode()
            wide = [i for i, gap in enumerate(_gaps(prefix, text)) if gap > 1.0]
            starts = sorted({len(data[:i].decode(errors="ignore")) for i in wide})
            ends = zip([0, *starts], [*starts, len(text)], strict=True)
            assert shown == MARK.join(text[a:b] for a, b in ends)
    assert sum(shown.count(MARK) for row in found for shown in row) > 5
    assert [[plain(shown, MARK) for shown in row] for row in found] == TEXTS


def test_the_gap_is_worked_out_by_hand_and_never_needs_all_logits():
    hidden = np.array([[[1.0, 0.0], [0.0, 2.0]]])  # the trunk
    branch = np.array([[[[3.0, 1.0]] * 3]])
    unembed = np.array([[1.0, 0.0, -1.0], [0.0, 1.0, 4.0]])
    tokens, live = np.array([[[2, 0, 2]]]), np.array([[[True, True, False]]])
    tree = Tree(np.zeros((1, 2), int), np.ones((1, 2), bool), tokens, live, np.array([[1]]))
    gap = logprobs.branch_gaps(hidden, branch, unembed, tree, chunk=2)
    # read from the trunk's first place: logits 1, 0, -1; from the branch's first: 3, 1, 1
    np.testing.assert_allclose(gap, [[[2.0, 0.0, 0.0]]])


def test_most_marks_and_no_other_than_its_own():
    wide = _reader(most=2).read(STARTS, TEXTS)
    every = _reader().read(STARTS, TEXTS)
    for few, many in zip(sum(wide, []), sum(every, []), strict=True):
        assert few.count(MARK) == min(2, many.count(MARK))
        assert many.startswith(few[: few.rindex(MARK) + 1] if MARK in few else "")
    forged = [[text.replace(" ", f"{MARK} ") for text in row] for row in TEXTS]
    assert _reader().read(STARTS, forged) == every


EIGHTH = [*hostile.TEXTS][::8]  # test_untrusted reads all with a judge


@pytest.mark.parametrize(
    "name",
    [n if n in EIGHTH else pytest.param(n, marks=pytest.mark.slow) for n in hostile.TEXTS],
)
def test_hostile_text_is_only_ever_marked(name):
    text = hostile.TEXTS[name]
    config = {"most": 5, "gap": 0.5}
    ((shown,),) = _reader(**config).read(["It"], [[text]])
    if shown is None:
        assert len(text.encode(errors="replace")) + 3 > CFG.max_len
    else:
        assert plain(shown, MARK) == plain(text, MARK)
        assert (MARK in shown) == bool(shown)


def test_what_is_too_long_is_not_read_and_nothing_is_read_of_nothing():
    long = "x" * CFG.max_len
    found = _reader().read(["It", "It", long], [[long, " a b"], [], [" a b", ""]])
    assert [[text is None for text in row] for row in found] == [[True, False], [], [True, True]]
    assert (
        _reader().read(["It"], [[" a b"]])[0][0] == _reader().read(["It"], [[long, " a b"]])[0][1]
    )
    assert _reader().read(["It"], [[""]]) == [[""]] and _reader().read([], []) == []


def test_labels_need_every_text_marked():
    key = "task.labels.proofread"
    assert _reader().read_all(STARTS, TEXTS, key) == _reader().read(STARTS, TEXTS)
    with pytest.raises(UserError, match=rf"{key}: max_len"):
        _reader().read_all(["One"], [["too long to be read" * 9, "a"]], key)


@pytest.mark.slow  # test_textgen has batches and meshes
def test_batches_and_meshes_change_nothing():
    mesh = meshes.build(meshes.MeshConfig(replica=2, fsdp=4, tensor=1))
    plainly = _reader().read(STARTS, TEXTS)
    assert _reader(batch=1).read(STARTS, TEXTS) == plainly
    params = jax.device_put(
        tiny.params(CFG), jax.tree.map(lambda x: x.sharding, decoder.abstract(CFG, mesh))
    )
    assert _reader(mesh, params, batch=4).read(STARTS, TEXTS) == plainly


class Marking(Proofreader):
    """A proofreader stub that puts a mark before "bad"."""

    def __init__(self):
        self.config = ProofreadConfig("somewhere")

    def read(self, prefixes, texts):
        assert len(prefixes) == len(texts)
        return [[text.replace(" bad", f"{MARK} bad") for text in row] for row in texts]


def test_a_lone_surrogate_hides_nothing():
    """The tokenizer reads it as a question mark; the words after it are still marked."""
    ((shown, same),) = _reader().read(["It"], [[" \ud800 a b c", " ? a b c"]])
    assert shown == same and shown.count(MARK) > 1


def test_what_could_not_be_read_is_invalid_and_what_is_not_live_is_not_read():
    class Halting(Marking):
        def read(self, prefixes, texts):
            assert texts == [[" good", " long", ""]]
            return [[" good", None, ""]]

    safety = prompts.load("safety")
    says = Scripted(lambda trunk, branch, options: (1.0, 0.0))
    judge = TextJudge(says, (safety,), {"safety": 1.0}, proofreader=Halting())
    live = np.array([[True, True, False]])
    judged = judge.score(["p"], [[" good", " long", " dead"]], [""], live)
    assert judged.valid_BK.tolist() == [[True, False, False]]


def test_a_judge_is_shown_what_was_marked():
    def fn(trunk, branch, options):
        return (0.0, 1.0) if MARK in branch else (1.0, 0.0)

    safety = prompts.load("safety")
    judge = TextJudge(Scripted(fn), (safety,), {"safety": 1.0}, proofreader=Marking())
    judged = judge.score(["p"], [[" good", " a bad one"]], [""], np.ones((1, 2), bool))
    assert judged.scores_BK.tolist() == [[1.0, 0.0]]


def _make(**options):
    size = dict.fromkeys(("quality", "safety", "factuality"), 4)
    args = (FakeTruth(), Byte(), ASPECTS, PREFIXES, SUFFIXES, POOLS)
    return labels.make(*args, per_prefix=size, max_len=256, seed=0, **options)


def test_labels_are_those_of_the_texts_without_marks():
    told, alone = _make(proofreader=Marking()), _make()
    assert MARK in str(told["safety"].prompts) and MARK not in str(alone["safety"].prompts)
    for name, trees in told.items():
        bare = [(t, [tuple(plain(s, MARK) for s in b) for b in row]) for t, row in trees.prompts]
        assert bare == alone[name].prompts
        assert (trees.labels_NC == alone[name].labels_NC).all()


class Reading(FakeTruth):
    """A ground truth that knows no text with marks."""

    def score(self, prefixes, texts):
        assert not any(MARK in text for text in (*prefixes, *texts))
        return super().score(prefixes, texts)


def test_sentences_are_graded_without_marks_and_end_where_they_do():
    grades = dataclasses.replace(prompts.load("grade"), options=("-", "+"), values=(0.0, 1.0))
    text, told = " wrong. right! right.", f"{MARK} wrong. right!{MARK} right."
    args = (Reading(), Byte(), grades, "factuality")
    bare = sentence_grades.make(*args, [("p", text)])("p", text)
    marked = sentence_grades.make(*args, [("p", told)], MARK)("p", told)
    assert [option for _, option in marked] == [option for _, option in bare] == [0, 1, 1]
    added = [len(MARK.encode()) * n for n in (1, 1, 2)]
    assert [end - more for (end, _), more in zip(marked, added, strict=True)] == [
        end for end, _ in bare
    ]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"gap": 0.0}, "gap"),
        ({"most": 0}, "most"),
        ({"mark": " "}, "mark"),
        ({"mark": "\n"}, "mark"),
    ],
)
def test_what_cannot_be_is_named(changes, message):
    with pytest.raises(UserError, match=f"proofread.{message}"):
        ProofreadConfig(**changes)
