"""Opens the safetensors files of a checkpoint and checks all tensors before any is read."""

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
DERIVED = re.compile(r"\.rotary_emb\.inv_freq$")  # old versions store it; it follows from config


@dataclass(frozen=True)
class Shards:
    """The open files of a checkpoint; only the headers have been read."""

    directory: Path
    files: Mapping[str, Any]  # file name: handle
    file_of: Mapping[str, str]  # tensor name: file name

    def stored(self, name: str) -> tuple[str, ...]:
        """Returns the stored tensors of a tensor: itself, or its MXFP4 blocks and scales."""
        packed = f"{name}_blocks", f"{name}_scales"
        return packed if name not in self.file_of and packed[0] in self.file_of else (name,)

    def tensor(self, name: str):
        """Returns a lazy tensor, which is read when it is sliced."""
        first, *scales = (self.files[self.file_of[x]].get_slice(x) for x in self.stored(name))
        return Packed(first, scales[0], self.at(name)) if scales else first

    def at(self, name: str) -> str:
        """Returns file and tensor name for an error message."""
        held = self.stored(name)[0]
        return f"{self.directory / self.file_of[held]}: tensor {held}"


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
def opened(directory: str | Path) -> Iterator[Shards]:
    """Opens the shards of a checkpoint; raises UserError for a missing or damaged file."""
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
                raise UserError(f"{lost}is not a complete safetensors file: {error}") from error
        held = {tensor: name for name, file in files.items() for tensor in file.keys()}
        _same(directory, index, held)
        yield Shards(directory, files, held)


def _index(directory: Path) -> dict[str, str] | None:
    """Reads {tensor: file} from the index; returns None for a single file without an index."""
    path = directory / INDEX
    if path.exists():
        try:
            found = json.loads(path.read_text())["weight_map"]
            return {str(tensor): str(name) for tensor, name in found.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a valid safetensors index: {error!r}") from error
    if (directory / SINGLE).exists():
        return None
    pickles = sorted(p.name for pattern in PICKLES for p in directory.glob(pattern))
    if pickles:
        raise UserError(
            f"{directory / pickles[0]}: pickle files are not read because they can run any code; "
            "save the model as safetensors"
        )
    raise UserError(f"{directory}: contains neither {SINGLE} nor {INDEX}")


def _same(directory, index, held) -> None:
    for tensor, name in (index or {}).items():
        if tensor not in held or held[tensor] != name:
            raise UserError(f"{directory / name}: does not contain tensor {tensor} of the index")


def check(shards: Shards, wanted: Mapping[str, Place], tied: bool) -> None:
    """Checks that all wanted tensors exist with the right shape and dtype, and no unknown ones.

    Tensors that do not change the model are allowed: see DERIVED, and the unembedding of a model
    with tied embeddings. Raises UserError naming the file and the tensor.
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
        if not (DERIVED.search(name) or (tied and name == "lm_head.weight")):
            raise UserError(f"{shards.at(name)} is not a parameter of the model in config.json")
