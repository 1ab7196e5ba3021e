"""Checksums of arrays, computed where the arrays lie.

A checkpoint's record holds a checksum of each array, so that a damaged file is noticed when the
array is read again. The checksum is a sum over mixed bits and positions, modulo 2**32. So it does
not depend on the mesh: each device sums its own shards, each process adds up those of its devices,
and the processes exchange one number per array. Cost: a save and a load read each array once more
from device memory (milliseconds per GB on an accelerator, about a second per GB on a CPU). No large
array is copied to the host for it, and no file is read again. The host sums small arrays itself:
a program for each of their shapes and shardings would take longer to compile.

A change of one element is always noticed, any other change with probability 1 - 2**-32.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from sip import processes

WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32}  # an unsigned type by its size, bytes
SMALL = 1 << 20  # bytes of an array that the host sums


def names(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths, such as `blocks/block/attn_q`."""
    path = lambda keys: jax.tree_util.keystr(keys, simple=True, separator="/")
    return {path(keys): x for keys, x in jax.tree_util.tree_leaves_with_path(tree)}


def of(tree: Any) -> dict[str, int]:
    """Returns the checksum of each array of a tree, by its path. All processes must call it."""
    own = {name: _sums(x) for name, x in names(tree).items()}
    sums_N = np.array([_added(x) for x in own.values()], np.uint32)
    if processes.is_distributed():
        every = np.asarray(multihost_utils.process_allgather(sums_N))
        sums_N = every.reshape(-1, len(own)).sum(0, dtype=np.uint32)
    return dict(zip(own, sums_N.tolist(), strict=True))


def differing(tree: Any, known: Mapping[str, int]) -> list[str]:
    """Returns the paths of arrays whose checksum is not the one in `known`.

    An array that `known` does not name is not compared.
    """
    return [name for name, x in of(tree).items() if name in known and known[name] != x]


def _sums(x) -> jax.Array | np.ndarray:
    """Starts the sums of an array's shards, one on each device; those of a small one are done."""
    x = x if isinstance(x, jax.Array) else jnp.asarray(x)
    where = x.sharding
    cut = isinstance(where, NamedSharding)
    if x.nbytes <= SMALL:
        found = np.array(_by_host(x), np.uint32)
    else:
        found = _sharded(where.mesh, where.spec)(x) if cut else _single(x)
    # An array that is not cut is whole on every process.
    return found if cut else found * np.uint32(processes.lead())


def _added(sums_N: jax.Array | np.ndarray) -> np.uint32:
    """Adds the sums of this process's devices."""
    own = [sums_N] if isinstance(sums_N, np.ndarray) else [np.asarray(x.data) for x in _own(sums_N)]
    return np.concatenate(own).sum(dtype=np.uint32)


def _own(x: jax.Array) -> list[Any]:
    """Returns the shards of this process, of equal ones the first."""
    return [shard for shard in x.addressable_shards if shard.replica_id == 0]


def _by_host(x: jax.Array) -> list[np.uint32]:
    """Sums the shards of this process."""
    found = []
    with np.errstate(over="ignore"):  # numpy warns of scalars that wrap around
        for shard in _own(x):
            bits, offsets = _bits(np.asarray(shard.data)), [part.start or 0 for part in shard.index]
            found.append(_mixed_sum(bits, offsets, x.shape, np))
    return found


@jax.jit
def _single(x):
    return _mixed_sum(_bits(x), [0] * x.ndim, x.shape, jnp)[None]


@functools.cache
def _sharded(mesh: jax.sharding.Mesh, spec: PartitionSpec):
    """Returns a program that sums the shards of an array with this sharding.

    It has no collective: programs dispatched one after the other, with a collective each, can
    deadlock on CPU devices.
    """
    axes = [(axes,) if isinstance(axes, str) else axes or () for axes in spec]
    copies = [name for name in mesh.axis_names if not any(name in some for some in axes)]

    def program(x):
        at = [*axes, *[()] * (x.ndim - len(axes))]
        sizes = [math.prod(mesh.shape[name] for name in some) for some in at]
        whole = [size * here for size, here in zip(sizes, x.shape, strict=True)]
        offsets = [
            jax.lax.axis_index(some) * here if some else 0
            for some, here in zip(at, x.shape, strict=True)
        ]
        found = _mixed_sum(_bits(x), offsets, whole, jnp)
        for name in copies:  # each shard counts once
            found = jnp.where(jax.lax.axis_index(name) == 0, found, jnp.uint32(0))
        return found[None]

    out = PartitionSpec(mesh.axis_names)
    return jax.jit(jax.shard_map(program, mesh=mesh, in_specs=spec, out_specs=out))


def _bits(x):
    """Returns the bits of each element of a numpy or JAX array as uint32."""
    bits = x.astype(np.uint8) if x.dtype == np.bool_ else x
    return bits.view(WORDS[bits.dtype.itemsize]).astype(np.uint32)


def _mixed_sum(bits, offsets: Sequence[Any], whole: Sequence[int], xp):
    """Sums mixed bits over a shard that begins at `offsets` in an array of shape `whole`.

    `xp` is the module of the arrays, numpy or jax.numpy.
    """
    position, stride = xp.zeros(bits.shape, xp.uint32), 1
    for axis, size in reversed(tuple(enumerate(bits.shape))):
        along = xp.arange(size, dtype=xp.uint32) + xp.asarray(offsets[axis], xp.uint32)
        along = along.reshape([size if i == axis else 1 for i in range(bits.ndim)])
        position += along * xp.uint32(stride % 2**32)
        stride *= whole[axis]
    # The finaliser of MurmurHash3: a bijection of 32 bits, so no change of one element is lost.
    h = bits ^ (position * xp.uint32(0x9E3779B1) + xp.uint32(0x85EBCA6B))
    h = (h ^ (h >> 16)) * xp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * xp.uint32(0xC2B2AE35)
    return xp.sum(h ^ (h >> 16), dtype=xp.uint32)
