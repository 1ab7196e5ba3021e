"""Training a rewriter on examples: prompts of a rewriter with the ground truth's rewrites."""

from dataclasses import dataclass

import jax
import numpy as np

from sip import rewriter
from sip.data import documents, pipeline
from sip.evals import continuations, rewrites
from sip.evals.continuations import Prompts
from sip.loading import LoadedModel
from sip.padding import multiple, padded_tree
from sip.run import Run, TaskConfig
from sip.sections import at_least, check
from sip.structs import Tree, UserError
from sip.tasks.supervised.task import SupervisedTask, tokens_loss
from sip.text.tokenizer import Cached, Tokenizer


@dataclass(frozen=True, kw_only=True)
class Config(TaskConfig):
    """The task "rewrites": a rewriter learns the ground truth's rewrites. Raises UserError."""

    prompt: str  # name of a built-in rewriter prompt, or path of a .txt file
    documents: int  # number of chunks to learn from
    held_out: int  # number of chunks to evaluate on

    def __post_init__(self):
        check("task", self, documents=at_least(1), held_out=at_least(1))
        rewriter.load(self.prompt)  # checks that it exists

    def needs_truth(self):
        """The rewrites to learn from are the ground truth's."""
        return "task.name"

    def figures(self, truth):
        """Names of the figures of the evaluation by the ground truth."""
        return tuple(f"eval/{name}" for name in rewrites.FIGURES)


@dataclass(frozen=True)
class Examples:
    """E prompts, each with its answer as one trunk."""

    tree: Tree  # leading axis E, no branches
    counted_ET: np.ndarray  # tokens in the loss: the answer, including EOS

    def batch(self, step: int, size: int, *, seed: int) -> tuple[Tree, np.ndarray]:
        """Returns (tree, counted_BT) of a step. Each epoch is a permutation drawn by seed."""
        rows = pipeline.epochs(len(self.counted_ET), step, size, seed=seed)
        return jax.tree.map(lambda x: x[rows], (self.tree, self.counted_ET))


def build(run: Run, c, mesh) -> SupervisedTask:
    """Builds the task: examples of rewrites, evaluated by greedy rewrites.

    `c` is the config of a supervised run. Raises UserError if the corpus has no ground truth.
    """
    wanted: Config = c.task
    corpus = run.corpus(c.split)
    prompt = rewriter.load(wanted.prompt)
    truth = corpus.ground_truth("task.name rewrites")
    asked = continuations.prompts(corpus.chunks, range(wanted.documents), run.tokenizer)
    examples = make(
        truth, run.tokenizer, prompt, asked, words=corpus.cut.suffix, max_len=c.model.max_len
    )

    def figures(params, split):
        model = LoadedModel(params, c.model, run.tokenizer, mesh)
        return rewrites.evaluate(
            model, prompt, run.corpus(split), held_out=wanted.held_out, batch=32
        )

    return SupervisedTask(
        lambda at: examples.batch(at, c.batch, seed=run.seed),
        *tokens_loss(c),
        lambda params: {f"eval/{k}": v for k, v in figures(params, "validation").items()},
        lambda params: run.write_eval(figures(params, "test")),
    )


def make(
    truth: documents.Truth,
    tokenizer: Tokenizer,
    prompt: rewriter.Prompt,
    asked: Prompts,
    *,
    words: int,
    max_len: int,
) -> Examples:
    """Makes examples of rewrites; those longer than `max_len` tokens are dropped.

    `words` is the approximate length of a rewrite in words. Raises UserError if none fits.
    """
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
    T = multiple(max(len(a) + len(b) for a, b in rows), 8)
    tree = padded_tree([a + b for a, b in rows], [[]] * len(rows), tokenizer.pad, T, 0, 1)
    start_E = np.array([len(before) for before, _ in rows])
    return Examples(tree, np.asarray(tree.mask_BT) & (np.arange(T) >= start_E[:, None]))
