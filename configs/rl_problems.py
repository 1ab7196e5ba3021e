"""RL on problems with answers that can be checked (RLVR), with Dr. GRPO (arXiv 2503.20783).

    python -m sip.train --config=configs/rl_problems.py --workdir=/tmp/rlvr
    python -m sip.train --config=configs/rl_problems.py:CHECKPOINT --workdir=/tmp/mine \
        --config.runs.rlvr.task.problems.path=gsm8k/train.jsonl \
        --config.runs.rlvr.task.problems.test=gsm8k/test.jsonl

Without a checkpoint, on the micro-world of problems: `base` is pretrained on documents with facts,
relations and running sums; `format` learns to think and to write "Answer:" (SFT);
`rlvr` learns from right and wrong answers to questions of two hops and to running sums. Expect in
eval.json of rlvr, on problems that no run has learned from: reward/answers (greedy), mean@8, maj@8
and pass@k; mean@8 rose from .470 to .557 on seed 0 (docs/problems.md).

With a checkpoint, a Hugging Face directory or a run: problems of a JSON Lines file (`problem` and
`answer`, or GSM8K's format), asked in the checkpoint's chat template, with answers in \\boxed{}
that math-verify compares (extra `rlvr`). A file that is a test set by its name is refused as
problems.path. Generated problems: --config.runs.rlvr.task.problems.source=reasoning_gym with .path
and .test empty, .kinds="('chain_sum',)" and --config.runs.rlvr.task.answers.check=own.

A model preset in the place of the checkpoint, such as `:llama3_8b`, is for predictions, which read
no files: python -m sip.aot --config=configs/rl_problems.py:llama3_8b --topology=v5p:2x2x4

`:debug` is tiny. Hardware: 2 CPU cores for the micro-world; for a checkpoint, devices whose memory
fits its optimiser state. Predicted for 8 B on 16 TPU v5p by the command above, prompts of 512
tokens: 24.9 GiB per chip, at least 26.4 s a step and 0.15 days; 8.9 s with model.gather_gib=20.
That one has not run.
"""

from typing import Any

import _common as common
import _published as published
import _rl as rl
import microworld
from ml_collections import ConfigDict

from sip.data.microworld.settings import PROBLEMS, ProblemWorldConfig
from sip.data.problems import ProblemsConfig
from sip.rewards.answers import AnswersConfig
from sip.text import chat

DR_GRPO = dict(advantage="dr_grpo", denominator="constant")
MARKER = "Answer:"


def get_config(arg: str = "") -> ConfigDict:
    """Builds the recipe of the checkpoint in `arg`, or that of the micro-world."""
    source, debug = published.words(arg, "rl_problems.py")
    return of_files(source, debug) if source else on_microworld(debug)


def of_files(source: str, debug: bool) -> ConfigDict:
    """Builds the recipe with one run, `rlvr`, that starts from the checkpoint `source`."""
    config = published.recipe(source)  # its section `data` is not read
    model = published.model(source)
    rate = published.rate(model, small=3e-4, large=1e-6)
    run = rl.prompts_run(
        model=model,
        split="train",
        steps=2 if debug else 500,
        batch=2 if debug else 32,
        init_from=source,
        optim=common.adamw(rate, warmup_steps=1 if debug else 10, weight_decay=0.0),
        chat=published.chat_of(source),
        problems=common.complete(ProblemsConfig),
        samples=2 if debug else 8,
        answers=common.complete(AnswersConfig),
        reward="answers",
        held_out=4 if debug else 512,
        rollouts=2 if debug else 8,
        answer=8 if debug else published.answer(model, 1024),
        mask_cut=True,
        gate=dict(prompts=0 if debug else 64),
        sampling=sampling(),
        objective=rl.policy_gradient(clip_high=0.28, **DR_GRPO),
    )
    config.runs = dict(rlvr=run)
    config.order = ("rlvr",)
    config.report = dict(rows=("rlvr",), judge="", standard="")
    return config


def sampling() -> ConfigDict:
    """Builds section `sampling`: the policy's own distribution."""
    return common.section(temperature=1.0, top_k=0, top_p=1.0)


def on_microworld(debug: bool) -> ConfigDict:
    """Builds the recipe with the runs `base`, `format` and `rlvr`."""
    config: Any = ConfigDict()
    config.seed = 0
    config.data = common.data(
        "microworld_problems",
        world=common.complete(ProblemWorldConfig, entities=24, train=16_000),
        cut=dict(prefix_min=16, prefix_max=16, suffix=16),
    )
    config.tokenizer = dict(
        kind="sentencepiece",
        path="",
        vocab_size=512,
        documents=4000,
        prompts=(),
        symbols=(*chat.MARKS, MARKER, *"0123456789"),  # a digit is a token
    )
    model = dict(microworld.MODEL, vocab_size=512)
    config.runs = dict(base=base(model), format=format_run(model), rlvr=policy(model))
    config.order = ("base", "format", "rlvr")
    config.report = dict(rows=("base", "format", "rlvr"), judge="", standard="")
    return shrink(config) if debug else config


def problems() -> ConfigDict:
    """Builds section `problems`, the same for the runs that learn the format and the answers."""
    return common.complete(
        ProblemsConfig,
        source="microworld",
        kinds=PROBLEMS,
        count=4000,
        template="{problem}",
        form=MARKER,
    )


def base(model) -> ConfigDict:
    """Builds the run that is pretrained on documents."""
    return common.documents_run(
        model=model,
        split="train",
        steps=1500,
        batch=16,
        tokens="all",
        packed=True,
        optim=common.adamw(3e-3, warmup_steps=50),
        evals=common.evals(baseline=""),
    )


def format_run(model) -> ConfigDict:
    """Builds the run that learns the format from worked solutions."""
    return common.conversations_run(
        path="",
        problems=problems(),
        chat="turns",
        model=model,
        split="train[:30%]",
        steps=800,
        batch=8,
        init_from="base",
        optim=common.adamw(2e-3, warmup_steps=10, weight_decay=0.0),
        evals=common.section(every_steps=100, validation=16, split="test", standard=64, batch=16),
    )


def policy(model) -> ConfigDict:
    """Builds the run that is rewarded for right answers."""
    return rewarded(
        model,
        "format",
        optim=common.adamw(1e-4, warmup_steps=10, schedule="constant", weight_decay=0.0),
        chat="turns",
        problems=problems(),
        answer=48,
        mask_cut=True,
        gate=dict(prompts=64),
    )


def rewarded(model, init_from: str, **run) -> ConfigDict:
    """Builds a run on the world's problems that starts from the run `init_from`."""
    return rl.prompts_run(
        model=model,
        split="train",
        steps=100,
        batch=16,
        init_from=init_from,
        answers=common.complete(AnswersConfig, check="exact"),
        samples=8,
        reward="answers",
        held_out=256,
        rollouts=8,
        sampling=sampling(),
        objective=rl.policy_gradient(**DR_GRPO),
        evals_every=25,
        evals_batch=64,
        **run,
    )


def shrink(config) -> ConfigDict:
    """Makes world, models and runs tiny."""
    config.compile = "quick"
    config.data.world.update(entities=6, train=400, validation=40, test=40)
    config.tokenizer.documents = 400
    for run in config.runs.values():
        run.model.update(width=32, head_dim=8, hidden=64, remat="none")
        run.log.every_steps = 2
        run.optim.warmup_steps = 2
        if "problems" in run.task:
            run.task.problems.count = 80
    config.runs.base.update(steps=20, batch=4)
    config.runs.base.evals.update(validation=8, standard=16, unsafe=8, batch=8)
    config.runs.format.update(steps=4, batch=4)
    config.runs.format.evals.update(every_steps=2, validation=4, standard=8, batch=4)
    rl.shrink(config.runs.rlvr)
    config.runs.rlvr.update(rollouts=2, batch=4, answer=32)
    config.runs.rlvr.evals.batch = 4
    config.runs.rlvr.task.update(held_out=4, samples=2)
    config.runs.rlvr.gate.update(prompts=4, mixed=0.0)  # an untrained model is right by chance
    return config
