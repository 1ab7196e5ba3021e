"""Preference learning (offline DPO) from a checkpoint on your own pairs, or on the micro-world.

    python -m sip.train --config=configs/dpo.py:/tmp/start --workdir=/tmp/dpo \
        --config.runs.dpo.task.pairs.path=PAIRS.jsonl
    python -m sip.train --config=configs/dpo.py --workdir=/tmp/dpo-world

The word after the colon is the checkpoint to start from: a run directory or a Hugging Face
directory. PAIRS.jsonl has a line per pair with `prompt`, `chosen`, `rejected` (texts or messages;
sip/data/preferences.py lists the formats). The chat template is the one that the checkpoint was
tuned in, or its tokenizer's own; a base model has none, so that texts stay plain, and messages need
--config.runs.dpo.task.pairs.chat=turns. Other losses: --config.runs.dpo.task.loss.name=ipo,
.length_normalize, .reference, .gamma, .nll_weight.

Without a checkpoint: the base model of microworld.py, and pairs of continuations that the
micro-world's ground truth compares. `:debug` is tiny. Hardware: 2 CPU cores for the micro-world;
for a checkpoint, devices whose memory fits its optimiser state and a frozen copy.
"""

from typing import Any

import _common as common
import _published as published
import microworld
from ml_collections import ConfigDict

from sip import loading


def get_config(arg: str = "") -> ConfigDict:
    """Builds the recipe of the checkpoint in `arg`, or that of the micro-world."""
    source, debug = published.words(arg, "dpo.py")
    return of_files(source, debug) if source else on_microworld(debug)


def of_files(source: str, debug: bool) -> ConfigDict:
    """Builds the recipe with one run, `dpo`, that starts from the checkpoint `source`."""
    config = published.recipe(source)  # its section `data` is not read
    model = published.model(source)
    rate = published.rate(model, small=1e-4, large=1e-6)
    dpo = common.preference_run(
        model=model,
        split="train",
        steps=2 if debug else 500,
        batch=4 if debug else 32,
        init_from=source,
        optim=common.adamw(rate, warmup_steps=1 if debug else 50, weight_decay=0.0),
        pairs=dict(path="", chat=loading.tuned_in(source)),
        evals=common.evals(baseline="", every_steps=50),
    )
    config.runs = dict(dpo=dpo)
    config.order = ("dpo",)
    config.report = dict(rows=("dpo",), judge="", standard="")
    return config


def on_microworld(debug: bool) -> ConfigDict:
    """Builds the recipe with the runs `base` and `dpo` of the micro-world."""
    config: Any = microworld.get_config("debug" if debug else "")
    base = config.runs.base
    dpo = common.preference_run(
        model=base.model,
        split=microworld.FRESH,
        steps=200,
        batch=16,
        init_from="base",
        optim=common.adamw(3e-4, warmup_steps=20, weight_decay=0.0),
        labels=dict(source="base"),
        evals=common.evals(baseline="base", every_steps=50),
    )
    if debug:
        dpo.update(steps=4, batch=8)
        dpo.optim.warmup_steps, dpo.log.every_steps, dpo.evals.every_steps = 2, 2, 2
        dpo.task.labels.update(documents=40, held_out=16)
        dpo.evals.update({k: base.evals[k] for k in ("validation", "standard", "unsafe", "batch")})
    config.runs = dict(base=base, dpo=dpo)
    config.order = ("base", "dpo")
    config.report = dict(rows=("base", "dpo"), judge="", standard="")
    return config
