"""Verdicts on continuations: of a judge, or exact ones of a corpus's ground truth.

quality, coherence, facts   pairwise: the outcome against the baseline's continuation, 1, 1/2 or 0
safety, factuality          pointwise, in 0..1; factuality beside the true continuation

A continuation without a word gets no verdict. Equal continuations are a draw, and nobody is asked.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from sip.data.documents import Truth
from sip.judge import diagnostics
from sip.judge.prompts import Aspect
from sip.judge.scoring import TextJudge
from sip.structs import UserError

PAIRWISE = ("quality", "coherence", "facts")
QUESTIONS = (*PAIRWISE, "safety", "factuality")
EXACT = ("quality", "coherence", "safety", "factuality")  # what a ground truth knows
DIRECT = {name: name for name in QUESTIONS}  # prompts of judges that answer at once
REASONED = {name: f"reasoned_{name}" for name in QUESTIONS}


@dataclass(frozen=True)
class Verdicts:
    """Verdicts on E continuations."""

    value_E: np.ndarray  # NaN without a verdict
    why: str = ""  # reasons for missing verdicts
    counts: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # first, flips: pairs


class Asker(Protocol):
    """Somebody who can be asked about continuations."""

    def ask(
        self,
        question: str,
        prompts: Sequence[str],
        texts: Sequence[str],
        others: Sequence[str],
        references: Sequence[str],
    ) -> Verdicts:
        """Returns verdicts on `texts`; `others` are the baseline's, `references` may be empty."""
        ...


@dataclass(frozen=True)
class Panel:
    """A judge that is asked one question at a time, with the prompt file of that question."""

    judge: TextJudge
    aspects: Mapping[str, Aspect]  # by question

    def __post_init__(self):
        for question, aspect in self.aspects.items():
            wanted = "pairwise" if question in PAIRWISE else "pointwise"
            if aspect.kind != wanted:
                raise UserError(
                    f"--judge_aspects {question}={aspect.name}: the prompt must be {wanted}"
                )

    def ask(self, question, prompts, texts, others, references) -> Verdicts:
        """Asks about continuations; a comparison is asked in both orders, which are averaged.

        A verdict that is read from probabilities counts as its likeliest option in comparisons.
        """
        aspect, pairwise = self.aspects[question], question in PAIRWISE
        if aspect.reference and not references:
            raise UserError(
                f"aspect {aspect.name!r} shows a reference, and these prompts have none"
            )
        judge = dataclasses.replace(
            self.judge, aspects=(aspect,), weights={aspect.name: 1.0}, hard=not aspect.verdict
        )
        shown = zip(texts, others, strict=True)
        rows = [[text, other] if pairwise else [text] for text, other in shown]
        value_E = unasked(question, texts, others)
        asked = [
            i for i, row in enumerate(rows) if np.isnan(value_E[i]) and all(map(str.strip, row))
        ]
        if not asked:
            return Verdicts(value_E)
        beside = references or [""] * len(rows)
        found = judge.score(
            [prompts[i] for i in asked],
            [rows[i] for i in asked],
            [beside[i] for i in asked],
            np.ones((len(asked), len(rows[0])), bool),
        )
        score_BK, valid_BK = found.aspects[aspect.name]
        value_E[asked] = np.where(valid_BK.all(1), score_BK[:, 0], np.nan)
        counts = {
            name: found.metrics[key]
            for name in ("first", "flips")
            if (key := f"{found.who}/{name}/{aspect.name}") in found.metrics
        }
        return Verdicts(value_E, diagnostics.reasons(found.metrics), counts)


@dataclass(frozen=True)
class Exact:
    """A corpus's ground truth: exact verdicts on continuations of its prefixes."""

    truth: Truth

    def ask(self, question, prompts, texts, others, references) -> Verdicts:
        """Returns exact verdicts. The more coherent of two continuations has fewer repetitions."""
        del references
        ours = self.truth.score(prompts, texts)
        if question not in PAIRWISE:
            value_E = np.array(ours[question], float)
        else:
            theirs = self.truth.score(prompts, others)
            key, sign = ("quality", 1) if question == "quality" else ("repetition", -1)
            won_E = self.truth.compare(sign * ours[key], sign * theirs[key])
            drawn_E = unasked(question, texts, others)
            value_E = np.where(np.isnan(drawn_E), won_E, drawn_E)
        shown = zip(texts, others if question in PAIRWISE else texts, strict=True)
        blank_E = np.array([not (text.strip() and other.strip()) for text, other in shown])
        return Verdicts(np.where(blank_E, np.nan, value_E))


def unasked(question: str, texts: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """Returns value_E: 1/2 where the continuations of a comparison are equal, NaN elsewhere."""
    pairs = zip(texts, others, strict=True)
    same = [question in PAIRWISE and a == b and bool(a.strip()) for a, b in pairs]
    return np.where(same, 0.5, np.nan)
