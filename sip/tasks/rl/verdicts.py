"""Training a judge by reward: 1 for a right verdict on a labelled question, else 0."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sip.data import pipeline
from sip.data.documents import PARTS
from sip.judge import prompts
from sip.judge.labels import ground_truth as labels
from sip.judge.labels.ground_truth import LabelledPrompts
from sip.loading import LoadedModel
from sip.padding import multiple
from sip.rewards import verdicts as rewards
from sip.rewards.verdicts import Question
from sip.run import Run, TaskConfig
from sip.structs import UserError
from sip.tasks import labelled
from sip.tasks.labelled import Labelled
from sip.tasks.rl.task import AnswerWriter, RLTask
from sip.text.segments import Ids, tokens_of
from sip.text.tokenizer import Cached, Tokenizer
from sip.textgen.local import Local
from sip.textgen.protocol import Said
from sip.training import loop


@dataclass(frozen=True, kw_only=True)
class Config(TaskConfig):
    """The task "verdicts": a judge is rewarded for right verdicts.

    Exactly one of `labels` and `label_file` is needed. Raises UserError.
    """

    labels: labelled.LabelConfig | None = None  # labels by the corpus's ground truth
    label_file: labelled.LabelFileConfig | None = None  # labels from a file
    both_orders: bool = False  # reward a pairwise verdict only if it is right in both orders

    def __post_init__(self):
        if (self.labels is None) == (self.label_file is None):
            raise UserError("exactly one of labels and label_file is needed")

    def check(self, c):
        """Raises UserError if the run's split or batch size does not fit the task."""
        if self.label_file is not None and c.split not in PARTS:
            raise UserError(f"split must be one of {PARTS} with label_file, not {c.split!r}")
        if self.both_orders and c.batch % 2:
            raise UserError(f"batch must be even with task.both_orders, not {c.batch}")

    def sources(self):
        """The runs or directories that the task reads: the source of rollouts, the proofreader."""
        found = self.labels.sources() if self.labels else {}
        return {f"task.{key}": value for key, value in found.items()}

    def needs_truth(self):
        """Labels that are not from a file are the ground truth's."""
        return "task.labels" if self.labels else ""

    def words(self):
        """The direct aspects of the labels."""
        names = self.labels.per_prefix if self.labels else self.label_file.aspects  # pyright: ignore
        key = "task.labels" if self.labels else "task.label_file"
        return {key: tuple(x for x in map(prompts.load, names) if not x.verdict)}

    def figures(self, truth):
        """Names of the figures of the evaluation: accuracies by aspect."""
        if self.labels is not None:
            return labelled.figures(self.labels.per_prefix)
        return labelled.figures(self.label_file.aspects if self.label_file else ())


Unit = tuple[tuple[Question, Ids], ...]  # questions of one batch: one, or a pair in both orders


def build(run: Run, c, mesh) -> RLTask:
    """Builds the task of labelled questions. `c` is the config of a policy-gradient run.

    Each question is asked once per epoch, independent of its aspect.
    """
    made = _labelled(run, c, mesh)
    check(run.tokenizer, made)
    return questions(run, c, mesh, made)


def _labelled(run: Run, c, mesh) -> Labelled:
    """Makes or reads the labels."""
    room = c.model.max_len - c.answer + 1  # prompts are shorter than this
    if c.task.label_file is not None:
        return labelled.from_file(c.task.label_file, c.split, run.tokenizer, max_len=room)
    aspects = [prompts.load(name) for name in c.task.labels.per_prefix]
    return labelled.made(run, c.task.labels, aspects, c.split, mesh, max_len=room)


def questions(run: Run, c, mesh, made: Labelled) -> RLTask:
    """Builds the task that asks the labelled questions of `made`.

    Held-out questions of reasoned aspects are answered greedily; those of direct aspects are
    answered by the option of highest probability.
    """
    tokenizer, both_orders = run.tokenizer, c.task.both_orders
    cached = Cached(tokenizer)
    prompt_of = lambda trunk, branch: [
        tokenizer.bos,
        *tokens_of(cached, trunk),
        *tokens_of(cached, branch),
    ]
    units = [u for x in made.examples.values() for u in _units(x, prompt_of, both_orders)]
    held_out = {
        split: {name: _flat(x, prompt_of) for name, x in found.items() if x.aspect.verdict}
        for split, found in made.held_out.items()
    }
    every = [ids for unit in units for _, ids in unit]
    every += [ids for found in held_out.values() for flat in found.values() for _, ids in flat]
    width = multiple(max(map(len, every)), 16)
    writer = AnswerWriter(c.model, mesh, tokenizer, width, c.answer, tokenizer.stops)
    size = 2 if both_orders else 1

    def batch(at: int) -> list[tuple[Question, Ids]]:
        rows = range(at * c.answered // size, (at + 1) * c.answered // size)
        return [question for p in rows for question in _at(units, p, run.seed)]

    def accuracy(params, split) -> dict[str, float]:
        counts: dict[str, Any] = {}
        for name, found in made.held_out[split].items():
            if name in held_out[split]:
                asked = [ids for _, ids in held_out[split][name]]
                texts = writer.greedy(params, asked, batch=c.evals.batch)
                counts |= labels.right(found, _said(found, texts))
            else:
                model = LoadedModel(params, c.model, tokenizer, mesh)
                counts |= labels.accuracy(Local(model, batch=c.evals.batch), {name: found})
        return loop.ratios([counts])

    return RLTask(
        lambda at: [ids for _, ids in batch(at)],
        writer,
        lambda at, answers: rewards.reward(
            [q for q, _ in batch(at)], writer.texts(answers), both_orders=both_orders
        ),
        lambda params: {f"eval/{k}": v for k, v in accuracy(params, "validation").items()},
        lambda params: labelled.write_accuracy(run, accuracy(params, "test")),
        references=lambda at: [q.aspect.options[q.label] for q, _ in batch(at)],
    )


def _at(units: Sequence[Unit], position: int, seed: int) -> Unit:
    """The unit at a position of the stream; every epoch is a different permutation."""
    epoch, at = divmod(position, len(units))
    return units[pipeline.order(len(units), seed, epoch)[at]]


def _flat(found: LabelledPrompts, prompt_of) -> list[tuple[Question, Ids]]:
    """All questions with their prompts, row by row."""
    return [
        (Question(found.aspect, int(label)), prompt_of(trunk, branch))
        for (trunk, branches), row in zip(found.prompts, found.labels_NC, strict=True)
        for branch, label in zip(branches, row, strict=False)  # label rows are padded
    ]


def _units(found: LabelledPrompts, prompt_of, both_orders: bool) -> list[Unit]:
    """Units of one question, or of two with `both_orders`.

    The two questions of a pairwise aspect are a pair in its two orders.
    """
    flat = _flat(found, prompt_of)
    if not both_orders:
        return [(one,) for one in flat]
    if found.aspect.kind != "pairwise":
        return list(zip(flat[::2], flat[1::2], strict=False))
    places = ((n, c) for n, (_, row) in enumerate(found.prompts) for c in range(len(row)))
    asked = dict(zip(places, flat, strict=True))
    return [(asked[place], asked[swapped]) for place, swapped in labels.swaps(found)]


def _said(found: LabelledPrompts, texts: Sequence[Said]) -> np.ndarray:
    """said_NC, the option of each answer, -1 for none. `texts` come row by row."""
    said_NC = np.full(found.mask_NC.shape, -1)
    said_NC[found.mask_NC] = [rewards.said(found.aspect, text) for text in texts]
    return said_NC


def check(tokenizer: Tokenizer, made: Labelled) -> None:
    """Raises UserError unless every option of the direct aspects is one token."""
    for found in made.examples.values():
        if not found.aspect.verdict:
            prompts.check_options(tokenizer, found.aspect)
