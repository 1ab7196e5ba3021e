"""The result of a judge, and the protocol that every judge implements."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sip.judge.voting import Heard, Stats
from sip.structs import Verdicts

Each = dict[str, tuple[np.ndarray, np.ndarray]]  # name -> (total_BK, denom_BK)


@dataclass(frozen=True)
class Judged(Verdicts):
    """Verdicts of a judge, with metrics to log."""

    metrics: Stats  # name -> (total, denom)
    who: str  # judge | truth: the first part of the metrics' names
    each: Each  # metrics per candidate by the same names: (total_BK, denom_BK)
    heard: tuple[Heard, ...] = ()  # answers of a judge that reasons, of the first prefixes


class Judge(Protocol):
    """A judge scores the K candidates of each of B prefixes."""

    def score(
        self,
        prefixes: Sequence[str],
        candidates: Sequence[Sequence[str]],
        references: Sequence[str],
        mask_BK: np.ndarray,
    ) -> Judged:
        """Scores candidates [B][K]; `mask_BK` marks those that exist, `references` are [B]."""
        ...
