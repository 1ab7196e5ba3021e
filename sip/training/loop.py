"""Helpers of all training loops: stopping, saving, time measurement, profiling, giving up."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sip import metrics, processes, sections
from sip.sections import at_least, one_of
from sip.structs import Metrics, TrainState, Tree, UserError
from sip.training import checkpoints


@dataclass(frozen=True)
class CheckpointConfig:
    """The `checkpoint` section: when a run is saved and how many checkpoints are kept."""

    every_steps: int = 1000  # steps between saves; the last step is saved too
    keep: int = 2  # number of checkpoints kept
    best: str = ""  # metric of the run's evaluations by which best parameters are kept; "": none
    lowest: bool = False  # True: the lowest value of `best` is the best
    max_skipped_in_row: int = 10  # consecutive non-finite updates that end the run

    def __post_init__(self):
        sections.check(
            "checkpoint",
            self,
            every_steps=at_least(1),
            keep=at_least(1),
            max_skipped_in_row=at_least(1),
        )

    def check(self, evals_every: int) -> None:
        """Raises UserError if `best` is set but the run is never evaluated (`evals_every` 0)."""
        if self.best and not evals_every:
            raise UserError(
                f"checkpoint.best {self.best!r} needs evaluations, but evals.every_steps is 0"
            )

    def check_held_out(self, held_out: Collection, named: str) -> None:
        """Raises UserError if `best` is set but nothing is held out to evaluate on."""
        if self.best and not held_out:
            raise UserError(
                f"checkpoint.best {self.best!r} needs evaluations, but {named} has nothing in the "
                "part validation; use a larger file, or set checkpoint.best to ''"
            )


TRACKERS = ("", "wandb", "trackio")


@dataclass(frozen=True)
class LogConfig:
    """The `log` section. Metrics are written every `every_steps` updates, averaged over them."""

    every_steps: int = 10  # updates between two lines of metrics.jsonl
    tensorboard: bool = True  # write TensorBoard files too
    progress: bool = True  # show a progress bar on stderr
    candidates_every: int = 20  # updates between two records of candidates; also 1 and last; 0: off
    candidates_rows: int = 4  # prefixes, or prompts, of a record: the first ones of the batch
    candidates_bytes: int = 50_000_000  # bound of candidates.jsonl; every 2nd older record goes
    tracker: str = ""  # wandb | trackio (extra `track`); empty: none
    project: str = "sip"  # name of the project in the tracker
    aliases: bool = False  # TensorBoard and tracker also get TRL's names, such as clip_ratio
    samples: int = 4  # greedy texts of each evaluation in samples.jsonl; 0: off

    def __post_init__(self):
        sections.check(
            "log",
            self,
            every_steps=at_least(1),
            candidates_every=at_least(0),
            candidates_rows=at_least(1),
            candidates_bytes=at_least(1),
            samples=at_least(0),
            tracker=one_of(TRACKERS),
        )
        if self.tracker and not self.project:
            raise UserError(f"log.project is empty: name a project of {self.tracker}")

    @property
    def heard(self) -> int:
        """Number of prefixes of a batch whose judge's words are kept for the log."""
        return self.candidates_rows if self.candidates_every else 0


class Stopped(Exception):
    """The run was asked to stop, and its state is saved."""


def leave() -> None:
    """Raises Stopped if one of several processes was asked to end.

    To be called in phases without checkpoints (evaluation, labelling). A single process does not
    need it: there the signal itself interrupts.
    """
    if processes.preempted():
        raise Stopped("stopped between two checkpoints")


class Stop:
    """A flag that is true once SIGINT or SIGTERM arrived. A second Ctrl-C interrupts at once.

    A signal may arrive at any moment, so a loop reads the flag exactly once per step: a second read
    might differ, and the loop would stop without saving. With several processes a signal to one is
    enough, and the flag becomes true on all of them at the same step.
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
def stopping() -> Iterator[None]:
    """Turns SIGTERM and Ctrl-C outside the loops into Stopped: while a corpus or a tokenizer is
    made, a model is loaded, between runs, and in evaluations.

    The signal interrupts at once, and what is half made is dropped and made again next time. Some
    libraries turn the interruption into an error of their own; it is still a stop. With several
    processes JAX handles SIGTERM: see `leave`.
    """
    asked: list[int] = []

    def ask(signum, frame):
        del frame
        asked.append(signum)
        raise KeyboardInterrupt

    with _handling(ask):
        try:
            yield
        except Stopped:
            raise
        except BaseException as e:
            if not asked and not isinstance(e, KeyboardInterrupt):
                raise
            raise Stopped("stopped between two checkpoints") from None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turns SIGINT and SIGTERM into a flag that loops read between steps.

    With several processes no handler is installed: it would replace that of the JAX runtime, which
    turns SIGTERM into a preemption notice for all processes.
    """
    stop = Stop()
    with _handling(stop._ask):
        yield stop
    if stop._asked:  # after the last look at the flag: nothing else would notice
        raise Stopped("stopped between two checkpoints")


@contextlib.contextmanager
def _handling(handler) -> Iterator[None]:
    """Handles SIGINT and SIGTERM by `handler` in the block, if this is the only process."""
    before = {}
    if not processes.is_distributed():
        # Python sets handlers in the main thread only; in others (notebooks, tests) do without.
        with contextlib.suppress(ValueError):
            for name in (signal.SIGINT, signal.SIGTERM):
                before[name] = signal.signal(name, handler)
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@contextlib.contextmanager
def saving(run_dir: str, config: CheckpointConfig):
    """Opens the run's checkpoint manager; waits for pending saves on exit."""
    manager = checkpoints.manager(run_dir, keep=config.keep, alone=True)
    try:
        yield manager
    finally:
        try:
            manager.wait_until_finished()
        finally:
            manager.close()


def due(step: int, every: int, last: int) -> bool:
    """Returns True if an action due every `every` steps and at step `last` is due after `step`.

    With `every` 0 it is due at the end only.
    """
    return step == last or (every > 0 and step % every == 0)


def check(
    state: TrainState,
    batch: Any,
    figures: dict[str, float],
    config: CheckpointConfig,
    steps: int,
    saved: int | None,
) -> None:
    """Raises UserError if too many updates in a row were non-finite, or if processes differ.

    Too many are `max_skipped_in_row`, or all `steps` of the run. All processes must have the same
    `batch` and the same `figures` (metrics). `saved` is the step of the last checkpoint or None.
    """
    # int(state.step) waits for the device; this runs when a log line is due, not in every step.
    processes.agree(int(state.step), (batch, np.array(sorted(figures.items()))))
    if int(state.skipped_in_row) >= min(config.max_skipped_in_row, steps):
        kept = "there is no checkpoint" if saved is None else f"the last checkpoint, {saved}, is"
        raise UserError(
            "loss, gradient or new parameters were not finite in "
            f"{int(state.skipped_in_row)} updates in a row (checkpoint.max_skipped_in_row); {kept} "
            "from before them: lower optim.lr, or check the data and the parameters of init_from"
        )


Phase = Callable[[str], contextlib.AbstractContextManager]


def unmeasured(name: str) -> contextlib.AbstractContextManager:
    """Returns a phase that is not measured: a null context."""
    del name
    return contextlib.nullcontext()


class Meter:
    """Measures tokens per second, and the share of time per phase, since the last `read`.

    A phase counts the time the host spends in it, not the device: JAX dispatches asynchronously.
    Rollouts that run while the host waits for the rewriter therefore look short in the log.
    """

    def __init__(self):
        self._tokens, self._since = 0, time.monotonic()
        self._phases: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the wall-clock seconds spent inside to the phase `name`."""
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
        """Returns tokens per second, seconds, and each phase's share of them; starts anew."""
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        shares = {f"speed/share/{name}": s / seconds for name, s in sorted(self._phases.items())}
        found = {"speed/tokens_per_sec": self._tokens / seconds, metrics.SECONDS: seconds, **shares}
        self._tokens, self._since = 0, now
        self._phases.clear()
        return found


class Profiler:
    """Writes a profiler trace of `steps` steps to `directory`, after `wait` steps; "": no trace.

    The first steps are skipped since they compile.
    """

    def __init__(self, directory: str, *, wait: int = 3, steps: int = 3):
        self._directory, self._wait, self._steps = directory, wait, steps
        self._seen, self._on = 0, False

    def step(self, state: TrainState) -> None:
        """Starts or ends the trace if it is due. Call it after each step."""
        if not self._directory:
            return
        self._seen += 1
        if self._seen == self._wait:
            jax.profiler.start_trace(self._directory)
            self._on = True
        elif self._on and self._seen == self._wait + self._steps:
            jax.block_until_ready(state)  # or the trace ends before the dispatched steps have run
            self.close()

    def close(self) -> None:
        """Ends the trace if it is still being written."""
        if self._on:
            jax.profiler.stop_trace()
            self._on = False


def totals(steps: Sequence[Metrics]) -> dict[str, tuple[float, float]]:
    """Sums (total, denom) pairs over `steps`. A checkpoint stores this for unwritten metrics."""
    found: dict[str, tuple[float, float]] = {}
    for one in jax.device_get(steps):
        for key, (total, denom) in one.items():
            before = found.setdefault(key, (0.0, 0.0))
            # Strict JSON has no NaN: a checkpoint's record holds None instead.
            total = math.nan if total is None else float(total)
            found[key] = before[0] + total, before[1] + float(denom)
    return found


def ratios(steps: Sequence[Metrics]) -> dict[str, float]:
    """Returns averages total / denom over `steps`; metrics with denom 0 are left out."""
    return metrics.values(totals(steps))
