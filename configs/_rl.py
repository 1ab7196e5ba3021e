"""Sections of policy-gradient runs (sip/stages/rl.py)."""

import _common as common
from ml_collections import ConfigDict

from sip.training.losses import PolicyConfig


def policy_gradient(**changes) -> ConfigDict:
    """GRPO. Dr. GRPO is advantage "dr_grpo" with denominator "constant"; DAPO is advantage "grpo"
    with denominator "token" and clip_high 0.28."""
    return common.complete(PolicyConfig, **changes)


def _run(
    task,
    *,
    rollouts,
    answer,
    sampling,
    objective,
    oversample=1,
    updates_per_batch=1,
    save_every=100,
    log_every=10,
    evals_every=20,
    evals_batch=16,
    **run,
) -> ConfigDict:
    """Settings that policy-gradient runs share; `task` is the task's section."""
    shared = common.any_run(save_every=save_every, log_every=log_every, **run)
    return common.section(
        stage="rl",
        task=common.section(**task),
        rollouts=rollouts,
        answer=answer,
        oversample=oversample,
        updates_per_batch=updates_per_batch,
        objective=objective,
        sampling=sampling,
        evals=common.section(every_steps=evals_every, batch=evals_batch),
        **shared,
    )


def judge_run(*, both_orders=False, **run) -> ConfigDict:
    """A judge's run, rewarded for right verdicts; `labels` or `label_file` is among `run`."""
    task = dict(name="verdicts", both_orders=both_orders)
    task |= {key: run.pop(key) for key in ("labels", "label_file") if key in run}
    return _run(task, **run)


def rewriter_run(*, rewrites, judge, **run) -> ConfigDict:
    """A rewriter's run, rewarded by a judge that compares `against`; `rewrites` are the task's
    other settings."""
    return _run(dict(name="rewrites", judge=judge, **rewrites), **run)


def shrink(run) -> None:
    """Makes a policy-gradient run of the micro-world tiny."""
    run.steps, run.batch, run.optim.warmup_steps, run.log.every_steps = 4, 8, 2, 2
    run.oversample = min(run.oversample, 2)
    run.evals.every_steps = 2
