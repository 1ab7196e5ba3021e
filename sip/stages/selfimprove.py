"""The self-improving loop: candidates are written, judged, and the policy learns from the choice.

    collect (host)   prefix, suffix -> rollouts, rewrite -> verdicts -> chosen, rejected
    update (jitted)  ce_weight(step) * CE(suffix) + objective

arXiv 2601.21343, part 1. Which candidates exist and which of them is learned from is data, so the
paper's ablations are configs.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import jax

from sip import chat, metrics, processes, sampling, setup
from sip import rewriter as rewriters
from sip.clock import Clock
from sip.data import pipeline
from sip.evals import ground_truth
from sip.mesh import PartConfig, put_batch
from sip.stages import auditing, best, collect, judging
from sip.structs import TrainState, UserError
from sip.training import checkpoints, loop, losses, optim, step


@dataclass(frozen=True, kw_only=True)
class RunConfig(setup.RunConfig):
    """A self-improving run: sections that have to fit each other."""

    candidates: collect.CandidateConfig
    judge: judging.JudgeConfig
    audit: auditing.AuditConfig
    rewriter: rewriters.RewriterConfig
    objective: losses.ObjectiveConfig
    sampling: sampling.SamplingConfig
    evals: ground_truth.EvalConfig
    judge_mesh: PartConfig = PartConfig()  # of judge, proofreader, audit and rewriter
    staleness: int = 0  # 1: a step's rollouts are written before the update of the step before it

    def __post_init__(self):
        super().__post_init__()
        self.checkpoint.check(self.evals.every_steps)
        self._check_ahead()
        chosen, rejected = self.candidates.chosen, self.candidates.rejected
        if self.judge.reference == "rewrite" and not self.candidates.rewrite:
            raise UserError("judge.reference: there is no rewrite among the candidates")
        if self.objective.name == "dpo" and chosen == rejected:
            raise UserError(f"candidates: chosen and rejected are both {chosen!r}")
        if self.objective.name == "dr_grpo" and (
            chosen != "best" or min(k for _, k in self.candidates.rollouts) < 2
        ):
            raise UserError("candidates: dr_grpo learns from two or more judged rollouts")
        self.audit.check(judged=self.judged, rewrite=self.candidates.rewrite, batch=self.batch)

    def _check_ahead(self):
        if self.staleness not in (0, 1):
            raise UserError(f"staleness must be 0 or 1, not {self.staleness}")
        if self.staleness and not any(k for _, k in self.candidates.rollouts):
            raise UserError("staleness: there are no rollouts to write ahead")
        rewriting = self.candidates.rewrite and self.rewriter.backend == "local"
        asked = [self.judge] * self.judged + [self.audit.judge] * (self.audit.every_steps > 0)
        if self.judge_mesh.devices and not (rewriting or any(j.loads for j in asked)):
            raise UserError("judge_mesh.devices: there is no local judge or rewriter to run there")

    @property
    def apart(self):
        """Where judges and the rewriter run."""
        return self.judge_mesh

    @property
    def judged(self) -> bool:
        """Whether anything hangs on a verdict."""
        pairs = self.objective.name == "dpo"
        return self.candidates.chosen == "best" or (pairs and self.candidates.rejected == "worst")

    def sources(self):
        """init_from, the baseline of the evaluation, the judges, the rewriter."""
        found = {**super().sources(), "evals.baseline": self.evals.baseline}
        if self.judged:
            found |= self.judge.sources() | self.audit.sources()
        if self.candidates.rewrite and self.rewriter.backend == "local":
            found["rewriter.init_from"] = self.rewriter.init_from
        return found

    def reach(self):
        """Judges behind HTTP answer."""
        if self.judged:
            self.judge.reach()
        if self.audit.every_steps:
            self.audit.judge.reach()


def resolve(config, name: str) -> RunConfig:
    """`config.runs[name]` as frozen dataclasses. Raises UserError naming what is wrong."""
    return setup.run_config(RunConfig, config, name)


def run(config, name: str, workdir: str, profile: str = "") -> dict[str, float]:
    """Trains `config.runs[name]`, resuming if it was begun; returns and writes its evaluation."""
    c = resolve(config, name)
    directory = setup.run_dir(workdir, name)
    clock = Clock(directory)
    mesh, judge_mesh = setup.build_meshes(c)
    tokenizer = setup.open_tokenizer(config, workdir)
    corpus = setup.corpus(config, c.split, workdir, tokenizer)
    cfg = c.model
    setup.check_model(cfg, corpus.cut, tokenizer)
    tx = optim.build(c.optim)
    init_from = setup.source_dir(workdir, c.init_from) if c.init_from else ""
    fixed = build_policy(c, workdir, corpus, (mesh, judge_mesh), tokenizer, config.seed)
    suite = ground_truth.suite(config, c.evals, name, workdir, cfg, mesh, tokenizer)
    audits = auditing.kept(directory)

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
            adapter=c.lora,
        )
        update = make_update(c, tx)
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
        judged = self_judged(c, fixed, tx, init_from, workdir)
        meter = loop.Meter()
        last, reason = auditing.end(c.audit, audits, first, c.steps)
        ahead = collect.restored(fixed, state.params, manager, first) if c.staleness else None
        for done in range(first + 1, last + 1):
            here = ahead or collect.begin(fixed, state.params, done - 1, 0, meter.phase)
            ahead = None
            if c.staleness and done < c.steps:
                ahead = collect.begin(fixed, state.params, done, 1, meter.phase)
            batch, collected = collect.collect(judged(state), state.params, here, meter.phase)
            state, new = update(state, put_batch(mesh, batch))
            pending.append({**collected, **new})
            meter.count(batch)
            audits += auditing.new(c.audit, collected, done - 1, c.candidates.count(done - 1))
            last, reason = auditing.end(c.audit, audits, done, c.steps)
            if loop.due(done, c.log.every_steps, last):
                with meter.phase("update"):
                    figures = loop.ratios(pending)
                    loop.check(state, batch, figures, c.checkpoint)
                stopped = {"audit/stopped": 1.0} if reason else {}
                writer.write(done, {**figures, **meter.read(), **stopped})
                pending.clear()
            if c.evals.every_steps and loop.due(done, c.evals.every_steps, last):
                with meter.phase("evaluate"):
                    writer.write(done, held := ground_truth.during(suite, state.params))
                    best.keep(config, name, workdir, c, state.params, held, done)
            asked = bool(stop)
            if asked or loop.due(done, c.checkpoint.every_steps, last):
                kept = setup.record(config, name, cfg, pending) | auditing.plain(audits)
                with meter.phase("checkpoint"):
                    checkpoints.save(manager, state, kept, ahead and ahead.rollouts)
                clock.save()
            profiler.step(state)
            if asked:
                raise loop.Stopped(f"{name}: stopped after step {done} of {c.steps}")
            if reason:
                break
    if stop:
        raise loop.Stopped(f"{name}: stopped before its evaluation")
    if not reason:
        return ground_truth.finish(suite, state.params)
    if processes.lead():
        print(f"{name}: stopped early, after step {last} of {c.steps}: {reason}", flush=True)
    marks = {"stopped_early": reason, "stopped_early_after": last}
    return ground_truth.finish(suite, state.params, **marks)


def make_update(c: RunConfig, tx):
    """The jitted update of the run."""
    return step.make_update(
        losses.branch_terms(c.model, c.objective),
        tx,
        losses.balanced(c.model, losses.branch_weights(c.objective)),
        microbatches=c.microbatches,
    )


def build_policy(c: RunConfig, workdir, corpus, places, tokenizer, seed: int) -> collect.Policy:
    """What stays fixed; loads the judge, unless it is the policy, and the rewriter. `places` are
    the policy's mesh and theirs."""
    mesh, judge_mesh = places
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
        judging.build(c.judge, workdir, truth, judge_mesh, tokenizer, seed)
        if c.judged and not c.judge.own
        else None,
        build_rewriter(c.rewriter, workdir, corpus, judge_mesh, seed)
        if c.candidates.rewrite
        else None,
        c.judge.reference,
        seed,
        auditing.build(c.audit, workdir, truth, judge_mesh, tokenizer, seed),
    )


def self_judged(
    c: RunConfig, fixed: collect.Policy, tx, init_from: str, workdir: str
) -> Callable[[TrainState], collect.Policy]:
    """What collects at a state: as it is `fixed`, or with the policy itself as the judge.

    A frozen judge has the run's first parameters, a resumed run's too: they are the reference's,
    or the base's of factors, or where there is neither, made or loaded once more.
    """
    if not (c.judged and c.judge.own):
        return lambda state: fixed
    judge = judging.of_policy(c.judge, c.model, workdir, fixed.mesh, fixed.tokenizer, fixed.seed)
    first = None
    if not (c.judge.live or c.objective.needs_reference or c.lora.rank):
        first = setup.fresh_state(
            c.model, tx, fixed.mesh, seed=fixed.seed, init_from=init_from, reference=False
        ).params

    def at(state: TrainState) -> collect.Policy:
        frozen = step.frozen(state) if first is None else first
        params = state.params if c.judge.live else frozen
        return dataclasses.replace(fixed, judge=judge(params))

    return at


def build_rewriter(wanted, workdir, corpus, mesh, seed: int) -> rewriters.Rewriter:
    """The rewriter of the `rewriter` section."""
    if wanted.backend == "truth":
        if corpus.documents.truth is None:
            raise UserError("rewriter.backend truth: this corpus has no ground truth")
        return rewriters.TruthRewriter(corpus.documents.truth, corpus.cut.suffix)
    source = setup.source_dir(workdir, wanted.init_from, "rewriter.init_from")
    own = setup.kept_tokenizer(source)
    turn = chat.turn(chat.load(wanted.chat, own)) if wanted.chat else None
    return rewriters.LocalRewriter(
        *setup.load_params(source, mesh, wanted.param_dtype),
        own,
        mesh,
        prompt=rewriters.load(wanted.prompt, turn),
        sampling=wanted.sampling(),
        seed=seed,
        batch=wanted.batch,
    )
