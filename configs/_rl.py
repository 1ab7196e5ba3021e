"""Config sections of policy-gradient runs (sip/stages/rl.py)."""

import _common as common
from ml_collections import ConfigDict

from sip.evals.collapse import CollapseConfig
from sip.evals.thoughts import ProbeConfig
from sip.rewards.suffix_match import MatchConfig
from sip.stages.rl import GateConfig
from sip.tasks.questions import QuestionsConfig
from sip.tasks.rl.prompts import Config as PromptsConfig
from sip.tasks.rl.thinking import Config as ThinkingConfig
from sip.tasks.thoughts import ThoughtsConfig
from sip.training.losses import PolicyConfig


def policy_gradient(**changes) -> ConfigDict:
    """Builds section `objective` of a policy-gradient run; the default is GRPO.

    Dr. GRPO: advantage "dr_grpo", denominator "constant". DAPO: advantage "grpo", denominator
    "token", clip_high 0.28.
    """
    return common.complete(PolicyConfig, **changes)


def _run(
    task,
    *,
    rollouts,
    answer,
    sampling,
    objective,
    oversample=1,
    redraws=0,
    updates_per_batch=1,
    save_every=100,
    log_every=10,
    evals_every=20,
    evals_batch=16,
    patience=0,
    gate=None,
    collapse=None,
    watch=0,
    best="",
    **run,
) -> ConfigDict:
    """Builds a policy-gradient run from its section `task` and the shared settings."""
    shared = common.any_run(save_every=save_every, log_every=log_every, **run)
    shared["checkpoint"].best = best
    return common.section(
        stage="rl",
        task=common.section(**task),
        rollouts=rollouts,
        answer=answer,
        oversample=oversample,
        redraws=redraws,
        updates_per_batch=updates_per_batch,
        objective=objective,
        sampling=sampling,
        evals=common.section(every_steps=evals_every, batch=evals_batch, patience=patience),
        gate=common.complete(GateConfig, **(gate or {})),
        collapse=common.complete(CollapseConfig, **(collapse or {})),
        watch=common.watch(watch),
        **shared,
    )


def judge_run(*, both_orders=False, **run) -> ConfigDict:
    """Builds the run of a judge that is rewarded for right verdicts.

    `run` must contain `labels` or `label_file`.
    """
    task = dict(name="verdicts", both_orders=both_orders)
    task |= {key: run.pop(key) for key in ("labels", "label_file") if key in run}
    return _run(task, **run)


def rewriter_run(*, rewrites, judge, **run) -> ConfigDict:
    """Builds the run of a rewriter that is rewarded by `judge`.

    The judge uses schedule "against". `rewrites` are the other settings of the task.
    """
    return _run(dict(name="rewrites", judge=judge, **rewrites), **run)


def prompts_run(
    *,
    reward,
    prompts="",
    questions=None,
    problems=None,
    answers=None,
    samples=0,
    majority=None,
    judge=None,
    continuations=None,
    held_out=64,
    chat="",
    cut_penalty=0.0,
    soft_tokens=0,
    mask_cut=False,
    **run,
) -> ConfigDict:
    """Builds the run of a policy that is rewarded for its answers to prompts.

    `reward` is a reward model's run, "judge" with a section `judge`, "answers" with the sections
    `problems` and `answers`, "majority" with a section `majority` as well, "random",
    FILE.py:FUNCTION, or several of them: ((reward, weight), ...).
    `prompts` is a file, or `questions` are about the corpus's world; without both and `problems`:
    prefixes of the corpus. `continuations` is the section of an evaluation as other runs have it.
    """
    task = common.complete(
        PromptsConfig,
        name="prompts",
        reward=reward,
        prompts=prompts,
        held_out=held_out,
        samples=samples,
        chat=chat,
        cut_penalty=cut_penalty,
        soft_tokens=soft_tokens,
        mask_cut=mask_cut,
    )
    asked = questions and common.complete(QuestionsConfig, **questions)
    optional = dict(questions=asked, problems=problems, answers=answers, majority=majority)
    optional |= dict(judge=judge, continuations=continuations)
    task = {key: value for key, value in task.items() if key not in optional}
    return _run(task | {key: x for key, x in optional.items() if x is not None}, **run)


def thinking_run(
    *, reward, thoughts, suffix, match=None, judge=None, probe=None, **run
) -> ConfigDict:
    """Builds the run of a policy that is rewarded for thoughts (sip/tasks/rl/thinking.py).

    `reward`: match, judge (a section) or rlp. `suffix` is data.cut's; `thoughts`, `match` and
    `probe` are changes to the default settings.
    """
    task = common.complete(
        ThinkingConfig,
        name="thinking",
        reward=reward,
        thoughts=common.complete(ThoughtsConfig, **thoughts),
        match=common.complete(MatchConfig, **(match or {})),
        probe=common.complete(ProbeConfig, **(probe or {})),
    )
    del task.judge
    if judge is not None:
        task.judge = judge
    tokens = task.thoughts.tokens + 1  # and the closing tag
    return _run(task, answer=tokens if reward == "rlp" else tokens + suffix, **run)


def shrink(run) -> None:
    """Makes a policy-gradient run of the micro-world tiny."""
    run.steps, run.batch, run.optim.warmup_steps, run.log.every_steps = 4, 8, 2, 2
    run.oversample = min(run.oversample, 2)
    run.evals.every_steps = 2
