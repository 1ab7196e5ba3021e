"""Training a judge on labels: prompts of a judge with the right verdict tokens."""

from dataclasses import dataclass, field

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
            prompts.load(name)  # checks that it exists
            if aspect not in self.per_prefix:
                raise UserError(f"labels.grades: {aspect!r} is not in labels.per_prefix")


@dataclass(frozen=True, kw_only=True)
class Config(TaskConfig):
    """The task "verdicts": a judge learns the right options of labelled prompts."""

    labels: GradedLabelConfig

    def sources(self):
        """The runs or directories that the task reads: the source of rollouts, the proofreader."""
        return {f"task.{key}": value for key, value in self.labels.sources().items()}

    def needs_truth(self):
        """The labels are the ground truth's."""
        return "task.labels"

    def figures(self, truth):
        """Names of the figures of the evaluation: accuracies by aspect."""
        return labelled.figures(self.labels.per_prefix)


def build(run: Run, c, mesh) -> SupervisedTask:
    """Builds the task: labelled prompts, evaluated by accuracy on held-out ones.

    `c` is the config of a supervised run. Raises UserError if an option is not one token.
    """
    wanted: GradedLabelConfig = c.task.labels
    aspects = [prompts.load(name) for name in wanted.per_prefix]
    for aspect in aspects:
        prompts.check_options(run.tokenizer, aspect)
    grades = {aspect: prompts.load(name) for aspect, name in wanted.grades.items()}
    made = labelled.made(
        run, wanted, aspects, c.split, mesh, max_len=c.model.max_len, grades=grades
    )

    def batch(at: int):
        return {a: trees.batch(at, c.batch, seed=run.seed) for a, trees in made.examples.items()}

    def accuracy(params, split):
        judge = Local(LoadedModel(params, c.model, run.tokenizer, mesh))
        return loop.ratios([labels.accuracy(judge, made.held_out[split])])

    return SupervisedTask(
        batch,
        losses.verdict_terms(c.model, c.z_loss),
        {
            **dict.fromkeys(wanted.per_prefix, 1.0),
            **{f"{aspect}/grades": wanted.grades_weight for aspect in wanted.grades},
        },
        lambda params: {f"eval/{k}": v for k, v in accuracy(params, "validation").items()},
        lambda params: labelled.write_accuracy(run, accuracy(params, "test")),
    )
