"""Tests annotated texts: what is accepted, what is dropped, files, token ids, places."""

import json
import random

import pytest

from sip.data import thoughts
from sip.data.thoughts import (
    CHANGED,
    EMPTY,
    KNOWN,
    LEAD,
    LONG,
    NESTED,
    NONE,
    QUOTES,
    TAGGED,
    TAGS,
    TWICE,
    UNCLOSED,
    UNOPENED,
    QuoteConfig,
    Rejected,
    ThoughtRule,
)
from sip.structs import UserError
from sip.text.tokenizer import Byte, train_sentencepiece

RULE = ThoughtRule(most_words=6, quote=QuoteConfig(run=3, target=8))
TEXT = " Ann has 3 figs.\n\nBob eats\t2  of them; ﬁne.\u2028So 1 is left. \n"


def reason(answer, text=TEXT, tags=TAGS):
    with pytest.raises(Rejected) as error:
        thoughts.accepted(text, answer, tags, RULE)
    return str(error.value)


HOSTILE = {
    "a word less": (TEXT.replace("of ", "of<think>x</think>").replace("Bob ", ""), CHANGED),
    "a word more": (TEXT.replace("So", "<think>x</think> So then"), CHANGED),
    "another number": (TEXT.replace("2", "<think>x</think>3"), CHANGED),
    "folded by NFKC": (TEXT.replace("ﬁne", "<think>x</think> fine"), CHANGED),
    "one space for two": (TEXT.replace("  of", " of<think>x</think>"), CHANGED),
    "space for a tab": (TEXT.replace("\t", " ").replace("2", "2<think>x</think>"), CHANGED),
    "line ends folded": (TEXT.replace("\n\n", "\n").replace("2", "2<think>x</think>"), CHANGED),
    "another case": (TEXT.replace("Bob", "<think>x</think>bob"), CHANGED),
    "stops early": (TEXT.replace("So 1 is left.", "<think>x</think>So"), CHANGED),
    "talks after it": (TEXT + "<think>x</think> Done!", CHANGED),
    "never closed": (TEXT.replace("Bob", "<think>who? Bob"), UNCLOSED),
    "a tag cut": (TEXT.replace("Bob", "<think>who?</think Bob"), UNCLOSED),
    "closed alone": (TEXT.replace("Bob", "who?</think> Bob"), UNOPENED),
    "nested": (TEXT.replace("Bob", "<think>a<think>b</think>c</think>Bob"), NESTED),
    "another end": (TEXT.replace("Bob", "<think>a</thinking>Bob"), NESTED),
    "crossed": (TEXT.replace("Bob", "<think>a<thought>b</think>c</thought>Bob"), NESTED),
    "no thought": (TEXT, NONE),
    "only its own reasoning": ("<think>They want thoughts.</think>" + TEXT, NONE),
    "an empty answer": ("", CHANGED),
}


@pytest.mark.parametrize(("answer", "why"), HOSTILE.values(), ids=HOSTILE)
def test_a_changed_text_or_broken_tags_are_rejected(answer, why):
    assert reason(answer) == why


@pytest.mark.parametrize("tag", ["<think>", "</THINK>", "[THINK]", "<|end_of_thought|>", "<mine>"])
def test_a_text_that_has_tags_itself_is_rejected(tag):
    text = f"One {tag} two."
    assert reason(f"One {tag} two.<think>x</think>", text, ("<mine>", "</mine>")) == TAGGED


def test_what_is_accepted_is_the_original_byte_for_byte():
    """Thoughts in any tags at any seam, with any white space there, in texts of odd characters."""
    rng, spaces = random.Random(0), ["", " ", "\n", "\u00a0", " \t", "\u2028", "\r\n"]
    words = ["ﬁn", "e\u0301", "é", "3", "12%", "a<b", "</p>", "[x]", "\ud83d\ude00", "\x1b", "it's"]
    kept = 0
    for _ in range(400):
        count = rng.randrange(2, 9)
        text = "".join(rng.choice(words) + rng.choice(spaces[1:]) for _ in range(count))
        text = rng.choice(spaces) + text + rng.choice(spaces)
        answer, places = text, sorted(rng.sample(range(len(text) + 1), 2), reverse=True)
        for place in places:
            start, end = rng.choice(KNOWN)
            told = f"{rng.choice(spaces)}{start} so {end.upper()}{rng.choice(spaces)}"
            answer = answer[:place] + told + answer[place:]
        try:
            found = thoughts.accepted(text, answer, TAGS, RULE)
        except Rejected as why:
            assert str(why) == NONE, (text, answer)  # before the first word
            continue
        kept += 1
        assert thoughts.original(found.pieces) == text and set(found.thoughts) == {"so"}
        line = thoughts.joined(found.pieces, TAGS)
        assert thoughts.parse(line, (TAGS,)) == found.pieces
    assert kept > 200


def test_thoughts_are_screened_and_counted():
    told = [
        ("", "I am asked to think"),
        (" Ann has 3 figs.", "so bob EATS, 2?"),  # quotes the next words
        ("\n\nBob eats\t2  of them; ﬁne.", " "),
        ("\u2028So", "one two three four five six seven"),
        (" 1", "Ann has 3"),  # of the text before
        ("", "again"),
    ]
    answer = "".join(f"{text}<think>{thought}</think>" for text, thought in told) + " is left. \n"
    found = thoughts.accepted(TEXT, answer, TAGS, RULE)
    assert found.dropped == {LEAD: 1, QUOTES: 1, EMPTY: 1, LONG: 1, TWICE: 1}
    assert found.thoughts == ("Ann has 3",)
    assert found.pieces[0] == TEXT[: TEXT.index(" is left")]


def test_a_rejected_text_says_what_happened_to_its_thoughts():
    with pytest.raises(Rejected, match=NONE) as error:
        thoughts.accepted("A b c d.", "A<think>b c d</think> b c d.<think></think>", TAGS, RULE)
    assert error.value.dropped == {QUOTES: 1, EMPTY: 1}


@pytest.mark.parametrize(
    ("thought", "before", "after", "quoted"),
    [
        ("b c d", "a", "b c d e", True),
        ("B, c? (D)", "a", "x b c d", True),
        ("b c", "a", "b c d e", False),  # a run of three is needed
        ("b d c", "a", "b c d e", False),
        ("b c d", "now b c d then", "b c d e", False),  # it is in the text before
        ("b c d", "a b c", "d e", False),  # the target has two words
        ("h i j", "a", "b c d e f g h i j", False),  # beyond the eight words of the target
        ("g h i", "a", "b c d e f g h i j", True),
    ],
)
def test_a_quotation_is_a_run_of_words_of_the_target(thought, before, after, quoted):
    forbidden = thoughts.target(before, after, RULE.quote)
    assert thoughts.quotes(thought, forbidden, RULE.quote) == quoted


def lines(tmp_path, rows):
    (tmp_path / "a-1.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(tmp_path / "a*.jsonl")


def test_files_are_read_by_part_and_slice_and_bad_lines_counted(tmp_path):
    rows = [dict(part="train", text=f"a{i}<think>t</think> b") for i in range(8)]
    rows += [dict(part="test", text="c<think>t</think>d")]
    rows += [dict(part="train", text="e<think>t"), dict(part="dev", text="x"), dict(text="y")]
    path = lines(tmp_path, rows)
    found, left_out = thoughts.read(path, "train[:50%]", TAGS, 0.5)
    assert [pieces[0] for pieces in found] == ["a0", "a1", "a2", "a3"]
    assert left_out[UNCLOSED] == 1 and sum(left_out.values()) == 3
    rest, _ = thoughts.read(path, "train[50%:]", TAGS, 0.5)
    assert [pieces[0] for pieces in rest] == ["a4", "a5", "a6", "a7"]
    assert thoughts.read(path, "test", TAGS, 0.5)[0] == [("c", "t", "d")]
    with pytest.raises(UserError, match=r"3 of 12 annotated texts cannot be used"):
        thoughts.read(path, "test", TAGS, 0.1)
    with pytest.raises(UserError, match="no annotated text in split 'validation'"):
        thoughts.read(path, "validation", TAGS, 0.5)
    with pytest.raises(UserError, match="split 'dev'"):
        thoughts.read(path, "dev", TAGS, 0.5)


BYTE_TAGS = ("\x01", "\x02")


def test_tags_are_single_tokens_of_trained_published_and_byte_tokenizers(tmp_path):
    assert thoughts.tag_ids(Byte(), BYTE_TAGS) == (1, 2)
    assert thoughts.tag_ids(Byte(), ("<s>", "<pad>")) == (Byte.bos, Byte.pad)  # special tokens
    with pytest.raises(UserError, match="'<think>' is 7 tokens"):
        thoughts.tag_ids(Byte(), TAGS)
    texts = ["some words of a text to learn from"] * 20
    trained = train_sentencepiece(texts, tmp_path / "m.model", vocab_size=300, symbols=TAGS)
    ids = thoughts.tag_ids(trained, TAGS)
    told, of_thought = thoughts.encode(trained, ("some words", "of text", " to learn"), ids)
    assert told.count(ids[0]) == told.count(ids[1]) == 1
    assert told[0] == trained.bos and told[-1] == trained.eos
    inside = [i for i, of in zip(told, of_thought, strict=True) if of]
    assert inside == [ids[0], *trained.encode("of text"), ids[1]]
    outside = [i for i, of in zip(told, of_thought, strict=True) if not of]
    assert trained.decode(outside) == "some words to learn"


def test_places_have_the_text_before_and_after_without_thoughts():
    texts = [("ab", "t", "cde", "u", "fg", "v", "h"), ("xyz", "w", "xyz")]
    of = lambda **cut: list(thoughts.forks(Byte(), texts, **cut))
    found = of(prefix_min=3, prefix_max=4, suffix=2)
    told = [(bytes(f.prefix[f.prefix[0] == Byte.bos :]), bytes(f.suffix), bytes(f.thought))
            for f in found]  # fmt: skip
    # One token follows v.
    assert told == [(b"ab", b"cd", b"t"), (b"bcde", b"fg", b"u"), (b"xyz", b"xy", b"w")]
    assert found[0].prefix[0] == Byte.bos
    assert of(prefix_min=4, prefix_max=4, suffix=2) == found[1:]


def test_places_after_earlier_thoughts_are_those_that_sft_learns():
    """The tokens up to a place are those of the encoded text; parts of a thought are left out."""
    texts = [("ab", "t", "cde", "u", "fg", "v", "hi"), ("xyz", "ww", "xyz")]
    of = lambda **cut: list(thoughts.forks(Byte(), texts, suffix=2, tags=(1, 2), **cut))
    found = of(prefix_min=3, prefix_max=99)
    assert [bytes(f.suffix) for f in found] == [b"cd", b"fg", b"hi", b"xy"]  # without thoughts
    learned = [thoughts.encode(Byte(), pieces, (1, 2))[0] for pieces in texts]
    for fork, ids in zip(found, [learned[0]] * 3 + [learned[1]], strict=True):
        wanted = [*fork.prefix, 1, *fork.thought, 2, fork.suffix[0]]
        assert ids[: len(wanted)] == wanted
    assert found[2].prefix == [Byte.bos, *b"ab", 1, *b"t", 2, *b"cde", 1, *b"u", 2, *b"fg"]
    assert thoughts.outside(found[2].prefix, (1, 2)) == [Byte.bos, *b"abcdefg"]
    plain = lambda ids: bytes(x for x in ids if x != Byte.bos)
    cut = lambda most: [plain(f.prefix) for f in of(prefix_min=3, prefix_max=most)[1:3]]
    assert cut(6) == [b"\x01t\x02cde", b"e\x01u\x02fg"]
    assert cut(5) == [b"cde", b"\x01u\x02fg"]
    # Without parts of u two tokens are left before v.
    assert cut(4) == [b"cde", b"xyz"]


def test_the_worlds_rule_thinks_of_the_facts_of_the_next_sentence():
    from sip.data.microworld.oracle import MicroworldTruth
    from sip.data.microworld.thoughts import FactThinker
    from sip.data.microworld.world import World, WorldConfig, split

    config = WorldConfig(entities=8, train=60, validation=1, test=1)
    world, truth = World(config), MicroworldTruth(config)
    texts = [text for text, _, _ in world.documents("train")]
    values = {word for words in world.values for word in words}
    told = 0
    for text, row in zip(texts, FactThinker(truth).thoughts(texts), strict=True):
        pieces = thoughts.placed(text, row)
        assert thoughts.original(pieces) == text
        if row:
            answer = thoughts.joined(pieces, TAGS)
            assert thoughts.accepted(text, answer, TAGS, ThoughtRule()).pieces == pieces
        for thought, after in zip(pieces[1::2], pieces[2::2], strict=True):
            name, _, said = thought.partition(": ")
            sentence = split(after)
            end = min(sentence.index(mark) for mark in ".!?" if mark in sentence)
            assert said.split(", ") == [w for w in sentence[:end] if w in values]
            assert name in world.names and f"About {name}." in text
            told += 1
    assert told > 100
