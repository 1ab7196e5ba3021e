"""Parameters of a checkpoint, a run's or Hugging Face's, as they are to be held.

Wherever they are not just read as they lie there (factors are merged, matrices rounded to int8) it
goes by one matrix of all layers at a time, so that the whole is never there in float32.
"""

from collections.abc import Callable
from typing import Any

import jax

from sip.hf import configs, reading
from sip.models import int8, lora
from sip.models.config import HELD, ModelConfig
from sip.models.int8 import Int8
from sip.models.lora import Adapted, LoraConfig
from sip.models.parameters import MATRICES
from sip.structs import Params
from sip.training import checkpoints, step


def load(directory: str, mesh, cfg: ModelConfig, adapter: LoraConfig, dtype: str) -> Params:
    """Plain parameters on `mesh`, held in `dtype` (of HELD), factors merged.

    Of a run `cfg` and `adapter` are what its checkpoint records. Raises UserError.
    """
    assert dtype in HELD, dtype
    wanted = step.abstract_params(cfg, mesh, dtype)
    if configs.exists(directory):
        if dtype == "float32":
            return reading.load(directory, mesh)[0]
        return reading.load(directory, mesh, finish=_finisher(wanted))[0]
    if dtype == "int8" or adapter.rank:
        return _by_matrix(directory, mesh, cfg, adapter, wanted)
    return checkpoints.restore_params(directory, wanted)


def _finisher(wanted: Params) -> Callable[[str, Any], Any]:
    """finish(name, float32 array) -> as `wanted` has it."""
    leaves = {**wanted, **wanted["blocks"]["block"]}

    def finish(name, x):
        leaf = leaves[name]
        places = jax.tree.map(lambda x: x.sharding, leaf)
        if isinstance(leaf, Int8):
            return jax.jit(lambda x: int8.quantise(name, x), out_shardings=places)(x)
        return jax.jit(lambda x: x.astype(leaf.dtype), out_shardings=places)(x)

    return finish


def _by_matrix(directory, mesh, cfg: ModelConfig, adapter: LoraConfig, wanted: Params) -> Params:
    saved = step.abstract_params(cfg, mesh, "float32")
    if adapter.rank:
        saved = lora.abstract(int8.abstract(saved, mesh) if adapter.int8 else saved, adapter, mesh)
    finish, base = _finisher(wanted), lora.base_of(saved)
    block, rest = base["blocks"]["block"], {k: x for k, x in base.items() if k != "blocks"}
    vectors = {k: x for k, x in block.items() if k not in MATRICES}
    matrices = [k for k in block if k in MATRICES]  # in one order on all processes
    with checkpoints.reading(directory, saved) as read:
        done = {k: finish(k, _merged(read, k, block[k], saved)) for k in matrices}
        part = {**rest, "blocks": {"block": vectors}}
        found = read({"base": part})["base"] if isinstance(saved, Adapted) else read(part)
        done |= {k: finish(k, x) for k, x in found.pop("blocks")["block"].items()}
        return {**{k: finish(k, x) for k, x in found.items()}, "blocks": {"block": done}}


def _merged(read, name: str, leaf, saved: Params):
    """A matrix in float32, with what its factors add."""
    part = {"blocks": {"block": {name: leaf}}}
    if not isinstance(saved, Adapted):
        return read(part)["blocks"]["block"][name]
    factors = {k: x for k, x in saved.factors.items() if k in (f"{name}_a", f"{name}_b")}
    got = read({"base": part, "factors": factors} if factors else {"base": part})
    got = Adapted(got["base"], got["factors"] if factors else {}, saved.scale)
    return jax.jit(lora.merged)(got)["blocks"]["block"][name]
