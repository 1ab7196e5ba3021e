"""Loads a model from a run's checkpoint or from a Hugging Face checkpoint.

To merge LoRA factors or to quantise to int8, one stacked matrix (all layers of one name) is read at
a time. So the whole model never exists in float32.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from sip.hf import configs, reading, tokens
from sip.models import int8, kernels, lora
from sip.models.config import STORAGE_DTYPES, ModelConfig
from sip.models.int8 import Int8
from sip.models.lora import OFF, Adapted, LoraConfig
from sip.models.parameters import MATRICES
from sip.processes import fetch
from sip.sections import section
from sip.structs import Params, UserError
from sip.text import chat
from sip.text import tokenizer as tokenizers
from sip.text.special import read_object
from sip.text.tokenizer import Tokenizer
from sip.training import checkpoints, checksums, step
from sip.workdir import place, run_dir, workdir_of


def load(directory: str, mesh, cfg: ModelConfig, adapter: LoraConfig, dtype: str) -> Params:
    """Loads parameters onto `mesh` in `dtype` (one of STORAGE_DTYPES), with LoRA factors merged.

    `cfg` and `adapter` must be those recorded in the checkpoint. Raises UserError if the checkpoint
    cannot be read, or naming a parameter that has a NaN or an infinity.
    """
    assert dtype in STORAGE_DTYPES, dtype
    params = _read(directory, mesh, cfg, adapter, dtype)
    check_finite(params, directory)
    return params


def check_finite(params: Params, directory: str) -> None:
    """Raises UserError naming the first parameter that has a NaN or an infinity."""
    for name, finite in checksums.names(fetch(_finite(params))).items():
        if not finite:
            raise UserError(f"{directory}: parameter {name} has a number that is not finite")


@jax.jit
def _finite(params: Params):
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), params)


def _read(directory: str, mesh, cfg: ModelConfig, adapter: LoraConfig, dtype: str) -> Params:
    wanted = step.abstract_params(cfg, mesh, dtype)
    if configs.exists(directory):  # a Hugging Face checkpoint
        if dtype == "float32":
            return reading.load(directory, mesh)[0]
        # Cast or quantise each array as soon as it is read.
        return reading.load(directory, mesh, finish=_finisher(wanted))[0]
    # Arrays are read as saved, to compare checksums, and then cast: one at a time if all are cast.
    if dtype != cfg.param_dtype or adapter.rank:
        return _by_matrix(directory, mesh, cfg, adapter, wanted)
    return checkpoints.restore_params(directory, wanted)


def _finisher(wanted: Params) -> Callable[[str, Any], Any]:
    """Returns finish(name, float32 array), which casts or quantises an array and shards it.

    The result has the dtype and sharding of the array `name` in `wanted`.
    """
    leaves = {**wanted, **wanted["blocks"]["block"]}  # names are unique across the two levels

    def finish(name, x):
        leaf = leaves[name]
        places = jax.tree.map(lambda x: x.sharding, leaf)
        if isinstance(leaf, Int8):
            return jax.jit(lambda x: int8.quantise(name, x), out_shardings=places)(x)
        return jax.jit(lambda x: x.astype(leaf.dtype), out_shardings=places)(x)

    return finish


def _by_matrix(directory, mesh, cfg: ModelConfig, adapter: LoraConfig, wanted: Params) -> Params:
    """Restores a run's checkpoint one stacked matrix at a time, merged and finished as `wanted`.

    Peak memory is the finished model plus one float32 matrix. Vectors are small: one read.
    """
    # The shapes as saved: float32 or int8 base, and the LoRA factors beside it.
    saved = step.abstract_params(cfg, mesh, "float32")
    if adapter.rank:
        saved = lora.abstract(int8.abstract(saved, mesh) if adapter.int8 else saved, adapter, mesh)
    finish, base = _finisher(wanted), lora.base_of(saved)
    block, rest = base["blocks"]["block"], {k: x for k, x in base.items() if k != "blocks"}
    vectors = {k: x for k, x in block.items() if k not in MATRICES}
    matrices = [k for k in block if k in MATRICES]  # reads are collective: same order everywhere
    with checkpoints.reading(directory, saved) as read:
        done = {k: finish(k, _merged(read, k, block[k], saved)) for k in matrices}
        part = {**rest, "blocks": {"block": vectors}}
        found = read({"base": part})["base"] if isinstance(saved, Adapted) else read(part)
        done |= {k: finish(k, x) for k, x in found.pop("blocks")["block"].items()}
        return {**{k: finish(k, x) for k, x in found.items()}, "blocks": {"block": done}}


def _merged(read, name: str, leaf, saved: Params):
    """Reads the stacked matrix `name` in float32 and merges its LoRA factors, if it has any."""
    part = {"blocks": {"block": {name: leaf}}}
    if not isinstance(saved, Adapted):
        return read(part)["blocks"]["block"][name]
    # Not every matrix has factors: the adapter covers the matrices of its config only.
    factors = {k: x for k, x in saved.factors.items() if k in (f"{name}_a", f"{name}_b")}
    got = read({"base": part, "factors": factors} if factors else {"base": part})
    got = Adapted(got["base"], got["factors"] if factors else {}, saved.scale)
    return jax.jit(lora.merged)(got)["blocks"]["block"][name]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A loaded model: parameters on a mesh, model config and tokenizer."""

    params: Params
    cfg: ModelConfig
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh

    def with_params(self, params: Params) -> "LoadedModel":
        """Returns this model with other parameters of the same shapes."""
        return dataclasses.replace(self, params=params)


load_tokenizer = functools.cache(tokenizers.load)


def load_model(directory: str, mesh, dtype: str = "") -> LoadedModel:
    """Loads the last checkpoint of a run, or a Hugging Face checkpoint, with its tokenizer.

    `dtype` is float32, bfloat16 or int8; empty: the dtype recorded in the checkpoint (Hugging
    Face: float32). Raises UserError if model or tokenizer cannot be read.
    """
    tokenizer = kept_tokenizer(directory)
    return LoadedModel(*load_params(directory, mesh, dtype), tokenizer, mesh)


def load_params(directory: str, mesh, dtype: str = "") -> tuple[Params, ModelConfig]:
    """Loads parameters and model config as `load_model` does, without a tokenizer.

    LoRA factors are merged into the matrices.
    """
    cfg, adapter = _recorded(directory)
    return load(directory, mesh, cfg, adapter, dtype or cfg.param_dtype), cfg


def source_dir(workdir: str, source: str, key: str = "init_from") -> str:
    """Returns the directory of `source`: the name of a run in this workdir, or a path.

    The path is a run's directory or a Hugging Face checkpoint. A run of the workdir is preferred.
    Raises UserError, naming the config key `key`, if there is no checkpoint.
    """
    inside = run_dir(workdir, source)
    path = inside if epath.Path(inside).exists() else place(source)
    if not configs.exists(path) and not checkpoints.exists(path):
        raise UserError(
            f"{key} {source!r}: not a run of this workdir with a checkpoint, nor the path of a "
            "directory with one"
        )
    return path


def recorded_model(directory: str) -> ModelConfig:
    """Returns the model config recorded in a run's or a Hugging Face checkpoint."""
    return _recorded(directory)[0]


def _recorded(directory: str) -> tuple[ModelConfig, LoraConfig]:
    """Returns a checkpoint's model config and its LoRA config; OFF if it has no adapter."""
    if configs.exists(directory):
        return configs.read(directory), OFF
    record = checkpoints.record(directory)
    if "model" not in record or not isinstance(record["model"], dict):
        raise UserError(f"{directory}: the record of its last checkpoint names no model")
    run = record["config"] if "config" in record else {}
    adapter = section(LoraConfig, run["lora"], "checkpoint lora") if "lora" in run else OFF
    return kernels.here(section(ModelConfig, record["model"], "checkpoint model")), adapter


def tuned_in(directory: str) -> str:
    """Returns the name of the chat template that a checkpoint was tuned in; empty if in none.

    It is that of the run's task, else of the run that it started from, and so on; else "own" if the
    tokenizer has a template, as published checkpoints do.
    """
    for config in _history(directory):
        if found := _chat_of(config):
            return found
    try:
        chat.of_tokenizer(tokenizer_of(directory)[1])
    except UserError:
        return ""
    return chat.OWN


def trained_in(directory: str) -> str | None:
    """Returns the name of the chat template of the run's own task; empty for plain texts.

    None for a checkpoint that records no task.
    """
    config = next(_history(directory), {})
    return _chat_of(config) if "task" in config else None


def _history(directory: str) -> Iterator[dict[str, Any]]:
    """Yields the recorded config of a run, of the run that it started from, and so on."""
    seen = set()  # runs that were trained anew from each other have no first one
    while directory not in seen and checkpoints.exists(directory):
        seen.add(directory)
        record = checkpoints.record(directory)
        config = record["config"] if "config" in record else {}
        yield config
        source = config["init_from"] if "init_from" in config else ""
        try:
            directory = source_dir(workdir_of(directory), source) if source else directory
        except UserError:  # it is no longer there
            return


def _chat_of(config: dict[str, Any]) -> str:
    """The chat template in a run's section `task`, or in its pairs or answers."""
    task = config["task"] if "task" in config else {}
    inner = [task[key] for key in ("pairs", "answers") if key in task and task[key]]
    return next((x["chat"] for x in (task, *inner) if "chat" in x and x["chat"]), "")


def kept_tokenizer(directory: str) -> Tokenizer:
    """Loads the tokenizer stored with a run's checkpoints or in a Hugging Face directory.

    Raises UserError if there is none.
    """
    return load_tokenizer(*tokenizer_of(directory))


def tokenizer_of(directory: str) -> tuple[str, str]:
    """Returns (kind, path) of the tokenizer of a run or of a Hugging Face directory.

    Raises UserError if there is none.
    """
    path = epath.Path(directory)
    published = tokens.home(directory)
    if published:
        return tokens.kind_of(published)
    file = path / "tokenizer.json"
    if not path.exists():
        raise UserError(f"{directory}: there is no such directory; give that of a run")
    if not file.exists():
        raise UserError(f"{directory} has no tokenizer.json; give the directory of a run")
    found = read_object(file)
    if "kind" not in found:  # the file of a Hugging Face tokenizer, and no config.json
        raise UserError(f"{path / 'config.json'}: is missing; a checkpoint needs it")
    kind = found["kind"]
    return kind, tokenizers.kept(kind, directory)
