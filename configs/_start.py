"""Sections of recipes that begin with a checkpoint and files of your own."""

import dataclasses
from typing import Any

import _variants as variants
from ml_collections import ConfigDict

from sip import loading


def parsed(arg: str, name: str) -> tuple[str, bool]:
    """Parses a variant: (checkpoint directory or "", True for `debug`).

    Raises ValueError, naming the config file `name`, if there are several checkpoints.
    """
    words = variants.words(arg)
    sources = [word for word in words if word != "debug"]
    if len(sources) > 1:
        raise ValueError(f"configs/{name}: {arg!r} must be one checkpoint and/or 'debug'")
    return (sources[0] if sources else ""), "debug" in words


def recipe(source: str) -> Any:
    """Builds a recipe without runs: the tokenizer of a checkpoint, and the file `data.path`.

    `data.cut` is not used by tasks that read a file of their own.
    """
    config: Any = ConfigDict()
    config.seed = 0
    config.data = dict(
        source="jsonl",
        path="",
        max_skipped_fraction=0.1,
        world=dict(),
        cut=dict(prefix_min=1, prefix_max=1, suffix=1),
    )
    kind, path = loading.tokenizer_of(source)
    config.tokenizer = dict(kind=kind, path=path, vocab_size=0, documents=1, prompts=())
    return config


def model(source: str, **changes) -> dict:
    """Returns the model section of a checkpoint, set up for training."""
    found = dataclasses.asdict(loading.recorded_model(source))
    return found | dict(remat="block", param_dtype="float32") | changes
