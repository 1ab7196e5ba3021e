"""Exports a model as a Hugging Face directory: shards with an index, configs, tokenizer files.

The directory gets its final name only after all files are written.
"""

import contextlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from sip.hf import configs, names, shards
from sip.hf.names import Place
from sip.models.config import DTYPES, ModelConfig
from sip.structs import Params, UserError
from sip.workdir import LOCK, locked, to_json

GENERATION = "generation_config.json"
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
KEPT = ("tokenizer_class", *IDS)  # fields of config.json that come from the tokenizer's files


@contextlib.contextmanager
def whole(directory: str | Path, size: int) -> Iterator[Path]:
    """Yields a temporary directory that is renamed to `directory` at the end of the block.

    Args:
        directory: Final name; must not exist.
        size: Bytes that will be written, about. Less free space is an error before any write.

    Raises:
        UserError: The name exists, another process writes it, or the disk is full. The temporary
            directory is removed.
    """
    path = Path(directory).absolute()
    if path.exists():
        raise UserError(f"{directory}: exists already; choose another name or remove it")
    # A sibling of the target, so that the rename stays on one file system. Its name is always the
    # same: the next attempt replaces what a killed one left.
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(str(part), "temporary directory"):
            try:
                _empty(part)
                free = shutil.disk_usage(part).free
                if free < size:
                    needs = f"needs {size / 1e9:.3g} GB, {free / 1e9:.3g} GB are free"
                    raise UserError(f"{directory}: {needs}")
                yield part
                (part / LOCK).unlink()
                part.rename(path)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written: {error.strerror or error}") from error


def _empty(directory: Path) -> None:
    """Removes everything but the lock."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def size_of(params: Params, cfg: ModelConfig, dtype: str) -> int:
    """Returns the bytes of all weights in dtype `dtype`."""
    return sum(_bytes(place, dtype) for _, place, _ in names.tensors(params, cfg))


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
    """Writes a Hugging Face directory.

    Args:
        params: Parameters of the model.
        cfg: Config of the model.
        directory: Directory to create; must not exist.
        files: Tokenizer files and generation_config.json, from sip.hf.tokens. Token ids of
            their config.json, or else of generation_config.json, are written to config.json.
        dtype: Dtype of the written weights.
        shard_bytes: Maximum size of a shard, bytes. A larger tensor gets a shard of its own.

    Raises:
        UserError: No Hugging Face family fits the model, the directory exists, or the disk is full.
    """
    said = configs.to_json(cfg, dtype)  # raises before anything is written
    for name in (GENERATION, "config.json"):  # the latter's own ids count
        ids = json.loads(files[name]) if name in files else {}
        said |= {key: ids[key] for key in KEPT if key in ids}
    if cfg.scalar:
        said = _without_misleading_pad(said)
    with whole(directory, size_of(params, cfg, dtype)) as path:
        _write_shards(params, cfg, path, dtype, shard_bytes)
        for name, data in {**files, "config.json": as_json(said)}.items():
            (path / name).write_bytes(data)


def _without_misleading_pad(said):
    """Leaves out a padding token that equals EOS. transformers reads a reward at the last token
    that is not padding, which would be the one before EOS; without one it refuses to pad."""
    ends = said["eos_token_id"] if "eos_token_id" in said else []
    ends = ends if isinstance(ends, list) else [ends]
    return {k: v for k, v in said.items() if k != "pad_token_id" or v not in ends}


def as_json(value) -> bytes:
    """Returns the bytes of a JSON file."""
    return (to_json(value, indent=1, ensure_ascii=False) + "\n").encode()


def _write_shards(params, cfg, path, dtype, shard_bytes) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    plan, to = _plan(params, cfg, dtype, shard_bytes), np.dtype(DTYPES[dtype])
    file_of = {}
    for i, rows in enumerate(plan, 1):
        single = len(plan) == 1
        file = shards.SINGLE if single else f"model-{i:05}-of-{len(plan):05}.safetensors"
        found = {name: np.ascontiguousarray(fetch(), to) for name, _, fetch in rows}
        for name, x in found.items():
            if not np.isfinite(x).all():
                raise UserError(f"export: tensor {name} is not finite in {dtype}; use float32")
        try:
            save_file(found, path / file, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{file}: {error}") from error
        file_of |= dict.fromkeys(found, file)
    if len(plan) > 1:
        index = {"metadata": {"total_size": size_of(params, cfg, dtype)}, "weight_map": file_of}
        (path / shards.INDEX).write_bytes(as_json(index))


def _plan(params, cfg, dtype, shard_bytes) -> list[list]:
    """Groups the rows of names.tensors into shards of at most `shard_bytes`, in order."""
    plan, room = [], 0
    for row in names.tensors(params, cfg):
        size = _bytes(row[1], dtype)
        if not plan or size > room:
            plan.append([])
            room = shard_bytes
        plan[-1].append(row)
        room -= size
    return plan
