"""Next-token prediction on documents."""

from dataclasses import dataclass

import numpy as np

from sip.data import pipeline
from sip.evals import ground_truth
from sip.padding import trunk_only
from sip.run import Run, TaskConfig
from sip.sections import check, one_of
from sip.tasks.supervised.task import SupervisedTask, tokens_loss

TOKENS = ("all", "suffix")


@dataclass(frozen=True, kw_only=True)
class Config(TaskConfig):
    """The task "documents": next-token prediction. Raises UserError."""

    tokens: str  # all: predict prefix and suffix | suffix: predict the suffix only

    def __post_init__(self):
        check("task", self, tokens=one_of(TOKENS))

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
    """Builds the task: batches of chunks, evaluated by greedy continuations.

    `c` is the config of a supervised run.
    """
    run.announce(c.split, c.steps * c.batch)
    batches = pipeline.Batches(run.corpus(c.split).chunks, batch=c.batch, seed=run.seed)

    def batch(at: int):
        rows = batches[at]
        return trunk_only(rows["tokens_BT"], rows["mask_BT"]), counted(rows, c.task.tokens)

    suite = ground_truth.suite(run, c.evals, c.model, mesh)
    return SupervisedTask(
        batch,
        *tokens_loss(c),
        lambda params: ground_truth.during(suite, params),
        lambda params: ground_truth.finish(suite, params),
    )
