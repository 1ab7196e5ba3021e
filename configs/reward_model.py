"""Trains a reward model on your own pairs from a checkpoint, or on the micro-world.

    python -m sip.train --config=configs/reward_model.py:/tmp/start --workdir=/tmp/reward \
        --config.runs.reward_model.task.pairs.path=PAIRS.jsonl
    python -m sip.train --config=configs/reward_model.py --workdir=/tmp/reward-world

The word after the colon is the checkpoint to start from: a run directory or a Hugging Face
directory. PAIRS.jsonl and its chat template (--config.runs.reward_model.task.pairs.chat) are as in
dpo.py; a line may have a `margin`. `python -m sip.convert --to=hf` writes the result as a model
with one label, such as LlamaForSequenceClassification.

Without a checkpoint: base and tutor of microworld.py, and a reward model that is the tutor with
copies of its layers on top. It learns pairs of continuations that the micro-world's ground truth
compares. `:debug` is tiny. Hardware: 2 CPU cores for the micro-world; for a checkpoint, devices
whose memory fits its optimiser state.
"""

from typing import Any

import _common as common
import _published as published
import microworld
from ml_collections import ConfigDict

from sip import loading

OTHERS = "train[60%:]"  # the documents that base has not learned from


def get_config(arg: str = "") -> ConfigDict:
    """Builds the recipe of the checkpoint in `arg`, or that of the micro-world."""
    source, debug = published.words(arg, "reward_model.py")
    return of_files(source, debug) if source else on_microworld(debug)


def of_files(source: str, debug: bool) -> ConfigDict:
    """Builds the recipe with one run, `reward_model`, that starts from the checkpoint `source`."""
    config = published.recipe(source)  # its section `data` is not read
    model = published.model(source)
    rate = published.rate(model, small=1e-3, large=1e-5)
    run = common.reward_model_run(
        model=model,
        split="train",
        steps=2 if debug else 500,
        batch=4 if debug else 32,
        init_from=source,
        optim=common.adamw(rate, warmup_steps=1 if debug else 50, weight_decay=0.0),
        pairs=dict(path="", chat=loading.tuned_in(source)),
    )
    config.runs = dict(reward_model=run)
    config.order = ("reward_model",)
    config.report = dict(rows=("reward_model",), judge="", standard="")
    return config


def on_microworld(debug: bool) -> ConfigDict:
    """Builds the recipe with the runs `base`, `tutor` and `reward_model` of the micro-world."""
    config: Any = microworld.get_config("debug" if debug else "")
    base, tutor = config.runs.base, config.runs.tutor
    config.runs = dict(base=base, tutor=tutor, reward_model=labelled(base.model, debug))
    config.order = ("base", "tutor", "reward_model")
    config.report = dict(rows=("base", "tutor"), judge="reward_model", standard="")
    return config


def labelled(model, debug: bool, split: str = OTHERS, documents: int = 16_000) -> ConfigDict:
    """Builds the run on pairs of the micro-world: of suffixes, rollouts of base, corrected and
    corrupted suffixes the better one is chosen. It starts from the tutor, which knows faultless
    text, and all pairs of a prefix are one row."""
    run = common.reward_model_run(
        model=dict(model, layers=4),
        split=split,
        steps=2000,
        batch=16,
        init_from="tutor",
        optim=common.adamw(1e-3, warmup_steps=20),
        together=12,
        evals_every=200,
        labels=dict(
            source="base",
            documents=documents,
            held_out=300,
            per_prefix=66,
            rollouts=2,
            temperatures=(1.0, 0.5),
            corruptions=5,
        ),
    )
    if debug:
        run.update(steps=4, batch=8)
        run.optim.warmup_steps, run.log.every_steps, run.evals.every_steps = 2, 2, 2
        run.task.labels.update(documents=40, held_out=16, temperatures=(1.0,), per_prefix=8)
    return run
