"""Reasoned verdicts: a judge writes several answers to each question, and each is a vote.

Only the answers are parsed, never the prompt with the text under judgement.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sip.judge import verdicts
from sip.judge.prompts import Aspect
from sip.sampling import SamplingConfig
from sip.sections import at_least, check
from sip.structs import UserError
from sip.text.segments import Text
from sip.textgen.protocol import Cut, Said, TextGenerator

# Reasons for a missing vote: no answer, an answer cut before its end, an answer without a verdict.
FAILED, CUT, UNREAD = REASONS = ("failed", "cut", "unread")
THINK, THOUGHT = "<think>", "</think>"  # around the thought of many chat models
Stats = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Heard:
    """One answer of a judge that reasons, as it was written; kept for people to read."""

    row: int  # of the prefix
    candidate: int  # the candidate in question; of a comparison the one that is shown first
    aspect: str
    against: int | None  # of a comparison: the candidate that is shown second
    text: str  # empty if there was no answer
    value: float | None  # of the verdict; None: the answer has none


@dataclass(frozen=True)
class Voting:
    """Sampling of the answers to reasoned aspects. Raises UserError for values out of range."""

    votes: int = 1  # J, answers per question
    max_tokens: int = 512  # most tokens of an answer
    sampling: SamplingConfig = SamplingConfig(temperature=0.6, top_p=0.6)  # arXiv 2601.21343
    seed: int = 0

    def __post_init__(self):
        check("", self, votes=at_least(1), max_tokens=at_least(1))
        if self.votes > 1 and not self.sampling.temperature:
            raise UserError(
                f"votes {self.votes}: votes at temperature 0 are all the same; raise temperature"
            )


def answers(
    how: Voting,
    textgen: TextGenerator,
    trunks: Sequence[Text],
    branches: Sequence[Sequence[Text]],
) -> list[list[list[Said]]]:
    """Samples J answers to each branch: texts[b][c][j], see `TextGenerator.generate`."""
    return textgen.generate(
        trunks,
        branches,
        votes=how.votes,
        max_tokens=how.max_tokens,
        sampling=how.sampling,
        seed=how.seed,
    )


def summed(rounds: Sequence[Stats]) -> Stats:
    """Returns the metrics of several rounds, added up; a round may lack some."""
    names = dict.fromkeys(name for stats in rounds for name in stats)
    total = lambda name, i: sum(stats[name][i] for stats in rounds if name in stats)
    return {name: (total(name, 0), total(name, 1)) for name in names}


def vote(said: Said, aspect: Aspect) -> int | str:
    """Returns the index of the option of an answer's verdict, or the reason why it has none.

    A verdict in a thought is none, as the model may think better of it.
    """
    answer = answered(said)
    if answer is None:
        return FAILED
    if isinstance(answer, Cut):
        return CUT
    option = verdicts.parse(answer, aspect.options, phrase=aspect.verdict)
    return UNREAD if option is None else option


def answered(said: Said) -> Said:
    """Returns an answer without the thought before it; an empty `Cut` if the thought has no end."""
    if said is None:
        return None
    thought, ended, answer = _plain(said).partition(THOUGHT)
    if not ended and thought.lstrip().startswith(THINK):
        return Cut("")
    answer = answer if ended else thought
    return Cut(answer) if isinstance(said, Cut) else answer


def collect(
    how: Voting,
    textgen: TextGenerator,
    aspect: Aspect,
    trunks: Sequence[Text],
    branches: Sequence[Sequence[Text]],
    heard: int = 0,
) -> tuple[np.ndarray, Counter, list[Heard]]:
    """Asks and counts the votes: (count_BCO, missing votes by reason, answers as written).

    count_BCO is the number of answers whose verdict is option o. Rows of `branches` may be ragged;
    the padding up to C has no votes. Of the first `heard` rows the answers are returned too, where
    `candidate` is the branch.
    """
    said = answers(how, textgen, trunks, branches)
    count_BCO = np.zeros(
        (len(said), max(map(len, branches), default=0), len(aspect.options)), np.int64
    )
    missing: Counter = Counter()
    kept: list[Heard] = []
    for b, row in enumerate(said):
        for c, texts in enumerate(row):
            for text in texts:
                found, value = vote(text, aspect), None
                if isinstance(found, str):
                    missing[found] += 1
                else:
                    count_BCO[b, c, found] += 1
                    value = float(aspect.values[found])
                if b < heard:
                    kept.append(Heard(b, c, aspect.name, None, _plain(text), value))
    return count_BCO, missing, kept


def _plain(said: Said) -> str:
    return said.text if isinstance(said, Cut) else said or ""


def stats(count_BCO: np.ndarray, missing: Counter, votes: int, asked: int) -> Stats:
    """Metrics over `asked` branches: missing votes, also by reason; votes for the top option."""
    read, every = float(count_BCO.sum()), float(votes * asked)
    return {
        "invalid_votes": (every - read, every),
        **{f"invalid_{reason}": (float(missing[reason]), every) for reason in REASONS},
        "agreement": (float(count_BCO.max(-1).sum()) if count_BCO.size else 0.0, read),
    }
