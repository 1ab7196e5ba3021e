"""Tests the perfect reader: its counts for a text and its accuracy, by hand."""

import numpy as np
import pytest

from sip.bench import factuality_ceiling
from sip.judge import prompts
from sip.judge.labels.ground_truth import LabelledPrompts
from sip.text.tokenizer import Byte


class Words:
    """A ground truth whose facts are the words "fact", each counted once in prefix and text."""

    def score(self, prefixes, texts):
        count = [
            text.count("fact") if "fact" not in before else 0
            for before, text in zip(prefixes, texts, strict=True)
        ]
        return {"facts": np.array(count, float)}


def test_what_is_seen_are_facts_in_sentences_with_and_without_a_mark():
    aspect = prompts.load("factuality")
    texts = [" A fact. No ¿fact.", " A ¿fact, fact.", " None. Nothing ¿here."]
    trunk = prompts.trunk(aspect, prefix="p", reference="r")
    row = (trunk, [prompts.branch(aspect, text) for text in texts])
    asked = LabelledPrompts(aspect, [row], np.array([[2, 1, 0]]), np.ones((1, 3), bool))
    found = factuality_ceiling.examples(Words(), Byte(), asked, "¿")
    assert found == [((1, 0), 2), ((0, 2), 1), ((0, 0), 0)], "the second fact is an old one"


def test_it_says_what_most_with_the_same_counts_are():
    known = [((1, 0), 0), ((1, 0), 0), ((1, 0), 2), ((0, 1), 2), ((0, 1), 2), ((0, 1), 2)]
    asked = [((1, 0), 0), ((1, 0), 2), ((0, 1), 2), ((5, 5), 2), ((5, 5), 0)]
    found = factuality_ceiling.accuracy(known, asked)
    assert found["marks"] == pytest.approx(3 / 5), "of counts never seen it says the commonest"
    assert found["facts"] == pytest.approx(3 / 5), "one fact: 2 in four of six"
    assert factuality_ceiling.accuracy(known, known)["marks"] == pytest.approx(5 / 6)
    assert factuality_ceiling.accuracy(known, known)["facts"] == pytest.approx(4 / 6)
