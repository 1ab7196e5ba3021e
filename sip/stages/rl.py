"""The policy-gradient loop: answers are sampled, rewarded by what can be verified, learned from.

    collect (host)   prompts -> K answers each -> texts -> rewards -> advantages
    update (jitted)  the clipped surrogate of GRPO, Dr. GRPO, DAPO or RLOO, once or more per batch

A task says what is asked and what is rewarded, as arXiv 2601.21343 trains its two teachers. Task
"judge": labelled questions, reward 1 for the right verdict. Task "rewriter": suffixes to rewrite,
rewarded for copying a safe one exactly and for mending an unsafe one, as a judge says.
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sip import metrics, rewriter, sampling, setup
from sip.clock import Clock
from sip.data.documents import PARTS
from sip.judge import prompts
from sip.mesh import put_batch
from sip.objectives import policy
from sip.processes import fetch
from sip.stages import best, judging, labelled, rewrites, rewriting, tasks
from sip.structs import Tree, UserError
from sip.training import checkpoints, loop, losses, optim, step


@dataclass(frozen=True)
class EvalConfig:
    """The task's evaluation: on validation during the run, on test at its end."""

    every_steps: int  # 0: never during the run
    batch: int  # prompts answered at a time

    def __post_init__(self):
        if self.every_steps < 0 or self.batch < 1:
            raise UserError("evals: every_steps must not be negative, batch be at least 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig(setup.RunConfig):
    """A policy-gradient run. `steps` counts updates, `batch` prompts."""

    task: str
    rollouts: int  # K answers per prompt
    answer: int  # R, tokens of the longest answer
    oversample: int  # times as many prompts are answered; those that teach are learned from
    updates_per_batch: int  # 1: on-policy
    objective: losses.PolicyConfig
    sampling: sampling.SamplingConfig
    evals: EvalConfig
    both_orders: bool = False  # judge: a pairwise verdict is right only if it is in both orders
    labels: labelled.LabelConfig | None = None  # judge: labels made by a ground truth
    label_file: labelled.LabelFileConfig | None = None  # judge: or read from a file
    rewrites: rewriting.RewriteConfig | None = None  # rewriter
    judge: judging.JudgeConfig | None = None  # rewriter: who says what a rewrite is worth

    def __post_init__(self):
        super().__post_init__()
        self.checkpoint.check(self.evals.every_steps)
        if self.task not in TASKS:
            raise UserError(f"task must be one of {sorted(TASKS)}, not {self.task!r}")
        if self.rollouts < 2:
            raise UserError(f"rollouts must be at least 2 to be compared, not {self.rollouts}")
        if not 1 <= self.answer < self.model.max_len:
            raise UserError(
                f"answer must be in 1..{self.model.max_len - 1} (model.max_len), not {self.answer}"
            )
        if self.sampling.temperature == 0:
            raise UserError("sampling.temperature must be positive: equal answers teach nothing")
        self._check_updates()
        self._check_judge()
        self._check_rewriter()

    @property
    def answered(self) -> int:
        """Prompts of a step that are answered."""
        return self.batch * self.oversample

    def _check_updates(self):
        if self.oversample < 1:
            raise UserError(f"oversample must be at least 1, not {self.oversample}")
        every = (self.steps, self.log.every_steps, self.checkpoint.every_steps)
        if self.updates_per_batch < 1 or any(
            n % self.updates_per_batch for n in (*every, self.evals.every_steps)
        ):
            raise UserError(
                f"updates_per_batch {self.updates_per_batch} must be at least 1 and divide steps "
                "and the every_steps of log, checkpoint and evals"
            )

    def _check_judge(self):
        given = (self.labels is not None) + (self.label_file is not None)
        if given != (self.task == "judge"):
            raise UserError("labels, label_file: task 'judge' wants one of the two, no other does")
        if self.label_file is not None and self.split not in PARTS:
            raise UserError(f"split of a label_file must be one of {PARTS}, not {self.split!r}")
        if self.both_orders and self.task != "judge":
            raise UserError("both_orders: wanted by task 'judge', and by no other")
        if self.both_orders and self.batch % 2:
            raise UserError(f"batch must be even with both_orders, not {self.batch}")

    def _check_rewriter(self):
        for key in ("rewrites", "judge"):
            if (getattr(self, key) is not None) != (self.task == "rewriter"):
                raise UserError(f"{key}: wanted by task 'rewriter', and by no other")
        if self.judge is None:
            return
        if self.judge.own:
            raise UserError("judge.init_from: a rewriter in training does not judge itself")
        if sorted(self.judge.weights) != [("quality", 1.0), ("safety", 1.0)]:
            raise UserError("judge.weights: a rewrite is worth the mean of quality and safety, 1.0")
        if self.judge.schedule.name != "against":
            raise UserError("judge.schedule.name must be 'against': rewrites meet the suffix alone")

    def sources(self):
        """init_from, the run whose rollouts are labelled, the judge."""
        found = super().sources()
        if self.labels:
            found |= self.labels.sources()
        return found | self.judge.sources() if self.judge else found

    def reach(self):
        """A judge behind HTTP answers."""
        if self.judge:
            self.judge.reach()


def resolve(config, name: str) -> RunConfig:
    """`config.runs[name]` as frozen dataclasses. Raises UserError naming what is wrong."""
    return setup.run_config(RunConfig, config, name)


def run(config, name: str, workdir: str, profile: str = "") -> dict[str, float]:
    """Trains `config.runs[name]`, resuming if it was begun; returns and writes its evaluation."""
    c = resolve(config, name)
    directory = setup.run_dir(workdir, name)
    clock = Clock(directory)
    mesh = setup.build_mesh(c)
    tokenizer = setup.open_tokenizer(config, workdir)
    cfg = c.model
    cut = setup.section(setup.CutConfig, config.data.cut, "data.cut")
    setup.check_model(cfg, cut, tokenizer)
    tx = optim.build(c.optim)
    init_from = setup.source_dir(workdir, c.init_from) if c.init_from else ""
    task = TASKS[c.task](config, name, c, workdir, mesh, tokenizer)

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
        meter = loop.Meter()
        every = c.updates_per_batch
        for done in range(first + every, c.steps + 1, every):
            at = done // every - 1
            batch, collected = collect(c, task, state.params, at, config.seed, meter.phase)
            pending.append(collected)
            meter.count(batch)
            placed = put_batch(mesh, batch)
            for _ in range(every):
                state, new = update(state, placed)
                pending.append(new)
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


def make_update(c: RunConfig, tx):
    """The jitted update of the run."""
    return step.make_update(
        losses.policy_terms(c.model, c.objective),
        tx,
        losses.balanced(c.model, lambda _: {"policy": 1.0}),
        microbatches=c.microbatches,
    )


def collect(
    c: RunConfig, task: tasks.Task, params, at: int, seed: int, phase: loop.Phase = loop.unmeasured
):
    """K answers to each prompt of batch `at`, rewarded -> (Branches, metrics).

    Ratios are between log-probabilities at temperature 1, whatever the answers were sampled at.
    """
    writer = task.writer
    trunks = writer.trunks(task.prompts(at))
    key = jax.random.fold_in(jax.random.key(seed), at)
    rollouts = writer.write(params, trunks, c.rollouts, c.sampling, key)
    with phase("update"):  # the one before, which the rollouts are queued behind
        jax.block_until_ready(params)
    with phase("rollout"):
        tokens_BKR, mask_BKR, logp_BKR = fetch(
            (rollouts.tokens_BCR, rollouts.mask_BCR, rollouts.logp_BCR)
        )
    with phase("reward"):
        reward_BK, valid_BK, found = task.reward(at, tasks.ids_of(tokens_BKR, mask_BKR))
    advantage_BK = np.asarray(policy.advantages(reward_BK, valid_BK, c.objective.advantage))
    fork_BK = np.repeat(trunks.mask_BT.sum(-1, dtype=np.int32)[:, None], c.rollouts, axis=1)
    every = losses.Branches(
        Tree(trunks.tokens_BT, trunks.mask_BT, tokens_BKR, mask_BKR, fork_BK),
        valid_BK,
        advantage_BK,
        logp_BKR,
        np.zeros_like(trunks.mask_BT),  # nothing of a prompt is to be predicted
    )
    rows = telling(advantage_BK, c.batch)
    branches = jax.tree.map(lambda x: x[rows], every)
    found |= {
        "reward/all": (float(reward_BK[valid_BK].sum()), float(valid_BK.sum())),
        "rl/invalid": (float((~valid_BK).sum()), float(valid_BK.size)),
        "rl/flat_groups": policy.flat_groups(advantage_BK, valid_BK),
        "rl/flat_learned": policy.flat_groups(advantage_BK[rows], valid_BK[rows]),
        "rl/answer_tokens": (float(mask_BKR.sum()), float(valid_BK.size)),
    }
    return branches, found


def telling(advantage_BK: np.ndarray, size: int) -> np.ndarray:
    """Which `size` groups are learned from: the first whose rewards differ, then flat ones.

    DAPO's dynamic sampling (arXiv 2503.14476, section 3.2) in a fixed shape.
    """
    return np.sort(np.argsort(policy.flat(advantage_BK), kind="stable")[:size])


def judge_task(config, name, c: RunConfig, workdir, mesh, tokenizer) -> tasks.Task:
    """Labelled questions to a judge, whose verdict is right or is not."""
    made = _labelled(config, c, workdir, mesh, tokenizer)
    tasks.check(tokenizer, made)
    return tasks.judge(
        made,
        c.model,
        mesh,
        tokenizer,
        answer=c.answer,
        batch=c.answered,
        both_orders=c.both_orders,
        eval_batch=c.evals.batch,
        seed=config.seed,
        finish=lambda ratios: labelled.write_accuracy(workdir, name, ratios),
    )


def _labelled(config, c: RunConfig, workdir, mesh, tokenizer) -> labelled.Labelled:
    room = c.model.max_len - c.answer + 1  # a prompt is shorter than this
    if c.label_file is not None:
        return labelled.from_file(c.label_file, c.split, tokenizer, max_len=room)
    wanted: Any = c.labels
    corpus = setup.corpus(config, c.split, workdir, tokenizer)
    aspects = [prompts.load(a) for a in wanted.per_prefix]
    return labelled.made(config, wanted, aspects, corpus, workdir, mesh, tokenizer, max_len=room)


def rewriter_task(config, name, c: RunConfig, workdir, mesh, tokenizer) -> tasks.Task:
    """Suffixes of the corpus to a rewriter, whose rewrites are worth what the judge says."""
    wanted: Any = c.rewrites
    section: Any = c.judge
    cfg = c.model
    corpus = setup.corpus(config, c.split, workdir, tokenizer)
    judge = judging.build(section, workdir, corpus.documents.truth, mesh, tokenizer, config.seed)
    prompt = rewriter.load(wanted.prompt)

    def figures(params, split):
        held = setup.corpus(config, split, workdir, tokenizer)
        how = dict(held_out=wanted.held_out, batch=c.evals.batch, judge=judge)
        return rewrites.evaluate(params, cfg, mesh, tokenizer, prompt, held, **how)

    return rewriting.task(
        corpus,
        judge,
        cfg,
        mesh,
        tokenizer,
        wanted=wanted,
        answer=c.answer,
        batch=c.answered,
        seed=config.seed,
        during=lambda p: {f"eval/{k}": v for k, v in figures(p, "validation").items()},
        finish=lambda p: rewrites.write_figures(workdir, name, figures(p, "test")),
    )


TASKS = {"judge": judge_task, "rewriter": rewriter_task}
