"""Rewriters: prefix and suffix in, a better suffix out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from sip.data.documents import Truth


class Rewriter(Protocol):
    """Writes one better suffix per prefix. A failed rewrite is invalid, never a copy."""

    def rewrite(
        self, prefixes: Sequence[str], suffixes: Sequence[str]
    ) -> tuple[list[str], np.ndarray]:
        """(texts, valid_B)."""
        ...


@dataclass(frozen=True)
class TruthRewriter:
    """The corpus's ground truth as a rewriter: the corrected suffix, of about `words` words."""

    truth: "Truth"
    words: int

    def rewrite(self, prefixes, suffixes) -> tuple[list[str], np.ndarray]:
        """(texts, valid_B); nothing written is invalid."""
        texts = self.truth.rewrite(list(prefixes), list(suffixes), self.words)
        return texts, np.array([bool(text.strip()) for text in texts], bool)
