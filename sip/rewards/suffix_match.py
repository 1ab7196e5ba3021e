"""Rewards of a continuation that matches the true one, by a rule that needs no model.

RL mid-training of arXiv 2601.21343 asks a judge whether a continuation matches the true suffix (the
aspect `match`). The rule is for corpora where saying the same means writing the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sip.data import thoughts
from sip.sections import at_least, check


@dataclass(frozen=True)
class MatchConfig:
    """The rule: the first words of the continuation are those of the true suffix."""

    exact: bool = False  # compare texts with case, marks and white space; else words alone
    words: int = 0  # words of the suffix that must be met; 0: all of them

    def __post_init__(self):
        check("match", self, words=at_least(0))


def matches(continuation: str, suffix: str, rule: MatchConfig) -> bool:
    """True if a continuation matches the suffix; it never does if the suffix has no word."""
    ours, wanted = thoughts.words(continuation), thoughts.words(suffix)
    if not wanted:
        return False
    if rule.exact:
        end = _end(suffix, rule.words) if rule.words else len(suffix)
        return continuation[:end] == suffix[:end]
    if rule.words:
        return ours[: rule.words] == wanted[: rule.words]
    return ours[: len(wanted)] == wanted


def _end(text: str, count: int) -> int:
    """Returns the index after the word number `count` of a text, or after the last one."""
    found = [one.end() for one in thoughts.WORD.finditer(text)]
    return found[min(count, len(found)) - 1]


def reward(
    texts: Sequence[Sequence[str]], suffixes: Sequence[str], rule: MatchConfig
) -> np.ndarray:
    """Returns reward_BK: 1 for a continuation that matches its suffix, else 0."""
    return np.array(
        [
            [matches(text, suffix, rule) for text in row]
            for row, suffix in zip(texts, suffixes, strict=True)
        ],
        np.float32,
    )
