"""The interface of a supervised task: batches, loss terms and evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sip.structs import Params
from sip.training import losses, step


@dataclass(frozen=True)
class SupervisedTask:
    """A supervised task: batches, loss terms and evaluation."""

    batch: Callable[[int], Any]  # step (from 0) -> host arrays
    terms: step.Terms  # the jitted loss terms of a batch
    weights: dict[str, float]  # name of a term -> its weight in the loss
    during: Callable[[Params], dict[str, float]]  # evaluation during the run, by names in the log
    finish: Callable[[Params], dict[str, Any]]  # final evaluation; writes and returns its metrics


def tokens_loss(c) -> tuple[step.Terms, dict[str, float]]:
    """Terms and weights of next-token prediction, for a supervised run `c`."""
    return losses.tokens_terms(c.model, c.z_loss), {"ce": 1.0}
