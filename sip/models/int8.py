"""Int8 weights for frozen models. Activations stay in the compute dtype.

All weights of one output share one scale: their largest magnitude / 127 (the vector-wise scheme of
arXiv 2208.07339, which quantises activations too). Integers up to 127 are exact in every compute
dtype, so a product uses the integers as they are and its output is multiplied by the scale.
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
    """A quantised matrix w = q * scale, stacked over layers.

    `q` has the axes of the matrix, `scale` only its output axes; both begin with L (then E).
    """

    q: Array  # int8, in -127..127
    scale: Array  # float32


def _inputs(name: str) -> tuple[int, ...]:
    """Returns the input axes of a matrix, counted from the last, since L and E may come first."""
    reads, writes = map(len, MATRICES[name])
    return tuple(range(-reads - writes, -writes))


def quantise(name: str, w_L) -> Int8:
    """Quantises the stacked matrices `name` of all layers, rounding to nearest."""
    inputs = _inputs(name)
    w_L = w_L.astype(jnp.float32)
    scale = jnp.abs(w_L).max(inputs) / MOST
    # An all-zero output has scale 0: divide by 1 instead, so that it stays zero and not NaN.
    q = jnp.round(w_L / jnp.expand_dims(jnp.where(scale > 0, scale, 1.0), inputs))
    return Int8(q.astype(jnp.int8), scale)


def whole(name: str, held: Int8):
    """Returns the dequantised float32 matrices `name`, of all layers or of one."""
    inputs = _inputs(name)
    return held.q.astype(jnp.float32) * jnp.expand_dims(held.scale, inputs)


def project(x_BND, held: Int8, *, contract: int):
    """Computes `layers.project` with one layer's int8 matrix; the result has x's dtype."""
    out = layers.project(x_BND, held.q.astype(x_BND.dtype), contract=contract)
    return (out * held.scale[None, None]).astype(x_BND.dtype)


def abstract(params: Params, mesh) -> Params:
    """Returns shapes, dtypes and shardings of parameters after quantisation of the COARSE ones."""
    block = params["blocks"]["block"]
    held = {k: _abstract(k, x, mesh) if k in COARSE else x for k, x in block.items()}
    return {**params, "blocks": {"block": held}}


def _abstract(name: str, leaf: jax.ShapeDtypeStruct, mesh) -> Int8:
    first, writes = _inputs(name)[0], MATRICES[name][1]
    before = leaf.shape[:first]  # (L,) or (L, E)
    shape = (*before, *leaf.shape[-len(writes) :])
    place = param_sharding(mesh, "LE"[: len(before)] + writes, shape, f"{name}/scale")
    q = jax.ShapeDtypeStruct(leaf.shape, jnp.int8, sharding=leaf.sharding)
    return Int8(q, jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place))


def size(params) -> int:
    """Returns the bytes of all parameters, int8 or not."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(params))
