"""Parts of config files that start from a published checkpoint: its model and its tokenizer."""

import dataclasses
from typing import Any

import _common as common
import _variants as variants
from etils import epath
from ml_collections import ConfigDict

from sip import loading
from sip.models import decoder, presets
from sip.models.config import ModelConfig

NAME = "llama32_1b"  # model preset, if no checkpoint is named
SMALL = 20_000_000  # parameters


def words(arg: str, name: str) -> tuple[str, bool]:
    """Returns (checkpoint or "", True for the variant debug) of FILE.py:CHECKPOINT,debug."""
    found = variants.words(arg)
    sources = [word for word in found if word != "debug"]
    if len(sources) > 1:
        raise ValueError(f"configs/{name}: {arg!r} must be one checkpoint and/or 'debug'")
    return sources[0] if sources else "", "debug" in found


def is_size(source: str) -> bool:
    """True if `source` is a model preset, such as llama3_8b, and no directory.

    `python -m sip.aot` predicts the costs of such a recipe, which reads no file. `sip.train` needs
    the checkpoint.
    """
    return source in presets.PRESETS and not epath.Path(source).exists()


def recipe(source: str) -> Any:
    """Builds a config without runs, with the tokenizer of the checkpoint `source`.

    The section `data` is for runs that do not read it. The tokenizer of a size is that of
    tokenizer.json.
    """
    config: Any = ConfigDict()
    config.seed = 0
    config.data = common.data(
        "microworld",
        max_skipped_fraction=0.0,
        cut=dict(prefix_min=1, prefix_max=1, suffix=1),
    )
    kind, path = "huggingface", "tokenizer.json"
    if source and not is_size(source):
        kind, path = loading.tokenizer_of(source)
    config.tokenizer = dict(kind=kind, path=path, vocab_size=0, documents=1, prompts=(), symbols=())
    return config


def model(source: str) -> dict[str, Any]:
    """Returns the model of the checkpoint or size `source`, or the preset if none is named."""
    if source and not is_size(source):
        found = loading.recorded_model(source)
    else:
        found = presets.preset(source or NAME)
    return dataclasses.asdict(found) | dict(remat="block", branch_chunk=8)


def chat_of(source: str) -> str:
    """Returns the chat template that a checkpoint was tuned in, or its tokenizer's own, or the
    built-in "turns"."""
    return (loading.tuned_in(source) if source else "") or "turns"


def cut(model, *, prefix_min: int, prefix_max: int, suffix: int) -> dict[str, int]:
    """Returns lengths of prefix and suffix, reduced so that the model has room for both and for a
    judge's prompt, which shows two suffixes."""
    most = model["max_len"]
    return dict(
        prefix_min=min(prefix_min, most // 8),
        prefix_max=min(prefix_max, most // 2),
        suffix=min(suffix, most // 8),
    )


def answer(model, tokens: int) -> int:
    """Returns the length of an answer, at most half of the context: the prompt needs the rest."""
    return min(tokens, model["max_len"] // 2)


def rate(model, *, small: float, large: float) -> float:
    """Returns the learning rate of a model: `small` below 20 M parameters, else `large`.

    The small rates were tried on models of .04 to .5 M parameters, most by the recipes of the
    micro-world; the large ones are usual for published models of 1 B and more. Nothing in between
    was tried here.
    """
    return small if is_small(model) else large


def is_small(model) -> bool:
    """Returns True for a model of less than 20 M parameters, such as those trained here."""
    return decoder.count(ModelConfig(**model)) < SMALL


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
