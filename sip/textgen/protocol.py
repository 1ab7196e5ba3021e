"""The interface of post-trained models: option log-probabilities and generated text."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from sip.sampling import SamplingConfig
from sip.text.segments import Text

Choose = Callable[[Sequence[Sequence[Text]], tuple[str, ...]], np.ndarray]  # of known trunks


class TextGenerator(Protocol):
    """A model that is asked in text."""

    def choose(
        self, trunks: Sequence[Text], branches: Sequence[Sequence[Text]], options: tuple[str, ...]
    ) -> np.ndarray:
        """logp_BCO, float32: log-probability that option o follows trunk b and its branch c.

        Over the whole vocabulary, so a row need not sum to 1. Rows of branches may be ragged; what
        is padding, or a prompt that cannot be answered, is NaN.
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
    ) -> list[list[list[str | None]]]:
        """texts[b][c][j]: J continuations of trunk b and its branch c; None where it failed.

        `votes` is J. A text has at most `max_tokens` tokens, drawn by `sampling`. Noise is
        addressed by seed, prompt and vote: a prompt gets the same texts whatever is asked beside
        it, as far as the model behind it keeps to seeds.
        """
        ...
