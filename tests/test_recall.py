"""Notes that a judge writes on a prefix: how it is asked, taught and shown them."""

import dataclasses

import hostile
import numpy as np
import pytest
from test_labels import ASPECTS, POOLS, PREFIXES, SUFFIXES, FakeTruth

from sip.data import lexicon
from sip.data.microworld import WorldConfig
from sip.data.oracle import MicroworldTruth
from sip.judge import labels, prompts, recall
from sip.judge.scoring import TextJudge
from sip.structs import UserError
from sip.textgen import Scripted, tokens_of
from sip.tokenizer import Byte

RECALL = recall.load("recall")
FACTS, SAFETY = prompts.load("factuality"), prompts.load("safety")
C = 4


class Knowing(FakeTruth):
    """What is known of "prefix 7" is " 7"."""

    def notes(self, prefixes):
        return [prefix.removeprefix("prefix") for prefix in prefixes]


def _made():
    size = dict.fromkeys(("quality", "safety", "factuality"), C)
    return labels.make(
        Knowing(),
        Byte(),
        ASPECTS,
        PREFIXES,
        SUFFIXES,
        POOLS,
        per_prefix=size,
        max_len=256,
        seed=0,
        recall=RECALL,
    )


def _remembers(trunk, branch, vote):
    """Notes as Knowing has them, from the prompt alone; of "prefix 3" nothing can be said."""
    assert branch == "\nKnown:" and vote == 0
    number = trunk.removeprefix("What is known?\nText:prefix")
    return None if number == " 3" else number


def test_the_prompt_and_what_is_shown_read_as_written():
    trunk, branch = RECALL.prompt("Mira lives")
    assert "".join(trunk) + "".join(branch) == "What is known?\nText:Mira lives\nKnown:"
    asked = prompts.trunk(FACTS, prefix="Mira", reference=" sings.")
    shown = RECALL.show(asked, " Oxmoor")
    assert "".join(shown) == "Factual?\nText:Mira\nReference: sings.\nKnown: Oxmoor"
    assert shown[1::2] == ("Mira", " sings.", " Oxmoor")  # not the template's own words
    assert RECALL.symbols() == ("What is known?\nText:", "\nKnown:")


@pytest.mark.parametrize("text", hostile.TEXTS.values(), ids=hostile.TEXTS)
def test_hostile_notes_open_no_line(text):
    trunk = prompts.trunk(FACTS, prefix="Mira", reference=" sings.")
    assert "".join(RECALL.show(trunk, text)).count("\n") == 3
    assert "".join(RECALL.prompt(text)[0]).count("\n") == 1


def test_notes_are_asked_for_once_per_prefix_and_may_fail():
    asked = []

    def words(trunk, branch, vote):
        asked.append(trunk)
        return _remembers(trunk, branch, vote)

    textgen = Scripted(lambda *_: (), words)
    known = recall.write(RECALL, textgen, ["prefix 1", "prefix 3", "prefix 1"])
    assert known == {"prefix 1": " 1", "prefix 3": None} and len(asked) == 2


def test_a_judge_is_shown_its_notes_and_invalid_without_them():
    seen = []

    def fn(trunk, branch, options):
        seen.append(trunk)
        return (1.0, *[0.0] * (len(options) - 1))

    judge = TextJudge(
        Scripted(fn, _remembers), (FACTS, SAFETY), {"factuality": 1, "safety": 1}, recall=RECALL
    )
    texts, mask = [[" a", " b"], [" c", " d"]], np.ones((2, 2), bool)
    judged = judge.score(["prefix 1", "prefix 3"], texts, ["", ""], mask)
    told = [trunk for trunk in seen if "Factual?" in trunk]
    assert len(told) == 2 and all(trunk.endswith("\nKnown: 1") for trunk in told)
    assert judged.valid_BK.tolist() == [[True, True], [False, False]]
    assert judged.aspects["safety"][1].all()  # it is shown no prefix
    assert judged.metrics["judge/invalid/recall"] == (1, 2)


def test_what_is_taught_is_what_a_judge_is_shown():
    tok, trees = Byte(), _made()["factuality"]
    noted = labels.noted(Scripted(lambda *_: (), _remembers), [trees], RECALL)[0]
    for n, (trunk, branches) in enumerate(noted.prompts):
        ids = trees.tree.tokens_BT[n][trees.tree.mask_BT[n]].tolist()
        failed = trees.prefixes[n] == "prefix 3"
        assert (ids == [tok.bos, *tokens_of(tok, trunk)]) != failed
        assert trees.prompts[n][1] == branches and "Known" not in "".join(trees.prompts[n][0])
    safety = _made()["safety"]
    assert set(safety.prefixes) == {""} and "Known" not in str(safety.prompts)


def test_each_token_of_the_notes_is_asked_for_where_it_follows():
    tok = Byte()
    notes = Knowing().notes(PREFIXES)
    found = recall.examples(RECALL, tok, [*PREFIXES, PREFIXES[0]], [*notes, notes[0]], max_len=99)
    asked = found.asked["recall"]
    assert len(found) == len(PREFIXES)
    for n, (prefix, text) in enumerate(zip(PREFIXES, notes, strict=True)):
        trunk, branch = RECALL.prompt(prefix)
        plain = [tok.bos, *tokens_of(tok, (*trunk, *branch, text)), tok.eos]
        fork, live = int(found.tree.fork_BC[n, 0]), asked.mask_BCM[n, 0]
        at = fork + asked.at_BCM[n, 0][live]
        tree = [*found.tree.tokens_BT[n, :fork], *found.tree.tokens_BCR[n, 0]]
        assert [plain[i + 1] for i in at] == asked.token_BCM[n, 0][live].tolist()
        assert at.tolist() == list(range(len(plain) - len(text) - 2, len(plain) - 1))
        assert tree[: len(plain) - 1] == plain[:-1]


def test_notes_count_as_right_word_for_word():
    found = recall.examples(RECALL, Byte(), PREFIXES, Knowing().notes(PREFIXES), max_len=99)
    counts = found.accuracy(Scripted(lambda *_: (), _remembers))
    assert counts == {"recall": (len(PREFIXES) - 1, len(PREFIXES))}


def test_a_judge_that_compares_is_right_with_its_notes_alone():
    trees = _made()
    ends = lambda trunk, branch, options: (0.9, 0.1) if trunk.endswith("Known: 1") else (0.1, 0.9)
    textgen = Scripted(ends, _remembers)
    quality = {"quality": trees["quality"]}
    told, alone = (labels.accuracy(textgen, quality, r)["quality/a"] for r in (RECALL, None))
    assert told[0] > alone[0] and told[1] == alone[1]


def test_the_micro_world_knows_whom_a_prefix_is_about():
    truth = MicroworldTruth(WorldConfig(entities=6))
    name = truth.world.names[4]
    notes, nobody = truth.notes([f"About {name}. {truth.world.names[2]} is kind.", "The weather"])
    known = truth.world.slots(4)
    assert notes == "".join(f" {known[a]}" for a in lexicon.ATTRIBUTES) and nobody == ""


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("tokens: 16\n", "", "bad header"),
        ("tokens: 16", "tokens: many", "bad header"),
        ("tokens: 16", "tokens: 0", "at least 1"),
        ("tokens: 16", "tokens: 16\nkind: x", "unknown header line 'kind'"),
        ("{prefix}", "it", "names"),
        ("{notes}", "{prefix}", "names"),
        ("=== shown", "=== seen", "lacks '=== shown'"),
    ],
)
def test_a_prompt_file_that_cannot_be_used_is_named(tmp_path, old, new, message):
    path = tmp_path / "mine.txt"
    path.write_text(prompts.read("recall", "recall").replace(old, new))
    with pytest.raises(UserError, match=f"recall .*mine.*{message}"):
        recall.load(str(path))


def test_a_prompt_file_without_changes_is_the_built_in_one(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text(prompts.read("recall", "recall"))
    assert dataclasses.replace(recall.load(str(path)), name="recall") == RECALL
    with pytest.raises(UserError, match="'recal': no such prompt file"):
        recall.load("recal")
