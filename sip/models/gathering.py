"""Parameters gathered over fsdp once per decoding loop, not once per token.

A layer's fsdp-sharded matrices are all-gathered when they are used. A pass over many tokens hides
that latency behind its matrix products; a single decoding step cannot. So a decoding loop gets the
matrices in the compute dtype, sharded over tensor only, if a device has room for them. Experts stay
sharded: their tokens move instead (sip/models/moe.py).
"""

import math

import jax
import jax.numpy as jnp

from sip import mesh as meshes
from sip.models import lora
from sip.models.config import ModelConfig
from sip.models.parameters import MATRICES, OUTER, is_vector, letters
from sip.structs import Params

# The parameter rules without D: E keeps fsdp, so experts stay sharded.
RULES: meshes.Rules = {k: meshes.PARAM_RULES[k] for k in "EVGF"}


def once(params: Params, cfg: ModelConfig) -> Params:
    """Returns the parameters gathered over fsdp if they fit in `cfg.gather_gib` GiB per device.

    Otherwise, and without fsdp, returns them unchanged.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["fsdp"] == 1:
        return params
    params = lora.flat(params)
    leaves = [(path, x, _letters(path, cfg)) for path, x in jax.tree.leaves_with_path(params)]
    held = sum(_bytes(mesh, path, x, own, cfg) for path, x, own in leaves)
    if held > cfg.gather_gib * 2**30:
        return params
    found = [_gathered(_used(path, x, cfg), own) for path, x, own in leaves]
    return jax.tree.unflatten(jax.tree.structure(params), found)


def _gathered(x, own: str):
    # Pin the cast result to the sharded layout first, or XLA gathers float32 and casts afterwards.
    x = meshes.constrain(x, own, meshes.PARAM_RULES)
    return meshes.constrain(x, own, RULES)


def _name(path) -> tuple[str, str]:
    """Returns (name of the parameter, field of an Int8: "q" or "scale", else "")."""
    *_, before, last = "", *(jax.tree_util.keystr((key,), simple=True) for key in path)
    return (before, last) if isinstance(path[-1], jax.tree_util.GetAttrKey) else (last, "")


def _letters(path, cfg: ModelConfig) -> str:
    name, field = _name(path)
    if name in OUTER:
        return OUTER[name]
    # The scale of an Int8 has no input axes.
    own = letters(name, cfg.experts)
    return f"L{own.replace(MATRICES[name][0], '', 1) if field == 'scale' else own}"


def _used(path, x, cfg: ModelConfig):
    name, field = _name(path)
    return x if field or is_vector(name) else x.astype(cfg.compute_dtype)


def _bytes(mesh, path, x, own: str, cfg: ModelConfig) -> float:
    """Returns the bytes of a parameter on one device after gathering."""
    dtype = jax.eval_shape(lambda x: _used(path, x, cfg), x).dtype
    cut = math.prod(meshes.ways(mesh, part) for part in meshes.spec(own, RULES))
    return math.prod(x.shape) * jnp.dtype(dtype).itemsize / cut
