"""Thoughts about documents of the micro-world, by rule: the facts that the next sentence states.

Before each sentence with facts stands the name of its subject, which may be a pronoun in the
sentence, and the values: "Fihefo: Oxmoor, baker". They are the document's, not the world's: a
rumour is thought of as it is told.
"""

from collections.abc import Sequence

import numpy as np

from sip.data.microworld import lexicon
from sip.data.microworld.oracle import MicroworldTruth, find
from sip.data.microworld.reading import read

PORTION = 1024  # texts that are parsed at a time


class FactThinker:
    """The rule (`sip.data.thoughts.Thinker`) of a world."""

    def __init__(self, truth: MicroworldTruth):
        self._names, self._lexis = truth.world.names, truth.lexis

    def thoughts(self, texts: Sequence[str]) -> list[list[tuple[int, str]]]:
        """Returns the thoughts of each text as (index in the text, thought), in order."""
        parts = [texts[i : i + PORTION] for i in range(0, len(texts), PORTION)]
        return [row for part in parts for row in self._portion(part)]

    def _portion(self, texts: Sequence[str]) -> list[list[tuple[int, str]]]:
        reading = read(self._lexis, [""] * len(texts), list(texts))
        attribute_BP = find(self._lexis, reading).attribute_BP
        return [
            self._row(text, reading.words[b], reading.sentence_BP[b], reading.subject_BP[b], at_P)
            for b, (text, at_P) in enumerate(zip(texts, attribute_BP, strict=True))
        ]

    def _row(self, text, words, sentence_P, subject_P, attribute_P) -> list[tuple[int, str]]:
        ends = [found.end() for found in lexicon.WORD.finditer(text)]
        facts: dict[int, list[int]] = {}  # sentence -> positions of its values
        for p in np.flatnonzero(attribute_P[: len(words)] >= 0):
            facts.setdefault(int(sentence_P[p]), []).append(int(p))
        found = []
        for sentence, positions in facts.items():
            first = int(np.searchsorted(sentence_P[: len(words)], sentence))
            if first:  # the thought stands before the space
                name = self._names[subject_P[positions[0]]]
                values = ", ".join(words[p] for p in positions)
                found.append((ends[first - 1], f"{name}: {values}"))
        return found
