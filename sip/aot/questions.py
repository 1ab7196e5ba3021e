"""What a judge and a rewriter are asked in a step, by shape: no model, no tokenizer, no text.

The judge's own code plays its schedule against a stand-in that writes down how much it is asked.
Texts have the most tokens that a config allows; words of a prompt file are estimated.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sip import rewriter as rewriters
from sip.judge import scoring
from sip.judge.build import JudgeConfig
from sip.text.segments import Text

TOKEN = "\u2588"  # one token of a text whose length is known
CHARACTERS = 3  # of a prompt's own words, per token: fewer than tokenizers have, to be safe
CHAT = 48  # tokens that a chat template may add before and after


@dataclass(frozen=True)
class QuestionShape:
    """One call for every prefix: tokens of the trunk, C branches, tokens of the longest."""

    aspect: str
    trunk: int
    branches: int
    branch: int
    options: int  # 0: answered in words


@dataclass
class Recorder:
    """A text generator that finds everything equally likely and remembers what it was asked."""

    aspect: str
    bytewise: bool
    chat: bool
    asked: list[QuestionShape] = field(default_factory=list)

    def choose(self, trunks, branches, options) -> np.ndarray:
        """log(1 / O) throughout."""
        self._note(trunks, branches, len(options))
        return np.full((len(trunks), len(branches[0]), len(options)), -math.log(len(options)))

    def generate(self, trunks, branches, *, votes, max_tokens, sampling, seed):
        """Nothing that could be read."""
        del max_tokens, sampling, seed
        self._note(trunks, branches, 0)
        return [[[None] * votes for _ in row] for row in branches]

    def _note(self, trunks, branches, options: int):
        size = lambda text: tokens(text, bytewise=self.bytewise) + CHAT * self.chat
        longest = max(map(size, branches[0]))
        asked = QuestionShape(self.aspect, 1 + size(trunks[0]), len(branches[0]), longest, options)
        self.asked.append(asked)


def text(count: int) -> str:
    """A text of `count` tokens, in words of two."""
    whole = f"{TOKEN * 2} " * (count // 2) + TOKEN * (count % 2)
    return whole.rstrip()


def tokens(asked: Text, *, bytewise: bool) -> int:
    """How many tokens a prompt has: of texts exactly, of a template's words about."""
    pieces = (asked,) if isinstance(asked, str) else asked
    words = lambda piece: len(piece) if bytewise else -(-len(piece) // CHARACTERS)
    return sum(p.count(TOKEN) or words(p) for p in pieces)


def questions(
    wanted: JudgeConfig, candidates: int, *, prefix: int, suffix: int, bytewise: bool
) -> list[QuestionShape]:
    """What a local judge is asked about one prefix with `candidates` candidates, in order.

    The rounds of an adaptive schedule are counted as if no trunk were kept between them.
    """
    found: list[QuestionShape] = []
    for aspect in wanted.aspects():
        recorder = Recorder(aspect.name, bytewise, bool(wanted.chat))
        how: Any = dict(schedule=wanted.schedule, voting=wanted.voting(0))
        judge = scoring.TextJudge(recorder, (aspect,), {aspect.name: 1.0}, **how)
        rows = [[text(suffix)] * candidates]
        judge.score([text(prefix)], rows, [text(suffix)], np.ones((1, candidates), bool))
        found += recorder.asked
    return found


def rewrite_tokens(prompt: str, *, prefix: int, suffix: int, bytewise: bool, chat: bool) -> int:
    """Tokens of a rewriter's prompt."""
    asked = rewriters.load(prompt).segments(text(prefix), text(suffix))
    return 1 + tokens(asked, bytewise=bytewise) + CHAT * chat
