"""A supervised task: batches, loss terms and an evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sip.structs import Params
from sip.training import losses, step


@dataclass(frozen=True)
class SupervisedTask:
    """What a supervised run learns from, and how it is evaluated."""

    batch: Callable[[int], Any]  # step, from 0 -> host arrays
    terms: step.Terms
    weights: dict[str, float]  # of the terms
    during: Callable[[Params], dict[str, float]]  # evaluation during the run, names as in the log
    finish: Callable[[Params], dict[str, Any]]  # evaluation at the end: writes and returns it


def tokens_loss(c) -> tuple[step.Terms, dict[str, float]]:
    """Terms and weights of next-token prediction, for a supervised run `c`."""
    return losses.tokens_terms(c.model, c.z_loss), {"ce": 1.0}
