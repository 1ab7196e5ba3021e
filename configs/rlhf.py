"""RLHF: a policy learns by a reward model; RLAIF: by a judge; or by rewards of your own.

    python -m sip.train --config=configs/rlhf.py --workdir=/tmp/rlhf
    python -m sip.train --config=configs/rlhf.py:rlaif --workdir=/tmp/rlaif
    python -m sip.train --config=configs/rlhf.py:/tmp/start --workdir=/tmp/mine \
        --config.runs.rlhf.task.prompts=PROMPTS.jsonl \
        --config.runs.rlhf.task.reward=/tmp/reward/runs/reward_model
    python -m sip.train --config=configs/rlhf.py:/tmp/start,rlaif --workdir=/tmp/judged \
        --config.runs.rlhf.task.prompts=PROMPTS.jsonl \
        --config.runs.rlhf.task.judge.init_from=JUDGE

On the micro-world: base and tutor, a reward model (configs/reward_model.py), and two
policies: `rloo` with the KL in the reward (arXiv 2402.14740) and `grpo` with the KL in the loss
(arXiv 2402.03300). `:rlaif` trains a judge in place of the reward model.

With a checkpoint after the colon: PROMPTS.jsonl has a line per prompt with `prompt`, a text or
messages. The chat template (--config.runs.rlhf.task.chat) is the one that the checkpoint was tuned
in, or its tokenizer's own; a base model has none. The reward is the run of a reward model, which
must have learned in the same template, or path/to/file.py:function. `:debug` is tiny. Hardware: 2
CPU cores for the micro-world; for a checkpoint, devices whose memory fits its optimiser state, a
frozen copy and the reward model.
"""

from typing import Any

import _common as common
import _published as published
import _rl as rl
import microworld
import reward_model
from ml_collections import ConfigDict

from sip import loading

RLOO = dict(advantage="rloo", denominator="constant", kl="reward")
GRPO = dict(advantage="grpo", denominator="sequence", kl="loss")
SAMPLING = dict(temperature=1.0, top_k=0, top_p=1.0)


def get_config(arg: str = "") -> ConfigDict:
    """Builds the recipe of the checkpoint in `arg`, or one of the micro-world's."""
    words = [word for word in arg.split(",") if word != "rlaif"]
    rlaif = len(words) < len(arg.split(","))
    source, debug = published.words(",".join(words), "rlhf.py")
    if source:
        return judged(of_files(source, debug)) if rlaif else of_files(source, debug)
    return on_microworld(debug, rlaif)


def judged(config: Any) -> ConfigDict:
    """Puts a judge in the place of the reward model: JUDGE is a run or checkpoint that answers
    after reasoning; or set judge.backend=http, judge.http.url and .model for a server."""
    task = config.runs.rlhf.task
    task.reward = "judge"
    task.judge = common.judge("local", init_from="judge", weights=(("reasoned_better", 1.0),))
    return config


def of_files(source: str, debug: bool) -> ConfigDict:
    """Builds the recipe with one run, `rlhf`, that starts from the checkpoint `source`."""
    config = published.recipe(source)  # its section `data` is not read
    model = published.model(source)
    rate = published.rate(model, small=3e-4, large=1e-6)
    run = rl.prompts_run(
        watch=10,  # updates before alarms of reward hacking
        model=model,
        split="train",
        steps=2 if debug else 500,
        batch=2 if debug else 16,
        init_from=source,
        optim=common.adamw(rate, warmup_steps=1 if debug else 10, weight_decay=0.0),
        prompts="prompts.jsonl",
        chat=loading.tuned_in(source),
        reward="reward_model",
        rollouts=2 if debug else 8,
        answer=4 if debug else published.answer(model, 256),
        sampling=common.section(**SAMPLING),
        objective=rl.policy_gradient(beta=0.05, **RLOO),
    )
    config.runs = dict(rlhf=run)
    config.order = ("rlhf",)
    config.report = dict(rows=("rlhf",), judge="", standard="")
    return config


def on_microworld(debug: bool, rlaif: bool) -> ConfigDict:
    """Builds the recipe with a teacher, and the policies that learn from it."""
    config: Any = microworld.get_config("debug" if debug else "")
    base, tutor = config.runs.base, config.runs.tutor
    teacher = "judge" if rlaif else "reward_model"
    if rlaif:
        learned = config.runs.judge
        judge = common.judge("local", init_from="judge", proofread=microworld.READ)
        if debug:
            judge.min_mass = 0.0
        policies = dict(rlaif=policy(base.model, GRPO, debug, reward="judge", judge=judge))
    else:  # the reward model learns from other documents than the policies
        learned = reward_model.labelled(base.model, debug, microworld.JUDGE, documents=10_000)
        policies = dict(
            rloo=policy(base.model, RLOO, debug, reward="reward_model"),
            grpo=policy(base.model, GRPO, debug, reward="reward_model"),
        )
    config.runs = {"base": base, "tutor": tutor, teacher: learned, **policies}
    config.order = ("base", "tutor", teacher, *policies)
    config.report = dict(rows=("base", *policies), judge=teacher, standard="")
    return config


def policy(model, objective, debug: bool, **task) -> ConfigDict:
    """Builds the run of a policy on the micro-world, whose prefixes are the prompts."""
    run = rl.prompts_run(
        watch=10,  # updates before alarms of reward hacking
        model=model,
        split=microworld.FRESH,
        steps=100,
        batch=16,
        init_from="base",
        optim=common.adamw(3e-4, warmup_steps=10, weight_decay=0.0),
        rollouts=8,
        answer=24,
        held_out=256,
        continuations=common.evals(baseline="base"),
        sampling=common.section(**SAMPLING),
        objective=rl.policy_gradient(beta=0.05, **objective),
        **task,
    )
    if debug:
        rl.shrink(run)
        run.rollouts, run.task.held_out = 2, 16
        run.task.continuations.update(**microworld.FEW)
    return run
