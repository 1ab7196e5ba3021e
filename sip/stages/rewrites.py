"""Rewriting examples of a split, to learn from: prompts, and the rewrites that should follow."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np

from sip import rewriter
from sip.data import pipeline
from sip.evals.continuations import Prompts
from sip.structs import Tree, UserError
from sip.textgen import Cached, bucket, pack
from sip.tokenizer import Tokenizer

if TYPE_CHECKING:
    from sip.data.documents import Truth


@dataclass(frozen=True)
class RewriteConfig:
    """A rewriter's examples: the ground truth's rewrites of the first `documents` chunks."""

    prompt: str  # a built-in one's name, or the path of a .txt file
    documents: int
    held_out: int

    def __post_init__(self):
        if min(self.documents, self.held_out) < 1:
            raise UserError("documents and held_out must be at least 1")


@dataclass(frozen=True)
class Examples:
    """E prompts with their answers, as a trunk each."""

    tree: Tree
    counted_ET: np.ndarray  # tokens of the answer, EOS included

    def batch(self, step: int, size: int, *, seed: int) -> tuple[Tree, np.ndarray]:
        """(tree, counted_BT) of a step."""
        rows = pipeline.epochs(len(self.counted_ET), step, size, seed=seed)
        return jax.tree.map(lambda x: x[rows], (self.tree, self.counted_ET))


def make(
    truth: "Truth",
    tokenizer: Tokenizer,
    prompt: rewriter.Prompt,
    asked: Prompts,
    *,
    words: int,
    max_len: int,
) -> Examples:
    """Examples of prefixes and suffixes; those longer than `max_len` are dropped."""
    cached = Cached(tokenizer)
    rows = []
    better = truth.rewrite(asked.prefixes, asked.suffixes, words)
    for prefix, suffix, text in zip(asked.prefixes, asked.suffixes, better, strict=True):
        before = rewriter.prompt_ids(prompt, tokenizer, cached, prefix, suffix)
        after = rewriter.answer_ids(tokenizer, cached.encode, suffix, text)
        if len(before) + len(after) <= max_len and len(after) > 1:
            rows.append((before, after))
    if not rows:
        raise UserError(f"rewrites: no example fits {max_len} tokens (model.max_len)")
    T = bucket(max(len(a) + len(b) for a, b in rows), 8)
    tree = pack([a + b for a, b in rows], [[]] * len(rows), tokenizer.pad, T, 0, 1)
    start_E = np.array([len(before) for before, _ in rows])
    return Examples(tree, np.asarray(tree.mask_BT) & (np.arange(T) >= start_E[:, None]))
