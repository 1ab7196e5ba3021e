"""Training a rewriter on examples: prompts of a rewriter with rewrites.

The rewrites are the ground truth's. Without one, the suffixes of the corpus are the rewrites of
corrupted versions of them, and some of themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sip import rewriter
from sip.data import pipeline
from sip.evals import continuations, rewrites
from sip.judge.labels import synthesis
from sip.loading import LoadedModel
from sip.padding import multiple, padded_tree
from sip.run import Run, TaskConfig
from sip.sections import at_least, check
from sip.structs import Tree, UserError
from sip.tasks import labelled
from sip.tasks.supervised.task import SupervisedTask, tokens_loss
from sip.text.tokenizer import Cached, Tokenizer


@dataclass(frozen=True, kw_only=True)
class Config(TaskConfig):
    """The task "rewrites": a rewriter learns the ground truth's rewrites, or to undo corruptions.

    Raises UserError.
    """

    prompt: str  # name of a built-in rewriter prompt, or path of a .txt file
    documents: int  # number of chunks to learn from
    held_out: int  # number of chunks to evaluate on
    kinds: tuple[
        str, ...
    ] = ()  # corruptions of suffixes to undo; none: the ground truth's rewrites
    unwanted: tuple[str, ...] = ()  # with kinds: words; sentences with one are to be undone too

    def __post_init__(self):
        check("task", self, documents=at_least(1), held_out=at_least(1))
        rewriter.load(self.prompt)  # checks that it exists
        for kind in self.kinds:
            synthesis.check_rule("task.kinds: no corruption", kind)
        if self.unwanted and not self.kinds:
            raise UserError("task.unwanted needs task.kinds: the ground truth's rewrites have none")
        synthesis.has_any(self.unwanted)  # checks them

    def needs_truth(self):
        """The rewrites to learn from are the ground truth's, unless corruptions are undone."""
        return "" if self.kinds else "task.name"

    def figures(self, truth):
        """Names of the figures of the evaluation."""
        names = rewrites.REPAIRED if self.kinds else rewrites.FIGURES
        return tuple(f"eval/{name}" for name in names)


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

    `c` is the config of a supervised run. Raises UserError if the corpus has no ground truth and
    `task.kinds` is empty.
    """
    wanted: Config = c.task
    corpus = run.corpus(c.split)
    prompt = rewriter.load(wanted.prompt)
    asked = continuations.prompts(corpus.chunks, range(wanted.documents), run.tokenizer)
    unwanted = synthesis.has_any(wanted.unwanted)
    if wanted.kinds:
        labelled.say_unwanted(run, wanted.unwanted, asked)
        rows = synthesis.to_undo(wanted.kinds, unwanted, asked.prefixes, asked.suffixes, run.seed)
    else:
        truth = corpus.ground_truth("task.name rewrites")
        better = truth.rewrite(asked.prefixes, asked.suffixes, corpus.cut.suffix)
        rows = asked.prefixes, asked.suffixes, better
    examples = make(run.tokenizer, prompt, *rows, max_len=c.model.max_len)

    def figures(params, split):
        model = LoadedModel(params, c.model, run.tokenizer, mesh)
        how: Any = dict(held_out=wanted.held_out, batch=32, kinds=wanted.kinds, unwanted=unwanted)
        return rewrites.evaluate(model, prompt, run.corpus(split), **how)

    return SupervisedTask(
        lambda at: examples.batch(at, c.batch, seed=run.seed),
        *tokens_loss(c),
        lambda params: {f"eval/{k}": v for k, v in figures(params, "validation").items()},
        lambda params: run.write_eval(figures(params, "test")),
    )


def make(
    tokenizer: Tokenizer,
    prompt: rewriter.Prompt,
    prefixes: Sequence[str],
    given: Sequence[str],
    better: Sequence[str],
    *,
    max_len: int,
) -> Examples:
    """Makes examples that turn each text `given` into a `better` one; those longer than `max_len`
    tokens are dropped. Raises UserError if none fits.
    """
    cached = Cached(tokenizer)
    rows = []
    for prefix, shown, text in zip(prefixes, given, better, strict=True):
        before = rewriter.prompt_ids(prompt, tokenizer, cached, prefix, shown)
        after = rewriter.answer_ids(tokenizer, cached.encode, shown, text)
        if len(before) + len(after) <= max_len and len(after) > 1:
            rows.append((before, after))
    if not rows:
        raise UserError(f"rewrites: no example fits {max_len} tokens (model.max_len)")
    T = multiple(max(len(a) + len(b) for a, b in rows), 8)
    tree = padded_tree([a + b for a, b in rows], [[]] * len(rows), tokenizer.pad, T, 0, 1)
    start_E = np.array([len(before) for before, _ in rows])
    return Examples(tree, np.asarray(tree.mask_BT) & (np.arange(T) >= start_E[:, None]))
