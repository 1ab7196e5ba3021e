"""Next-token prediction on documents: on chunks (prefix and suffix), or on packed documents."""

from dataclasses import dataclass

import numpy as np

from sip.data import packing, pipeline
from sip.data.packing import Rows
from sip.evals import ground_truth
from sip.padding import trunk_only
from sip.run import Run, TaskConfig
from sip.sections import at_least, check, one_of
from sip.structs import UserError
from sip.tasks.supervised.task import SupervisedTask, tokens_loss

TOKENS = ("all", "suffix")


@dataclass(frozen=True, kw_only=True)
class Config(TaskConfig):
    """The task "documents": next-token prediction. Raises UserError."""

    tokens: str  # all: predict prefix and suffix | suffix: predict the suffix only
    packed: bool = False  # learn whole documents, several in a row, instead of prefix and suffix
    length: int = 0  # packed: tokens of a row; 0: model.max_len

    def __post_init__(self):
        check("task", self, tokens=one_of(TOKENS), length=at_least(0))
        if self.packed and self.tokens != "all":
            raise UserError("task.packed: whole documents have no suffix; set task.tokens to 'all'")
        if self.length and not self.packed:
            raise UserError("task.length: rows have data.cut's length unless task.packed is True")

    def check(self, c):
        """Raises UserError if a row is longer than the model or too short for a prediction."""
        if self.packed and not 2 <= self.width(c.model.max_len) <= c.model.max_len:
            raise UserError(
                f"task.length {self.length}: must be 2 to model.max_len, {c.model.max_len}"
            )

    def width(self, max_len: int) -> int:
        """Tokens of a packed row, for a model of `max_len`."""
        return self.length or max_len

    def figures(self, truth):
        """Names of the figures of the evaluation by greedy continuations."""
        return ground_truth.figures(truth)

    def continues(self):
        """True: greedy continuations are the evaluation."""
        return True


def counted(rows: pipeline.Batch, tokens: str) -> np.ndarray:
    """Returns the tokens of a batch that are predicted, all or those of the suffixes: bool [B, T].

    The loss has no prediction of a row's first token.
    """
    mask_BT = rows["mask_BT"]
    suffix_BT = np.arange(mask_BT.shape[1]) >= rows["fork_B"][:, None]
    return mask_BT & suffix_BT if tokens == "suffix" else mask_BT


def build(run: Run, c, mesh) -> SupervisedTask:
    """Builds the task: batches of chunks or packed rows, evaluated by greedy continuations.

    `c` is the config of a supervised run.
    """
    suite = ground_truth.suite(run, c.evals, c.model, mesh)
    return SupervisedTask(
        _packed(run, c) if c.task.packed else _chunks(run, c),
        *tokens_loss(c),
        lambda params: ground_truth.during(suite, params),
        lambda params: ground_truth.finish(suite, params),
    )


def _chunks(run: Run, c):
    """Returns the function step -> (tree, mask_BT) on chunks."""
    run.announce(c.split, c.steps * c.batch)
    batches = pipeline.Batches(run.corpus(c.split).chunks, batch=c.batch, seed=run.seed)

    def batch(at: int):
        rows = batches[at]
        return trunk_only(rows["tokens_BT"], rows["mask_BT"]), counted(rows, c.task.tokens)

    return batch


def _packed(run: Run, c):
    """Returns the function step -> (tree, mask_BT) on packed documents."""
    rows = packed(run, c.split, c.task.width(c.model.max_len))
    run.say(f"{run.name}: {packing.described(rows, c.steps * c.batch)}")
    return lambda at: rows.batch(at, c.batch, seed=run.seed)


def packed(run: Run, split: str, width: int) -> Rows:
    """Packs the documents of a split into rows of `width` tokens. Raises UserError if none fits."""
    docs = run.documents(split)
    found = packing.documents(docs.texts, run.tokenizer)
    try:
        return packing.pack(
            found,
            width=width,
            pad=run.tokenizer.pad,
            source_P=docs.source_D,
            weights=docs.weights,
        )
    except UserError as error:
        raise UserError(f"split {split!r}: {error}") from None
