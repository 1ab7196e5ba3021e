"""Preference learning on given pairs: offline DPO, length-normalised DPO, IPO and SimPO."""

import functools
from dataclasses import dataclass

import jax

from sip.evals import ground_truth
from sip.models.config import ModelConfig
from sip.run import Run
from sip.tasks import pairs, shown
from sip.tasks.pairs import PairTaskConfig
from sip.tasks.supervised.task import SupervisedTask
from sip.training import losses, step
from sip.training.losses import PairLossConfig

FIGURES = ("accuracy", "margin", "chosen_logp", "rejected_logp", "dpo", "pairs")


@dataclass(frozen=True, kw_only=True)
class Config(PairTaskConfig):
    """The task "preferences": the policy learns to prefer chosen answers. Raises UserError."""

    loss: PairLossConfig

    def continues(self):
        """Pairs of a corpus's continuations are about continuing it."""
        return self.labels is not None

    def figures(self, truth):
        """Names of the figures of the evaluation on held-out pairs, and by continuations."""
        own = tuple(f"eval/{name}" for name in FIGURES)
        return (*own, *ground_truth.figures(truth)) if self.continues() else own


@functools.cache
def _program(cfg: ModelConfig, loss: PairLossConfig):
    """The jitted (params, reference, batch) -> (terms, metrics)."""
    return jax.jit(losses.pair_terms(cfg, loss))


def loss(c) -> tuple[step.Terms, dict[str, float]]:
    """Terms and weights of the loss on pairs, for a supervised run `c`."""
    return losses.pair_terms(c.model, c.task.loss), c.task.loss.weights


def build(run: Run, c, mesh) -> SupervisedTask:
    """Builds the task: pairs, evaluated by the loss and the accuracy of the implicit reward on
    held-out pairs. Pairs of a corpus's continuations are also evaluated by greedy continuations; of
    others a few greedy answers can be read. `c` is the config of a supervised run."""
    wanted: PairLossConfig = c.task.loss
    found = pairs.made(run, c, mesh, end=False)

    def figures(params, reference, part):
        program = _program(c.model, wanted)
        return pairs.figures(program, found, part, mesh, c.batch, params, reference)

    how = run, c.evals, c.model, mesh, c.log.samples
    suite = ground_truth.suite(*how) if c.task.continues() else None
    prompts = (row.prompt for row in found.parts["validation"])
    show = shown.answers(run, c, mesh, prompts, pairs.stops(run, c.task))

    def during(params, reference=None):
        own = {f"eval/{k}": v for k, v in figures(params, reference, "validation").items()}
        return {**own, **(show(params) if suite is None else ground_truth.during(suite, params))}

    def finish(params, reference=None):
        own = figures(params, reference, "test")
        return run.write_eval(own) if suite is None else ground_truth.finish(suite, params, **own)

    return SupervisedTask(
        lambda at: found.batch(at, c.batch, seed=run.seed),
        *loss(c),
        during,
        finish,
        reference=wanted.reference,
    )
