"""Export: shards with an index, configs and tokenizer files, under the final name when whole."""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from sip.hf import configs, names, shards
from sip.hf.names import Place
from sip.models.config import DTYPES, ModelConfig
from sip.structs import Params, UserError

GENERATION = "generation_config.json"
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@contextlib.contextmanager
def whole(directory: str | Path, size: int) -> Iterator[Path]:
    """A directory to write about `size` bytes into, which gets its final name when all is written.

    Raises UserError where that name is taken, or where the disk is full, and leaves nothing.
    """
    path = Path(directory).absolute()
    if path.exists():
        raise UserError(f"{directory}: there is something already; nothing is overwritten")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        free = shutil.disk_usage(part).free
        if free < size:
            raise UserError(f"{directory}: needs {size / 1e9:.3g} GB, {free / 1e9:.3g} GB are free")
        yield part
        part.rename(path)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def size_of(params: Params, dtype: str) -> int:
    """Bytes of the weights' files."""
    return sum(_bytes(place, dtype) for _, place, _ in names.tensors(params))


def _bytes(place: Place, dtype: str) -> int:
    return math.prod(place.their_shape) * np.dtype(DTYPES[dtype]).itemsize


def save(
    params: Params,
    cfg: ModelConfig,
    directory: str | Path,
    files: Mapping[str, bytes],
    *,
    dtype: str = "float32",
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a checkpoint of Hugging Face's into `directory`, which must not be there yet.

    `files` are the tokenizer's and generation_config.json (sip/hf/tokens.py); the ids in it are
    config.json's too. Shards are of `shard_bytes` at most, or of one tensor. Raises UserError.
    """
    said = configs.to_json(cfg, dtype)  # may be refused, before anything is written
    ids = json.loads(files[GENERATION])
    said |= {name: ids[name] for name in IDS if name in ids}
    with whole(directory, size_of(params, dtype)) as path:
        _write_shards(params, path, dtype, shard_bytes)
        for name, data in {"config.json": as_json(said), **files}.items():
            (path / name).write_bytes(data)


def as_json(value) -> bytes:
    """A JSON file's bytes."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _write_shards(params, path, dtype, shard_bytes) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    plan, to = _plan(params, dtype, shard_bytes), np.dtype(DTYPES[dtype])
    file_of = {}
    for i, rows in enumerate(plan, 1):
        single = len(plan) == 1
        file = shards.SINGLE if single else f"model-{i:05}-of-{len(plan):05}.safetensors"
        found = {name: np.ascontiguousarray(fetch(), to) for name, _, fetch in rows}
        try:
            save_file(found, path / file, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{file}: {error}") from error
        file_of |= dict.fromkeys(found, file)
    if len(plan) > 1:
        index = {"metadata": {"total_size": size_of(params, dtype)}, "weight_map": file_of}
        (path / shards.INDEX).write_bytes(as_json(index))


def _plan(params, dtype, shard_bytes) -> list[list]:
    """Rows of names.tensors by shard."""
    plan, room = [], 0
    for row in names.tensors(params):
        size = _bytes(row[1], dtype)
        if not plan or size > room:
            plan.append([])
            room = shard_bytes
        plan[-1].append(row)
        room -= size
    return plan
