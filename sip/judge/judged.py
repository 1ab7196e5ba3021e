"""Verdicts of a judge, and the protocol that every judge implements."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sip.judge.voting import Stats
from sip.structs import Verdicts

Each = dict[str, tuple[np.ndarray, np.ndarray]]  # name -> (total_BK, denom_BK)


@dataclass(frozen=True)
class Judged(Verdicts):
    """Verdicts with metrics to log, as (total, denom) pairs.

    `each` has the metrics that are known per candidate, (total_BK, denom_BK) by the same names.
    """

    metrics: Stats
    who: str  # judge | truth: the first part of the metrics' names
    each: Each


class Judge(Protocol):
    """Scores the K candidates of each prefix; `mask_BK` marks the candidates that exist."""

    def score(
        self,
        prefixes: Sequence[str],
        candidates: Sequence[Sequence[str]],
        references: Sequence[str],
        mask_BK: np.ndarray,
    ) -> Judged: ...
