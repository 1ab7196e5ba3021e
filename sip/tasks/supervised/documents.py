"""Next-token prediction on documents: on chunks (prefix and suffix), or on packed documents.

Two baselines for self-improving pretraining are settings of it: `filter` drops chunks of low score,
`control` is conditional pretraining with good and bad control tokens (sip/judge/chunk_scores.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sip.data import documents, packing, pipeline
from sip.data.chunks import Chunks
from sip.data.packing import Rows
from sip.evals import ground_truth
from sip.judge import build as judges
from sip.judge import chunk_scores
from sip.padding import trunk_only
from sip.run import Run, TaskConfig, check_control
from sip.sections import at_least, check, one_of
from sip.structs import UserError
from sip.tasks.supervised.task import SupervisedTask, check_length, tokens_loss

TOKENS = ("all", "suffix")


@dataclass(frozen=True, kw_only=True)
class Config(TaskConfig):
    """The task "documents": next-token prediction. Raises UserError."""

    tokens: str  # all: predict prefix and suffix | suffix: predict the suffix only
    packed: bool = False  # learn whole documents, several in a row, instead of prefix and suffix
    length: int = 0  # packed: tokens of a row; 0: model.max_len
    filter: chunk_scores.FilterConfig | None = None  # chunks of low score are dropped; none: no
    control: chunk_scores.ControlConfig | None = None  # control tokens before suffixes; none: no

    def __post_init__(self):
        check("task", self, tokens=one_of(TOKENS), length=at_least(0))
        if self.packed and self.tokens != "all":
            raise UserError("task.packed: whole documents have no suffix; set task.tokens to 'all'")
        if self.length and not self.packed:
            raise UserError("task.length: rows have data.cut's length unless task.packed is True")
        for key in self._scored() if self.packed else ():
            raise UserError(f"task.{key}: scores suffixes, which packed documents do not have")

    def _scored(self) -> dict[str, chunk_scores.FilterConfig | chunk_scores.ControlConfig]:
        """The sections that score chunks, by key."""
        both = {"filter": self.filter, "control": self.control}
        return {key: value for key, value in both.items() if value is not None}

    def judges(self):
        """The judges that score the chunks."""
        return {f"task.{key}.judge": value.judge for key, value in self._scored().items()}

    def sources(self):
        """The runs or directories of these judges."""
        every = self._scored().items()
        return {
            f"task.{key}.{name}": source
            for key, value in every
            for name, source in value.judge.sources().items()
        }

    def needs_truth(self):
        """The key of a judge that is the ground truth."""
        truths = (key for key, judge in self.judges().items() if judge.backend == "truth")
        return next((f"{key}.backend" for key in truths), "")

    def reach(self):
        """Raises UserError if a judge behind HTTP does not answer."""
        for judge in self.judges().values():
            judge.reach()

    def symbols(self):
        """The control tokens."""
        found = self.control
        return {"task.control.good": found.good, "task.control.bad": found.bad} if found else {}

    def check_cut(self, c, cut):
        """Raises UserError if there is no room for a control token."""
        check_control(c.model, cut, self.control is not None, "task.control")

    def check(self, c):
        """Raises UserError if a row is longer than the model or too short for a prediction."""
        if self.packed:
            check_length(self, c.model.max_len)

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

    The loss has no prediction of a row's first token. Control tokens are given, so they are never
    predicted.
    """
    mask_BT = rows["mask_BT"] & ~rows["given_BT"] if "given_BT" in rows else rows["mask_BT"]
    suffix_BT = np.arange(mask_BT.shape[1]) >= rows["fork_B"][:, None]
    return mask_BT & suffix_BT if tokens == "suffix" else mask_BT


def build(run: Run, c, mesh) -> SupervisedTask:
    """Builds the task: batches of chunks or packed rows, evaluated by greedy continuations.

    `c` is the config of a supervised run.
    """
    # Whole documents are learned: short ones too, and the evaluation takes what is long enough.
    how: Any = dict(any_length=c.task.packed)
    suite = ground_truth.suite(run, c.evals, c.model, mesh, c.log.samples, **how)
    return SupervisedTask(
        _packed(run, c) if c.task.packed else _chunks(run, c, mesh),
        *tokens_loss(c),
        lambda params: ground_truth.during(suite, params),
        lambda params: ground_truth.finish(suite, params),
    )


def _chunks(run: Run, c, mesh):
    """Returns the function step -> (tree, mask_BT) on chunks."""
    run.announce(c.split, c.steps * c.batch)
    rows_of = batches(run, c, c.split, mesh)

    def batch(at: int):
        rows = rows_of(at)
        return trunk_only(rows["tokens_BT"], rows["mask_BT"]), counted(rows, c.task.tokens)

    return batch


def batches(run: Run, c, split: str, mesh) -> Callable[[int], pipeline.Batch]:
    """Returns the function step -> batch of chunks, filtered and with control tokens if the task
    says so. Prints what the filter leaves out."""
    corpus = run.corpus(split)
    truth = corpus.documents.truth
    judge = lambda of: judges.build(of.judge, run.workdir, truth, mesh, run.tokenizer, run.seed)
    wanted, control, found = c.task.filter, c.task.control, corpus.chunks
    if wanted is not None:
        found, left_out = chunk_scores.filtered(wanted, judge(wanted), run.tokenizer, found)
        run.say(_said(run.name, corpus.chunks, found, left_out, c.steps * c.batch))
        run.left_out[f"{split}, chunks"] = left_out
    order = pipeline.Batches(found, batch=c.batch, seed=run.seed)
    if control is None:
        return lambda at: order[at]
    label = chunk_scores.Labeller(
        control, judge(control), run.tokenizer, corpus.cut.suffix, run.seed
    )
    return lambda at: label(order[at], at)


def _said(name: str, before: Chunks, after: Chunks, left_out, rows: int) -> str:
    """Returns a line about a filter: the chunks it leaves out, and the epochs of those it keeps."""
    share = 1 - len(after) / len(before)
    return (
        f"{name}: the filter leaves out {share:.1%} of {len(before):,} chunks "
        f"({documents.listed(left_out) or 'none'}); {rows / len(after):.3g} epochs of "
        f"{len(after):,} chunks"
    )


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
