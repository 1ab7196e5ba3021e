"""Shared parts of the three training loops: opening a run, logging, evaluating, saving, stopping.

with session.opened(run, c, clock, mesh, tx, reference=False) as (s, state):
    for done in range(s.first + 1, c.steps + 1):
        ...                                  # the stage's own: a batch, an update
        session.log(s, done, state, batch)
        session.evaluate(s, done, c.evals.every_steps, state.params, figures)
        session.end_step(s, done, state)     # saves; raises Stopped after SIGTERM or Ctrl-C
    session.check_stopped(s)
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from etils import epath

from sip import metrics, processes, workdir
from sip.data import files
from sip.evals.continuations import SAMPLES
from sip.hf import configs
from sip.loading import load_params, source_dir
from sip.models import decoder
from sip.models.config import ModelConfig
from sip.models.lora import OFF, LoraConfig
from sip.run import Run, RunConfig, keep_tokenizer
from sip.stages import alarms, candidate_log, inputs, notices
from sip.stages.clock import Clock
from sip.structs import Params, TrainState, UserError
from sip.training import checkpoints, loop, sinks, step

SAMPLES_FILE = "samples.jsonl"  # greedy continuations at each evaluation


@dataclass(frozen=True)
class Session:
    """A run in training: everything that is open while it trains."""

    run: Run
    c: RunConfig
    first: int  # steps done before this session
    pending: list  # metrics of steps not yet written; on devices, so that no step waits for them
    manager: Any  # checkpoint manager (Orbax)
    stop: Any  # loop.Stop, true once the run is asked to stop
    writer: metrics.Writer
    candidates: candidate_log.CandidateLog
    samples: metrics.StepLines
    alarms: metrics.StepLines
    profiler: loop.Profiler
    clock: Clock
    meter: loop.Meter = field(default_factory=loop.Meter)
    noticed: set = field(default_factory=set)  # kinds of notices that were printed


@contextlib.contextmanager
def opened(
    run: Run, c: RunConfig, clock: Clock, mesh, tx, *, reference: bool, profile: str = ""
) -> Iterator[tuple[Session, TrainState]]:
    """Opens checkpoints, signal handlers, metrics and profiler, and makes or restores the state.

    Yields the session and the state at step `first`. `clock` has counted since the stage began;
    `profile` is a directory for a trace, or empty.
    """
    init_from = start_dir(run, c)
    inputs.check(run, c)
    processes.on_lead(lambda: _say_ignored(run, c))
    with (
        jax.set_mesh(mesh),
        loop.saving(run.directory, c.checkpoint) as manager,
        loop.stop_on_signals() as stop,
        contextlib.ExitStack() as stack,
    ):
        state, first, pending = start_state(
            manager,
            c.model,
            tx,
            mesh,
            seed=run.seed,
            init_from=init_from,
            reference=reference,
            adapter=c.lora,
        )
        keep_tokenizer(run, run.directory)
        clock.resumed(first)
        writer = metrics.Writer(
            run.directory,
            name=run.name,
            steps=c.steps,
            resume_step=first,
            progress=c.log.progress,
            sinks=sinks.opened(c.log, run.directory, run.name, dataclasses.asdict(c), first),
            aliases=c.log.aliases,
        )
        stack.enter_context(contextlib.closing(writer))
        candidates = candidate_log.CandidateLog(run.directory, c.log, first)
        samples = metrics.StepLines(epath.Path(run.directory) / SAMPLES_FILE, first)
        profiler = stack.enter_context(contextlib.closing(loop.Profiler(profile)))
        # Nothing here may keep the state alive: its buffers are donated to the first update.
        handed = [state]
        del state
        raised = metrics.StepLines(epath.Path(run.directory) / alarms.FILE, first)
        files = writer, candidates, samples, raised
        s = Session(run, c, first, pending, manager, stop, *files, profiler, clock)
        yield s, handed.pop()


def _say_ignored(run: Run, c: RunConfig) -> None:
    """Says which files of folders are not read, since their names do not end like JSON Lines."""
    for line in (line for path in c.reads() for line in files.ignored(path, "jsonl")):
        run.say(line)


def log(
    s: Session,
    done: int,
    state: TrainState,
    batch,
    *,
    last: int = 0,
    more: Mapping[str, float] | None = None,
) -> None:
    """Writes the metrics since the last line if a line is due after step `done`.

    `last` is the run's last step, if it differs from the config's; `more` are further metrics.
    """
    if not loop.due(done, s.c.log.every_steps, last or s.c.steps):
        return
    with s.meter.phase("update"):
        figures = loop.ratios(s.pending)
        steps = last or s.c.steps
        loop.check(state, batch, figures, s.c.checkpoint, steps, s.manager.latest_step())
    s.writer.write(done, {**figures, **s.meter.read(), **(more or {})})
    s.pending.clear()
    for kind, said in notices.notices(figures).items():
        if kind not in s.noticed:  # once per run: the log goes on showing it
            s.writer.say(f"{s.run.name}: step {done}: {said}")
            s.noticed.add(kind)


def evaluate(
    s: Session,
    done: int,
    every_steps: int,
    params: Params,
    figures: Callable[[Params], Mapping[str, Any]],
    *,
    last: int = 0,
) -> Mapping[str, float] | None:
    """Writes `figures(params)` and keeps the best parameters if an evaluation is due after step
    `done`. With `every_steps` 0 it never is. Returns the figures; None if it was not due.

    Texts among the figures (SAMPLES) are written to samples.jsonl: {"step", "prompt", "text"}.
    """
    if not every_steps or not loop.due(done, every_steps, last or s.c.steps):
        return None
    with s.meter.phase("evaluate"):
        found = dict(figures(params))
        texts = found.pop(SAMPLES) if SAMPLES in found else []
        s.writer.write(done, found)
        s.samples.write({"step": done, "prompt": p, "text": text} for p, text in texts)
        s.writer.texts(done, texts)
        if s.c.log.progress:
            s.writer.say(f"{s.run.name}: evaluation at step {done}: {notices.evaluation(found)}")
        keep_best(s.run, s.c, params, found, done)
    return found


def alarm(s: Session, done: int, cfg: alarms.WatchConfig, watched: alarms.Watched):
    """Raises the alarm of the watch for reward hacking if one is due after step `done`.

    It is a line on stderr, a line of alarms.jsonl and the metric watch/alarm. Returns the state.
    """
    watched, found = alarms.raised(cfg, watched, done)
    if found is not None:
        s.writer.say(f"{s.run.name}: alarm at step {done}: {found.said}")
        s.alarms.write([dataclasses.asdict(found)])
        s.pending.append({"watch/alarm": (1.0, 1.0)})
    return watched


def end_step(
    s: Session,
    done: int,
    state: TrainState,
    *,
    last: int = 0,
    more: Mapping[str, Any] | None = None,
    begun: Any = None,
) -> None:
    """Saves a checkpoint if one is due after step `done` or the run is asked to stop.

    Nothing is saved while updates are skipped, or steps that change nothing would displace the last
    good checkpoints. The last step is saved in any case: it has the run's parameters.
    `more` is added to the checkpoint's record, `begun` are rollouts of a step that has begun.
    Raises loop.Stopped once the run is saved, if it was asked to stop.
    """
    asked = bool(s.stop)  # read once: a signal between two reads would stop without saving
    final = last or s.c.steps
    due = asked or loop.due(done, s.c.checkpoint.every_steps, final)
    if due and (done == final or not int(state.skipped_in_row)):
        with s.meter.phase("checkpoint"):
            record = {**s.run.record(s.c.model, s.pending), **(more or {})}
            checkpoints.save(s.manager, state, record, begun)
        s.clock.save()
    s.profiler.step(state)
    if asked:
        raise loop.Stopped(f"{s.run.name}: stopped after step {done} of {s.c.steps}")


def check_stopped(s: Session) -> None:
    """Raises loop.Stopped if the run was asked to stop after its last step was saved."""
    if s.stop:
        raise loop.Stopped(f"{s.run.name}: stopped before its evaluation")


def start_dir(run: Run, c: RunConfig) -> str:
    """The directory that the run's parameters start from; empty for fresh parameters."""
    return source_dir(run.workdir, c.init_from) if c.init_from else ""


def start_state(
    manager,
    cfg: ModelConfig,
    tx,
    mesh,
    *,
    seed: int,
    init_from: str,
    reference: bool,
    adapter: LoraConfig = OFF,
) -> tuple[TrainState, int, list]:
    """State, step and unwritten metrics to continue from: (1) the run's own last checkpoint that
    is not damaged, (2) `init_from`, (3) fresh parameters.

    The reference of a fresh state is its initial parameters; with LoRA it is the frozen base.
    """
    if manager.latest_step() is not None:
        abstract = step.abstract_state(cfg, tx, mesh, reference=reference, adapter=adapter)
        state, kept = checkpoints.restore_last(manager, abstract)
        return state, int(state.step), [kept["pending"]]
    made = fresh_state(
        cfg, tx, mesh, seed=seed, init_from=init_from, reference=reference, adapter=adapter
    )
    return made, 0, []


def fresh_state(
    cfg: ModelConfig,
    tx,
    mesh,
    *,
    seed: int,
    init_from: str,
    reference: bool,
    adapter: LoraConfig = OFF,
) -> TrainState:
    """The state at step 0; the same arguments give the same state."""
    if not init_from:
        return step.init_state(cfg, tx, mesh, seed, reference=reference)
    params, found = load_params(init_from, mesh, "int8" if adapter.int8 else cfg.param_dtype)
    check_same_model(found, cfg, init_from)
    if configs.exists(init_from):
        configs.check_same(found, cfg, init_from)
    if found.layers < cfg.layers:
        params = decoder.deepen(params, cfg)
    if cfg.scalar and not found.scalar:
        params = decoder.with_score(params, cfg, jax.random.key(seed))
    if adapter.rank:
        return step.adapted_state(params, cfg, tx, mesh, seed, adapter=adapter)
    return step.state_of(params, cfg, tx, mesh, reference=reference)


def check_same_model(found: ModelConfig, cfg: ModelConfig, init_from: str) -> None:
    """Raises UserError, naming the fields that differ, if the shapes of the two models differ in
    more than layers that the config adds, or the head of a reward model."""
    found = dataclasses.replace(found, scalar=True) if cfg.scalar else found
    if found == cfg or (_widths(found) == _widths(cfg) and found.layers <= cfg.layers):
        return
    differ = [
        f"{key} {theirs} there, {getattr(cfg, key)} in the config"
        for key, theirs in vars(found).items()
        if theirs != getattr(cfg, key)
    ]
    raise UserError(f"init_from {init_from}: another model: {'; '.join(differ)}")


@functools.cache
def _widths(cfg: ModelConfig):
    """Shapes of all parameters without the axis of layers."""
    shapes = jax.eval_shape(lambda: decoder.init(cfg, jax.random.key(0)))
    layers = jax.tree.map(lambda x: x.shape[1:], shapes.pop("blocks"))
    return layers, jax.tree.map(lambda x: x.shape, shapes)


def keep_best(
    run: Run, c: RunConfig, params: Params, figures: Mapping[str, float], done: int
) -> None:
    """Keeps the parameters of step `done` in RUN_DIR/best if the figure that `checkpoint.best`
    names is better than ever before.

    Of equal figures the first is kept; a figure that is not finite never is. RUN_DIR/best is read
    like a run (`init_from=NAME/best`). Raises UserError if there is no figure of that name.
    """
    wanted = c.checkpoint.best
    if not wanted:
        return
    if wanted not in figures:
        raise UserError(f"checkpoint.best {wanted!r} is none of {', '.join(sorted(figures))}")
    value = float(figures[wanted])
    if not math.isfinite(value):
        return
    sign = -1 if c.checkpoint.lowest else 1
    directory = _best_dir(run)
    if checkpoints.exists(directory):
        before = checkpoints.record(directory)["best"]
        if sign * before["value"] >= sign * value:
            return
    best = {"metric": wanted, "value": value, "step": done}
    checkpoints.save_params(directory, params, {**run.record(c.model, []), "best": best}, done)
    keep_tokenizer(run, directory)


def best(run: Run, mesh) -> tuple[Params, int] | None:
    """Loads the best parameters of a run. Returns (parameters, step); None if none were kept."""
    directory = _best_dir(run)
    if not checkpoints.exists(directory):
        return None
    return load_params(directory, mesh)[0], int(checkpoints.record(directory)["best"]["step"])


def _best_dir(run: Run) -> str:
    return workdir.run_dir(run.workdir, f"{run.name}/{workdir.BEST}")
