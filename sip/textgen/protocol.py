"""The text generator interface: option log-probabilities and generated text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sip.sampling import SamplingConfig
from sip.text.segments import Text


@dataclass(frozen=True)
class Cut:
    """An answer that `max_tokens` or the server cut before its end.

    "Score: 1" may be the beginning of "Score: 10", so it is no verdict and no example.
    """

    text: str


Said = str | Cut | None  # a whole answer, one that was cut, or None: no answer
# `choose` with its trunks already bound: (branches, options, width) -> logp_BCO. Most rows of all
# such calls have `width` branches or a few less: a generator that pads rows pads them to it.
Choose = Callable[[Sequence[Sequence[Text]], tuple[str, ...], int], np.ndarray]


class TextGenerator(Protocol):
    """A language model with text prompts.

    A prompt is a trunk, shared by the branches of one row, followed by one of these branches.
    Letters: B trunks, C branches per trunk, O options, J votes.
    """

    def choose(
        self, trunks: Sequence[Text], branches: Sequence[Sequence[Text]], options: tuple[str, ...]
    ) -> np.ndarray:
        """Returns logp_BCO, float32: log-probability that option o follows trunk b and branch c.

        An option is one token. Probabilities are over the whole vocabulary, so the options need
        not sum to 1. Rows of branches may be ragged: padding is NaN, and so is a prompt that the
        model cannot answer.
        """
        ...

    def generate(
        self,
        trunks: Sequence[Text],
        branches: Sequence[Sequence[Text]],
        *,
        votes: int,
        max_tokens: int,
        sampling: SamplingConfig,
        seed: int,
    ) -> list[list[list[Said]]]:
        """Returns texts[b][c][j]: J sampled continuations of trunk b and branch c.

        `votes` is J. A text has at most `max_tokens` tokens, sampled by `sampling`. One that does
        not end within them is a `Cut`; a failed one is None. The random key of a text depends on
        seed, prompt and vote only: a prompt gets the same texts in any batch, if the backend
        honours seeds.
        """
        ...
