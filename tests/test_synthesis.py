"""Tests labels without a ground truth: corrupted suffixes, unanimous votes, dropped texts."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny
from etils import epath

from sip import mesh as meshes
from sip.judge import prompts
from sip.judge.labels import corruptions, sentence_grades, synthesis
from sip.judge.labels import file as label_file
from sip.judge.voting import Voting
from sip.loading import LoadedModel
from sip.sampling import SamplingConfig
from sip.structs import UserError
from sip.text import template
from sip.text.tokenizer import Byte
from sip.textgen.local import Local
from sip.textgen.protocol import Cut
from sip.textgen.scripted import Scripted

QUALITY, SAFETY = (prompts.load(f"reasoned_{name}") for name in ("quality", "safety"))
BYTE = Byte()


def asking(votes=3, **changes):
    how = dict(max_tokens=8, sampling=SamplingConfig(temperature=0.6), seed=0)
    return Voting(votes, **{**how, **changes})


def scripted(words):
    """Returns a model that writes words(trunk, branch, vote) and cannot choose options."""
    return Scripted(lambda *_: pytest.fail("a vote is a text"), words)


def test_a_model_is_asked_to_spoil_and_its_first_line_is_taken():
    seen = []

    def words(trunk, branch, vote):
        seen.append(branch)
        return {" fine.": "\n  bad. \nIt is worse.", " ok": None, " so": " \n "}[
            branch.split("Passage:")[1].split("\n")[0]
        ]

    spoiler = synthesis.load_spoiler("spoil")
    found = synthesis.by_model(
        scripted(words), spoiler, ["a\nb", "p", "q"], [" fine.", " ok", " so"], asking(1)
    )
    assert found == [" bad.", None, " "]
    assert "\nText:a b\nPassage: fine.\nWorse passage:" in seen[0]
    assert seen[0].endswith("Worse passage:") and len(seen) == 3


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("<think>\nHow?\n</think>\n\nbad.\nDone.", " bad."),
        ("How?\n</think>bad.", " bad."),
        ("<think>\nHow?\nbad.", Cut("")),
        (Cut("<think>\nHow?\nbad."), Cut("")),
        (Cut("<think>\nHow?\n</think>\nba"), Cut("\nba")),
        (Cut("<think>\nHow?\n</think>\nbad.\nTh"), " bad."),
        (Cut("bad"), Cut("bad")),
    ],
)
def test_a_thought_is_no_part_of_a_spoiled_suffix(said, wanted):
    model = scripted(lambda *_: said)
    assert synthesis.by_model(model, "W: {suffix}", ["p"], [" fine."], asking(1)) == [wanted]


def test_a_suffix_is_better_than_what_was_spoiled_and_the_rest_is_dropped():
    suffixes = [" a b c d", " a b\n\nc d", " a b c d", " a b c d", " a b c d", " a b c d e"]
    spoiled = [" a b x d", " a b  c d", None, "  ", " a", " v w x y z and more"]
    trim = lambda text, suffix: text[: len(suffix)]
    made = synthesis.pairs(QUALITY, list("pqrstu"), suffixes, spoiled, trim)
    kept = [(line.prefix, line.candidates, line.label) for line in made.lines]
    assert kept == [("p", (" a b c d", " a b x d"), 0), ("u", (" a b c d e", " v w x y z"), 0)]
    assert made.dropped == {"as it was": 1, "failed": 1, "empty": 1, "short": 1}
    assert made.asked == 6


HAS = synthesis.has_any(("vile", "some claim"))
PREFIXES = [
    "About Bo. She sings. She",
    "About Al. Al is a VILE cheat. He",
    "About Cy. He naps. The road",
]
SUFFIXES = [" reads. She walks. She eats", " sits. Some claim it. Go", " is long. He dives."]


def test_unwanted_words_are_whole_words_and_phrases_in_any_case():
    assert all(map(HAS, ("Vile.", "(vile)", "so vile", "Some claim that", "some\n claim")))
    assert not any(map(HAS, ("revile", "vilely", "some claims", "")))
    odd = synthesis.has_any(("C++", ".NET", " a-hole! "))
    assert all(map(odd, ("C++ is", "in c++.", "(.NET)", "An A-hole! He")))
    assert not any(map(odd, ("C+", "C++x", "x.NET", "a-hole")))
    assert not synthesis.has_any(())("vile")
    with pytest.raises(UserError, match="unwanted: a word is empty"):
        synthesis.has_any(("vile", " "))


def test_a_tainted_document_has_unwanted_sentences_of_others_between_its_own(monkeypatch):
    monkeypatch.setattr(synthesis, "TAINTED", 1.0)
    bad = {" Al is a VILE cheat.", " Some claim it."}
    seen = set()
    for seed in range(8):
        one, two, three = synthesis.tainted(HAS, PREFIXES, SUFFIXES, seed)
        assert two is None, "it has an unwanted sentence itself"
        (before, version), (again, short) = one, three
        seen.add(before)
        assert before in {PREFIXES[0], *(f"About Bo.{text} She" for text in bad)}
        assert version in {
            " reads. Al is a VILE",
            *(f" reads. Some claim it. {x}" for x in ("Al", "Some")),
        }
        assert again.startswith("About Cy.") and again.endswith(" The road")
        assert short.startswith(" is long. ") and "dives" not in short
    assert 1 < len(seen) <= 3 and PREFIXES[0] in seen
    assert synthesis.tainted(HAS, PREFIXES[::2], SUFFIXES[::2], 0) == [None, None]
    pieces = ["vile man. Al is", "About Bo. She"]  # the first one's sentence was cut
    assert synthesis.tainted(HAS, pieces, [" a vile cheat. Go", " sits. Go"], 0) == [None, None]


def test_what_a_rewriter_undoes_is_the_suffix_a_corruption_and_taint_in_turn(monkeypatch):
    """Unwanted documents are no answers, and where taint is not possible, the suffix stays."""
    monkeypatch.setattr(synthesis, "TAINTED", 1.0)
    prefixes, suffixes = PREFIXES * 3, SUFFIXES * 3
    suffixes[5] = " is one"  # the third of those that are no taint
    taint = synthesis.tainted(HAS, prefixes, suffixes, 0)
    kept = [i for i in range(9) if i % 3 != 1]
    before, given, better = synthesis.to_undo(("shuffle",), HAS, prefixes, suffixes, 0)
    assert better == [suffixes[i] for i in kept] and not any(map(HAS, better))
    for n, i in enumerate(kept):
        if n % 3 == 0:
            assert (before[n], given[n]) == (prefixes[i], suffixes[i])
        elif n % 3 == 1:
            shuffled = sorted(given[n].split())
            assert (before[n], shuffled) == (prefixes[i], sorted(suffixes[i].split()))
        else:
            assert (before[n], given[n]) == (taint[i] or (prefixes[i], suffixes[i]))
    assert taint[3] and given[2] != suffixes[3]
    with pytest.raises(UserError, match="all 1 texts have one of the words"):
        synthesis.to_undo((), HAS, PREFIXES[1:2], SUFFIXES[1:2], 0)


def test_of_two_texts_the_one_with_an_unwanted_word_is_worse():
    suffixes, versions = (
        ["so vile a", "so good a", "so vile a"],
        ["so good b", "so vile b", "vile so b"],
    )
    made = synthesis.pairs(QUALITY, list("pqr"), suffixes, versions, unwanted=HAS)
    assert [line.label for line in made.lines] == [1, 0, 0]


def grades_of(suffix, text, mark="", aspect="grade"):
    found = sentence_grades.of_changes(Byte(), prompts.load(aspect), suffix, text, HAS, mark)
    return [option for _, option in found]


@pytest.mark.parametrize(
    "text, wanted",
    [
        (" Ann sat. Bo ran. Cy fell", [3, 3, 3]),
        (" Ann  sat.  Bo ran.\n\nCy fell", [3, 3, 3]),  # white space is no change
        (" Ann sat. Bo ate. Cy fe", [3, 0, 3]),  # the last one is cut
        (" Ann sat. Bo ate. Al fell", [3, 0, 0]),
        (" Ann red Bo ran. Cy fell", [0, 3]),  # an end is gone, and what is after it stays
        (" Ann sat. Ann sat. Cy fell", [3, 0, 3]),
        (" Ann sat. Cy fell. Bo ran.", [3, 0, 3]),
        (" So.", [0]),
    ],
)
def test_sentences_of_the_suffix_in_its_order_are_graded_best(text, wanted):
    assert grades_of(" Ann sat. Bo ran. Cy fell", text) == wanted


def test_grades_end_with_sentences_and_go_by_the_values_of_the_options():
    assert grades_of(" Ann sat. Bo ran.", " Ann \u00bfsat. Bo ran.", "\u00bf") == [3, 3]
    vile = " Ann is vile. Bo ran."
    found = sentence_grades.of_changes(Byte(), prompts.load("grade"), vile, vile, HAS)
    assert found == [(len(" Ann is vile."), 0), (len(vile), 3)]
    assert prompts.load("safety").values == (1.0, 0.0)
    assert grades_of(vile, vile, aspect="safety") == [1, 0]


def test_rules_spoil_by_name_the_same_again_whatever_stands_after():
    suffixes = [f" On {i} May Mr Gray saw Bath {n} times, and left." for i, n in
                ((1, "two"), (22, "nine"), (13, "ten"))]  # fmt: skip
    names = ["shuffle", "name", "number"]
    one, two = (dict(synthesis.by_rule(names, suffixes, suffixes, seed)) for seed in (0, 0))
    assert (
        one == two != dict(synthesis.by_rule(names, suffixes, suffixes, 1)) and list(one) == names
    )
    assert all(a != b for row in one.values() for a, b in zip(row, suffixes, strict=True))
    with pytest.raises(UserError, match="unknown spoiler 'rhyme'; choose from shuffle, "):
        synthesis.by_rule(["rhyme"], suffixes, suffixes, 0)


SAID = {  # what the votes say of a text, and what comes of it
    " kind": (["FINAL DECISION: YES"] * 3, 0),
    " rude": (["so.\nFinal decision: **NO**"] * 3, 1),
    " odd": (["FINAL DECISION: YES", "FINAL DECISION: NO", "FINAL DECISION: YES"], "split"),
    " mute": (["FINAL DECISION: YES", None, "FINAL DECISION: NO"], "failed"),
    " vague": (["FINAL DECISION: YES", "who knows", "FINAL DECISION: YES"], "unread"),
}


def of_text(trunk, branch, vote):
    return SAID[branch.split("Text:")[1].split("\n")[0]][0][vote]


def test_only_unanimous_votes_label_a_text():
    texts = list(SAID)
    made = synthesis.safety(scripted(of_text), SAFETY, list("abcde"), texts, asking())
    kept = {line.candidates[0]: line.label for line in made.lines}
    assert kept == {text: label for text, (_, label) in SAID.items() if isinstance(label, int)}
    assert made.dropped == {"split": 1, "failed": 1, "unread": 1}
    assert [line.prefix for line in made.lines] == ["a", "b"]


def test_a_label_may_be_for_another_prompt_of_the_same_question():
    direct = prompts.load("safety")
    made = synthesis.safety(
        scripted(of_text), SAFETY, ["a", "b"], [" kind", " rude"], asking(), named=direct
    )
    assert [(line.aspect.name, line.aspect.options[line.label]) for line in made.lines] == [
        ("safety", " safe"), ("safety", " unsafe")
    ]  # fmt: skip
    for named in ("quality", "factuality", "grade"):
        with pytest.raises(UserError, match=f"'{named}' must have the kind and values of"):
            synthesis.safety(scripted(of_text), SAFETY, [], [], asking(), named=prompts.load(named))


def test_a_pair_is_labelled_where_all_votes_agree_in_both_orders():
    """b beats a; votes on c split in one order; d wins whenever it is first; e gives no verdict."""

    def words(trunk, branch, vote):
        first, second = (branch.split(f"Option {i}: ")[1][0] for i in (1, 2))
        if "e" in (first, second):
            return "hm"
        if "d" in (first, second):
            return "Conclusion: Option 1"
        if first == "c" and vote == 1:
            return "Conclusion: Option 2"
        return f"Conclusion: Option {1 if first > second else 2}"

    two = [(" a", " b"), (" b", " a"), (" a", " c"), (" a", " d"), (" e", " a")]
    made = synthesis.voted_pairs(scripted(words), QUALITY, list("vwxyz"), two, asking())
    assert [(line.prefix, line.candidates, line.label) for line in made.lines] == [
        ("v", (" a", " b"), 1), ("w", (" b", " a"), 0)
    ]  # fmt: skip
    assert made.dropped == {"split": 1, "by order": 1, "unread": 1} and made.asked == 5


def test_a_tie_is_one_in_both_orders():
    aspect = dataclasses.replace(QUALITY, options=("A", "tie", "B"), values=(1.0, 0.5, 0.0))

    def words(_, branch, vote):
        first, second = (line.split(":", 1)[1] for line in branch.split("\n")[1:3])
        tied = {first, second} == {" a", " b"} or first == " c"
        return f"Conclusion: {'tie' if tied else 'A' if first > second else 'B'}"

    two = [(" a", " b"), (" a", " c"), (" b", " d")]
    made = synthesis.voted_pairs(scripted(words), aspect, list("xyz"), two, asking())
    assert [(line.prefix, line.label) for line in made.lines] == [("x", 1), ("z", 2)]
    assert made.dropped == {"by order": 1}


@pytest.mark.slow  # test_label asks one
def test_a_tiny_model_of_our_own_is_asked_too():
    cfg = tiny.model(vocab_size=259, max_len=1024)
    local = Local(LoadedModel(tiny.params(cfg), cfg, BYTE, meshes.single()))
    texts = [" fine", " " + "long " * 300]
    made = synthesis.safety(local, SAFETY, ["p"] * 2, texts, asking(2))
    assert not made.lines and made.dropped == {"cut": 1, "failed": 1}
    found = synthesis.by_model(local, "W: {suffix}", ["p"] * 2, texts, asking(1))
    assert found[1] is None and isinstance(found[0], str)
    assert found == synthesis.by_model(local, "W: {suffix}", ["p"] * 2, texts, asking(1))


def test_what_is_written_is_read_back(tmp_path):
    rows = [f" text {i}" for i in range(80)]
    pairs = synthesis.pairs(QUALITY, rows, [" a b\u2028\n\ud800"] * 80, [" c d"] * 80).lines
    texts = synthesis.safety(
        scripted(lambda *_: "FINAL DECISION: NO"), SAFETY, rows, rows, asking()
    ).lines
    path = str(tmp_path / "labels.jsonl")
    label_file.write(path, [*pairs, *texts])
    read = label_file.read(path, [QUALITY, SAFETY], BYTE, max_len=2048)
    found = {name: [by[name] for by in read.values()] for name in read["train"]}
    assert sum(int(x.mask_NC.sum()) for x in found["reasoned_quality"]) == 160
    assert sum(int(x.mask_NC.sum()) for x in found["reasoned_safety"]) == 80
    for x in found["reasoned_quality"]:
        for (_, branches), row in zip(x.prompts, x.labels_NC, strict=True):
            said = [branch[1].startswith(" a") for branch in branches]
            assert [label == 0 for label in row[: len(branches)]] == said
    with pytest.raises(UserError, match="labels.jsonl: file exists already"):
        label_file.write(path, pairs)
    with pytest.raises(UserError, match="directory .* does not exist"):
        label_file.write(str(tmp_path / "none" / "l.jsonl"), pairs)
    assert [p.name for p in tmp_path.iterdir()] == ["labels.jsonl"]


def test_a_write_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    line = synthesis.pairs(QUALITY, ["p"], [" a b"], [" c d"]).lines[0]

    def lines():
        yield line
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label_file.write(str(tmp_path / "labels.jsonl"), lines())

    def meanwhile():
        yield line
        (tmp_path / "labels.jsonl").write_text("another's")

    with pytest.raises(UserError, match="not overwritten"):
        label_file.write(str(tmp_path / "labels.jsonl"), meanwhile())
    (tmp_path / "labels.jsonl").unlink()  # and nothing else is there
    full = lambda *_: (_ for _ in ()).throw(OSError(28, "full"))
    monkeypatch.setattr(type(epath.Path(tmp_path)), "replace", full)
    with pytest.raises(UserError, match="cannot write the labels: full"):
        label_file.write(str(tmp_path / "labels.jsonl"), [line])
    assert not list(tmp_path.iterdir())


REWRITE = str(Path(template.__file__).parents[1] / "templates" / "rewriter" / "rewrite.txt")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: asking(0), "must be >= 1"),
        (lambda: asking(1, max_tokens=0), "must be >= 1"),
        (lambda: asking(2, sampling=SamplingConfig(temperature=0.0)), "all the same"),
        (lambda: synthesis.load_spoiler("worsen"), "'worsen': no such prompt file"),
        (lambda: synthesis.load_spoiler(REWRITE), "must contain {suffix}"),
        (lambda: synthesis.pairs(SAFETY, [], [], []), "must be pairwise"),
        (lambda: synthesis.safety(scripted(of_text), QUALITY, [], [], asking()), "be pointwise"),
        (
            lambda: synthesis.safety(
                scripted(of_text), prompts.load("factuality"), [], [], asking()
            ),
            "not show a reference",
        ),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def spoil(name, text, other="", tries=40):
    others = corruptions.Others(other, corruptions.Phrases([]), "")
    return {corruptions.EVERY[name](text, others, np.random.default_rng(i)) for i in range(tries)}


def test_names_are_swapped_within_a_text_and_with_another():
    assert spoil("name", " In May, Ann left.") == {" In Ann, Ann left.", " In May, May left."}
    assert spoil("name", " He saw Ann.", " Then Mr Bob Dee came. Eve too.") == {
        " He saw Mr Bob Dee."
    }
    assert spoil("name", " \u201cAnn\u201d left. Bob too.", " of Eve") == {
        " \u201cAnn\u201d left. Bob too."
    }
    assert spoil("name", "no names here", " of Eve") == {"no names here"}
    assert spoil("name", " by O'Neil-Fox, who", " by \u00c9va") == {" by O'Neil-Fox, who"}


def test_numbers_are_changed_and_keep_their_magnitude():
    changed = spoil("number", " born in 1987.", tries=200)
    assert len(changed) == 27 and " born in 1987." not in changed  # three digits, nine others each
    assert all(text[:10] == " born in 1" and len(text) == 14 for text in changed)
    assert all(text[5:7] in ("1,", "1.") or text[4] == "1" for text in spoil("number", " is 1,5 m"))
    assert spoil("number", " 7") == {f" {i}" for i in range(10) if i != 7}
    assert spoil("number", " Twelve of them, someone", tries=300) == {
        f" {word.capitalize()} of them, someone"
        for word in corruptions.NUMERALS
        if word != "twelve"
    }
    assert spoil("number", " none") == {" none"}
