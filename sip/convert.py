"""Checkpoints from and to Hugging Face's format: `python -m sip.convert --to=orbax --src=DIR`.

    python -m sip.convert --to=orbax --src=HF_DIR --dst=RUN_DIR
    python -m sip.convert --to=hf --src=RUN_DIR --dst=HF_DIR

`--src=hf://ORGANISATION/NAME` is fetched from the hub. What is made with --to=orbax is a run's
directory: `init_from` and every --checkpoint take it, as they take a directory of Hugging Face's
itself. Nothing is overwritten, and DST has its name only when it is whole.
"""

import dataclasses
from pathlib import Path

import jax
from absl import flags

from sip import cli, loading, mesh
from sip.hf import configs, hub, reading, tokens, writing
from sip.mesh import MeshConfig
from sip.models.config import DTYPES
from sip.structs import Params, UserError
from sip.training import checkpoints

_TO = flags.DEFINE_enum("to", None, ["orbax", "hf"], "The format to write.")
_SRC = flags.DEFINE_string("src", None, "Directory of a checkpoint, or hf://ORGANISATION/NAME.")
_DST = flags.DEFINE_string("dst", None, "Directory to make.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", list(DTYPES), "Of the weights that are written.")
_SHARD_GB = flags.DEFINE_float("max_shard_gb", 5.0, "Size of a file of weights, to=hf.")
_TOKENIZER_FROM = flags.DEFINE_string(
    "tokenizer_from", "", "Whose tokenizer files to write, to=hf: a directory of Hugging Face's."
)
_TENSOR = cli.tensor_flag()


def to_orbax(src: str, dst: str, where: jax.sharding.Mesh, *, dtype: str = "float32") -> None:
    """A checkpoint of Hugging Face's as a run's directory, its tokenizer files kept."""
    if not configs.exists(src):
        raise UserError(f"--src {src}: no config.json with a model_type")
    files = tokens.published(src)
    tokens.check(src, configs.read(src).vocab_size)
    params, cfg = reading.load(src, where, DTYPES[dtype])
    with writing.whole(dst, writing.size_of(params, dtype)) as path:
        tokens.write(files, path)
        _save(path, params, {"source": src, "model": dataclasses.asdict(cfg)})


def _save(path: Path, params: Params, record) -> None:
    try:
        checkpoints.save_params(str(path), params, record)
    except ValueError as error:  # as orbax words a full disk
        raise OSError(str(error)) from error


def to_hf(
    src: str,
    dst: str,
    where: jax.sharding.Mesh,
    *,
    dtype: str = "float32",
    shard_bytes: int = 5 * 10**9,
    tokenizer: str = "",
) -> None:
    """A run's last checkpoint, or one of Hugging Face's again, as a directory of Hugging Face's.

    Tokenizer files are those of the directory `tokenizer`, else what the checkpoint was made from
    had, else the run's own tokenizer written as theirs.
    """
    theirs = tokenizer or tokens.home(src)
    if theirs:
        files = tokens.published(theirs)
        tokens.check(theirs, loading.recorded_model(src).vocab_size)
    else:
        files = tokens.files(loading.kept_tokenizer(src), loading.recorded_model(src).max_len)
    params, cfg = loading.load_params(src, where, dtype)  # factors are added before it is rounded
    writing.save(params, cfg, dst, files, dtype=dtype, shard_bytes=shard_bytes)


def main(argv) -> None:
    """The command line."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}")
    for flag in (_TO, _SRC, _DST):
        if not flag.value:
            raise UserError(f"--{flag.name} is needed")
    src, dst = str(_SRC.value), str(_DST.value)
    if "://" in dst:
        raise UserError(f"--dst {dst}: only a local directory is written; copy it afterwards")
    if _SHARD_GB.value <= 0:
        raise UserError("--max_shard_gb must be positive")
    where = mesh.build(MeshConfig(1, -1, _TENSOR.value))
    src = hub.local(src)
    if _TO.value == "orbax":
        return to_orbax(src, dst, where, dtype=_DTYPE.value)
    size, tokenizer = round(_SHARD_GB.value * 1e9), hub.local(_TOKENIZER_FROM.value)
    to_hf(src, dst, where, dtype=_DTYPE.value, shard_bytes=size, tokenizer=tokenizer)


if __name__ == "__main__":
    cli.run(main)
