"""Training a reward model: a decoder with a scalar head, by the Bradley-Terry loss on pairs.

The reward of an answer is read at its EOS, which is appended to every answer. A row of a batch is a
prompt with up to `together` answers and the given pairs among them (arXiv 2203.02155, section 3.5).
"""

import functools
from dataclasses import dataclass

import jax

from sip.models.config import ModelConfig
from sip.run import Run
from sip.sections import at_least, check
from sip.tasks import pairs
from sip.tasks.pairs import PairTaskConfig
from sip.tasks.supervised.task import SupervisedTask
from sip.training import losses, step

FIGURES = ("accuracy", "margin", "chosen_reward", "rejected_reward", "reward", "pairs")


@dataclass(frozen=True, kw_only=True)
class Config(PairTaskConfig):
    """The task "reward_model": a model learns to score chosen answers higher. Raises UserError."""

    together: int = 2  # most answers of a prompt in one row, with all given pairs among them
    margin_weight: float = 1.0  # factor of the pairs' field `margin`; 0: margins are not used
    centring_weight: float = 0.0  # weight of mean (r_chosen + r_rejected)^2 in the loss

    def __post_init__(self):
        super().__post_init__()
        weights = dict.fromkeys(("margin_weight", "centring_weight"), at_least(0))
        check("task", self, together=at_least(2), **weights)

    @property
    def scores(self):
        """The model has a scalar head."""
        return True

    def figures(self, truth):
        """Names of the figures of the evaluation on held-out pairs."""
        return tuple(f"eval/{name}" for name in FIGURES)


@functools.cache
def _program(cfg: ModelConfig, margin_weight: float):
    """The jitted (params, reference, batch) -> (terms, metrics)."""
    return jax.jit(losses.reward_terms(cfg, margin_weight=margin_weight))


def loss(c) -> tuple[step.Terms, dict[str, float]]:
    """Terms and weights of the loss of a reward model, for a supervised run `c`."""
    wanted: Config = c.task
    terms = losses.reward_terms(c.model, margin_weight=wanted.margin_weight)
    return terms, {"reward": 1.0, "centring": wanted.centring_weight}


def build(run: Run, c, mesh) -> SupervisedTask:
    """Builds the task: pairs, evaluated by accuracy on held-out pairs.

    `c` is the config of a supervised run.
    """
    wanted: Config = c.task
    found = pairs.together(run, c, mesh)

    def figures(params, part):
        program = _program(c.model, wanted.margin_weight)
        return pairs.figures(program, found, part, mesh, c.batch, params, None)

    return SupervisedTask(
        lambda at: found.batch(at, c.batch, seed=run.seed),
        *loss(c),
        lambda params: {f"eval/{k}": v for k, v in figures(params, "validation").items()},
        lambda params: run.write_eval(figures(params, "test")),
    )
