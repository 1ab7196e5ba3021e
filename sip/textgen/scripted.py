"""Text generators without a model: scripted functions for tests, and rules over a text."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sip.structs import UserError


@dataclass(frozen=True)
class Scripted:
    """Functions in a model's place.

    fn(trunk, branch, options) -> probabilities of the options
    words(trunk, branch, vote) -> a continuation, or None where it fails
    """

    fn: Callable[[str, str, tuple[str, ...]], Sequence[float]]
    words: Callable[[str, str, int], str | None] = lambda trunk, branch, vote: None

    def choose(self, trunks, branches, options) -> np.ndarray:
        """logp_BCO of the function's answers."""

        def answer(trunk, branch):
            return self.fn("".join(trunk), "".join(branch), options)

        return _each(answer, trunks, branches, options)

    def generate(self, trunks, branches, *, votes, max_tokens, sampling, seed):
        """What `words` says, whatever the sampling."""
        del max_tokens, sampling, seed
        rows = zip(map("".join, trunks), branches, strict=True)
        return [
            [[self.words(trunk, "".join(branch), j) for j in range(votes)] for branch in row]
            for trunk, row in rows
        ]


@dataclass(frozen=True)
class Ruled:
    """A rule in a model's place: `rule` values a text between 0 and 1, whatever is asked of it.

    Options are taken as ordered from best to worst. Of two texts the first is better with
    probability sigmoid(8 * (rule(first) - rule(second))).
    """

    rule: Callable[[str], float]

    def choose(self, trunks, branches, options) -> np.ndarray:
        """logp_BCO: all probability on the one or two options nearest to the rule's value."""
        rule = functools.cache(self.rule)

        def answer(_, branch):
            values = [rule(text) for text in branch[1::2]]
            value = values[0]
            if len(values) == 2:
                value = 1 / (1 + math.exp(-8 * (values[0] - values[1])))
            place = (1 - value) * (len(options) - 1)
            return [max(0.0, 1 - abs(place - o)) for o in range(len(options))]

        return _each(answer, trunks, branches, options)

    def generate(self, trunks, branches, *, votes, max_tokens, sampling, seed):
        """None throughout: a rule has no words."""
        del trunks, max_tokens, sampling, seed
        return [[[None] * votes for _ in row] for row in branches]


def distinct_words(text: str) -> float:
    """The share of distinct words; 0 for a text without words."""
    words = text.lower().split()
    return len(set(words)) / len(words) if words else 0.0


RULES: dict[str, Callable[[str], float]] = {"distinct_words": distinct_words}


def ruled(name: str) -> Ruled:
    """The rule of that name as a text generator."""
    if name not in RULES:
        raise UserError(f"textgen: no rule {name!r}; there are {sorted(RULES)}")
    return Ruled(RULES[name])


def _each(answer, trunks, branches, options):
    C = max(map(len, branches), default=0)
    p_BCO = np.full((len(trunks), C, len(options)), np.nan, np.float32)
    for b, row in enumerate(branches):
        for c, branch in enumerate(row):
            p_BCO[b, c] = answer(trunks[b], branch)
    with np.errstate(divide="ignore"):
        return np.log(p_BCO)
