"""Directories of safetensors files: which tensor lies in which file, checked before it is read."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sip.hf.mxfp4 import Packed
from sip.hf.names import Place
from sip.structs import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
DTYPES = ("F32", "BF16", "F16", "MXFP4")
DERIVED = re.compile(r"\.rotary_emb\.inv_freq$")  # written by old versions, computed from config


@dataclass(frozen=True)
class Shards:
    """The open files of a checkpoint; nothing but their headers is read yet."""

    directory: Path
    files: Mapping[str, Any]  # name of a file -> its handle
    file_of: Mapping[str, str]  # name of a tensor -> name of its file

    def stored(self, name: str) -> tuple[str, ...]:
        """The tensors that hold one: itself, or its blocks and scales."""
        packed = f"{name}_blocks", f"{name}_scales"
        return packed if name not in self.file_of and packed[0] in self.file_of else (name,)

    def tensor(self, name: str):
        """A tensor that is read where it is sliced."""
        first, *scales = (self.files[self.file_of[x]].get_slice(x) for x in self.stored(name))
        return Packed(first, scales[0], self.at(name)) if scales else first

    def at(self, name: str) -> str:
        """File and tensor, for an error."""
        held = self.stored(name)[0]
        return f"{self.directory / self.file_of[held]}: tensor {held}"


def library():
    """safetensors, of the extra."""
    try:
        import safetensors
    except ImportError:
        raise UserError(
            "Hugging Face's checkpoints need safetensors: pip install 'sip-jax[hf]'"
        ) from None
    return safetensors


@contextlib.contextmanager
def opened(directory: str | Path) -> Iterator[Shards]:
    """The shards of a checkpoint. Raises UserError naming a file that is missing or damaged."""
    safetensors, directory = library(), Path(directory)
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
                raise UserError(f"{lost}is no whole safetensors file: {error}") from error
        held = {tensor: name for name, file in files.items() for tensor in file.keys()}
        _same(directory, index, held)
        yield Shards(directory, files, held)


def _index(directory: Path) -> dict[str, str] | None:
    """Tensor -> file as the index says; None for a single file without one."""
    path = directory / INDEX
    if path.exists():
        try:
            found = json.loads(path.read_text())["weight_map"]
            return {str(tensor): str(name) for tensor, name in found.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: is no index of tensors: {error!r}") from error
    if (directory / SINGLE).exists():
        return None
    pickles = sorted(p.name for pattern in PICKLES for p in directory.glob(pattern))
    if pickles:
        raise UserError(
            f"{directory / pickles[0]}: a pickle can run any code and is not read: "
            "save the model as safetensors"
        )
    raise UserError(f"{directory}: neither {SINGLE} nor {INDEX}")


def _same(directory, index, held) -> None:
    for tensor, name in (index or {}).items():
        if tensor not in held or held[tensor] != name:
            raise UserError(f"{directory / name}: tensor {tensor} is not in it, as the index says")


def check(shards: Shards, wanted: Mapping[str, Place], tied: bool) -> None:
    """All wanted tensors are there, in their shapes, and no others that could matter."""
    held: set[str] = set()
    for name, place in wanted.items():
        held |= set(shards.stored(name))
        for stored in shards.stored(name):
            if stored not in shards.file_of:
                raise UserError(f"{shards.directory}: tensor {stored} is missing")
        tensor, want = shards.tensor(name), place.their_shape
        if tuple(tensor.get_shape()) != want:
            found = tuple(tensor.get_shape())
            raise UserError(f"{shards.at(name)} is {found}, config.json makes it {want}")
        if tensor.get_dtype() not in DTYPES:
            raise UserError(
                f"{shards.at(name)} is of type {tensor.get_dtype()}, not one of {', '.join(DTYPES)}"
            )
    for name in sorted(set(shards.file_of) - held):
        if not (DERIVED.search(name) or (tied and name == "lm_head.weight")):
            raise UserError(f"{shards.at(name)} is no parameter of the model of config.json")
