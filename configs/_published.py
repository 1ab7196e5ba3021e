"""Parts of config files that start from a published checkpoint: its model and its tokenizer."""

import dataclasses
from typing import Any

import _common as common
import _variants as variants
from ml_collections import ConfigDict

from sip import loading
from sip.models import presets
from sip.structs import UserError
from sip.text import chat

NAME = "llama32_1b"  # model preset, if no checkpoint is named


def words(arg: str, name: str) -> tuple[str, bool]:
    """Returns (checkpoint or "", True for the variant debug) of FILE.py:CHECKPOINT,debug."""
    found = variants.words(arg)
    sources = [word for word in found if word != "debug"]
    if len(sources) > 1:
        raise ValueError(f"configs/{name}: {arg!r} must be one checkpoint and/or 'debug'")
    return sources[0] if sources else "", "debug" in found


def recipe(source: str) -> Any:
    """Builds a config without runs, with the tokenizer of the checkpoint `source`.

    The section `data` is for runs that do not read it.
    """
    config: Any = ConfigDict()
    config.seed = 0
    config.data = common.data(
        "microworld",
        max_skipped_fraction=0.0,
        cut=dict(prefix_min=1, prefix_max=1, suffix=1),
    )
    kind, path = loading.tokenizer_of(source) if source else ("huggingface", "tokenizer.json")
    config.tokenizer = dict(kind=kind, path=path, vocab_size=0, documents=1, prompts=(), symbols=())
    return config


def model(source: str) -> dict[str, Any]:
    """Returns the model of the checkpoint `source`, or the preset if none is named."""
    found = loading.recorded_model(source) if source else presets.preset(NAME)
    return dataclasses.asdict(found) | dict(remat="block", branch_chunk=8)


def chat_of(source: str) -> str:
    """Returns the chat template of a checkpoint: its own, or the built-in "turns"."""
    if not source:
        return "turns"
    try:
        chat.of_tokenizer(loading.tokenizer_of(source)[1])
    except UserError:
        return "turns"
    return chat.OWN


def shrink(config, run, *, fresh: bool) -> ConfigDict:
    """Reduces a run to two steps; a fresh model also becomes tiny, with a byte tokenizer."""
    run.update(steps=2, batch=4)
    run.optim.update(lr=1e-3, warmup_steps=1)
    run.log.every_steps = 1
    if fresh:
        config.compile = "quick"
        config.tokenizer.update(kind="byte", path="")
        run.init_from = ""
        run.model.update(vocab_size=259, width=16, layers=1, kv_heads=2, queries_per_kv=2)
        run.model.update(head_dim=4, hidden=32, max_len=64, dtype="float32")
    return config
