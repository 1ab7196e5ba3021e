"""What every loop needs around its updates: stopping, resuming, profiling, giving up."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sip import metrics, processes
from sip.structs import Metrics, TrainState, Tree, UserError
from sip.training import checkpoints


@dataclass(frozen=True)
class CheckpointConfig:
    """How often a run is saved (and at its end), and how many saves are kept."""

    every_steps: int = 1000
    keep: int = 2
    best: str = ""  # a figure of the run's evaluations, by which its best parameters are kept too
    lowest: bool = False  # the best is the lowest
    max_skipped_in_row: int = 10  # non-finite updates in a row that end the run

    def __post_init__(self):
        if min(self.every_steps, self.keep, self.max_skipped_in_row) < 1:
            raise UserError("checkpoint: every_steps, keep, max_skipped_in_row must be at least 1")

    def check(self, evals_every: int) -> None:
        """Raises UserError where the best is wanted of a run that is never evaluated."""
        if self.best and not evals_every:
            raise UserError(f"checkpoint.best {self.best!r}: evals.every_steps is 0")


@dataclass(frozen=True)
class LogConfig:
    """Metrics are averaged over, and written every, `every_steps` updates."""

    every_steps: int = 10
    tensorboard: bool = True
    progress: bool = True

    def __post_init__(self):
        if self.every_steps < 1:
            raise UserError("log.every_steps must be at least 1")


class Stopped(Exception):
    """The run was asked to stop; its state is saved."""


def leave() -> None:
    """Raises Stopped where one of several processes was told to end. For times between two savings:
    a process that is alone is interrupted by the signal itself."""
    if processes.preempted():
        raise Stopped("stopped between two savings")


class Stop:
    """Whether SIGINT or SIGTERM came. A second Ctrl-C interrupts at once.

    It may come at any moment: a loop asks once per step, or it may stop without having saved. Of
    several processes one that is told to end is enough, and all hear of it at the same step.
    """

    def __init__(self):
        self._asked = False

    def __bool__(self):
        self._asked = processes.preempted() or self._asked
        return self._asked

    def _ask(self, signum, frame):
        del frame
        if self._asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turns SIGINT and SIGTERM into a flag that loops read between steps.

    With jax.distributed the runtime's own preemption notice must not be silenced: no handler then.
    """
    stop, before = Stop(), {}
    if not processes.is_distributed():
        with contextlib.suppress(ValueError):  # not the main thread: a notebook's or a test's
            for name in (signal.SIGINT, signal.SIGTERM):
                before[name] = signal.signal(name, stop._ask)
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@contextlib.contextmanager
def saving(run_dir: str, config: CheckpointConfig):
    """The run's checkpoint manager; pending saves are finished on the way out."""
    manager = checkpoints.manager(run_dir, keep=config.keep)
    try:
        yield manager
    finally:
        try:
            manager.wait_until_finished()
        finally:
            manager.close()


def due(step: int, every: int, last: int) -> bool:
    """Whether something that happens every `every` steps, and at the end, happens after `step`."""
    return step == last or (every > 0 and step % every == 0)


def check(
    state: TrainState, batch: Any, figures: dict[str, float], config: CheckpointConfig
) -> None:
    """Ends a run whose updates have been non-finite for too long, or whose processes have not the
    same batch or figures; checkpoints stay as they are."""
    processes.agree(int(state.step), (batch, np.array(sorted(figures.items()))))
    if int(state.skipped_in_row) >= config.max_skipped_in_row:
        raise UserError(
            f"loss or gradient was not finite in {int(state.skipped_in_row)} updates in a row "
            "(checkpoint.max_skipped_in_row); the last good checkpoint is intact"
        )


Phase = Callable[[str], contextlib.AbstractContextManager]


def unmeasured(name: str) -> contextlib.AbstractContextManager:
    """A phase that nobody measures."""
    del name
    return contextlib.nullcontext()


class Meter:
    """Tokens per second since it was last read, and where the time went.

    A phase is where the host waits: rollouts that were dispatched, and are awaited after the
    rewriter, are short in the log.
    """

    def __init__(self):
        self._tokens, self._since = 0, time.monotonic()
        self._phases: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the seconds of what is done inside to `name`."""
        began = time.monotonic()
        try:
            yield
        finally:
            before = self._phases.setdefault(name, 0.0)
            self._phases[name] = before + time.monotonic() - began

    def count(self, batch: Any) -> None:
        """Adds the tokens of all trunks and branches in a batch on the host."""
        trees = jax.tree.leaves(batch, is_leaf=lambda x: isinstance(x, Tree))
        self._tokens += sum(
            int(t.mask_BT.sum()) + int(t.mask_BCR.sum()) for t in trees if isinstance(t, Tree)
        )

    def read(self) -> dict[str, float]:
        """For the log: the speed, seconds, and the share of them that each phase took."""
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        shares = {f"speed/share/{name}": s / seconds for name, s in sorted(self._phases.items())}
        found = {"speed/tokens_per_sec": self._tokens / seconds, metrics.SECONDS: seconds, **shares}
        self._tokens, self._since = 0, now
        self._phases.clear()
        return found


class Profiler:
    """Writes a trace of `steps` steps, starting after `wait`, to `directory`; none if empty."""

    def __init__(self, directory: str, *, wait: int = 3, steps: int = 3):
        self._directory, self._wait, self._steps = directory, wait, steps
        self._seen, self._on = 0, False

    def step(self, state: TrainState) -> None:
        """To be called after each step."""
        if not self._directory:
            return
        self._seen += 1
        if self._seen == self._wait:
            jax.profiler.start_trace(self._directory)
            self._on = True
        elif self._on and self._seen == self._wait + self._steps:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Ends a trace that is still being written."""
        if self._on:
            jax.profiler.stop_trace()
            self._on = False


def totals(steps: Sequence[Metrics]) -> dict[str, tuple[float, float]]:
    """(total, denom) pairs summed over `steps`: what a checkpoint keeps of unwritten ones."""
    found: dict[str, tuple[float, float]] = {}
    for one in jax.device_get(steps):
        for key, (total, denom) in one.items():
            before = found.setdefault(key, (0.0, 0.0))
            found[key] = before[0] + float(total), before[1] + float(denom)
    return found


def ratios(steps: Sequence[Metrics]) -> dict[str, float]:
    """Averages of (total, denom) pairs summed over `steps`; what counted nothing is left out."""
    return metrics.values(totals(steps))
