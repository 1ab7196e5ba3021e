"""Tests corruptions: each makes a text worse in its own way only."""

import numpy as np

from sip.judge.labels import corruptions

TEXT = " one two. three four. five six."
PHRASES = corruptions.Phrases(["one two. tre quattro", "three four. cinque"])
OTHERS = corruptions.Others(" uno due. tre quattro. cinque sei.", PHRASES, "A said b. c")


def test_spoilers_change_the_text_and_keep_its_leading_space():
    rng = np.random.default_rng(1)
    for name, spoil in corruptions.CORRUPTIONS.items():
        spoiled = [spoil(TEXT, OTHERS, rng) for _ in range(20)]
        assert all(s.startswith(" ") and len(s.split()) == 6 for s in spoiled), name
        assert sum(s != TEXT for s in spoiled) > 15, name
    swapped = corruptions.swap_word(TEXT, OTHERS, rng).split()
    assert sum(a != b for a, b in zip(swapped, TEXT.split(), strict=True)) == 1


def test_an_echo_says_a_whole_sentence_twice_in_the_place_of_the_next():
    rng = np.random.default_rng(0)
    assert corruptions.repeat_sentence(" a b. c d. e f.", OTHERS, rng) == " a b. c d. c d."
    assert corruptions.repeat_sentence(" a b. c d.", OTHERS, rng) == " a b. a b."
    assert corruptions.repeat_sentence(" only one", OTHERS, rng) == " only one"


def test_a_recalled_sentence_is_a_whole_one_of_the_prefix_and_the_first_one_stays():
    others = corruptions.Others("", PHRASES, "About Ann. She naps! Ann reads. She has")
    said = {
        corruptions.recall_sentence(" a b. c d. e f.", others, np.random.default_rng(i))
        for i in range(60)
    }
    again = ("About Ann.", "She naps!", "Ann reads.")
    assert said == {f" a b. {one} e f." for one in again} | {f" a b. c d. {one}" for one in again}
    rng = np.random.default_rng(0)
    assert corruptions.recall_sentence(" a b c d.", others, rng) == " a b c d."
    assert corruptions.recall_sentence(" a b. c d.", OTHERS, rng) == " a b. A said"  # no longer
    nothing = corruptions.Others("", PHRASES, "She has. no")
    assert corruptions.recall_sentence(" a. b.", nothing, rng) == " a. She"


def test_a_generic_sentence_is_one_that_several_texts_have_and_the_first_one_stays():
    """The first sentences of the texts do not count, as they may be ends, nor do open ones."""
    texts = [" x. It rains. Ann naps.", " x. It rains. Bo", " y. Ann reads. It is hot. Bo"]
    texts += [" z. It snows. It snows. Ha. U.S. Bo", " z. Ha. The U.S. is big"]
    others = corruptions.Others("", corruptions.Phrases([*texts, " z. It is hot."]), "")
    assert sorted(others.follows.frequent) == ["It is hot.", "It rains."]
    made = {
        corruptions.generic_sentence(" a b. c d. e f.", others, np.random.default_rng(i))
        for i in range(40)
    }
    assert made == {
        " a b. It rains. e f.",
        " a b. c d. It rains.",
        " a b. It is hot. e",  # no longer than it was
        " a b. c d. It is",
    }
    rng = np.random.default_rng(0)
    assert corruptions.generic_sentence(" a b c d.", others, rng) == " a b c d."
    assert corruptions.generic_sentence(" a b. c d.", OTHERS, rng) == " a b. c d."


def test_a_substitute_follows_the_same_two_words_elsewhere_and_keeps_the_mark():
    rng = np.random.default_rng(0)
    others = corruptions.Others(
        "", corruptions.Phrases(["he drinks red wine, always", "drinks red tea."]), ""
    )
    said = {corruptions.substitute(" he drinks red wine.", others, rng) for _ in range(20)}
    assert said == {" he drinks red tea."}
    said = {corruptions.substitute(" she drinks red ink!", others, rng) for _ in range(20)}
    assert said == {" she drinks red tea!", " she drinks red wine!"}
    assert corruptions.substitute(" he sleeps all day", others, rng) == " he sleeps all day"
