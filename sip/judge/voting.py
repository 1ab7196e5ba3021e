"""Reasoned verdicts: a judge writes several answers to each question, and each is a vote.

Only the answers are parsed, never the prompt with the text under judgement.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sip.judge import verdicts
from sip.judge.prompts import Aspect
from sip.sampling import SamplingConfig
from sip.sections import at_least, check
from sip.structs import UserError
from sip.text.segments import Text
from sip.textgen.protocol import TextGenerator

Stats = dict[str, tuple[float, float]]


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
) -> list[list[list[str | None]]]:
    """Samples J answers to each branch: texts[b][c][j], None if a request failed."""
    return textgen.generate(
        trunks,
        branches,
        votes=how.votes,
        max_tokens=how.max_tokens,
        sampling=how.sampling,
        seed=how.seed,
    )


def collect(
    how: Voting,
    textgen: TextGenerator,
    aspect: Aspect,
    trunks: Sequence[Text],
    branches: Sequence[Sequence[Text]],
) -> np.ndarray:
    """Asks and counts the votes: count_BCO, answers whose verdict is option o.

    Rows of `branches` may be ragged; the padding up to C has no votes.
    """
    said = answers(how, textgen, trunks, branches)
    count_BCO = np.zeros(
        (len(said), max(map(len, branches), default=0), len(aspect.options)), np.int64
    )
    for b, row in enumerate(said):
        for c, texts in enumerate(row):
            for text in texts:
                option = verdicts.parse(text or "", aspect.options, phrase=aspect.verdict)
                if option is not None:
                    count_BCO[b, c, option] += 1
    return count_BCO


def stats(count_BCO: np.ndarray, votes: int, asked: int) -> Stats:
    """Metrics over `asked` branches: unreadable votes, and readable votes for the top option."""
    read = float(count_BCO.sum())
    return {
        "invalid_votes": (float(votes * asked) - read, float(votes * asked)),
        "agreement": (float(count_BCO.max(-1).sum()) if count_BCO.size else 0.0, read),
    }
