"""Text generators without a model: scripted functions for tests, and rules over a text."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sip.structs import UserError
from sip.textgen.protocol import Said


@dataclass(frozen=True)
class Scripted:
    """A text generator made of two functions, in place of a model.

    fn(trunk, branch, options) -> probabilities of the options
    words(trunk, branch, vote) -> a continuation, a `Cut`, or None for a failure
    """

    fn: Callable[[str, str, tuple[str, ...]], Sequence[float]]
    words: Callable[[str, str, int], Said] = lambda trunk, branch, vote: None

    def choose(self, trunks, branches, options) -> np.ndarray:
        """Returns logp_BCO, the logarithms of the probabilities that `fn` returns."""

        def answer(trunk, branch):
            return self.fn("".join(trunk), "".join(branch), options)

        return _each(answer, trunks, branches, options)

    def generate(self, trunks, branches, *, votes, max_tokens, sampling, seed):
        """Returns texts[b][c][j] as `words` writes them; sampling and seed are ignored."""
        del max_tokens, sampling, seed
        rows = zip(map("".join, trunks), branches, strict=True)
        return [
            [[self.words(trunk, "".join(branch), j) for j in range(votes)] for branch in row]
            for trunk, row in rows
        ]


@dataclass(frozen=True)
class Ruled:
    """A text generator that answers by a rule, in place of a model.

    `rule` maps a text under judgement to a value between 0 and 1; the question is ignored. Options
    are taken to be ordered from best to worst. If a branch has two texts under judgement, the
    value is the probability that the first is better: sigmoid(8 * (rule(first) - rule(second))).
    """

    rule: Callable[[str], float]

    def choose(self, trunks, branches, options) -> np.ndarray:
        """Returns logp_BCO: all probability is on the one or two options nearest to the value."""
        rule = functools.cache(self.rule)  # each candidate is in many branches

        def answer(_, branch):
            values = [rule(text) for text in branch[1::2]]  # odd segments: text under judgement
            value = values[0]
            if len(values) == 2:
                value = 1 / (1 + math.exp(-8 * (values[0] - values[1])))
            # Interpolate linearly: value 1 is option 0, value 0 is the last option.
            place = (1 - value) * (len(options) - 1)
            return [max(0.0, 1 - abs(place - o)) for o in range(len(options))]

        return _each(answer, trunks, branches, options)

    def generate(self, trunks, branches, *, votes, max_tokens, sampling, seed):
        """Returns None for every text: a rule generates no text."""
        del trunks, max_tokens, sampling, seed
        return [[[None] * votes for _ in row] for row in branches]


def distinct_words(text: str) -> float:
    """Returns the fraction of words that are distinct, in 0..1; 0 for a text without words."""
    words = text.lower().split()
    return len(set(words)) / len(words) if words else 0.0


def fewer_marks(text: str, mark: str = "¿") -> float:
    """Returns 1 / (1 + n) of a text with n marks of a proofreader (sip/judge/proofread.py)."""
    return 1 / (1 + text.count(mark))


MARKED = "fewer_marks"  # the rule that reads a proofreader's marks
RULES: dict[str, Callable[[str], float]] = {
    "distinct_words": distinct_words,
    MARKED: fewer_marks,
}


def ruled(name: str, mark: str = "") -> Ruled:
    """Returns the rule `name` of RULES as a text generator; `mark` is that of the proofreader.

    Raises UserError if there is none.
    """
    if name not in RULES:
        raise UserError(f"textgen: unknown rule {name!r}; use one of {sorted(RULES)}")
    if name == MARKED and mark:
        return Ruled(functools.partial(fewer_marks, mark=mark))
    return Ruled(RULES[name])


def _each(answer, trunks, branches, options):
    """Returns logp_BCO from answer(trunk, branch) -> probabilities; padding is NaN."""
    C = max(map(len, branches), default=0)
    p_BCO = np.full((len(trunks), C, len(options)), np.nan, np.float32)
    for b, row in enumerate(branches):
        for c, branch in enumerate(row):
            p_BCO[b, c] = answer(trunks[b], branch)
    with np.errstate(divide="ignore"):  # log 0 is -inf, as intended
        return np.log(p_BCO)
