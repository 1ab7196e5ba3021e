"""The self-improving loop: candidates are written, judged, and the policy learns from the choice.

    collect (host)   prefix, suffix -> rollouts, rewrite -> verdicts -> chosen, rejected
    update (jitted)  ce_weight(step) * CE(suffix) + objective

arXiv 2601.21343, part 1. Which candidates exist and which of them is learned from is data, so the
paper's ablations are configs.
"""

import contextlib
from dataclasses import dataclass

import jax

from sip import metrics, remote, sampling, setup
from sip import rewriter as rewriters
from sip.data import pipeline
from sip.evals import ground_truth
from sip.judge import prompts, scoring
from sip.judge import recall as recalling
from sip.judge.schedules import ScheduleConfig
from sip.mesh import put_batch
from sip.stages import collect
from sip.structs import UserError
from sip.textgen import Local, ruled
from sip.training import checkpoints, loop, losses, optim, step

BACKENDS = ("local", "http", "rule", "truth")


@dataclass(frozen=True)
class JudgeConfig:
    """Who judges. Weights name the aspects, which are summed."""

    backend: str  # local | http | rule | truth
    weights: dict[str, float]
    http: remote.RemoteConfig = remote.RemoteConfig()  # http: which server, and how it is asked
    init_from: str = ""  # local: a run or a directory with a checkpoint
    rule: str = ""  # rule: its name
    min_mass: float = 0.5
    hard: bool = False
    batch: int = 16  # local: prefixes judged at a time
    reference: str = "suffix"  # suffix | rewrite: what aspects with a reference are shown
    recall: str = (
        ""  # how it is asked for notes on each prefix, before any verdict; empty: it isn't
    )
    schedule: ScheduleConfig = ScheduleConfig()  # who is compared, where judging is pairwise

    def __post_init__(self):
        if self.reference not in ("suffix", "rewrite"):
            raise UserError(f"judge.reference must be suffix or rewrite, not {self.reference!r}")
        if self.backend not in BACKENDS:
            raise UserError(f"judge.backend must be one of {BACKENDS}, not {self.backend!r}")
        if self.recall and self.backend in ("rule", "truth"):
            raise UserError(f"judge.recall: backend {self.backend} writes no notes")
        if self.batch < 1:
            raise UserError(f"judge.batch must be at least 1, not {self.batch}")
        if self.backend == "http":
            self.http.check_named()
            if not self.http.logprobs:
                raise UserError("http.logprobs must be at least 1: verdicts are read from them")


@dataclass(frozen=True, kw_only=True)
class RunConfig(setup.RunConfig):
    """A self-improving run: sections that have to fit each other."""

    candidates: collect.CandidateConfig
    judge: JudgeConfig
    rewriter: rewriters.RewriterConfig
    objective: losses.ObjectiveConfig
    sampling: sampling.SamplingConfig
    evals: ground_truth.EvalConfig

    def __post_init__(self):
        super().__post_init__()
        chosen, rejected = self.candidates.chosen, self.candidates.rejected
        if self.judge.reference == "rewrite" and not self.candidates.rewrite:
            raise UserError("judge.reference: there is no rewrite among the candidates")
        if self.objective.name == "dpo" and chosen == rejected:
            raise UserError(f"candidates: chosen and rejected are both {chosen!r}")
        if self.objective.name == "dr_grpo" and (
            chosen != "best" or min(k for _, k in self.candidates.rollouts) < 2
        ):
            raise UserError("candidates: dr_grpo learns from two or more judged rollouts")

    @property
    def judged(self) -> bool:
        """Whether anything hangs on a verdict."""
        pairs = self.objective.name == "dpo"
        return self.candidates.chosen == "best" or (pairs and self.candidates.rejected == "worst")

    def sources(self):
        """init_from, the baseline of the evaluation, the judge, the rewriter."""
        found = {**super().sources(), "evals.baseline": self.evals.baseline}
        if self.judged and self.judge.backend == "local":
            found["judge.init_from"] = self.judge.init_from
        if self.candidates.rewrite and self.rewriter.backend == "local":
            found["rewriter.init_from"] = self.rewriter.init_from
        return found

    def reach(self):
        """A judge behind HTTP answers."""
        if self.judged and self.judge.backend == "http":
            remote.check(self.judge.http)


def resolve(config, name: str) -> RunConfig:
    """`config.runs[name]` as frozen dataclasses. Raises UserError naming what is wrong."""
    return setup.run_config(RunConfig, config, name)


def run(config, name: str, workdir: str, profile: str = "") -> dict[str, float]:
    """Trains `config.runs[name]`, resuming if it was begun; returns and writes its evaluation."""
    c = resolve(config, name)
    directory = setup.run_dir(workdir, name)
    clock = setup.Clock(directory)
    mesh = setup.build_mesh(c)
    tokenizer = setup.open_tokenizer(config, workdir)
    corpus = setup.corpus(config, c.split, workdir, tokenizer)
    cfg = c.model
    setup.check_model(cfg, corpus.cut, tokenizer)
    tx = optim.build(c.optim)
    init_from = setup.source_dir(workdir, c.init_from) if c.init_from else ""
    fixed = build_policy(c, workdir, corpus, mesh, tokenizer, config.seed)
    suite = ground_truth.suite(config, c.evals, name, workdir, cfg, mesh, tokenizer)

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
            reference=c.objective.needs_reference,
        )
        update = step.make_update(
            losses.branch_terms(cfg, c.objective),
            tx,
            losses.branch_weights(c.objective),
            microbatches=c.microbatches,
        )
        setup.keep_tokenizer(config, workdir, directory)
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
            batch, collected = collect.collect(fixed, state.params, done - 1)
            state, new = update(state, put_batch(mesh, batch))
            pending.append({**collected, **new})
            meter.count(batch)
            if loop.due(done, c.log.every_steps, c.steps):
                loop.check_finite(state, c.checkpoint)
                writer.write(done, {**loop.ratios(pending), **meter.read()})
                pending.clear()
            if c.evals.every_steps and loop.due(done, c.evals.every_steps, c.steps):
                writer.write(done, ground_truth.during(suite, state.params))
            asked = bool(stop)
            if asked or loop.due(done, c.checkpoint.every_steps, c.steps):
                checkpoints.save(manager, state, setup.record(config, name, cfg, pending))
                clock.save()
            profiler.step(state)
            if asked:
                raise loop.Stopped(f"{name}: stopped after step {done} of {c.steps}")
    if stop:
        raise loop.Stopped(f"{name}: stopped before its evaluation")
    return ground_truth.finish(suite, state.params)


def build_policy(c: RunConfig, workdir, corpus, mesh, tokenizer, seed: int) -> collect.Policy:
    """What stays fixed; loads the judge and the rewriter."""
    truth = corpus.documents.truth
    return collect.Policy(
        c.model,
        mesh,
        tokenizer,
        pipeline.Batches(corpus.chunks, batch=c.batch, seed=seed),
        corpus.cut.suffix,
        c.candidates,
        c.objective,
        c.sampling,
        build_judge(c.judge, workdir, truth, mesh, tokenizer) if c.judged else None,
        build_rewriter(c.rewriter, workdir, corpus, mesh, tokenizer, seed)
        if c.candidates.rewrite
        else None,
        c.judge.reference,
        seed,
    )


def build_rewriter(wanted, workdir, corpus, mesh, tokenizer, seed: int) -> rewriters.Rewriter:
    """The rewriter of the `rewriter` section."""
    if wanted.backend == "truth":
        if corpus.documents.truth is None:
            raise UserError("rewriter.backend truth: this corpus has no ground truth")
        return rewriters.TruthRewriter(corpus.documents.truth, corpus.cut.suffix)
    source = setup.source_dir(workdir, wanted.init_from, "rewriter.init_from")
    return rewriters.LocalRewriter(
        *setup.load_params(source, mesh),
        tokenizer,
        mesh,
        prompt=rewriters.load(wanted.prompt),
        sampling=wanted.sampling(),
        seed=seed,
        batch=wanted.batch,
    )


def build_judge(wanted: JudgeConfig, workdir, truth, mesh, tokenizer) -> scoring.Judge:
    """The judge of the `judge` section."""
    if wanted.backend == "truth":
        if truth is None:
            raise UserError("judge.backend truth: this corpus has no ground truth")
        return scoring.TruthJudge(truth, wanted.weights, wanted.schedule)
    aspects = tuple(prompts.load(a) for a in wanted.weights)
    if wanted.backend == "local" or (wanted.backend == "http" and wanted.http.tokens):
        for aspect in aspects:
            prompts.check_options(tokenizer, aspect)
    recall = recalling.load(wanted.recall) if wanted.recall else None
    how = (aspects, wanted.weights, wanted.min_mass, wanted.hard, wanted.schedule, recall)
    if wanted.backend == "rule":
        return scoring.TextJudge(ruled(wanted.rule), *how)
    if wanted.backend == "http":
        server = remote.Remote(wanted.http, tokenizer)
        server.check()
        return scoring.TextJudge(server, *how, stats=server.stats)
    params, cfg = setup.load_params(
        setup.source_dir(workdir, wanted.init_from, "judge.init_from"), mesh
    )
    local = Local(params, cfg, tokenizer, mesh, batch=wanted.batch)
    return scoring.TextJudge(local, *how)
