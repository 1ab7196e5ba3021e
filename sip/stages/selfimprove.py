"""The self-improving loop: candidates are written and judged, and the policy learns from the best.

    collect (host)   prefix, suffix -> rollouts, rewrite -> verdicts -> chosen, rejected
    update (jitted)  ce_weight(step) * CE(suffix) + objective

arXiv 2601.21343, part 1. The config says which candidates exist and which of them is learned from,
so the paper's ablations are configs.

With `control` the policy learns to continue well on request. This is our own design, in the style
of conditional pretraining (arXiv 2302.08582). A batch has two kinds of rows:

    candidates   prefix, control token -> the objective on the candidates, B - D rows
    documents    prefix -> ce_weight(step) * CE(suffix), D rows (`documents`), no control token

Rollouts are sampled after the control token, as they are learned. So one model is trained for two
distributions: with the token that of self-improving pretraining, without it that of the documents,
which is learned by the loss of standard pretraining. Evaluation and `sip.generate` choose by
`control`. The document rows are what makes it a switch: without them both distributions move
together, as nothing else tells the model that the token matters. There is no bad token: low
documents under a token of their own would be missing from the distribution without a token. And no
document is learned under the good token, as it would pull candidates back to the corpus's quality.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from sip import mesh as meshes
from sip import processes, rewriter, sampling
from sip.data import control as controls
from sip.data import pipeline
from sip.evals import ground_truth
from sip.judge import audit as audits
from sip.judge import build as judges
from sip.mesh import PartConfig, put_batch
from sip.run import Run, RunConfig, build_meshes, check_control, check_model, run_config
from sip.sections import at_least, check, one_of
from sip.stages import alarms, candidate_log, collect, session
from sip.stages.clock import Clock
from sip.structs import TrainState, UserError
from sip.training import losses, optim, step


@dataclass(frozen=True, kw_only=True)
class SelfImproveConfig(RunConfig):
    """A self-improving run."""

    candidates: collect.CandidateConfig
    judge: judges.JudgeConfig
    audit: audits.AuditConfig
    rewriter: rewriter.RewriterConfig
    objective: losses.ObjectiveConfig
    sampling: sampling.SamplingConfig
    evals: ground_truth.EvalConfig
    judge_mesh: PartConfig = PartConfig()  # of judge, proofreader, audit and rewriter
    watch: alarms.WatchConfig = alarms.WatchConfig()
    control: str = ""  # control token between prefix and candidate; empty: none
    documents: int = 0  # rows of a batch that are learned as they are, without the control token
    staleness: int = 0  # 1: rollouts of a step are sampled before the update of the step before

    def __post_init__(self):
        super().__post_init__()
        self.checkpoint.check(self.evals.every_steps)
        self._check_ahead()
        self._check_control()
        chosen, rejected = self.candidates.chosen, self.candidates.rejected
        if self.judge.reference == "rewrite" and not self.candidates.rewrite:
            raise UserError("judge.reference: there is no rewrite among the candidates")
        if self.candidates.rewrite and self.rewriter.backend == "local":
            if not self.rewriter.init_from:
                raise UserError("rewriter.init_from is empty, but backend local needs a rewriter")
        if self.objective.pairs and chosen == rejected:
            raise UserError(f"candidates: chosen and rejected are both {chosen!r}")
        if self.objective.name == "dr_grpo" and (
            chosen != "best" or min(k for _, k in self.candidates.rollouts) < 2
        ):
            raise UserError("candidates: dr_grpo learns from two or more judged rollouts")
        self._check_number()
        self.audit.check(judged=self.judged, rewrite=self.candidates.rewrite, batch=self.batch)

    def _check_number(self):
        """Raises UserError if nothing is learned at some step: a pair needs two candidates, and
        greedy rollouts are all the same."""
        greedy = not self.sampling.temperature
        if greedy and self.objective.name == "dr_grpo":
            raise UserError("sampling.temperature must be positive: equal rollouts teach nothing")
        for _, k in self.candidates.rollouts:
            count = self.candidates.suffix + self.candidates.rewrite + (min(k, 1) if greedy else k)
            if self.objective.pairs and count < 2 and not self.objective.blends_ce:
                at = " at sampling.temperature 0" if greedy else ""
                raise UserError(
                    f"candidates: K = {k} rollouts{at} leave one candidate, but objective "
                    f"{self.objective.name} compares two; add rollouts, suffix or rewrite"
                )

    def _check_control(self):
        """Raises UserError if the likelihood of suffixes contradicts the control token."""
        check("", self, documents=at_least(0, most=self.batch - 1))
        if self.documents and not self.control:
            raise UserError("documents: needs control; for a cross-entropy set objective.ce_weight")
        if self.control and self.objective.blends_ce != (self.documents > 0):
            raise UserError(
                f"documents {self.documents}, objective.ce_weight {self.objective.ce_weight}: with "
                "control set both, or neither; the cross-entropy is learned by rows of documents"
            )

    def _check_ahead(self):
        check("", self, staleness=one_of((0, 1)))
        if self.staleness and not any(k for _, k in self.candidates.rollouts):
            raise UserError("staleness: there are no rollouts to write ahead")
        rewriting = self.candidates.rewrite and self.rewriter.backend == "local"
        asked = [self.judge] * self.judged + [self.audit.judge] * (self.audit.every_steps > 0)
        if self.judge_mesh.devices and not (rewriting or any(j.loads for j in asked)):
            raise UserError("judge_mesh.devices: there is no local judge or rewriter to run there")

    @property
    def apart(self):
        """The mesh of judges and rewriter."""
        return self.judge_mesh

    @property
    def judged(self) -> bool:
        """True if a candidate is chosen or rejected by its score."""
        pairs, asked = self.objective.pairs, self.candidates
        return asked.chosen == "best" or (pairs and asked.rejected == "worst")

    def sources(self):
        """The parameters to start from, the evaluation's baseline, the judges, the rewriter."""
        found = {**super().sources(), **self.evals.sources()}
        if self.judged:
            found |= self.judge.sources() | self.audit.sources()
        if self.candidates.rewrite and self.rewriter.backend == "local":
            found["rewriter.init_from"] = self.rewriter.init_from
        return found

    def splits(self):
        """The documents to learn from, and those of the final evaluation."""
        return super().splits() | {"evals.split": self.evals.split}

    def needs_truth(self):
        """The key of the first of judge, audit and rewriter that is the ground truth."""
        used = {
            "judge.backend": self.judged and self.judge.backend,
            "audit.judge.backend": self.audit.every_steps and self.audit.judge.backend,
            "rewriter.backend": self.candidates.rewrite and self.rewriter.backend,
        }
        found = next((key for key, backend in used.items() if backend == "truth"), "")
        return found or self.evals.needs_truth()

    def figures(self, truth):
        """Names of the figures of the evaluation by greedy continuations."""
        return ground_truth.figures(truth)

    def continued(self):
        """The evaluation, which writes continuations."""
        return self.evals

    def symbols(self):
        """The control tokens of the policy and the evaluation."""
        own = {"control": self.control} if self.control else {}
        return own | self.evals.symbols()

    def check_cut(self, cut):
        """Raises UserError if there is no room for a control token."""
        check_control(self.model, cut, bool(self.control), "control")
        check_control(self.model, cut, bool(self.evals.control), "evals.control")

    def judges(self):
        """The judges of the candidates, the audit and the evaluation that are asked."""
        found = {"judge": self.judge} if self.judged else {}
        found |= {"audit.judge": self.audit.judge} if self.audit.every_steps else {}
        return found | ({"evals.judge": self.evals.judge} if self.evals.judge else {})

    def reach(self):
        """Raises UserError if a judge behind HTTP does not answer."""
        for judge in self.judges().values():
            judge.reach()


def resolve(config, name: str) -> SelfImproveConfig:
    """`config.runs[name]` as frozen dataclasses. Raises UserError naming the key that is wrong."""
    return run_config(SelfImproveConfig, config, name)


def train(run: Run, profile: str = "") -> dict[str, Any]:
    """Trains the run, resuming it if it was begun; writes its evaluation and returns it.

    `profile` is a directory for a trace of a few steps; empty for none.
    """
    c = resolve(run.config, run.name)
    clock = Clock(run.directory)
    mesh, judge_mesh = build_meshes(c)
    check_model(c.model, run.cut, run.tokenizer)
    tx = optim.build(c.optim)
    session.start_dir(run, c)  # a missing one is an error before judges are loaded
    fixed = build_collector(run, c, mesh, judge_mesh)
    suite = ground_truth.suite(run, c.evals, c.model, mesh, c.log.samples)
    how: Any = dict(reference=c.objective.needs_reference, profile=profile)
    with session.opened(run, c, clock, mesh, tx, **how) as (s, state):
        update = make_update(c, tx)
        collector = self_judged(run, c, fixed, tx)
        points = audits.kept(run.directory)  # of the checkpoint that was restored
        watched = alarms.kept(run.directory)
        last, reason = audits.end(c.audit, points, s.first, c.steps)
        ahead = collect.restored(fixed, state.params, s.manager, s.first) if c.staleness else None
        for done in range(s.first + 1, last + 1):
            # With staleness 1 the rollouts of the next step are dispatched before this step is
            # judged, so that the device samples while the host waits for the judge.
            here = ahead or collect.begin(fixed, state.params, done - 1, 0, s.meter.phase)
            ahead = None
            if c.staleness and done < c.steps:
                ahead = collect.begin(fixed, state.params, done, 1, s.meter.phase)
            batch, collected, seen = collect.collect(
                collector(state), state.params, here, s.meter.phase
            )
            state, new = update(state, put_batch(mesh, batch))
            signals = alarms.of_candidates(c.watch, seen, collected)
            s.pending.append({**collected, **new, **alarms.figures(signals)})
            watched = alarms.observed(c.watch, watched, signals)
            watched = session.alarm(s, done, c.watch, watched)
            s.meter.count(batch)
            points += audits.new(c.audit, collected, done - 1, c.candidates.count(done - 1))
            last, reason = audits.end(c.audit, points, done, c.steps)
            if s.candidates.due(done, last):
                s.candidates.write(candidate_log.candidates(done, seen, c.log.candidates_rows))
            stopped = {"audit/stopped": 1.0} if reason else {}
            session.log(s, done, state, batch, last=last, more=stopped)
            session.evaluate(
                s,
                done,
                c.evals.every_steps,
                state.params,
                lambda params: ground_truth.during(suite, params),
                last=last,
            )
            begun, kept = ahead and ahead.rollouts, audits.plain(points) | alarms.plain(watched)
            session.end_step(s, done, state, last=last, more=kept, begun=begun)
            if reason:
                break
        session.check_stopped(s)
    if not reason:
        return ground_truth.finish(suite, state.params)
    if processes.lead():
        print(f"{run.name}: stopped early, after step {last} of {c.steps}: {reason}", flush=True)
    more = {"stopped_early": reason, "stopped_early_after": last}
    return ground_truth.finish(suite, state.params, **more)


def make_update(c: SelfImproveConfig, tx):
    """The update of the run."""
    return step.make_update(
        losses.branch_terms(c.model, c.objective),
        tx,
        losses.balanced(c.model, losses.branch_weights(c.objective)),
        microbatches=c.microbatches,
    )


def build_collector(
    run: Run, c: SelfImproveConfig, mesh: jax.sharding.Mesh, judge_mesh: jax.sharding.Mesh
) -> collect.Collector:
    """Builds the run's Collector. Loads the rewriter and the judges, except a judge that is the
    policy itself."""
    asked = c.batch - c.documents
    if asked % meshes.ways(mesh, meshes.ACT_RULES["B"]):
        raise UserError(
            f"documents {c.documents}: {asked} rows of candidates are not divisible by replica x "
            "fsdp of the mesh"
        )
    run.announce(c.split, c.steps * c.batch)
    corpus, tokenizer = run.corpus(c.split), run.tokenizer
    truth = corpus.documents.truth
    how = (run.workdir, truth, judge_mesh, tokenizer, run.seed)
    heard = c.log.heard
    return collect.Collector(
        cfg=c.model,
        mesh=mesh,
        tokenizer=tokenizer,
        batches=pipeline.Batches(corpus.chunks, batch=c.batch, seed=run.seed),
        suffix=corpus.cut.suffix,
        candidates=c.candidates,
        objective=c.objective,
        sampling=c.sampling,
        judge=judges.build(c.judge, *how, heard) if c.judged and not c.judge.own else None,
        rewriter=rewriter.build(c.rewriter, run.workdir, corpus, judge_mesh, run.seed)
        if c.candidates.rewrite
        else None,
        reference=c.judge.reference,
        seed=run.seed,
        audit=audits.build(c.audit, *how),
        control=controls.token(tokenizer, c.control, "control") if c.control else controls.NONE,
        documents=c.documents,
    )


def self_judged(
    run: Run, c: SelfImproveConfig, fixed: collect.Collector, tx
) -> Callable[[TrainState], collect.Collector]:
    """The collector at a state: `fixed` itself, or with the policy as the judge.

    A frozen judge has the run's first parameters, in a resumed run too: those of the reference, or
    of the base under LoRA. Without either they are made or loaded once more.
    """
    if not (c.judged and c.judge.own):
        return lambda state: fixed
    how = (c.model, run.workdir, fixed.mesh, fixed.tokenizer, fixed.seed, c.log.heard)
    judge = judges.of_policy(c.judge, *how)
    first = None
    if not (c.judge.live or c.objective.needs_reference or c.lora.rank):
        init_from = session.start_dir(run, c)
        first = session.fresh_state(
            c.model, tx, fixed.mesh, seed=fixed.seed, init_from=init_from, reference=False
        ).params

    def at(state: TrainState) -> collect.Collector:
        frozen = step.frozen(state) if first is None else first
        params = state.params if c.judge.live else frozen
        return dataclasses.replace(fixed, judge=judge(params))

    return at
