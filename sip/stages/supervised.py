"""The supervised loop: one update per batch of examples with known targets.

The `task` section names what is learned (sip/tasks/supervised): documents, conversations,
self_made, thoughts, verdicts, rewrites, preferences or reward_model.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sip.evals import ground_truth
from sip.mesh import put_batch
from sip.run import Run, RunConfig, TaskConfig, build_mesh, check_control, check_model, run_config
from sip.sections import at_least, check
from sip.stages import session
from sip.stages.clock import Clock
from sip.structs import TrainState, UserError
from sip.tasks.supervised import (
    conversations,
    documents,
    preferences,
    reward_model,
    rewrites,
    self_made,
    thoughts,
    verdicts,
)
from sip.tasks.supervised.task import SupervisedTask
from sip.training import losses, optim, step

TASKS = {
    "documents": (documents.Config, documents.build),
    "conversations": (conversations.Config, conversations.build),
    "self_made": (self_made.Config, self_made.build),
    "thoughts": (thoughts.Config, thoughts.build),
    "verdicts": (verdicts.Config, verdicts.build),
    "rewrites": (rewrites.Config, rewrites.build),
    "preferences": (preferences.Config, preferences.build),
    "reward_model": (reward_model.Config, reward_model.build),
}


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(RunConfig):
    """A supervised run."""

    task: TaskConfig  # what is learned; `name` is one of TASKS
    evals: ground_truth.EvalConfig
    z_loss: float = 0.0  # weight of the z-loss, relative to its cross-entropy

    def __post_init__(self):
        super().__post_init__()
        self.checkpoint.check(self.evals.every_steps)
        check("", self, z_loss=at_least(0, most=1))
        if self.evals.control and not self.task.continues():
            raise UserError("evals.control: needs continuations, which this task does not write")
        if self.evals.judge and not self.task.continues():
            raise UserError("evals.judge: compares continuations, which this task does not write")
        self.task.check(self)

    @property
    def scores(self):
        """True for a reward model."""
        return self.task.scores

    def sources(self):
        """The parameters to start from, the evaluation's baseline and what the task reads."""
        return super().sources() | self.evals.sources() | self.task.sources()

    def splits(self):
        """The documents to learn from, and those of the final evaluation."""
        held_out = self.task.continues() or isinstance(self.task, conversations.ChatConfig)
        own = {"evals.split": self.evals.split} if held_out else {}
        return super().splits() | own

    def reads(self):
        """The files that the task reads."""
        return self.task.reads()

    def needs_truth(self):
        """The task's key that needs a ground truth."""
        return self.task.needs_truth() or self.evals.needs_truth()

    def needs_thinker(self):
        """The task's key that needs a rule that thinks."""
        return self.task.needs_thinker()

    def figures(self, truth):
        """Names of the figures of the task's evaluations."""
        return self.task.figures(truth)

    def continued(self):
        """The evaluation, if the task's writes continuations."""
        return self.evals if self.task.continues() else None

    def reach(self):
        """Raises UserError if a server or file that the task needs is not there."""
        self.task.reach()
        self.evals.reach()

    def judges(self):
        """The judges of the task and the evaluation."""
        own = {"evals.judge": self.evals.judge} if self.evals.judge else {}
        return self.task.judges() | own

    def words(self):
        """The aspects of the task's labels."""
        return self.task.words()

    def symbols(self):
        """The control tokens of the task and the evaluation."""
        return self.task.symbols() | self.evals.symbols()

    def check_cut(self, cut):
        """Raises UserError if the task has no room for suffixes of this length."""
        self.task.check_cut(self, cut)
        check_control(self.model, cut, bool(self.evals.control), "evals.control")


def resolve(config, name: str) -> SupervisedConfig:
    """`config.runs[name]` as frozen dataclasses. Raises UserError naming the key that is wrong."""
    return run_config(SupervisedConfig, config, name, TASKS)


def train(run: Run, profile: str = "") -> dict[str, Any]:
    """Trains the run, resuming it if it was begun; writes its evaluation and returns it.

    `profile` is a directory for a trace of a few steps; empty for none.
    """
    c = resolve(run.config, run.name)
    clock = Clock(run.directory)
    mesh = build_mesh(c)
    check_model(c.model, run.cut, run.tokenizer)
    tx = optim.build(c.optim)
    session.start_dir(run, c)  # a missing one is an error before the task reads anything
    task = TASKS[c.task.name][1](run, c, mesh)
    how: Any = dict(reference=task.reference, profile=profile)
    with session.opened(run, c, clock, mesh, tx, **how) as (s, state):
        update = make_update(c, tx, task.terms, task.weights)
        for done in range(s.first + 1, c.steps + 1):
            with s.meter.phase("data"):
                batch = task.batch(done - 1)
            state, new = update(state, put_batch(mesh, batch))
            s.pending.append(new)
            s.meter.count(batch)
            session.log(s, done, state, batch)
            figures = _compared(task, task.during, state)
            session.evaluate(s, done, c.evals.every_steps, state.params, figures)
            session.end_step(s, done, state)
        session.check_stopped(s)
    return _compared(task, task.finish, state)(state.params)


def _compared(task: SupervisedTask, figures: Callable[..., dict], state: TrainState):
    """Binds an evaluation to the reference if the task has one."""
    return functools.partial(figures, reference=step.frozen(state)) if task.reference else figures


def make_update(c: SupervisedConfig, tx, terms: step.Terms, weights: dict[str, float]):
    """The update of the run."""
    every = losses.balanced(c.model, losses.constant(tuple(sorted(weights.items())), c.z_loss))
    return step.make_update(terms, tx, every, microbatches=c.microbatches)
