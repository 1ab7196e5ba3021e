"""Parameters as a loop that decodes reads them: gathered once, not again for every token.

Cut over fsdp, a layer's matrices are gathered where they are used. A pass over many tokens hides
that; a token alone waits for it. So a loop is given matrices in the dtype of compute that are cut
over tensor alone, where a device has room for them. Experts stay where they are: their tokens move
(sip/models/moe.py).
"""

import math

import jax
import jax.numpy as jnp

from sip import mesh as meshes
from sip.models import lora
from sip.models.config import ModelConfig
from sip.models.parameters import MATRICES, OUTER, is_vector, letters
from sip.structs import Params

RULES: meshes.Rules = {k: meshes.PARAM_RULES[k] for k in "EVGF"}


def once(params: Params, cfg: ModelConfig) -> Params:
    """The parameters, gathered over fsdp where a device holds them in `cfg.gather_gib`; else, and
    without fsdp, as they are."""
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
    x = meshes.constrain(x, own, meshes.PARAM_RULES)  # or what is gathered would be float32
    return meshes.constrain(x, own, RULES)


def _name(path) -> tuple[str, str]:
    """(the parameter's name, the field of one in int8)."""
    *_, before, last = "", *(jax.tree_util.keystr((key,), simple=True) for key in path)
    return (before, last) if isinstance(path[-1], jax.tree_util.GetAttrKey) else (last, "")


def _letters(path, cfg: ModelConfig) -> str:
    name, field = _name(path)
    if name in OUTER:
        return OUTER[name]
    own = letters(name, cfg.experts)
    return f"L{own.replace(MATRICES[name][0], '', 1) if field == 'scale' else own}"


def _used(path, x, cfg: ModelConfig):
    name, field = _name(path)
    return x if field or is_vector(name) else x.astype(cfg.compute_dtype)


def _bytes(mesh, path, x, own: str, cfg: ModelConfig) -> float:
    """What a device would hold of it."""
    dtype = jax.eval_shape(lambda x: _used(path, x, cfg), x).dtype
    cut = math.prod(meshes.ways(mesh, part) for part in meshes.spec(own, RULES))
    return math.prod(x.shape) * jnp.dtype(dtype).itemsize / cut
