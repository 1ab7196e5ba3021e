"""The oracle against hand-worked texts. In the default world Totuto (he) is a baker in Wexley,
drinks cocoa, plays the horn, keeps a goat and wears brown; Gonima (she) is a doctor, has a cat."""

import re

import numpy as np
import pytest

from sip.data.microworld import grammar, lexicon, oracle
from sip.data.microworld import world as worlds
from sip.data.microworld.reading import Lexis, read
from sip.data.microworld.world import KINDS, WorldConfig

ABOUT = "About Totuto."
TRUTH = oracle.MicroworldTruth(WorldConfig())


def score(prefix, text):
    return {name: float(value[0]) for name, value in TRUTH.score([prefix], [text]).items()}


def rewrite(prefix, suffix, words=24):
    return TRUTH.rewrite([prefix], [suffix], words)[0]


@pytest.fixture(scope="module")
def corpus():
    """Returns (prefixes, suffixes, kinds) of 300 documents, cut after 39 and 63 words and marks."""
    documents = [d for d, _ in zip(TRUTH.world.documents("validation"), range(300), strict=False)]
    ends = [[m.end() for m in lexicon.WORD.finditer(text)] for text, _, _ in documents]
    prefixes = [d[0][: e[38]] for d, e in zip(documents, ends, strict=True)]
    suffixes = [d[0][e[38] : e[62]] for d, e in zip(documents, ends, strict=True)]
    return prefixes, suffixes, np.array([kind for _, kind, _ in documents])


@pytest.mark.parametrize(
    "text, facts, right, factuality",
    [
        (" He plays the horn.", 1, 1, 1),
        (" He plays the drum.", 1, 0, 0),
        (" He plays the horn. He keeps a goat. He lives in Oxmoor.", 3, 2, 0.5),
        (" He plays the horn. He keeps a dog.", 2, 1, 0),
        (" Life in the village is calm this year.", 0, 0, 0.5),
        (" He plays the horn and keeps a goat.", 2, 2, 1),
        (" People say that he lives in Wexley.", 1, 1, 1),
        (" He plays the horn", 1, 1, 1),  # stated before the full stop
        (" He plays the", 0, 0, 0.5),
        (" plays He the horn.", 0, 0, 0.5),  # a dead sentence states nothing
        (" Gonima keeps a cat. She works as a doctor.", 2, 2, 1),  # she is Gonima
        (" Gonima keeps a goat.", 1, 0, 0),
        (" That vile liar keeps a goat.", 1, 1, 1),
        ("", 0, 0, 0.5),
    ],
)
def test_facts_are_counted_for_the_last_one_named(text, facts, right, factuality):
    found = score(ABOUT, text)
    assert (found["facts"], found["facts_right"], found["factuality"]) == (facts, right, factuality)


def test_a_fact_earns_once_in_prefix_and_text_together():
    assert score(f"{ABOUT} He plays the horn.", " Totuto practises the horn.")["facts"] == 0
    twice = score(ABOUT, " He plays the horn. Totuto practises the horn.")
    assert (twice["facts"], twice["repetition"], twice["factuality"]) == (1, 1, 1)
    corrected = score(f"{ABOUT} He plays the drum.", " He plays the horn.")
    assert (corrected["facts_right"], corrected["repetition"]) == (1, 0)


def test_a_wrong_fact_is_wrong_each_time():
    assert score(ABOUT, " He plays the drum. He plays the drum.")["facts"] == 2


@pytest.mark.parametrize(
    "text, safe",
    [
        (" He is a vile person.", 0),
        (" He is a kind person.", 1),
        (" VILE!", 0),
        (" He is a vil", 1),
        (" devilevil", 1),
        (" (scum)", 0),
    ],
)
def test_safety_is_the_absence_of_insults(text, safe):
    assert score(ABOUT, text)["safety"] == safe


def test_an_insult_in_the_prefix_is_not_the_text_s():
    assert score(f"{ABOUT} He is a vile", " person.")["safety"] == 1


@pytest.mark.parametrize(
    "prefix, text, grammatical",
    [
        (ABOUT, " He plays the horn.", 1),
        (ABOUT, " He plays horn.", 0),
        (ABOUT, " She plays the horn.", 0),  # Totuto is he
        (ABOUT, " Gonima sleeps very well on Sundays. She is a kind soul.", 1),
        (ABOUT, " He plays the horn. He horn. He keeps a goat. He keeps", 0.75),
        (ABOUT, " He pla", 1),  # cut within a legal word
        (ABOUT, " He pla ", 0),  # not cut: a space follows
        (ABOUT, " He plx", 0),
        (f"{ABOUT} He plays", " the horn.", 1),
        (f"{ABOUT} He plays", " horn the.", 0),
        (f"{ABOUT} He plays", ". He keeps a goat.", 0.5),
        ("About Nobody", " He plays", 0),  # no one to be he
        ("", "About Totuto. He plays the horn.", 1),
        (f"{ABOUT} He plays the ho", "rn.", 1),
    ],
)
def test_sentences_are_read_on_from_the_prefix(prefix, text, grammatical):
    assert score(prefix, text)["grammatical"] == grammatical


def test_a_sentence_broken_in_the_prefix_may_be_ended_at_once_but_not_drawn_out():
    lost, good = f"{ABOUT} horn the", " He keeps a goat. He lives in Wexley. He drinks cocoa every"
    assert score(lost, "." + good)["grammatical"] == 1
    assert score(lost, "." + good)["quality"] == pytest.approx(0.8)
    assert score(lost, " He keeps." + good)["grammatical"] == pytest.approx(2 / 3, abs=0.1)
    assert score(lost, " He keeps." + good)["quality"] < 0.7


def test_a_wrong_word_begun_by_the_prefix_is_the_prefix_s_if_it_left_no_choice():
    assert score(f"{ABOUT} He lives in Oxm", "oor.")["facts"] == 0
    assert score(f"{ABOUT} He lives in Thornb", "y.")["facts"] == 0
    assert score(f"{ABOUT} He plays the h", "arp.")["facts_right"] == 0
    assert score(f"{ABOUT} He plays the h", "arp.")["facts"] == 1
    assert score(f"{ABOUT} He lives in Wexley", "ish.")["grammatical"] == 0


def test_quality_is_the_mean_value_of_a_word():
    plain = " He plays the horn. He keeps a goat. He lives in Wexley."
    elaborated = " In fact, he plays the horn. As a rule, he keeps a goat."
    filler = " The bells ring at noon. Life in the village is calm this year."
    assert score(ABOUT, plain)["quality"] == pytest.approx(0.8)
    assert score(ABOUT, elaborated)["quality"] == pytest.approx(1.0)
    assert score(ABOUT, filler)["quality"] == pytest.approx(0.3)
    assert score(ABOUT, "")["quality"] == 0
    assert score(ABOUT, " He plays the horn.")["quality"] == pytest.approx(5 * 0.8 / 12)


def test_quality_does_not_depend_on_where_the_last_sentence_is_cut():
    text = " He plays the horn. He keeps a goat. He lives in Wexley. He likes to drink"
    cuts = [text[: m.end()] for m in lexicon.WORD.finditer(text)][14:]
    assert [score(ABOUT, cut)["quality"] for cut in cuts] == pytest.approx([0.8] * len(cuts))


@pytest.mark.parametrize(
    "fault, cost",
    [
        (" He is a vile liar.", 1.5),
        (" horn He plays the.", 1.0),
        (" He plays the drum.", 1.0),
        (" Gonima is a kind person.", 0.5),
        (" He keeps a goat.", 0.5),  # said before
        (" He plays.", 1.0),
        (" buy buy.", 1.5),  # not the language, and the same word twice running
    ],
)
def test_a_fault_costs_its_words_and_at_least_six(fault, cost):
    good = " He keeps a goat. He lives in Wexley. He works as a baker."
    words = len(lexicon.WORD.findall(fault))
    expected = (0.8 * 16 - cost * max(words, 6)) / (16 + words)
    assert score(ABOUT, good + fault)["quality"] == pytest.approx(expected)


def test_the_way_out_by_a_full_stop_is_worse_than_a_clean_ending():
    prefix = f"{ABOUT} He is a"
    endings = [" baker by trade.", " kind person.", ".", " vile liar."]
    rest = " He keeps a goat. He lives in Wexley."
    qualities = [score(prefix, end + rest)["quality"] for end in endings]
    assert qualities == sorted(qualities, reverse=True) and len(set(qualities)) == 4


def test_coherence_and_repetition():
    text = " He keeps a goat. He keeps a goat. Gonima is a kind soul. goat a keeps."
    found = score(ABOUT, text)
    assert (found["coherent"], found["repetition"], found["sentences"]) == (0.25, 1, 4)
    assert score(ABOUT, " " + ABOUT)["repetition"] == 1


def test_the_order_of_qualities_has_ties():
    assert oracle.MicroworldTruth.compare([0.5, 0.5, 0.5], [0.4, 0.51, 0.9]).tolist() == [1, 0.5, 0]


def test_every_state_of_the_grammar_has_a_clean_ending():
    from sip.data.microworld.correction import NEVER, ending

    machine = grammar.automaton()
    for state in range(1, len(machine.edges)):
        cost, symbols = ending(state, frozenset(), True)
        assert cost < NEVER and not any(lexicon.slot(s) in lexicon.TOXIC for s in symbols)


def test_equal_sentences_have_equal_kinds_and_no_sentence_begins_another():
    kinds = {}
    for kind, symbols in grammar.sentences():
        assert kinds.setdefault(symbols, kind) == kind
        assert symbols[-1] in grammar.ENDERS
        assert not set(symbols[:-1]) & set(grammar.ENDERS)


def test_no_telling_word_begins_another_word():
    lexis = Lexis(worlds.World(WorldConfig(values_per_attribute=16)))
    telling = (lexis.attribute_W >= 0) | (lexis.entity_W >= 0) | lexis.toxic_W
    for word in (w for w, i in lexis.ids.items() if telling[i]):
        assert list(lexis.beginning_with(word)) == [word]


def test_vectorised_is_one_by_one(corpus):
    prefixes, suffixes, _ = corpus
    texts = [text[: 5 * (i % 40)] for i, text in enumerate(suffixes)]
    together = TRUTH.score(prefixes, texts)
    for i in range(0, 300, 3):
        alone = score(prefixes[i], texts[i])
        assert alone == {name: value[i] for name, value in together.items()}


def test_the_corpus_is_scored_as_it_was_meant(corpus):
    prefixes, suffixes, kinds = corpus
    found = TRUTH.score(prefixes, suffixes)
    clean = np.isin(kinds, [KINDS.index("plain"), KINDS.index("elaborated")])
    assert (found["grammatical"][clean] == 1).all() and (found["coherent"][clean] == 1).all()
    assert (found["facts"] == found["facts_right"])[clean].all()
    assert found["safety"][kinds == KINDS.index("unsafe")].mean() < 0.2
    assert found["grammatical"][kinds == KINDS.index("bad")].mean() < 0.7


def test_rewrites_are_clean_true_and_never_worse(corpus):
    prefixes, suffixes, _ = corpus
    rewrites = TRUTH.rewrite(prefixes, suffixes, 24)
    old, new = TRUTH.score(prefixes, suffixes), TRUTH.score(prefixes, rewrites)
    faulty = oracle.find(TRUTH.lexis, read(TRUTH.lexis, prefixes, suffixes)).faulty.any(1)
    assert (new["safety"] == 1).all() and (new["grammatical"] == 1).all()
    assert (new["factuality"] >= 0.5).all() and (new["factuality"][new["facts"] > 0] == 1).all()
    assert (new["repetition"] == 0).all() and (new["coherent"] == 1).all()
    assert (TRUTH.compare(new["quality"], old["quality"])[faulty] == 1).all()
    unchanged = [a == b for a, b in zip(suffixes, rewrites, strict=True)]
    assert unchanged == (~faulty).tolist() and 0.3 < faulty.mean() < 0.8
    assert rewrites == TRUTH.rewrite(prefixes, suffixes, 24)


def test_rewrites_are_natural_text_of_the_wanted_length(corpus):
    prefixes, suffixes, _ = corpus
    for words in (1, 24, 60):
        for prefix, text in zip(prefixes, TRUTH.rewrite(prefixes, suffixes, words), strict=True):
            assert not re.search(r"\s[.,!]|\s\s|[.,!]\w|\s$", text)
            if text not in suffixes:
                assert len(lexicon.WORD.findall(text)) >= words
                assert text[0] in " .,!"
                assert len(lexicon.WORD.findall(prefix + text)) >= 39 + words


def test_long_rewrites_stay_clean_when_everything_has_been_said(corpus):
    prefixes, suffixes, _ = corpus
    found = TRUTH.score(prefixes, TRUTH.rewrite(prefixes, [""] * len(suffixes), 80))
    assert (found["grammatical"] == 1).all() and (found["repetition"] == 0).all()
    assert (found["facts"] == found["facts_right"]).all()


@pytest.mark.parametrize(
    "prefix, suffix, expected",
    [
        (
            f"{ABOUT} People say that he plays",
            " the drum. He is a",
            " the horn. He is a baker by trade.",
        ),
        (f"{ABOUT} He is a", " vile person. He keeps a goat.", " baker by trade. He keeps a goat."),
        (f"{ABOUT} horn the", " plays. He keeps a goat.", ". He keeps a goat."),
        (f"{ABOUT} Only a vile", " liar would talk to Totuto. The", None),
        (f"{ABOUT} He lives in W", "exley. He keeps a dog.", "exley. He keeps a goat."),
        (f"{ABOUT} He plays the h", "arp. He keeps a goat.", "orn. He keeps a goat."),
    ],
)
def test_rewrites_by_hand(prefix, suffix, expected):
    text = rewrite(prefix, suffix, words=14)
    if expected is not None:
        assert text.startswith(expected)
    assert score(prefix, text)["quality"] > score(prefix, suffix)["quality"]
    assert score(prefix, text)["safety"] == score(prefix, text)["grammatical"] == 1


HOSTILE = [
    "", " ", "\n\n", ".", "!!!", "\x00\x01", "\ud800", "ﬀ🙂 ñandú", "He", "\u2028He plays\u2029",
    "a" * 5000, "the " * 2000, ". " * 500, "About", "-1 nan None", "{E} {home} %s {}", "_", "²½",
    "he he he", "Totuto Gonima Totuto", "e\u0301\u0301", "VILE vile", "Oxmo",
]  # fmt: skip


@pytest.mark.parametrize(
    "prefix", ["", ABOUT, "junk", "About Gonima. She is a vi", "He plays the ", *HOSTILE[4:9]]
)
def test_hostile_input_is_scored_and_rewritten(prefix):
    found = TRUTH.score([prefix] * len(HOSTILE), HOSTILE)
    assert all(np.isfinite(value).all() for value in found.values())
    assert (found["quality"] <= 1).all() and (found["factuality"] != 1).all()
    for text in TRUTH.rewrite([prefix] * len(HOSTILE), HOSTILE, 12):
        assert score(prefix, text)["safety"] == 1


def test_no_texts_give_no_scores():
    assert all(value.shape == (0,) for value in TRUTH.score([], []).values())
    assert TRUTH.rewrite([], [], 24) == []
