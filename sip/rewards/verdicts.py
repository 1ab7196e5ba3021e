"""Rewards of a judge in training: 1 for a right verdict, else 0 (arXiv 2601.21343)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from sip.judge import voting
from sip.judge.prompts import Aspect
from sip.metrics import pair
from sip.textgen.protocol import Cut, Said

# (reward_BK, valid_BK, metrics)
Reward = tuple[np.ndarray, np.ndarray, dict[str, tuple[float, float]]]


@dataclass(frozen=True)
class Question:
    """A labelled question to a judge."""

    aspect: Aspect
    label: int  # index of the right option


def said(aspect: Aspect, text: Said) -> int:
    """Returns the option of an answer's verdict, -1 if it has none."""
    if isinstance(text, Cut) and not aspect.verdict:  # an option is one token, without an end
        text = text.text
    option = voting.vote(text, aspect)
    return -1 if isinstance(option, str) else option


def reward(
    asked: Sequence[Question], texts: Sequence[Sequence[Said]], *, both_orders: bool
) -> Reward:
    """Rewards K answers to each of B questions. Returns (reward_BK, valid_BK, metrics).

    An answer without a readable verdict is wrong, and so is one that was cut before its end: the
    judge in training unlearns both. Every reward is valid. With `both_orders`,
    questions 2 i and 2 i + 1 of a pairwise aspect must be a pair in its two orders: answer k to one
    is rewarded only if answer k to the other is right too (arXiv 2505.10320).
    """
    said_BK = np.array(
        [[said(q.aspect, text) for text in row] for q, row in zip(asked, texts, strict=True)]
    )
    cut_BK = np.array([[isinstance(text, Cut) for text in row] for row in texts])
    right_BK = said_BK == np.array([[q.label] for q in asked])
    reward_BK = right_BK
    if both_orders:
        # b ^ 1 swaps 2 i and 2 i + 1; a pointwise question is its own partner.
        partner_B = [b ^ 1 if q.aspect.kind == "pairwise" else b for b, q in enumerate(asked)]
        reward_BK = right_BK & right_BK[partner_B]
    metrics = dict(
        chain.from_iterable(
            (
                (f"reward/{name}", pair(reward_BK, of_B)),
                (f"verdict/right/{name}", pair(right_BK, of_B)),
                (f"verdict/unread/{name}", pair(said_BK < 0, of_B)),
                (f"verdict/cut/{name}", pair(cut_BK, of_B)),
            )
            for name, of_B in _by_aspect(asked)
        )
    )
    return reward_BK.astype(np.float32), np.ones(reward_BK.shape, bool), metrics


def _by_aspect(asked: Sequence[Question]):
    """Lists (aspect name, mask_B of its questions)."""
    names_B = np.array([q.aspect.name for q in asked])
    return [(str(name), names_B == name) for name in dict.fromkeys(names_B.tolist())]
