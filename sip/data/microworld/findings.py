"""What the micro-world's oracle finds in each sentence."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Findings:
    """Per sentence of the text, [B, S]; sentences that end in the prefix have no words."""

    words: np.ndarray  # of the text
    inherited: np.ndarray  # begun in the prefix
    lost: np.ndarray  # broken already there
    ended: np.ndarray
    kind: np.ndarray
    states: np.ndarray  # bool: says something right and new, in its prefix part or its own
    new_facts: np.ndarray  # right, said for the first time, by the text
    wrong_facts: np.ndarray
    faults: dict[str, np.ndarray]  # name in COST -> bool
    attribute_BP: np.ndarray  # stated at this word, -1 if none
    right_BP: np.ndarray

    @property
    def faulty(self) -> np.ndarray:
        return np.asarray(np.stack(list(self.faults.values())).any(axis=0))
