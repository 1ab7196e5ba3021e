"""Greedy continuations of texts by any checkpoint, each in its own tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass

from sip.evals import likelihoods
from sip.evals.continuations import GREEDY
from sip.evals.harness import Adapter
from sip.text.tokenizer import continuation


@dataclass(frozen=True)
class Written:
    """Continuations of a set of prompts."""

    texts: list[str]
    cut: int  # prompts that were cut from the left: they and the continuation exceed max_len

    @property
    def empty(self) -> int:
        """Number of continuations without a word; they have no verdict."""
        return sum(not text.strip() for text in self.texts)


def write(model: Adapter, prompts: Sequence[str], *, steps: int) -> Written:
    """Writes `steps` tokens after each prompt, fewer if the model ends the text before.

    A prompt longer than max_len - steps tokens is cut from the left. Raises UserError if no room
    for a prompt is left.
    """
    ids = [model.spelling.whole(text) or [model.spelling.prefix] for text in prompts]
    stops = model.tokenizer.stops
    new = likelihoods.generate(model.model, ids, steps=steps, sampling=GREEDY, stop=stops)
    # The stop token ends the text, and is no part of it.
    told = [row[:-1] if row and row[-1] in stops else row for row in new]
    texts = [continuation(model.tokenizer, a, b) for a, b in zip(ids, told, strict=True)]
    room = model.model.cfg.max_len - steps
    return Written(texts, sum(len(row) > room for row in ids))
