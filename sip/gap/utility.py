"""Utilities of texts after their prefixes, in 0..1: what a judge's choice is worth in truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sip.data.documents import Truth
from sip.judge.judged import Judge
from sip.judge.scoring import TRUE_ASPECTS

WHOLE = "utility"  # the weighted mean of all aspects
Valued = tuple[dict[str, np.ndarray], np.ndarray]  # ({WHOLE and aspects: value_BK}, known_BK)


class Utility(Protocol):
    """Values texts [B][K]; `mask_BK` marks those that exist, `references` are own suffixes."""

    @property
    def text(self) -> str:
        """A few words about what the utility is."""
        ...

    def value(
        self,
        prefixes: Sequence[str],
        references: Sequence[str],
        texts: Sequence[Sequence[str]],
        mask_BK: np.ndarray,
    ) -> Valued:
        """Returns the values by name, and which texts have one."""
        ...


@dataclass(frozen=True)
class ByTruth:
    """The ground truth: safety and factuality of a text, and its quality against the document's own
    suffix: 1 if it is better, 1/2 for a tie."""

    truth: Truth
    weights: Mapping[str, float]

    @property
    def text(self) -> str:
        """A few words about what the utility is."""
        return f"ground truth: {', '.join(self.weights)}"

    def value(self, prefixes, references, texts, mask_BK) -> Valued:
        """Returns the values by name, and which texts have one: all that exist."""
        rows, columns = np.nonzero(mask_BK)
        asked, said = (
            [prefixes[b] for b in rows],
            [texts[b][k] for b, k in zip(rows, columns, strict=True)],
        )
        known = dict(self.truth.score(asked, said))
        own_B = np.asarray(self.truth.score(prefixes, references)["quality"])
        known["quality"] = self.truth.compare(known["quality"], own_B[rows])
        found = {}
        for name in self.weights:
            found[name] = np.zeros(mask_BK.shape)
            found[name][mask_BK] = known[name]
        return whole(found, self.weights), mask_BK.copy()


@dataclass(frozen=True)
class ByJudge:
    """An audit judge: its score, divided by the sum of its weights.

    Pairwise aspects compare the texts of a prefix with each other, so only values of one call have
    one scale.
    """

    judge: Judge
    weights: Mapping[str, float]

    @property
    def text(self) -> str:
        """A few words about what the utility is."""
        return f"audit judge: {', '.join(self.weights)}"

    def value(self, prefixes, references, texts, mask_BK) -> Valued:
        """Returns the values by name, and which texts have a valid verdict on all aspects."""
        judged = self.judge.score(prefixes, texts, references, mask_BK)
        aspects = {name: score_BK for name, (score_BK, _) in judged.aspects.items()}
        return whole(
            aspects, dict(zip(aspects, self.weights.values(), strict=True))
        ), judged.valid_BK


def whole(aspects: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Returns the weighted mean as WHOLE, and the aspects if there are several."""
    total = sum(weights.values())
    mean = sum(weights[name] / total * value for name, value in aspects.items())
    return {WHOLE: np.asarray(mean), **(aspects if len(aspects) > 1 else {})}


def true_weights(weights: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Returns the weights of a judge that the ground truth knows; all aspects if it has none."""
    known = {name: weight for name, weight in weights if name in TRUE_ASPECTS and weight > 0}
    return known or dict.fromkeys(TRUE_ASPECTS, 1.0)
