"""Domain finetuning: a published checkpoint goes on learning on packed documents of your own.

    python -m sip.train --config=configs/finetune.py:HF_DIR --config.data.path=FILE.txt \
        --workdir=/tmp/tuned
    python -m sip.convert --to=hf --src=/tmp/tuned/runs/tuned --dst=/tmp/out --tokenizer_from=HF_DIR

The word after the colon is the checkpoint: a run directory or a Hugging Face directory. Model and
tokenizer are read from it. Documents are separated by blank lines (--config.data.source=jsonl for
JSON Lines); rows of task.length tokens hold several of them, with attention within each. Low-rank
factors instead of all parameters: --config.runs.tuned.lora.rank=16. `:HF_DIR,debug` trains two
steps; `:debug` alone a tiny fresh model with a byte tokenizer. Expect in eval.json: `nll`, nats per
token of held-out suffixes; evaluate the checkpoint itself with `python -m sip.evaluate`.
Hardware: devices whose memory fits the optimiser state of the checkpoint. Not yet run with a
published model.
"""

from typing import Any

import _common as common
import _published as published
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Builds a config with one run, `tuned`, that continues the checkpoint in `arg`."""
    source, debug = published.words(arg, "finetune.py")
    config: Any = published.recipe(source)
    config.data = common.data(
        "txt",
        max_skipped_fraction=0.9,  # for the evaluation, many paragraphs are too short
        cut=published.cut(published.model(source), prefix_min=64, prefix_max=256, suffix=64),
    )
    config.runs = dict(tuned=tuned_run(source))
    config.order = ("tuned",)
    config.report = dict(rows=("tuned",), judge="", standard="")
    return shrink(config, fresh=not source) if debug else config


def tuned_run(source: str) -> ConfigDict:
    """Builds the run: next-token prediction at a learning rate for the model's size."""
    model = published.model(source)
    return common.documents_run(
        model=model,
        split="train",
        steps=1000,
        batch=32,
        init_from=source or "start",
        tokens="all",
        packed=True,
        length=min(1024, model["max_len"]),
        optim=common.adamw(
            published.rate(model, small=6e-4, large=1e-5), warmup_steps=50, weight_decay=0.0
        ),
        evals=common.evals(baseline=""),
    )


def shrink(config, *, fresh: bool) -> ConfigDict:
    """Reduces the run to two steps on short rows; a fresh model also becomes tiny."""
    run = config.runs.tuned
    config.data.cut = dict(prefix_min=8, prefix_max=16, suffix=8)
    run.task.length = 64
    run.evals.update(validation=4, standard=4, unsafe=4, batch=4)
    return published.shrink(config, run, fresh=fresh)
