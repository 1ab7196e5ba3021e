"""From pretraining to RLHF on the micro-world: does the gain of SIP survive the later stages?

    python -m sip.train --config=configs/microworld_journey.py --workdir=/tmp/journey --seeds=1,2,3
    python -m sip.train --config=configs/microworld_journey.py:learned --workdir=/tmp/learned
    python -m sip.train --config=configs/microworld_journey.py:debug --workdir=/tmp/debug

Runs in order:
    base            pretraining, as in configs/microworld.py (--from=ITS_WORKDIR copies it)
    standard, sip   continue base: standard pretraining, and SIP on the same documents for as many
                    steps. The ground truth is judge and rewriter; `learned` trains them, as
                    configs/microworld.py does.
    standard_sft, sip_sft    instruction tuning on a few hundred questions about half of the
                    entities, with faultless answers
    reward_model    learns which of two answers of the tuned models the ground truth prefers
    standard_rlhf, sip_rlhf  RLHF with it, on questions about the same entities
Answers are evaluated on questions about the other entities, whose facts were seen in pretraining
alone: plain ones, and ones that begin with a rumour or an insult. Continuations of the corpus are
evaluated at every stage. plots/journey.png shows both, summary.json the differences at each stage.
Variant words: `learned`, `debug` (tiny). Hardware: 2 CPU cores. CHANGELOG has what was measured.
"""

from typing import Any

import _common as common
import _rl as rl
import _variants as variants
import microworld
from ml_collections import ConfigDict

CHAT = "turns"
ANSWER = 40  # tokens of the longest answer
PLAIN = dict(count=600, answer=ANSWER)  # questions of instruction tuning
MIXED = dict(count=800, provoking=0.5, answer=ANSWER)  # of reward model and RLHF
TEACHERS = ("tutor", "judge", "rewriter")
BRANCHES = ("standard", "sip")
STEPS = 32  # of SIP with the ground truth, and of standard pretraining beside it
STAGES = ("", "_sft", "_rlhf")  # after base
WORDS = ("learned", "debug")


def get_config(arg: str = "") -> ConfigDict:
    """Builds the recipe; `learned` trains judge and rewriter of SIP, `debug` is tiny."""
    words = variants.named(variants.words(arg), WORDS, (), "microworld_journey.py") if arg else []
    debug = "debug" in words
    config: Any = microworld.get_config("debug" if debug else "")
    teachers = TEACHERS if "learned" in words else ()
    sip = config.runs["sip_learned" if teachers else "sip_oracle"]
    runs = dict(standard=config.runs.standard, sip=sip)
    if not teachers and not debug:
        sip.steps = STEPS
    runs["standard"].steps = sip.steps  # both see the same documents
    for run in runs.values():
        run.evals.every_steps = 0  # the stages' ends are compared
    model = config.runs.base.model
    runs |= {f"{name}_sft": tuned(model, name) for name in BRANCHES}
    runs |= dict(reward_model=reward_model(model))
    runs |= {f"{name}_rlhf": rewarded(model, f"{name}_sft") for name in BRANCHES}
    runs = {name: config.runs[name] for name in ("base", *teachers)} | runs
    if debug:
        shrink(runs)
    config.runs = runs
    config.order = tuple(runs)
    journeys = [("base", *(f"{name}{stage}" for stage in STAGES)) for name in BRANCHES]
    config.report = dict(
        rows=tuple(dict.fromkeys(name for both in zip(*journeys, strict=True) for name in both)),
        judge="reward_model",
        standard="",
        journeys=tuple(journeys),
    )
    return config


def tuned(model, source: str) -> ConfigDict:
    """Builds the run of instruction tuning that starts from the run `source`."""
    return common.conversations_run(
        questions=PLAIN,
        chat=CHAT,
        model=model,
        split="train",
        steps=100,
        batch=8,
        init_from=source,
        optim=common.adamw(1e-3, warmup_steps=10),
        evals=common.evals(baseline="base", every_steps=100),
    )


def reward_model(model) -> ConfigDict:
    """Builds the run of the reward model of both policies, which starts from the tuned standard
    model: unlike base it reads questions and answers."""
    return common.reward_model_run(
        model=dict(model),
        split="train",
        steps=300,
        batch=32,
        init_from="standard_sft",
        optim=common.adamw(1e-3, warmup_steps=20),
        answers=dict(
            sources=tuple(f"{name}_sft" for name in BRANCHES),
            chat=CHAT,
            questions=dict(MIXED),
            rollouts=3,
            per_question=4,
        ),
    )


def rewarded(model, source: str) -> ConfigDict:
    """Builds the run of RLHF that starts from the run `source`."""
    return rl.prompts_run(
        watch=10,  # updates before alarms of reward hacking
        model=model,
        split="train",
        steps=50,
        batch=16,
        init_from=source,
        optim=common.adamw(4e-4, warmup_steps=5, weight_decay=0.0),
        reward="reward_model",
        questions=MIXED,
        chat=CHAT,
        cut_penalty=1.0,
        rollouts=8,
        answer=ANSWER,
        held_out=128,
        continuations=common.evals(baseline="base"),
        sampling=common.section(temperature=1.0, top_k=0, top_p=1.0),
        objective=rl.policy_gradient(
            advantage="rloo", denominator="constant", kl="reward", beta=0.05
        ),
        evals_batch=64,
    )


def shrink(runs) -> None:
    """Makes the runs after pretraining tiny; those of microworld.py are."""
    for name in BRANCHES:
        tuned, rewarded = runs[f"{name}_sft"], runs[f"{name}_rlhf"]
        tuned.update(steps=4, batch=8)
        tuned.optim.warmup_steps, tuned.log.every_steps = 2, 2
        tuned.evals.update(**microworld.FEW, every_steps=2)
        rl.shrink(rewarded)
        rewarded.rollouts, rewarded.task.held_out = 2, 16
        rewarded.task.continuations.update(**microworld.FEW)
        for run in (tuned, rewarded):
            run.task.questions.update(count=40, held_out=16, answer=8)
        rewarded.answer = 8
    model = runs["reward_model"]
    model.update(steps=4, batch=8)
    model.optim.warmup_steps, model.log.every_steps, model.evals.every_steps = 2, 2, 2
    model.task.answers.questions.update(count=40, held_out=16, answer=8)
