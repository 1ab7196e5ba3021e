"""Prompt shapes of judge and rewriter in one step, without a model, a tokenizer or texts.

The judge's own code runs its schedule against a stub generator that records the size of each
prompt. Texts have the maximum number of tokens that the config allows. The tokens of a prompt
template's own words are estimated.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sip import rewriter as rewriters
from sip.judge import scoring
from sip.judge.build import JudgeConfig
from sip.text.segments import Text
from sip.textgen.stems import Sizes, foreseen

TOKEN = "\u2588"  # stands for one token in texts of known length
CHARACTERS = 3  # characters per token of a template: below real tokenizers, so an upper bound
CHAT = 48  # maximum number of tokens that a chat template adds to a prompt


@dataclass(frozen=True)
class QuestionShape:
    """Shape of one judge call for a prefix: a trunk and its branches."""

    aspect: str
    trunk: int  # tokens, BOS included
    branches: int  # number C of branches
    branch: int  # tokens of the longest branch
    options: int  # number of answer options; 0 means that the judge writes text
    stems: Sizes | None = None  # to which branches that begin alike are divided


@dataclass
class Recorder:
    """A stub text generator that records the shape of each call in `asked`."""

    aspect: str
    bytewise: bool
    chat: bool
    again: bool = False  # trunks are kept for several rounds; their branches are not divided
    asked: list[QuestionShape] = field(default_factory=list)

    def choose(self, trunks, branches, options) -> np.ndarray:
        """Returns log-probabilities logp_BCO of log(1 / O) everywhere."""
        self._note(trunks, branches, len(options))
        return np.full((len(trunks), len(branches[0]), len(options)), -math.log(len(options)))

    def generate(self, trunks, branches, *, votes, max_tokens, sampling, seed):
        """Returns no answers (None for each vote)."""
        del max_tokens, sampling, seed
        self._note(trunks, branches, 0)
        return [[[None] * votes for _ in row] for row in branches]

    def _note(self, trunks, branches, options: int):
        chat = CHAT * self.chat
        size = lambda text: tokens(text, bytewise=self.bytewise)
        longest = max(map(size, branches[0])) + chat
        sizes = foreseen(branches[0], size, chat) if options and not self.again else None
        trunk = 1 + size(trunks[0]) + chat
        asked = QuestionShape(self.aspect, trunk, len(branches[0]), longest, options, sizes)
        self.asked.append(asked)


def text(count: int) -> str:
    """Returns a text of `count` tokens in two-token words.

    The words matter: a rewriter's prompt repeats the last words of the prefix.
    """
    whole = f"{TOKEN * 2} " * (count // 2) + TOKEN * (count % 2)
    return whole.rstrip()


def tokens(asked: Text, *, bytewise: bool) -> int:
    """Counts the tokens of a prompt: exact for texts, estimated for the words of a template."""
    pieces = (asked,) if isinstance(asked, str) else asked
    words = lambda piece: len(piece) if bytewise else -(-len(piece) // CHARACTERS)
    return sum(p.count(TOKEN) or words(p) for p in pieces)


def questions(
    wanted: JudgeConfig, candidates: int, *, prefix: int, suffix: int, bytewise: bool
) -> list[QuestionShape]:
    """Lists the calls of a local judge for one prefix with `candidates` candidates, in order.

    Each round of an adaptive schedule counts its trunk again, as if no trunk were cached.

    Args:
        wanted: Config of the judge.
        candidates: Number of candidates per prefix.
        prefix: Tokens of the prefix.
        suffix: Tokens of each candidate and of the reference.
        bytewise: The tokenizer has one token per byte.
    """
    found: list[QuestionShape] = []
    for aspect in wanted.aspects():
        recorder = Recorder(aspect.name, bytewise, bool(wanted.chat), wanted.schedule.repeats)
        how: Any = dict(schedule=wanted.schedule, voting=wanted.voting(0))
        judge = scoring.TextJudge(recorder, (aspect,), {aspect.name: 1.0}, **how)
        rows = [[f"{text(suffix)} {i}" for i in range(candidates)]]  # different, of one length
        judge.score([text(prefix)], rows, [text(suffix)], np.ones((1, candidates), bool))
        found += recorder.asked
    return found


def rewrite_tokens(prompt: str, *, prefix: int, suffix: int, bytewise: bool, chat: bool) -> int:
    """Counts the tokens of a rewriter's prompt, BOS and chat template included."""
    asked = rewriters.load(prompt).segments(text(prefix), text(suffix))
    return 1 + tokens(asked, bytewise=bytewise) + CHAT * chat
