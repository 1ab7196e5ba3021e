"""The oracle's results per sentence."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Findings:
    """The oracle's results for a batch of rows (prefix + text).

    All arrays are [B, S] (B rows, S sentences of a row), except those named [B, P] (P positions:
    words and marks). Sentences that end in the prefix have no words of the text.
    """

    words: np.ndarray  # number of words and marks of the text in the sentence
    inherited: np.ndarray  # bool: the sentence begins in the prefix
    lost: np.ndarray  # bool: inherited, and already broken in the prefix
    ended: np.ndarray  # bool: the text ends the sentence with a mark
    kind: np.ndarray  # index in lexicon.KINDS
    states: np.ndarray  # bool: states a right fact for the first time, in prefix or text
    new_facts: np.ndarray  # number of right facts that the text states for the first time
    wrong_facts: np.ndarray  # number of wrong facts that the text states
    faults: dict[str, np.ndarray]  # name in oracle.COST -> bool
    attribute_BP: np.ndarray  # index of the attribute stated at this word, -1 if none
    right_BP: np.ndarray  # bool: a right fact is stated at this word

    @property
    def faulty(self) -> np.ndarray:
        """bool [B, S]: the sentence has at least one fault."""
        return np.asarray(np.stack(list(self.faults.values())).any(axis=0))
