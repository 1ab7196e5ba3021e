"""The supervised loop: next-token pretraining, a judge's verdicts, a rewriter's rewrites."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from sip import metrics, rewriter, setup
from sip.clock import Clock
from sip.data import pipeline
from sip.evals import continuations, ground_truth
from sip.judge import labels, prompts
from sip.mesh import put_batch
from sip.stages import best, labelled, rewrites
from sip.stages.rewrites import RewriteConfig
from sip.structs import Params, UserError
from sip.textgen import Local
from sip.training import checkpoints, loop, losses, optim, step

EXAMPLES, TOKENS = ("documents", "verdicts", "rewrites"), ("all", "suffix")


@dataclass(frozen=True)
class LabelConfig(labelled.LabelConfig):
    """Labelled candidates, and the marks of their sentences."""

    marks: dict[str, str] = field(default_factory=dict)  # aspect -> the one that grades sentences
    marks_weight: float = 1.0  # of their loss, beside the verdicts'


@dataclass(frozen=True, kw_only=True)
class RunConfig(setup.RunConfig):
    """A supervised run."""

    examples: str  # documents | verdicts | rewrites
    tokens: str  # that count, of documents: all | suffix
    evals: ground_truth.EvalConfig
    labels: LabelConfig | None = None  # verdicts
    rewrites: RewriteConfig | None = None
    z_loss: float = 0.0  # of each cross-entropy, in its weight

    def __post_init__(self):
        super().__post_init__()
        self.checkpoint.check(self.evals.every_steps)
        if self.examples not in EXAMPLES:
            raise UserError(f"examples must be one of {EXAMPLES}, not {self.examples!r}")
        if self.tokens not in TOKENS:
            raise UserError(f"tokens must be one of {TOKENS}, not {self.tokens!r}")
        if self.z_loss < 0:
            raise UserError(f"z_loss must not be negative, not {self.z_loss}")
        for kind, key in (("verdicts", "labels"), ("rewrites", "rewrites")):
            if (self.examples == kind) != (getattr(self, key) is not None):
                raise UserError(f"{key}: wanted by examples {kind!r}, and by no other")

    def sources(self):
        """init_from, the baseline of the evaluation, the run whose rollouts are labelled."""
        found = {**super().sources(), "evals.baseline": self.evals.baseline}
        return {**found, **self.labels.sources()} if self.labels else found


def resolve(config, name: str) -> RunConfig:
    """`config.runs[name]` as frozen dataclasses. Raises UserError naming what is wrong."""
    return setup.run_config(RunConfig, config, name)


@dataclass(frozen=True)
class Task:
    """What to learn from, and how to see whether it was learned."""

    batch: Callable[[int], Any]  # step -> host arrays
    terms: step.Terms
    weights: dict[str, float]
    during: Callable[[Params], dict[str, float]]
    finish: Callable[[Params], dict[str, float]]


def run(config, name: str, workdir: str, profile: str = "") -> dict[str, float]:
    """Trains `config.runs[name]`, resuming if it was begun; returns and writes its evaluation."""
    c = resolve(config, name)
    directory = setup.run_dir(workdir, name)
    clock = Clock(directory)
    mesh = setup.build_mesh(c)
    tokenizer = setup.open_tokenizer(config, workdir)
    corpus = setup.corpus(config, c.split, workdir, tokenizer)
    cfg = c.model
    setup.check_model(cfg, corpus.cut, tokenizer)
    tx = optim.build(c.optim)
    init_from = setup.source_dir(workdir, c.init_from) if c.init_from else ""
    make = TASKS[c.examples]
    task = make(config, name, c, workdir, corpus, mesh, tokenizer)

    with (
        jax.set_mesh(mesh),
        loop.saving(directory, c.checkpoint) as manager,
        loop.stop_on_signals() as stop,
        contextlib.ExitStack() as opened,
    ):
        state, first, pending = setup.start_state(
            manager,
            cfg,
            tx,
            mesh,
            seed=config.seed,
            init_from=init_from,
            reference=False,
            adapter=c.lora,
        )
        update = make_update(c, tx, task.terms, task.weights)
        setup.keep_tokenizer(config, workdir, directory)
        clock.resumed(first)
        writer = opened.enter_context(
            contextlib.closing(
                metrics.Writer(
                    directory,
                    name=name,
                    steps=c.steps,
                    resume_step=first,
                    tensorboard=c.log.tensorboard,
                    progress=c.log.progress,
                )
            )
        )
        profiler = opened.enter_context(contextlib.closing(loop.Profiler(profile)))
        meter = loop.Meter()
        for done in range(first + 1, c.steps + 1):
            with meter.phase("data"):
                batch = task.batch(done - 1)
            state, new = update(state, put_batch(mesh, batch))
            pending.append(new)
            meter.count(batch)
            if loop.due(done, c.log.every_steps, c.steps):
                with meter.phase("update"):
                    figures = loop.ratios(pending)
                    loop.check(state, batch, figures, c.checkpoint)
                writer.write(done, {**figures, **meter.read()})
                pending.clear()
            if c.evals.every_steps and loop.due(done, c.evals.every_steps, c.steps):
                with meter.phase("evaluate"):
                    writer.write(done, held := task.during(state.params))
                    best.keep(config, name, workdir, c, state.params, held, done)
            asked = bool(stop)
            if asked or loop.due(done, c.checkpoint.every_steps, c.steps):
                with meter.phase("checkpoint"):
                    checkpoints.save(manager, state, setup.record(config, name, cfg, pending))
                clock.save()
            profiler.step(state)
            if asked:
                raise loop.Stopped(f"{name}: stopped after step {done} of {c.steps}")
    if stop:
        raise loop.Stopped(f"{name}: stopped before its evaluation")
    return task.finish(state.params)


def make_update(c: RunConfig, tx, terms: step.Terms, weights: dict[str, float]):
    """The jitted update of the run."""
    every = losses.balanced(c.model, lambda _: losses.with_z(weights, c.z_loss))
    return step.make_update(terms, tx, every, microbatches=c.microbatches)


def tokens_loss(c: RunConfig) -> tuple[step.Terms, dict[str, float]]:
    """Terms and weights of next-token prediction."""
    return losses.tokens_terms(c.model, c.z_loss), {"ce": 1.0}


def documents_task(config, name, c: RunConfig, workdir, corpus, mesh, tokenizer) -> Task:
    """Next-token prediction on chunks; the tokens that count are all, or the suffix's."""
    batches = pipeline.Batches(corpus.chunks, batch=c.batch, seed=config.seed)

    def batch(at: int):
        rows = batches[at]
        mask_BT = rows["mask_BT"]
        suffix_BT = np.arange(mask_BT.shape[1]) >= rows["fork_B"][:, None]
        counted_BT = mask_BT & suffix_BT if c.tokens == "suffix" else mask_BT
        return continuations.trunk_only(rows["tokens_BT"], mask_BT), counted_BT

    suite = ground_truth.suite(config, c.evals, name, workdir, c.model, mesh, tokenizer)
    return Task(
        batch,
        *tokens_loss(c),
        lambda params: ground_truth.during(suite, params),
        lambda params: ground_truth.finish(suite, params),
    )


def verdicts_task(config, name, c: RunConfig, workdir, corpus, mesh, tokenizer) -> Task:
    """Verdict tokens after a judge's prompts, on labelled candidates."""
    wanted: Any = c.labels
    cfg = c.model
    aspects = [prompts.load(a) for a in wanted.per_prefix]
    for aspect in aspects:
        prompts.check_options(tokenizer, aspect)
    grades = {aspect: prompts.load(name) for aspect, name in wanted.marks.items()}
    made = labelled.made(
        config,
        wanted,
        aspects,
        corpus,
        workdir,
        mesh,
        tokenizer,
        max_len=cfg.max_len,
        grades=grades,
    )

    def batch(at: int):
        return {a: trees.batch(at, c.batch, seed=config.seed) for a, trees in made.examples.items()}

    def accuracy(params, split):
        judge = Local(params, cfg, tokenizer, mesh)
        return loop.ratios([labels.accuracy(judge, made.held_out[split])])

    return Task(
        batch,
        losses.verdict_terms(cfg, c.z_loss),
        {
            **dict.fromkeys(wanted.per_prefix, 1.0),
            **{f"{aspect}/marks": wanted.marks_weight for aspect in wanted.marks},
        },
        lambda p: {f"eval/{k}": v for k, v in accuracy(p, "validation").items()},
        lambda p: labelled.write_accuracy(workdir, name, accuracy(p, "test")),
    )


def rewrites_task(config, name, c: RunConfig, workdir, corpus, mesh, tokenizer) -> Task:
    """The ground truth's rewrites after a rewriter's prompts; what is evaluated is greedy."""
    wanted: Any = c.rewrites
    cfg, words = c.model, corpus.cut.suffix
    prompt = rewriter.load(wanted.prompt)
    truth = _truth(corpus, "rewrites: this corpus has no ground truth to write them")
    asked = continuations.prompts(corpus.chunks, range(wanted.documents), tokenizer)
    examples = rewrites.make(truth, tokenizer, prompt, asked, words=words, max_len=cfg.max_len)

    def figures(params, split):
        held = setup.corpus(config, split, workdir, tokenizer)
        return rewrites.evaluate(
            params, cfg, mesh, tokenizer, prompt, held, held_out=wanted.held_out, batch=32
        )

    return Task(
        lambda at: examples.batch(at, c.batch, seed=config.seed),
        *tokens_loss(c),
        lambda p: {f"eval/{k}": v for k, v in figures(p, "validation").items()},
        lambda p: rewrites.write_figures(workdir, name, figures(p, "test")),
    )


def _truth(corpus, message: str):
    if corpus.documents.truth is None:
        raise UserError(message)
    return corpus.documents.truth


TASKS = {"documents": documents_task, "verdicts": verdicts_task, "rewrites": rewrites_task}
