"""Matrices in int8 for models that are read and not trained: weights alone, not what meets them.

A row of numbers that make one output has one scale, its largest magnitude over 127 (as vector-wise
in arXiv 2208.07339, there of activations too). Whole numbers up to 127 are exact in every compute
dtype: they are multiplied as they are, and the output is scaled.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp

from sip.mesh import param_sharding
from sip.models import layers
from sip.models.parameters import COARSE, MATRICES
from sip.structs import Array, Params

MOST = 127


@flax.struct.dataclass
class Int8:
    """w = q * scale: `q` has the letters of the matrix, `scale` those that it writes (L before)."""

    q: Array
    scale: Array  # float32


def _inputs(name: str) -> tuple[int, ...]:
    """The axes that a matrix reads, from the last; layers and experts stand before them."""
    reads, writes = map(len, MATRICES[name])
    return tuple(range(-reads - writes, -writes))


def quantise(name: str, w_L) -> Int8:
    """The matrices `name` of all layers, each rounded to nearest; a row of zeros stays zero."""
    inputs = _inputs(name)
    w_L = w_L.astype(jnp.float32)
    scale = jnp.abs(w_L).max(inputs) / MOST
    q = jnp.round(w_L / jnp.expand_dims(jnp.where(scale > 0, scale, 1.0), inputs))
    return Int8(q.astype(jnp.int8), scale)


def whole(name: str, held: Int8):
    """The float32 matrices, of all layers or of one, that it stands for."""
    inputs = _inputs(name)
    return held.q.astype(jnp.float32) * jnp.expand_dims(held.scale, inputs)


def project(x_BND, held: Int8, *, contract: int):
    """`layers.project` with one layer's matrix."""
    out = layers.project(x_BND, held.q.astype(x_BND.dtype), contract=contract)
    return (out * held.scale[None, None]).astype(x_BND.dtype)


def abstract(params: Params, mesh) -> Params:
    """Shapes, dtypes and shardings of parameters whose matrices are to be in int8."""
    block = params["blocks"]["block"]
    held = {k: _abstract(k, x, mesh) if k in COARSE else x for k, x in block.items()}
    return {**params, "blocks": {"block": held}}


def _abstract(name: str, leaf: jax.ShapeDtypeStruct, mesh) -> Int8:
    first, writes = _inputs(name)[0], MATRICES[name][1]
    before = leaf.shape[:first]  # of layers and experts
    shape = (*before, *leaf.shape[-len(writes) :])
    place = param_sharding(mesh, "LE"[: len(before)] + writes, shape, f"{name}/scale")
    q = jax.ShapeDtypeStruct(leaf.shape, jnp.int8, sharding=leaf.sharding)
    return Int8(q, jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place))


def size(params) -> int:
    """Bytes of parameters, in int8 or not."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(params))
