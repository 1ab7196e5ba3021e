"""Converts checkpoints from and to the Hugging Face format.

    python -m sip.convert --to=orbax --src=HF_DIR --dst=RUN_DIR
    python -m sip.convert --to=hf --src=RUN_DIR --dst=HF_DIR

`--src=hf://ORGANISATION/NAME` downloads the checkpoint from the Hugging Face hub. --to=orbax writes
a run directory. `init_from` and every --checkpoint flag accept a run directory and also a Hugging
Face directory, so conversion is optional. The command never overwrites files. DST gets its final
name only after all files are written.
"""

import dataclasses
import math
from pathlib import Path

from sip import cli  # first, as it tells of a variable that JAX cannot use

# isort: split
import jax
from absl import flags

from sip import loading, mesh
from sip.hf import configs, hub, reading, tokens, writing
from sip.mesh import MeshConfig
from sip.models.config import DTYPES
from sip.structs import Params, UserError
from sip.text import chat
from sip.training import checkpoints

_TO = flags.DEFINE_enum("to", None, ["orbax", "hf"], "Required. Format to write.")
_SRC = cli.path_flag("src", None, "Required. Checkpoint directory, or hf://ORG/NAME.")
_DST = cli.path_flag("dst", None, "Required. Directory to create.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", list(DTYPES), "Dtype of the written weights.")
_SHARD_GB = flags.DEFINE_float("max_shard_gb", 5.0, "to=hf: maximum size of a weight file, GB.")
_TOKENIZER_FROM = cli.path_flag(
    "tokenizer_from", "", "to=hf: Hugging Face directory whose tokenizer files are copied."
)
_TENSOR = cli.tensor_flag()


def to_orbax(src: str, dst: str, where: jax.sharding.Mesh, *, dtype: str = "float32") -> None:
    """Converts a Hugging Face directory to a run directory; copies the tokenizer files.

    Args:
        src: Hugging Face directory.
        dst: Run directory to create.
        where: Mesh that the parameters are loaded on.
        dtype: Dtype of the written weights.

    Raises:
        UserError: `src` has no usable config.json, or its tokenizer does not fit the model.
    """
    if not configs.exists(src):
        raise UserError(f"--src {src}: no config.json with a model_type in this directory")
    files = tokens.published(src)
    tokens.check(src, configs.read(src).vocab_size)
    params, cfg = reading.load(src, where, DTYPES[dtype])
    loading.check_finite(params, src)
    with writing.whole(dst, writing.size_of(params, cfg, dtype)) as path:
        tokens.write(files, path)
        _save(path, params, {"source": src, "model": dataclasses.asdict(cfg)})


def _save(path: Path, params: Params, record) -> None:
    try:
        checkpoints.save_params(str(path), params, record)
    except ValueError as error:  # orbax reports a full disk as a ValueError
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
    """Writes the last checkpoint of a run, or a Hugging Face directory, in that format.

    Tokenizer files come from the directory `tokenizer` if it is given. Otherwise they come from the
    Hugging Face checkpoint that the run was converted from, or are those of the run's tokenizer.
    A tokenizer trained here is written in the Hugging Face format. A run that was tuned in another
    chat template than the tokenizer's own gets that template.

    Args:
        src: Run directory or Hugging Face directory.
        dst: Hugging Face directory to create.
        where: Mesh that the parameters are loaded on.
        dtype: Dtype of the written weights.
        shard_bytes: Maximum size of one weight file, bytes.
        tokenizer: Hugging Face directory whose tokenizer files are copied, or "".
    """
    theirs = tokenizer or tokens.source(src)
    if theirs:
        files = tokens.published(theirs)
        tokens.check(theirs, loading.recorded_model(src).vocab_size)
    else:
        files = tokens.files(loading.kept_tokenizer(src), loading.recorded_model(src).max_len)
    files = {**files, **_template(src)}
    # LoRA factors are added before the weights are rounded to `dtype`.
    params, cfg = loading.load_params(src, where, dtype)
    writing.save(params, cfg, dst, files, dtype=dtype, shard_bytes=shard_bytes)


def _template(src: str) -> dict[str, bytes]:
    """The file of the chat template that a run was tuned in, which transformers prefers to the one
    in tokenizer_config.json; none if it is the tokenizer's own."""
    name = loading.tuned_in(src)
    if name in ("", chat.OWN):
        return {}
    return {chat.BESIDE: chat.load(name, loading.kept_tokenizer(src)).source.encode()}


def main(argv) -> None:
    """Runs the command line."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}")
    for flag in (_TO, _SRC, _DST):
        if not flag.value:
            raise UserError(f"--{flag.name} is needed")
    src, dst = str(_SRC.value), str(_DST.value)
    if "://" in dst:
        raise UserError(f"--dst {dst}: must be a local directory; copy it to its target afterwards")
    if not 0 < _SHARD_GB.value < math.inf:
        raise UserError(f"--max_shard_gb={_SHARD_GB.value:g}: must be a positive number")
    where = mesh.build(MeshConfig(1, -1, _TENSOR.value))
    src = hub.local(src)
    if _TO.value == "orbax":
        return to_orbax(src, dst, where, dtype=_DTYPE.value)
    size, tokenizer = round(_SHARD_GB.value * 1e9), hub.local(_TOKENIZER_FROM.value)
    to_hf(src, dst, where, dtype=_DTYPE.value, shard_bytes=size, tokenizer=tokenizer)


if __name__ == "__main__":
    cli.run(main)
