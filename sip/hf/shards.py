"""Opens the safetensors files of a checkpoint and checks all tensors before any is read."""

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sip import processes
from sip.hf import nested
from sip.hf.mxfp4 import Packed
from sip.hf.names import Place
from sip.models.config import ModelConfig
from sip.structs import UserError
from sip.text.special import CONFIG, read_object

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
DTYPES = ("F32", "BF16", "F16", "MXFP4")
ADAPTER = "adapter_config.json"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
MOST_ROWS = 1 << 12  # of an embedding that are compared at once
DERIVED = re.compile(r"\.rotary_emb\.inv_freq$")  # old versions store it; it follows from config


@dataclass(frozen=True)
class Shards:
    """The open files of a checkpoint; only the headers have been read."""

    directory: Path
    files: Mapping[str, Any]  # file name: handle
    file_of: Mapping[str, str]  # tensor name: file name
    name_of: Mapping[str, str]  # tensor name: its name in the file

    def stored(self, name: str) -> tuple[str, ...]:
        """Returns the stored tensors of a tensor: itself, or its MXFP4 blocks and scales."""
        packed = f"{name}_blocks", f"{name}_scales"
        return packed if name not in self.file_of and packed[0] in self.file_of else (name,)

    def tensor(self, name: str):
        """Returns a lazy tensor, which is read when it is sliced."""
        read = lambda x: self.files[self.file_of[x]].get_slice(self.name_of[x])
        first, *scales = map(read, self.stored(name))
        return Packed(first, scales[0], self.at(name)) if scales else first

    def at(self, name: str) -> str:
        """Returns file and tensor name for an error message."""
        held = self.stored(name)[0]
        return f"{self.directory / self.file_of[held]}: tensor {self.name_of[held]}"


def library():
    """Imports safetensors; raises UserError if the extra `hf` is not installed."""
    try:
        import safetensors
    except ImportError:
        raise UserError(
            "Hugging Face checkpoints need safetensors: pip install 'sip-jax[hf]'"
        ) from None
    return safetensors


@contextlib.contextmanager
def opened(directory: str | Path, *, inner: bool = False) -> Iterator[Shards]:
    """Opens the shards of a checkpoint; raises UserError for a missing or damaged file.

    `inner`: of a model of text and images, see sip/hf/nested.py. The Shards have the tensors of its
    language model; a line on stderr tells how many others are not read.
    """
    safetensors, directory = library(), Path(directory)
    if (directory / ADAPTER).exists():  # transformers would add the adapter to the weights
        raise UserError(
            f"{directory / ADAPTER}: an adapter beside the weights is not read; merge it into "
            "them, or remove this file"
        )
    index = _index(directory)
    with contextlib.ExitStack() as stack:
        files = {}
        for name in dict.fromkeys(index.values()) if index else (SINGLE,):
            of_it = (tensor for tensor, shard in (index or {}).items() if shard == name)
            first = next(of_it, "")
            lost = f"{directory / name}: {f'the shard of {first} ' if first else ''}"
            if not (directory / name).is_file():
                raise UserError(f"{lost}is missing")
            try:
                files[name] = stack.enter_context(
                    safetensors.safe_open(str(directory / name), framework="np")
                )
            except (safetensors.SafetensorError, OSError) as error:
                raise UserError(f"{lost}is not a complete safetensors file: {error}") from error
        file_of = _file_of(directory, index or {}, files)
        name_of = nested.names(directory, file_of) if inner else {x: x for x in file_of}
        if len(name_of) < len(file_of) and processes.lead():
            count = len(file_of) - len(name_of)
            print(f"{directory}: {count} tensors for images are not read", file=sys.stderr)
        yield Shards(directory, files, {x: file_of[name_of[x]] for x in name_of}, name_of)


def _index(directory: Path) -> dict[str, str] | None:
    """Reads {tensor: file} from the index; returns None if there is a single file.

    As in transformers, the single file counts, and an index left beside it does not.
    """
    path = directory / INDEX
    if (directory / SINGLE).exists():
        return None
    if path.exists():
        found = read_object(path)
        index = found["weight_map"] if "weight_map" in found else None
        if not isinstance(index, dict) or not index:
            raise UserError(f"{path}: not a valid safetensors index: it has no weight_map")
        for tensor, name in index.items():
            # A path could name a file of another model, or any file of this machine.
            if not isinstance(name, str) or Path(name).name != name:
                raise UserError(f"{path}: weight_map.{tensor} is {name!r}; must be a file name")
        return index
    pickles = sorted(p.name for pattern in PICKLES for p in directory.glob(pattern))
    if pickles:
        raise UserError(
            f"{directory / pickles[0]}: pickle files are not read because they can run any code; "
            "save the model as safetensors"
        )
    raise UserError(f"{directory}: contains neither {SINGLE} nor {INDEX}")


def _file_of(directory: Path, index: Mapping[str, str], files: Mapping[str, Any]):
    """Returns {tensor: file}; if several files have a tensor, the index decides.

    Raises UserError if the index names a file without the tensor, or does not name one of several.
    """
    held: dict[str, list[str]] = {}
    for name, file in files.items():
        for tensor in file.keys():
            held.setdefault(tensor, []).append(name)
    for tensor, name in index.items():
        if tensor not in held or name not in held[tensor]:
            raise UserError(f"{directory / name}: does not contain tensor {tensor} of the index")
    for tensor, names in held.items():
        if len(names) > 1 and tensor not in index:
            raise UserError(
                f"{directory}: tensor {tensor} is in {names[0]} and in {names[1]}; {INDEX} has to "
                "say which one counts"
            )
    return {tensor: names[0] for tensor, names in held.items()} | dict(index)


def check_size(shards: Shards, cfg: ModelConfig) -> None:
    """Raises UserError if config.json needs far more tensors than there are.

    Called before the names of all tensors are made: their number is not trusted.
    """
    count = len(shards.file_of)
    if cfg.layers > count:
        raise UserError(
            f"{shards.directory / CONFIG}: num_hidden_layers {cfg.layers}, but the files beside it "
            f"have only {count} tensors"
        )
    if cfg.layers * cfg.experts > count and not cfg.expert_bias:  # gpt-oss: all in one tensor
        raise UserError(
            f"{shards.directory / CONFIG}: {cfg.layers} layers of {cfg.experts} experts, but the "
            f"files beside it have only {count} tensors"
        )


def check(shards: Shards, wanted: Mapping[str, Place], tied: bool) -> None:
    """Checks that all wanted tensors exist with the right shape and dtype, and no unknown ones.

    Tensors that do not change the model are allowed: see DERIVED, and the unembedding of a model
    with tied embeddings if it is equal to them. Raises UserError naming the file and the tensor.
    """
    held: set[str] = set()
    for name, place in wanted.items():
        held |= set(shards.stored(name))
        for stored in shards.stored(name):
            if stored not in shards.file_of:
                raise UserError(f"{shards.directory}: tensor {stored} is missing")
        tensor, want = shards.tensor(name), place.their_shape
        if tuple(tensor.get_shape()) != want:
            found = tuple(tensor.get_shape())
            raise UserError(f"{shards.at(name)} has shape {found}; config.json needs {want}")
        if tensor.get_dtype() not in DTYPES:
            raise UserError(
                f"{shards.at(name)} has dtype {tensor.get_dtype()}, not one of {', '.join(DTYPES)}"
            )
    for name in sorted(set(shards.file_of) - held):
        if tied and name == HEAD:
            _check_tied(shards)
        elif not DERIVED.search(name):
            raise UserError(f"{shards.at(name)} is not a parameter of the model in config.json")


def _check_tied(shards: Shards) -> None:
    """Raises UserError if a stored unembedding is unlike the embedding that it is tied to.

    transformers 4 ignores such an unembedding, and transformers 5 uses it.
    """
    embed, head = shards.tensor(EMBED), shards.tensor(HEAD)
    count = embed.get_shape()[0]
    same = embed.get_shape() == head.get_shape()
    for start in range(0, count if same else 0, MOST_ROWS):
        rows = slice(start, min(start + MOST_ROWS, count)), slice(None)
        one, other = (np.asarray(x[rows], np.float32) for x in (embed, head))
        same = same and np.array_equal(one, other, equal_nan=True)
    if not same:
        raise UserError(
            f"{shards.at(HEAD)} differs from {EMBED}, but {CONFIG} ties them "
            "(tie_word_embeddings); set it to false to use this tensor, or remove the tensor"
        )
