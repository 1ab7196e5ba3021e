"""The interface of a supervised task: batches, loss terms and evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sip.structs import UserError
from sip.training import losses, step


@dataclass(frozen=True)
class SupervisedTask:
    """A supervised task: batches, loss terms and evaluation.

    With `reference` the loss compares with the parameters at the start of the run; `during` and
    `finish` then take them as the keyword `reference`. `during` may have texts to read (SAMPLES).
    """

    batch: Callable[[int], Any]  # step (from 0) -> host arrays
    terms: step.Terms  # the jitted loss terms of a batch
    weights: dict[str, float]  # name of a term -> its weight in the loss
    during: Callable[..., dict[str, Any]]  # params -> evaluation during the run, names in the log
    finish: Callable[..., dict[str, Any]]  # params -> final evaluation; writes and returns metrics
    reference: bool = False


def check_length(task, max_len: int) -> None:
    """Raises UserError if the rows of a task are longer than a model of `max_len` tokens, or too
    short for a prediction."""
    if not 2 <= task.width(max_len) <= max_len:
        raise UserError(f"task.length {task.length}: must be 2 to model.max_len, {max_len}")


def tokens_loss(c) -> tuple[step.Terms, dict[str, float]]:
    """Terms and weights of next-token prediction, for a supervised run `c`."""
    return losses.tokens_terms(c.model, c.z_loss), {"ce": 1.0}
