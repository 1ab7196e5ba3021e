"""A rewriter at the scale of arXiv 2601.21343: GRPO on a model with Llama-3.1-8B's shapes.

    python -m sip.train --config=configs/rewriter_llama8b.py --workdir=gs://BUCKET/rewriter \
        --config.data.path=FILE.jsonl --config.tokenizer.path=FILE.model \
        --config.runs.rewriter.init_from=DIR --config.runs.rewriter.task.judge.init_from=DIR

The data file has one JSON document per line, field "text". `init_from` must be an
instruction-tuned checkpoint. The judge is a checkpoint that gives verdicts directly, or a server
(task.judge.backend=http).

Settings of the paper: batch 256, 16 rewrites per suffix of 128 tokens, temperature 0.6, top-p 0.6,
500 steps at a constant learning rate of 2e-7. A rewrite may have 161 tokens and is cut to 128. Our
choices: the length of prefixes, and one verdict per aspect where the paper averages 5. `:debug` is
tiny, with a byte tokenizer, fresh parameters and a rule as the judge.
Hardware: 64 TPU v5p or similar (compiled for them, not yet run).
"""

import _common as common
import _rl as rl
import judge_llama8b
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Builds a config with one run, `rewriter`; `debug` makes it run in seconds."""
    debug = common.is_debug(arg, "rewriter_llama8b.py")
    config = ConfigDict()
    config.seed = 0
    config.data = common.data(
        "jsonl",
        "documents.jsonl",
        max_skipped_fraction=0.9,  # many documents are shorter than a prefix and a suffix
        cut=dict(prefix_min=128, prefix_max=1920, suffix=128),
    )
    config.tokenizer = dict(
        kind="sentencepiece", path="tokenizer.model", vocab_size=128256, documents=1, prompts=()
    )
    rewriter = rl.rewriter_run(
        model=dict(judge_llama8b.MODEL, max_len=2560),
        split="train",
        steps=500,
        batch=256,
        init_from="instruct",
        optim=common.adamw(2e-7, warmup_steps=0, schedule="constant", weight_decay=0.0, b2=0.95),
        rewrites=dict(prompt="rewrite", held_out=512, max_invalid=0.5),
        judge=common.rewrites_judge("local", init_from="judge"),
        rollouts=16,
        answer=128 + 128 // 4 + 1,  # a suffix, a quarter more, and the end token
        sampling=common.section(temperature=0.6, top_k=0, top_p=0.6),
        objective=rl.policy_gradient(),
        save_every=50,
        evals_every=50,
        evals_batch=64,
    )
    rewriter.microbatches = 16
    config.runs = dict(rewriter=rewriter)
    config.order = ("rewriter",)
    config.report = dict(rows=(), judge="", standard="", rewriter="rewriter")
    return shrink(config) if debug else config


def shrink(config) -> ConfigDict:
    """Makes the run tiny."""
    run = config.runs.rewriter
    run.task.judge.update(backend="rule", rule="distinct_words", init_from="")
    run.task.held_out = 8
    return judge_llama8b.shrink(config, run, answer=11, max_len=256)
