"""Sections of policy-gradient runs (sip/stages/rl.py)."""

import _common as common
from ml_collections import ConfigDict


def policy_gradient(
    *,
    advantage="grpo",
    denominator="sequence",
    clip_low=0.2,
    clip_high=0.2,
    beta=0.0,
) -> ConfigDict:
    """GRPO; Dr. GRPO is dr_grpo and constant, DAPO grpo, token and a clip_high of 0.28."""
    return common.section(
        advantage=advantage,
        denominator=denominator,
        clip_low=clip_low,
        clip_high=clip_high,
        beta=beta,
    )


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
    own,
    **run,
) -> ConfigDict:
    """What policy-gradient runs share; `own` is the task's."""
    shared = common.any_run(save_every=save_every, log_every=log_every, **run)
    return common.section(
        stage="rl",
        task=task,
        rollouts=rollouts,
        answer=answer,
        oversample=oversample,
        updates_per_batch=updates_per_batch,
        objective=objective,
        sampling=sampling,
        evals=common.section(every_steps=evals_every, batch=evals_batch),
        **own,
        **shared,
    )


def judge_run(*, both_orders=False, **run) -> ConfigDict:
    """A judge's run on the rewards of its own verdicts; `labels` or `label_file` is among `run`."""
    own = {key: run.pop(key) for key in ("labels", "label_file") if key in run}
    return _run("judge", own=dict(own, both_orders=both_orders), **run)


def rewriter_run(*, rewrites, judge, **run) -> ConfigDict:
    """A rewriter's run on what a judge says of its rewrites; `judge` compares `against`."""
    return _run("rewriter", own=dict(rewrites=rewrites, judge=judge), **run)


def shrink(run) -> None:
    """Makes a policy-gradient run of the micro-world tiny."""
    run.steps, run.batch, run.optim.warmup_steps, run.log.every_steps = 4, 8, 2, 2
    run.oversample = min(run.oversample, 2)
    run.evals.every_steps = 2
