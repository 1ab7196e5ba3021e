"""Instruction tuning: a checkpoint learns the answers of your conversations.

    python -m sip.train --config=configs/sft.py:HF_DIR --workdir=/tmp/sft \
        --config.runs.assistant.task.path=FILE.jsonl
    python -m sip.generate --chat --checkpoint=/tmp/sft/runs/assistant

The word after the colon is the checkpoint: a Hugging Face directory or a run, such as
/tmp/pretrain/runs/base of configs/pretrain.py. Model and tokenizer are read from it. A line of the
file has `messages` (a list of role and content) or `prompt` and `completion`; the answers are
learned, with the token that ends each (sip/data/conversations.py). The chat template is the
checkpoint's own, or "turns" if it has none (--config.runs.assistant.task.chat). One in twenty
conversations is held out for validation and for the test, by a hash of its first question. Expect
in eval.json: `nll` (nats per token of held-out answers) and `perplexity`. Low-rank factors instead
of all parameters: --config.runs.assistant.lora.rank=16.
`:CHECKPOINT,debug` trains two steps; `:debug` alone a tiny fresh model with a byte tokenizer on
configs/examples/conversations.jsonl. Hardware: devices whose memory fits the optimiser state of the
checkpoint; 2 CPU cores for models of the micro-world. Not yet run with a published model.
"""

from pathlib import Path
from typing import Any

import _common as common
import _published as published
from ml_collections import ConfigDict

EXAMPLE = Path(__file__).with_name("examples") / "conversations.jsonl"


def get_config(arg: str = "") -> ConfigDict:
    """Builds a config with one run, `assistant`, that continues the checkpoint in `arg`."""
    source, debug = published.words(arg, "sft.py")
    config: Any = published.recipe(source)  # its section `data` is not read
    config.runs = dict(assistant=assistant_run(source))
    config.order = ("assistant",)
    config.report = dict(rows=("assistant",), judge="", standard="")
    return shrink(config, fresh=not source) if debug else config


def assistant_run(source: str) -> ConfigDict:
    """Builds the run: two epochs of 10,000 conversations, if four fit a row."""
    model = published.model(source)
    return common.conversations_run(
        path="",
        chat=published.chat_of(source),
        model=model,
        split="train",
        steps=300,
        batch=16,
        init_from=source or "start",
        length=min(2048, model["max_len"]),
        optim=common.adamw(
            published.rate(model, small=1e-3, large=1e-5), warmup_steps=20, weight_decay=0.0
        ),
        evals=common.section(every_steps=50, validation=64, split="test", standard=512, batch=16),
    )


def shrink(config, *, fresh: bool) -> ConfigDict:
    """Reduces the run to two steps on the example file; a fresh model also becomes tiny."""
    run = config.runs.assistant
    run.task.path, run.task.length = str(EXAMPLE), 256 if fresh else min(256, run.model.max_len)
    run.evals.update(validation=4, standard=4, batch=4)
    config = published.shrink(config, run, fresh=fresh)
    if fresh:
        run.model.max_len = 256
    return config
