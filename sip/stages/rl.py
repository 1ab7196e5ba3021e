"""The policy-gradient loop: answers are sampled, rewarded and learned from.

    measure (host)   before the first step: the share of prompts whose answers differ in reward
    collect (host)   prompts -> K answers each -> texts -> rewards -> advantages
    update (jitted)  the clipped surrogate of GRPO, Dr. GRPO, DAPO or RLOO, once or more per batch

The `task` section selects prompts and rewards (sip/tasks/rl). arXiv 2601.21343 trains its judge
("verdicts") and its rewriter ("rewrites") in this way, and thoughts ("thinking"). Task "prompts" is
RLHF.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sip import metrics, sampling
from sip.evals.collapse import CollapseConfig
from sip.mesh import put_batch
from sip.objectives import policy
from sip.processes import fetch
from sip.run import (
    MOST_ROWS,
    Run,
    RunConfig,
    TaskConfig,
    build_mesh,
    check_model,
    run_config,
)
from sip.sections import at_least, check
from sip.stages import alarms, candidate_log, session, watch
from sip.stages.candidate_log import Answered
from sip.stages.clock import Clock
from sip.structs import Tree, UserError
from sip.tasks.rl import prompts, rewrites, thinking, verdicts
from sip.tasks.rl.task import RLTask, ids_of
from sip.training import loop, losses, optim, step

TASKS = {
    "verdicts": (verdicts.Config, verdicts.build),
    "rewrites": (rewrites.Config, rewrites.build),
    "prompts": (prompts.Config, prompts.build),
    "thinking": (thinking.Config, thinking.build),
}


@dataclass(frozen=True)
class AnswerEvalConfig:
    """The task's evaluation: on validation prompts during the run, on test prompts at its end."""

    every_steps: int  # updates between evaluations; 0: none during the run
    batch: int  # prompts answered at a time
    patience: int = 0  # evaluations in a row without a better checkpoint.best: ends the run; 0: off

    def __post_init__(self):
        check("evals", self, every_steps=at_least(0), batch=at_least(1), patience=at_least(0))


@dataclass(frozen=True)
class GateConfig:
    """A measurement before the first step: a prompt whose answers all get the same reward teaches
    nothing."""

    prompts: int = 0  # prompts that are answered, rounded up to whole batches; 0: no measurement
    mixed: float = 0.05  # 0..1; error if fewer of them have answers of different rewards

    def __post_init__(self):
        check("gate", self, prompts=at_least(0), mixed=at_least(0, most=1))


@dataclass(frozen=True, kw_only=True)
class RLConfig(RunConfig):
    """A policy-gradient run. `steps` counts updates, `batch` prompts."""

    task: TaskConfig  # what is rewarded; `name` is one of TASKS
    rollouts: int  # K answers per prompt
    answer: int  # R, tokens of the longest answer
    oversample: int  # batch * oversample prompts are answered; the batch is chosen among them
    redraws: int = 0  # most times that as many more are answered if too few have a reward
    updates_per_batch: int  # updates on the same answers; 1: on-policy
    objective: losses.PolicyConfig
    sampling: sampling.SamplingConfig
    evals: AnswerEvalConfig
    gate: GateConfig = GateConfig()
    collapse: CollapseConfig = CollapseConfig()
    watch: alarms.WatchConfig = alarms.WatchConfig()

    def __post_init__(self):
        super().__post_init__()
        self.checkpoint.check(self.evals.every_steps)
        check(
            "",
            self,
            rollouts=at_least(2, MOST_ROWS // self.batch),  # they are compared
            oversample=at_least(1, MOST_ROWS // self.batch),
            redraws=at_least(0, most=16),
            updates_per_batch=at_least(1),
        )
        if not 1 <= self.answer < self.model.max_len:
            raise UserError(
                f"answer must be in 1..{self.model.max_len - 1} (model.max_len), not {self.answer}"
            )
        if self.sampling.temperature == 0:
            raise UserError("sampling.temperature must be positive: equal answers teach nothing")
        every = (self.steps, self.log.every_steps, self.checkpoint.every_steps)
        if any(n % self.updates_per_batch for n in (*every, self.evals.every_steps)):
            raise UserError(
                f"updates_per_batch {self.updates_per_batch} must divide steps and the every_steps "
                "of log, checkpoint and evals"
            )
        if self.evals.patience and not (self.checkpoint.best and self.evals.every_steps):
            raise UserError("evals.patience needs evals.every_steps and checkpoint.best")
        if self.collapse.window and self.objective.kl != "reward":
            raise UserError(
                "collapse.window needs objective.kl reward and a beta, such as 0.001: the KL to "
                "the start shows a collapse"
            )
        self.task.check(self)

    @property
    def answered(self) -> int:
        """Number of prompts that are answered in a step."""
        return self.batch * self.oversample

    @property
    def needs_reference(self) -> bool:
        """True if the run has a reference: frozen parameters, or their moving average."""
        return self.objective.needs_reference or self.task.average > 0

    def sources(self):
        """The parameters to start from and what the task reads."""
        return super().sources() | self.task.sources()

    def reads(self):
        """The files that the task reads."""
        return self.task.reads()

    def needs_truth(self):
        """The task's key that needs a ground truth."""
        return self.task.needs_truth()

    def needs_thinker(self):
        """The task's key that needs a rule that thinks."""
        return self.task.needs_thinker()

    def figures(self, truth):
        """Names of the figures of the task's evaluations."""
        return self.task.figures(truth)

    def continued(self):
        """The evaluation of answers as continuations of the corpus's prefixes, if there is one."""
        return self.task.continuations if isinstance(self.task, prompts.Config) else None

    def reach(self):
        """Raises UserError if a server that the task needs does not answer."""
        self.task.reach()

    def judges(self):
        """The judges that the task asks."""
        return self.task.judges()

    def words(self):
        """The aspects of the task's labels."""
        return self.task.words()

    def check_cut(self, cut):
        """Raises UserError if the task has no room for suffixes of this length."""
        self.task.check_cut(self, cut)


def resolve(config, name: str) -> RLConfig:
    """`config.runs[name]` as frozen dataclasses. Raises UserError naming the key that is wrong."""
    return run_config(RLConfig, config, name, TASKS)


def train(run: Run, profile: str = "") -> dict[str, Any]:
    """Trains the run, resuming it if it was begun; writes its evaluation and returns it.

    `profile` is a directory for a trace of a few steps; empty for none.
    """
    c = resolve(run.config, run.name)
    clock = Clock(run.directory)
    mesh = build_mesh(c)
    check_model(c.model, run.cut, run.tokenizer)
    tx = optim.build(c.optim)
    session.start_dir(run, c)  # a missing one is an error before the task reads anything
    task = TASKS[c.task.name][1](run, c, mesh)
    how: Any = dict(reference=c.needs_reference, profile=profile)
    every = c.updates_per_batch
    with session.opened(run, c, clock, mesh, tx, **how) as (s, state):
        update = make_update(c, tx)
        average = step.make_average(c.task.average) if c.task.average else None
        if not s.first:
            gate = measure(run, c, task, state.params) if c.gate.prompts else {}
            if first := gate | task.before:
                s.writer.write(0, first)
        watched = watch.kept(run.directory)  # of the checkpoint that was restored
        hacked = alarms.kept(run.directory)
        last, reason = watch.end(c, watched, s.first)
        for done in range(s.first + every, last + 1, every):
            at = done // every - 1
            frozen = step.frozen(state)
            batch, collected, seen = collect(
                c, task, state.params, at, run.seed, s.meter.phase, reference=frozen
            )
            del frozen  # its buffers are donated to the update
            signals = alarms.of_answers(c.watch, seen, collected, run.tokenizer)
            s.pending.append({**collected, **alarms.figures(signals)})
            s.meter.count(batch)
            placed, learned = put_batch(mesh, batch), []
            for _ in range(every):  # after the first update the batch is off-policy: rho != 1
                state, new = update(state, placed)
                learned.append(new)
                state = average(state) if average else state
            s.pending.extend(learned)
            with s.meter.phase("update"):
                signals |= alarms.of_update(c.watch, learned[0], collected)
            hacked = alarms.observed(c.watch, hacked, signals)
            hacked = session.alarm(s, done, c.watch, hacked)
            watched = watch.updated(c.collapse, watched, done, collected)
            last, reason = watch.end(c, watched, done)
            if s.candidates.due(done, last, every):
                how = run.tokenizer, task.writer.stops
                s.candidates.write(candidate_log.answers(done, seen, c.log.candidates_rows, *how))
            collapsed = {"rl/collapsed": 1.0} if watched.collapsed else {}
            session.log(s, done, state, batch, last=last, more=collapsed)
            how = (c.evals.every_steps, state.params, task.during)
            figures = session.evaluate(s, done, *how, last=last)
            watched = watch.evaluated(c.checkpoint, watched, figures)
            last, reason = watch.end(c, watched, done)
            if reason and s.pending:  # the evaluation ends the run between two lines of the log
                session.log(s, done, state, batch, last=last, more=collapsed)
            kept = watch.plain(watched) | alarms.plain(hacked)
            session.end_step(s, done, state, last=last, more=kept)
            if reason:
                break
        session.check_stopped(s)
    params, more = state.params, watch.figures(c, watched, last, reason)
    del state  # its moments: a run that ended early has other parameters loaded
    if reason:
        run.say(f"{run.name}: stopped early, after step {last} of {c.steps}: {reason}")
        if c.checkpoint.best and (found := session.best(run, mesh)):
            params, more["evaluated_step"] = found
            run.say(f"{run.name}: the best parameters are evaluated, step {found[1]}")
    figures = task.finish(params)
    return run.write_eval({**figures, **more}) if more else figures


def measure(run: Run, c: RLConfig, task: RLTask, params) -> dict[str, float]:
    """Measures rewards of the first prompts' answers, and says it in a line.

    Returns {"gate/mixed": share of prompts whose answers differ in reward, "gate/reward": mean}.
    Raises UserError if the share is below `gate.mixed`: the policy would learn nothing.
    """
    batches = -(-c.gate.prompts // c.answered)
    found = [draw(c, task, params, at, run.seed, reference=params).metrics for at in range(batches)]
    flat, groups = np.sum([one["rl/flat_groups"] for one in found], axis=0)
    total, count = np.sum([one["reward/all"] for one in found], axis=0)
    asked = batches * c.answered  # also those of which no answer has a reward
    mixed, reward = float((groups - flat) / asked), float(total / max(count, 1))
    said = (
        f"{run.name}: {mixed:.0%} of {asked} prompts have answers of different "
        f"rewards, with {c.rollouts} answers each; mean reward {reward:.3f}"
    )
    if mixed < c.gate.mixed:
        raise UserError(
            f"{said}. That is less than gate.mixed={c.gate.mixed}: choose easier or harder "
            "prompts, train on examples first (configs/sft.py), or lower gate.mixed"
        )
    run.say(said)
    return {"gate/mixed": mixed, "gate/reward": reward}


def make_update(c: RLConfig, tx):
    """The update of the run."""
    return step.make_update(
        losses.policy_terms(c.model, c.objective),
        tx,
        losses.balanced(c.model, losses.constant((("policy", 1.0),))),
        microbatches=c.microbatches,
    )


def collect(
    c: RLConfig,
    task: RLTask,
    params,
    at: int,
    seed: int,
    phase: loop.Phase = loop.unmeasured,
    *,
    reference=None,
):
    """Answers to learn from in step `at` -> (Branches, metrics, Answered of the first batch).

    While fewer than `batch` prompts have a reward, the next batch of prompts is answered too, up to
    `redraws` times (the refilled filter of arXiv 2505.21444). The groups to learn from are chosen
    among all. A step has its own numbers of batches, so that a resumed run repeats them.
    """
    most, drawn = c.redraws + 1, []
    while not drawn or (len(drawn) < most and sum(x.rewarded for x in drawn) < c.batch):
        number = at * most + len(drawn)
        drawn.append(draw(c, task, params, number, seed, phase, reference=reference))
    every = _joined([x.branches for x in drawn])
    signal_BK = np.concatenate([x.signal_BK for x in drawn])
    rows = learned_rows(signal_BK, every.valid_BC, c.batch)
    branches = jax.tree.map(lambda x: x[rows], every)
    found = loop.totals([x.metrics for x in drawn]) | {
        "rl/masked_learned": metrics.pair(~branches.valid_BC.any(-1)),
        "rl/flat_learned": policy.flat_groups(signal_BK[rows], branches.valid_BC),
    }
    found |= {"rl/draws": (float(len(drawn)), 1.0)} if c.redraws else {}
    return branches, found, drawn[0].answered


@dataclass(frozen=True)
class Drawn:
    """K answers to each prompt of a batch, rewarded."""

    branches: losses.Branches
    signal_BK: np.ndarray  # advantages without the KL: they choose the groups to learn from
    metrics: dict[str, Any]
    answered: Answered

    @property
    def rewarded(self) -> int:
        """Number of prompts with a reward."""
        return int(self.branches.valid_BC.any(-1).sum())


def _joined(drawn: Sequence[losses.Branches]) -> losses.Branches:
    """Returns several batches as one; shorter trunks are padded."""
    T = max(x.tree.tokens_BT.shape[1] for x in drawn)
    wide = lambda x_BT: np.pad(x_BT, ((0, 0), (0, T - x_BT.shape[1])))
    padded = []
    for x in drawn:
        trunks = wide(x.tree.tokens_BT), wide(x.tree.mask_BT)
        tree = dataclasses.replace(x.tree, tokens_BT=trunks[0], mask_BT=trunks[1])
        padded.append(dataclasses.replace(x, tree=tree, ce_mask_BT=wide(x.ce_mask_BT)))
    return jax.tree.map(lambda *each: np.concatenate(each), *padded)


def draw(
    c: RLConfig,
    task: RLTask,
    params,
    at: int,
    seed: int,
    phase: loop.Phase = loop.unmeasured,
    *,
    reference=None,
) -> Drawn:
    """Samples K answers to each prompt of batch `at`, and rewards them.

    Ratios are between log-probabilities at temperature 1, whatever the sampling temperature. With
    `objective.kl` "reward", beta * (logp - log-probability under the `reference`), summed over an
    answer, is subtracted from its reward (arXiv 2402.14740, eq. 2). It does not count in the choice
    of groups or in figures of flat ones.
    """
    writer, asked = task.writer, task.prompts(at)
    trunks = writer.trunks(asked)
    key = jax.random.fold_in(jax.random.key(seed), at)
    rollouts = writer.write(params, trunks, c.rollouts, c.sampling, key)
    with phase("update"):  # the rollouts wait for the update before them
        jax.block_until_ready(params)
    with phase("rollout"):
        tokens_BKR, mask_BKR, logp_BKR, drawn_BKR = fetch(
            (
                rollouts.tokens_BCR,
                rollouts.mask_BCR,
                rollouts.logp_BCR,
                rollouts.sample_logp_BCR,
            )
        )
    with phase("reward"):
        ids = ids_of(tokens_BKR, mask_BKR)
        reward, valid_BK, found = (
            task.gain(params, reference, at, ids) if task.gain else task.reward(at, ids)
        )
    fork_BK = np.repeat(trunks.mask_BT.sum(-1, dtype=np.int32)[:, None], c.rollouts, axis=1)
    tree = Tree(trunks.tokens_BT, trunks.mask_BT, tokens_BKR, mask_BKR, fork_BK)
    parts_PBK, weights = np.asarray(reward, np.float32).reshape(-1, *valid_BK.shape), task.weights
    parts = dict(zip(task.names, parts_PBK, strict=True))
    reward_BK = np.einsum("P,PBK->BK", np.asarray(weights, np.float32), parts_PBK)
    advantage_BK = signal_BK = _advantages(c, parts_PBK, weights, valid_BK)
    if c.objective.kl == "reward":
        kl_BK = _kl(c, writer.mesh, reference, tree, logp_BKR)
        found |= {"rl/kl": metrics.pair(kl_BK, valid_BK)}
        parts["kl"] = kl_BK
        parts_PBK, weights = np.stack([*parts_PBK, -kl_BK]), (*weights, c.objective.beta)
        advantage_BK = _advantages(c, parts_PBK, weights, valid_BK)
    branches = losses.Branches(
        tree,
        valid_BK,
        advantage_BK,
        logp_BKR,
        np.zeros_like(trunks.mask_BT),  # no token of a prompt is predicted
    )
    found |= {
        "reward/all": metrics.pair(reward_BK, valid_BK),
        "rl/invalid": metrics.pair(~valid_BK),
        "rl/flat_groups": policy.flat_groups(signal_BK, valid_BK),
        "rl/answer_tokens": (float(mask_BKR.sum()), float(valid_BK.size)),
        # Of the sampling distribution, in nats per token: the mean of -log p over its samples.
        "rl/entropy": metrics.pair(-drawn_BKR, mask_BKR),
    }
    references = task.references and functools.partial(task.references, at)
    rewards = reward_BK, parts, valid_BK, advantage_BK
    answered = Answered(asked, references, ids, *rewards, task.heard())
    # By the rewards alone: with the KL, answers of equal rewards would hardly ever be equal.
    return Drawn(branches, signal_BK, found, answered)


def _advantages(c: RLConfig, parts_PBK, weights, valid_BK) -> np.ndarray:
    """Returns advantage_BK of the rewards, by the run's objective."""
    how = c.objective.advantage, c.objective.aggregate
    return np.asarray(policy.combined_advantages(parts_PBK, weights, valid_BK, *how))


def _kl(c: RLConfig, mesh, reference, tree: Tree, logp_BKR: np.ndarray) -> np.ndarray:
    """kl_BK, the log-ratio of policy to reference of each answer, in nats: its mean is the KL."""
    ref_BKR = fetch(losses.branch_logprobs(c.model)(reference, put_batch(mesh, tree)))
    return np.where(tree.mask_BCR, logp_BKR - ref_BKR, 0.0).sum(-1)


def learned_rows(signal_BK: np.ndarray, valid_BK: np.ndarray, size: int) -> np.ndarray:
    """Indices of the `size` groups that are learned from: groups whose rewards differ come first,
    flat groups fill up, and last those without any reward. `signal_BK` are advantages without the
    KL.

    DAPO's dynamic sampling (arXiv 2503.14476, section 3.2) in a fixed shape.
    """
    order_B = np.asarray(policy.flat(signal_BK)).astype(int) + ~valid_BK.any(-1)
    return np.sort(np.argsort(order_B, kind="stable")[:size])
