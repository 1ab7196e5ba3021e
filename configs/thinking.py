"""Thinking mid-training (arXiv 2601.21343, chapter 2): SFT on thoughts, then RL of thoughts.

    python -m sip.train --config=configs/thinking.py --workdir=/tmp/think
    python -m sip.train --config=configs/thinking.py:rlp --workdir=/tmp/rlp

On the micro-world of problems, whose documents state facts, sums step by step, and riddles: a
question of two hops or a sum, and its answer without the steps. The world is the teacher: it thinks
of the steps between question and answer. Riddles of test are in no document of train.
    base       pretraining on half of the documents
    raw        SFT on a quarter of them without thoughts, the control, for as many tokens
    thoughts   SFT on the same quarter with thoughts
    rl         RL of `thoughts` on the last quarter: 1 if the continuation matches the true suffix;
               `:rlp` rewards what a thought tells about it instead (arXiv 2510.01265)
    base_post, raw_post, thoughts_post, rl_post
               each of them after the same RL on problems with checked answers (rl_problems.py)
Expect in eval.json of raw, thoughts and rl: `probe/own`, the reward after thoughts of its own,
beside those after others: `probe/blank`, `/generic`, `/swapped`, `/teacher`, and `/direct` without
a thought, all with `/error`. `probe/used` is 1 if own thoughts beat constant ones
(sip/evals/thoughts.py). In eval.json of `.._post`: mean@8, maj@8 and pass@k on problems of test,
and the same before the first step as start/mean@8. An RL run of which fewer than 5 % of the first
64 prompts have answers of different rewards ends at once (`gate`). `:debug` is tiny: its figures
mean nothing.

    python -m sip.annotate --config=configs/thinking.py:llama3_8b --config.data.path=MY.jsonl \
        --workdir=DIR --url=http://HOST:8000/v1 --model=openai/gpt-oss-120b --api=chat \
        --tags='<|reserved_special_token_0|>,<|reserved_special_token_1|>' --out=A.jsonl

then again with --split=validation and --split=test, and `sip.train` with
--config.runs.RUN.task.thoughts.annotated='A*.jsonl' for the runs raw, thoughts and rl, whose judge
is at --config.runs.RUN.task.judge.http.url.
`:llama3_8b` and `:qwen3_8b` (whose tags are <think> and </think>) have the paper's sizes as far as
they are known: 10,000 SFT steps of 1 M tokens, 5,000 RL steps, a judge on a server; the rest is our
choice. Hardware: 2 CPU cores and half an hour for the micro-world (figures: docs/thinking.md); 64
TPU v5p or similar for 8 B. Predicted by

    python -m sip.aot --config=configs/thinking.py:llama3_8b --topology=v5p:4x4x4

24.1 of 95.74 GiB per chip; at least 2.1 s an SFT step (raw, thoughts: 0.24 days each) and 10.9 s an
RL step (0.63 days), 1.12 days in all, without the judge's server and the probe. Nothing of this has
run on TPUs.
"""

import dataclasses
from typing import Any

import _common as common
import _rl as rl
import _variants as variants
import rl_problems
from ml_collections import ConfigDict

from sip.data.microworld.settings import ANSWERED, PROBLEMS, ProblemWorldConfig
from sip.data.problems import ANSWER, ProblemsConfig
from sip.data.thoughts import TAGS
from sip.models import presets
from sip.tasks.thoughts import TRUTH

# Tokens for the tags: Llama 3 has none of its own.
SIZES = {
    "llama3_8b": ("<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
    "qwen3_8b": TAGS,
}
WORDS = ("rlp", "debug")
CUT = dict(prefix_min=16, prefix_max=64, suffix=8)
ROWS = ("base", "raw", "thoughts", "rl")
FORM = ANSWERED.format(ANSWER)  # the sentence of documents and problems alike
FIRST = dict(words=4)  # of the true suffix, which a continuation must meet without a judge
GATE = dict(prompts=64, mixed=0.05)  # RL ends before its first step below this share
DR_GRPO = dict(advantage="dr_grpo", denominator="constant")
RLP = dict(advantage="rloo", denominator="sequence")
SAMPLING = dict(temperature=1.0, top_k=0, top_p=1.0)


def get_config(arg: str = "") -> ConfigDict:
    """Builds the micro-world's recipe, or that of a published model of 8 B parameters."""
    words = variants.words(arg)
    sizes = [word for word in words if word in SIZES]
    unknown = [word for word in words if word not in (*SIZES, *WORDS)]
    if unknown or len(sizes) > 1 or (sizes and "debug" in words):
        raise ValueError(
            f"configs/thinking.py: {arg!r} must be words of {', '.join((*WORDS, *SIZES))}; debug "
            "is of the micro-world"
        )
    reward = "rlp" if "rlp" in words else ""
    if sizes:
        return of_size(sizes[0], reward or "judge")
    return on_microworld(reward or "match", "debug" in words)


def on_microworld(reward: str, debug: bool) -> ConfigDict:
    """Builds the recipe in which the world of problems is the teacher."""
    config: Any = rl_problems.on_microworld(False)
    config.data.world = common.complete(ProblemWorldConfig, entities=32, train=16_000, riddles=0.4)
    config.data.cut = dict(CUT)
    config.tokenizer.symbols = (*TAGS, *"0123456789")
    base = config.runs.base
    base.update(split="train[:50%]", steps=1000, batch=16)
    sft = dict(
        model=base.model,
        split="train[50%:75%]",
        steps=1200,
        batch=16,
        init_from="base",
        optim=common.adamw(2e-3, warmup_steps=20),
        thoughts=dict(annotated=TRUTH, tokens=40),
        match=FIRST,
        evals=common.section(every_steps=100, batch=32),
    )
    policy = rl.thinking_run(
        reward=reward,
        model=base.model,
        split="train[75%:]",
        steps=150,
        batch=16,
        init_from="thoughts",
        optim=common.adamw(1e-4, warmup_steps=10, schedule="constant", weight_decay=0.0),
        thoughts=dict(annotated=TRUTH, tokens=40),
        match=FIRST,
        rollouts=8,
        gate=GATE,
        suffix=CUT["suffix"],
        **loss(reward),
        evals_batch=32,
        evals_every=50,
    )
    config.runs = dict(
        base=base,
        raw=common.thoughts_run(keep=False, **sft),
        thoughts=common.thoughts_run(keep=True, **sft),
        rl=policy,
        **{f"{name}_post": post_training(base.model, name) for name in ROWS},
    )
    config.order = (*ROWS, *(f"{name}_post" for name in ROWS))
    config.report = dict(rows=config.order, judge="", standard="")
    return shrink(config) if debug else config


def post_training(model, start: str) -> ConfigDict:
    """Builds RL on problems with checked answers, the same for every start."""
    asked = dict(source="microworld", kinds=PROBLEMS, count=4000, template="{problem}", form=FORM)
    return rl_problems.rewarded(
        model,
        start,
        optim=common.adamw(1e-4, warmup_steps=10, schedule="constant", weight_decay=0.0),
        problems=common.complete(ProblemsConfig, **asked),
        answer=64,
        gate=GATE,
    )


def of_size(name: str, reward: str) -> ConfigDict:
    """Builds the recipe of a published model, whose thoughts are read from files."""
    model = dataclasses.asdict(presets.preset(name)) | dict(
        max_len=4096,
        branch_chunk=4,
        query_chunk=512,
        logprob_chunk=512,
        gather_gib=20.0,  # decoding gathers 15 GiB of parameters once, not for every token
    )
    config: Any = ConfigDict()
    config.seed = 0
    cut = dict(prefix_min=64, prefix_max=2048, suffix=128)
    config.data = common.data("jsonl", "documents.jsonl", max_skipped_fraction=0.9, cut=cut)
    config.tokenizer = dict(
        kind="huggingface", path="tokenizer.json", vocab_size=0, documents=1, prompts=(), symbols=()
    )
    sft = dict(
        model=model,
        split="train[:50%]",
        steps=10_000,
        batch=512,
        init_from="start",
        optim=common.adamw(1e-5, warmup_steps=200, weight_decay=0.1, b2=0.95),
        thoughts=dict(annotated="annotated.jsonl", tokens=1024, tags=SIZES[name]),
        length=2048,
        match=FIRST,
        evals=common.section(every_steps=1000, batch=64),
    )
    judge = lambda: server() if reward == "judge" else None  # the same for probes and rewards
    policy = rl.thinking_run(
        reward=reward,
        model=model,
        split="train[50%:]",
        steps=5_000,
        batch=64,
        init_from="thoughts",
        optim=common.adamw(1e-6, warmup_steps=50, schedule="constant", weight_decay=0.0, b2=0.95),
        thoughts=dict(annotated="annotated.jsonl", tokens=1024, tags=SIZES[name]),
        rollouts=16,
        suffix=cut["suffix"],
        **loss(reward),
        judge=judge(),
        gate=GATE,
        evals_batch=64,
        evals_every=200,
    )
    runs = dict(
        raw=common.thoughts_run(keep=False, judge=judge(), **sft),
        thoughts=common.thoughts_run(keep=True, judge=judge(), **sft),
        rl=policy,
    )
    for run, parts in zip(runs.values(), (8, 8, 1), strict=True):
        run.microbatches = parts
    config.runs = runs
    config.order = ("raw", "thoughts", "rl")
    config.report = dict(rows=config.order, judge="", standard="")
    return config


def loss(reward: str) -> dict:
    """Returns the sections of sampling and loss: Dr. GRPO, or RLP's."""
    return dict(
        sampling=common.section(**SAMPLING),
        objective=rl.policy_gradient(**(RLP if reward == "rlp" else DR_GRPO)),
    )


def server() -> ConfigDict:
    """Builds the section of a judge on a server, which says if continuations match."""
    http = common.http(
        url="http://localhost:8000/v1", model="openai/gpt-oss-120b", api="chat", logprobs=0
    )
    return common.judge("http", weights=(("reasoned_match", 1.0),), http=http)


def shrink(config) -> ConfigDict:
    """Makes world, models and runs tiny."""
    config.compile = "quick"
    config.data.world.update(entities=8, train=400, validation=40, test=40)
    config.tokenizer.documents = 400
    for name, run in config.runs.items():
        run.model.update(width=32, head_dim=8, hidden=64, remat="none")
        run.update(steps=4, batch=4)
        run.optim.warmup_steps = run.log.every_steps = 2
        if name == "base":
            run.evals.update(validation=8, standard=16, unsafe=8, batch=8)
            continue
        run.evals.update(every_steps=2, batch=8)
        if name.endswith("_post"):
            run.update(rollouts=2, answer=16)
            run.gate.update(prompts=4, mixed=0.0)  # an untrained model is right by chance
            run.task.problems.count = 80
            run.task.update(held_out=4, samples=2)
        else:
            run.task.probe.update(prefixes=8, samples=2)
    config.runs.rl.rollouts = 2
    config.runs.rl.gate.update(prompts=4, mixed=0.0)
    return config
