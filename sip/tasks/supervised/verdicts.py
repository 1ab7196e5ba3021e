"""Training a judge on labels: prompts of a judge with the right verdict tokens."""

import dataclasses
from dataclasses import dataclass, field

from sip.data.documents import PARTS
from sip.judge import prompts
from sip.judge.labels import ground_truth as labels
from sip.loading import LoadedModel
from sip.run import Run, TaskConfig
from sip.sections import at_least, check
from sip.structs import UserError
from sip.tasks import labelled
from sip.tasks.supervised.task import SupervisedTask
from sip.textgen.local import Local
from sip.training import loop, losses


@dataclass(frozen=True)
class GradedLabelConfig(labelled.LabelConfig):
    """Labels by the ground truth, with optional grades of single sentences."""

    grades: dict[str, str] = field(
        default_factory=dict
    )  # aspect -> aspect that grades its sentences
    grades_weight: float = 1.0  # loss weight of the grades; verdicts have 1

    def __post_init__(self):
        super().__post_init__()
        check("labels", self, grades_weight=at_least(0))
        for aspect, name in self.grades.items():
            if prompts.load(name).kind != "pointwise":
                raise UserError(f"labels.grades: aspect {name!r} must be pointwise")
            if aspect not in self.per_prefix:
                raise UserError(f"labels.grades: {aspect!r} is not in labels.per_prefix")


@dataclass(frozen=True, kw_only=True)
class Config(TaskConfig):
    """The task "verdicts": a judge learns the right options of labelled prompts.

    Exactly one of the three kinds of labels is needed. Raises UserError.
    """

    labels: GradedLabelConfig | None = None  # labels by the corpus's ground truth
    corrupted: labelled.CorruptedConfig | None = None  # suffixes and worse versions of them
    label_file: labelled.LabelFileConfig | None = None  # labels from a file

    def __post_init__(self):
        if sum(x is not None for x in (self.labels, self.corrupted, self.label_file)) != 1:
            raise UserError("exactly one of labels, corrupted and label_file is needed")
        for aspect in self.words()["task"]:
            if aspect.verdict:
                raise UserError(
                    f"aspect {aspect.name!r} is answered after reasoning; train it by RL "
                    "(stage rl, task verdicts)"
                )

    def check(self, c):
        """Raises UserError if the run's split does not fit the task."""
        if self.label_file is not None and c.split not in PARTS:
            raise UserError(f"split must be one of {PARTS} with label_file, not {c.split!r}")

    def sources(self):
        """The runs or directories that the task reads: the source of rollouts, the proofreader."""
        read = self.labels or self.corrupted
        return {f"task.{key}": value for key, value in read.sources().items()} if read else {}

    def needs_truth(self):
        """Only `labels` are the ground truth's."""
        return "task.labels" if self.labels else ""

    def aspects(self) -> tuple[str, ...]:
        """Names of the aspects that are learned."""
        if self.labels:
            return tuple(self.labels.per_prefix)
        if self.label_file:
            return self.label_file.aspects
        return (self.corrupted.aspect,) if self.corrupted else ()

    def words(self):
        """The aspects of the labels, and those that grade sentences."""
        return {"task": tuple(map(prompts.load, (*self.aspects(), *self.grades().values())))}

    def grades(self) -> dict[str, str]:
        """Returns the aspects that grade sentences, by graded aspect."""
        if self.labels:
            return dict(self.labels.grades)
        if self.corrupted and self.corrupted.grades:
            return {self.corrupted.aspect: self.corrupted.grades}
        return {}

    def figures(self, truth):
        """Names of the figures of the evaluation: accuracies by aspect."""
        return labelled.figures(self.aspects())


def build(run: Run, c, mesh) -> SupervisedTask:
    """Builds the task: labelled prompts, evaluated by accuracy on held-out ones.

    `c` is the config of a supervised run. Raises UserError if an option is not one token.
    """
    task: Config = c.task
    aspects = [prompts.load(name) for name in task.aspects()]
    for aspect in aspects:
        prompts.check_options(run.tokenizer, aspect)
    made = _labelled(run, c, aspects, mesh)
    weights = {aspect.name: 1.0 for aspect in aspects}
    if made_by := task.labels or task.corrupted:
        weights |= {f"{name}/grades": made_by.grades_weight for name in task.grades()}

    def batch(at: int):
        return {a: trees.batch(at, c.batch, seed=run.seed) for a, trees in made.examples.items()}

    def accuracy(params, split):
        judge = Local(LoadedModel(params, c.model, run.tokenizer, mesh))
        return loop.ratios([labels.accuracy(judge, made.held_out[split])])

    return SupervisedTask(
        batch,
        losses.verdict_terms(c.model, c.z_loss),
        weights,
        lambda params: {f"eval/{k}": v for k, v in accuracy(params, "validation").items()},
        lambda params: labelled.write_accuracy(run, accuracy(params, "test")),
    )


def _labelled(run: Run, c, aspects, mesh) -> labelled.Labelled:
    """The labelled examples of the run's task, to learn from and held out."""
    task, max_len = c.task, c.model.max_len
    grades = {aspect: prompts.load(name) for aspect, name in task.grades().items()}
    if task.labels is not None:
        return labelled.made(
            run, task.labels, aspects, c.split, mesh, max_len=max_len, grades=grades
        )
    found = (
        labelled.corrupted(run, task.corrupted, c.split, mesh, max_len=max_len)
        if task.corrupted
        else labelled.from_file(task.label_file, c.split, run.tokenizer, max_len=max_len)
    )
    trees = {
        name: labels.as_trees(run.tokenizer, prompts, max_len)
        for name, prompts in found.examples.items()
    }
    if found.grades is not None:
        for name, aspect in grades.items():
            trees[name] = labels.graded(run.tokenizer, trees[name], aspect, found.grades)
    return dataclasses.replace(found, examples=trees)
