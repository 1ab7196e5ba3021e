"""Instruction tuning: the answers of conversations in a JSON Lines file, in a chat template."""

import functools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from sip.data import conversations, documents, packing
from sip.data.conversations import Conversations, Format, Unusable
from sip.data.packing import Rows
from sip.evals import answers
from sip.loading import LoadedModel
from sip.run import Run, TaskConfig
from sip.sections import at_least, check
from sip.structs import UserError
from sip.tasks.supervised.task import SupervisedTask, tokens_loss
from sip.text import chat
from sip.workdir import place


@dataclass(frozen=True, kw_only=True)
class Config(TaskConfig):
    """The task "conversations": the answers of a file of conversations. Raises UserError."""

    path: str  # JSON Lines with messages, or prompt and completion
    chat: str  # chat template: own (the tokenizer's) | harmony | turns | a .jinja file
    packed: bool = True  # several conversations in a row, without attention between them
    length: int = 0  # tokens of a row; longer conversations are left out; 0: model.max_len
    max_skipped_fraction: float = 0.1  # 0..1; error if more conversations of a split are left out

    def __post_init__(self):
        check("task", self, length=at_least(0), max_skipped_fraction=at_least(0, most=1))
        if not self.chat:
            raise UserError("task.chat: needed; the name of a chat template")
        chat.check(self.chat, "task.chat")
        object.__setattr__(self, "path", place(self.path))

    def check(self, c):
        """Raises UserError if a row is longer than the model or too short for an answer."""
        if not 2 <= self.width(c.model.max_len) <= c.model.max_len:
            raise UserError(
                f"task.length {self.length}: must be 2 to model.max_len, {c.model.max_len}"
            )

    def reach(self):
        """Raises UserError if the file of conversations does not exist."""
        if not self.path:
            raise UserError("task.path: needed; a JSON Lines file of conversations")
        if not Path(self.path).is_file():
            raise UserError(f"task.path {self.path!r}: there is no such file")

    def width(self, max_len: int) -> int:
        """Tokens of a row, for a model of `max_len`."""
        return self.length or max_len

    def figures(self, truth):
        """Names of the figures of the evaluation on held-out answers."""
        return tuple(f"eval/{name}" for name in answers.FIGURES)


def build(run: Run, c, mesh) -> SupervisedTask:
    """Builds the task: rows of conversations, evaluated by the likelihood of held-out answers.

    `c` is the config of a supervised run; its evals.validation and evals.standard are numbers of
    rows. Raises UserError for a template without the turns that it needs, or an empty split.
    """
    form = conversations.open_format(
        chat.load(c.task.chat, run.tokenizer, run.workdir), run.tokenizer
    )
    splits = {split: _rows(run, c, form, split) for split in (c.split, "validation", c.evals.split)}
    train = splits[c.split]
    run.say(f"{run.name}: {packing.described(train)}")

    def figures(params, split, most):
        model = LoadedModel(params, c.model, run.tokenizer, mesh)
        return answers.evaluate(model, splits[split], most=most, batch=c.evals.batch)

    def during(params):
        found = figures(params, "validation", c.evals.validation)
        return {f"eval/{name}": value for name, value in found.items()}

    return SupervisedTask(
        lambda at: train.batch(at, c.batch, seed=run.seed),
        *tokens_loss(c),
        during,
        lambda params: run.write_eval(figures(params, c.evals.split, c.evals.standard)),
    )


def _rows(run: Run, c, form: Format, split: str) -> Rows:
    """The rows of a split. Raises UserError if it has too many unusable conversations, or none."""
    wanted: Config = c.task
    found = _read(wanted.path, wanted.max_skipped_fraction)
    chosen = documents.select(found.rows, split, lambda one: one.key)
    width, kept, left_out = wanted.width(c.model.max_len), [], Counter(found.left_out)
    for one in chosen:
        try:
            some = conversations.examples(form, one)
        except Unusable as error:
            left_out[str(error)] += 1
            continue
        if max(len(example.ids) for example in some) > width:
            left_out[f"longer than {width} tokens"] += 1
        else:
            kept += [(example.ids, example.learned) for example in some]
    unusable = left_out - Counter(found.left_out)
    said = f"{wanted.path}, {split}: {unusable.total():,} of {len(chosen):,} conversations"
    if unusable.total() > wanted.max_skipped_fraction * len(chosen):
        raise UserError(
            f"{said} cannot be used, more than task.max_skipped_fraction="
            f"{wanted.max_skipped_fraction} allows: {documents.listed(unusable)}; choose another "
            "task.chat, a larger task.length, or raise task.max_skipped_fraction"
        )
    if not kept:
        raise UserError(
            f"{wanted.path}: no conversation in split {split!r}; the first question decides about "
            "train (90 %), validation (5 %) and test (5 %), so a file needs some hundred of them"
        )
    if unusable:
        run.say(f"{said} are left out: {documents.listed(unusable)}")
    if left_out:
        run.left_out[split] = dict(left_out)
    return packing.pack(
        packing.joined(kept), width=width, pad=run.tokenizer.pad, packed=wanted.packed
    )


@functools.lru_cache(maxsize=8)
def _read(path: str, max_skipped_fraction: float) -> Conversations:
    """Reads a file once per process."""
    return conversations.read(path, max_skipped_fraction=max_skipped_fraction)
