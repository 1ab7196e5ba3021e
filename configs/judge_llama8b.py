"""A reasoning judge at the scale of arXiv 2601.21343: GRPO on a model with Llama-3.1-8B's shapes.

    python -m sip.train --config=configs/judge_llama8b.py --workdir=gs://BUCKET/judge \
        --config.runs.judge.task.label_file.path=FILE.jsonl --config.runs.judge.init_from=DIR \
        --config.tokenizer.path=FILE.model

You provide the labels: a JSON line each, with aspect, prefix, candidates and label
(sip/judge/labels/file.py). `init_from` must be an instruction-tuned checkpoint, because other
models rarely write a verdict that can be rewarded.

Settings of the paper: 75 432 pairs for quality and 3 192 texts for safety, batch 256, 16 answers of
up to 512 tokens, prompts of up to 3 584 tokens, temperature 0.6, top-p 0.6, 500 steps at a constant
learning rate of 2e-7. `:debug` is tiny, with a byte tokenizer and fresh parameters.
Hardware: 64 TPU v5p or similar (compiled for them, not yet run). LoRA needs a fraction of the
memory: --config.runs.judge.lora.rank=16 with model.param_dtype=bfloat16 or lora.int8=True;
see docs/checkpoints.md.
"""

import _common as common
import _rl as rl
from ml_collections import ConfigDict

MODEL = dict(
    vocab_size=128256,
    width=4096,
    layers=32,
    kv_heads=8,
    queries_per_kv=4,
    head_dim=128,
    hidden=14336,
    max_len=3584 + 512,  # tokens of a prompt and of an answer
    rope_theta=500000.0,
    rope_scaling="llama3",
    rope_factor=8.0,
    rope_original_len=8192,
    norm_eps=1e-5,
    tied=False,
    dtype="bfloat16",
    param_dtype="float32",
    remat="block",
    query_chunk=512,
    branch_chunk=8,
    logprob_chunk=512,
)


def get_config(arg: str = "") -> ConfigDict:
    """Builds a config with one run, `judge`; `debug` makes it run in seconds."""
    debug = common.is_debug(arg, "judge_llama8b.py")
    config = ConfigDict()
    config.seed = 0
    config.data = common.data(  # required by the config's format; this run reads only the labels
        "jsonl",
        "labels.jsonl",
        max_skipped_fraction=0.0,
        cut=dict(prefix_min=128, prefix_max=1920, suffix=128),
    )
    config.tokenizer = dict(
        kind="sentencepiece", path="tokenizer.model", vocab_size=128256, documents=1, prompts=()
    )
    judge = rl.judge_run(
        model=dict(MODEL),
        split="train",
        steps=500,
        batch=256,
        init_from="instruct",
        optim=common.adamw(2e-7, warmup_steps=0, schedule="constant", weight_decay=0.0, b2=0.95),
        label_file=dict(path="labels.jsonl", aspects=("reasoned_quality", "reasoned_safety")),
        rollouts=16,
        answer=512,
        sampling=common.section(temperature=0.6, top_k=0, top_p=0.6),
        objective=rl.policy_gradient(),
        save_every=50,
        evals_every=50,
        evals_batch=64,
    )
    judge.microbatches = 16
    config.runs = dict(judge=judge)
    config.order = ("judge",)
    config.report = dict(rows=(), judge="judge", standard="")
    return shrink(config, config.runs.judge, answer=8, max_len=1024) if debug else config


def shrink(config, run, *, answer: int, max_len: int) -> ConfigDict:
    """Makes a config with one policy-gradient run tiny.

    `answer` and `max_len` are in tokens.
    """
    run.update(rollouts=2, answer=answer)
    run.evals.update(every_steps=1, batch=4)
    return shrink_shared(config, run, max_len=max_len)


def shrink_shared(config, run, *, max_len: int) -> ConfigDict:
    """Makes the texts, the model and the steps of any single run tiny."""
    config.compile = "quick"
    config.data.cut = dict(prefix_min=8, prefix_max=16, suffix=8)
    config.tokenizer.update(kind="byte", path="", vocab_size=259)
    run.update(steps=2, batch=4, microbatches=2, init_from="")
    run.model.update(vocab_size=259, width=16, layers=1, kv_heads=2, queries_per_kv=2)
    run.model.update(head_dim=4, hidden=32, max_len=max_len, dtype="float32")
    run.optim.lr = 1e-3
    run.log.every_steps = 1
    return config
