"""A rewriter's examples: prompts, and the rewrites that should follow; and how it is evaluated."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np
from etils import epath

from sip import rewriter, setup
from sip.data import pipeline
from sip.evals import continuations, rewriting
from sip.evals.continuations import Prompts
from sip.judge.scoring import Judge
from sip.models.config import ModelConfig
from sip.structs import Params, Tree, UserError
from sip.textgen import bucket, pack
from sip.tokenizer import Cached, Tokenizer
from sip.training import loop

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


def evaluate(
    params: Params,
    cfg: ModelConfig,
    mesh,
    tokenizer: Tokenizer,
    prompt: rewriter.Prompt,
    corpus: setup.Corpus,
    *,
    held_out: int,
    batch: int,
    judge: Judge | None = None,
) -> dict[str, float]:
    """Figures of greedy rewrites of the first `held_out` chunks: by the corpus's ground truth or,
    where it has none, by the judge."""
    asked = continuations.prompts(corpus.chunks, range(held_out), tokenizer)
    local = rewriter.LocalRewriter(
        params, cfg, tokenizer, mesh, prompt=prompt, sampling=continuations.GREEDY, batch=batch
    )
    truth = corpus.documents.truth
    if truth is not None:
        words = corpus.cut.suffix
        return loop.ratios([rewriting.figures(local, truth, tokenizer, asked, words=words)])
    if judge is None:
        raise UserError("rewrites: this corpus has no ground truth to evaluate by")
    return loop.ratios([rewriting.judged(local, judge, tokenizer, asked)])


def write_figures(workdir: str, name: str, figures: dict[str, float]) -> dict[str, float]:
    """eval.json of a rewriter's run, and what stands in it."""
    setup.write_json(epath.Path(setup.run_dir(workdir, name)) / "eval.json", figures)
    return figures
