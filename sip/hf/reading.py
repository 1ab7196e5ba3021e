"""Imports a checkpoint's tensors onto a mesh; each host reads only the slices of its devices.

Besides the result, the host holds one slice of one parameter (all layers) for one device at a time.
So a sharded model is never completely in host memory.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sip.hf import configs, names, shards
from sip.hf.names import Place
from sip.hf.shards import Shards
from sip.models import decoder
from sip.models.config import ModelConfig
from sip.structs import Params


def load(
    directory: str | Path, mesh, dtype=jnp.float32, finish=lambda name, x: x
) -> tuple[Params, ModelConfig]:
    """Loads a Hugging Face checkpoint onto a mesh.

    Args:
        directory: Hugging Face directory.
        mesh: The mesh.
        dtype: Storage dtype. float32 is exact; bfloat16 rounds to nearest.
        finish: Function (name, parameter with all layers) -> stored value, such as quantisation.
            It is called before the next parameter is read, so that memory stays small.

    Returns:
        (parameters, model config).

    Raises:
        UserError: A file, tensor or config field does not fit; raised before any tensor is read.
    """
    cfg = configs.read(directory)
    with shards.opened(directory, inner=configs.is_nested(directory)) as source:
        shards.check_size(source, cfg)
        abstract = decoder.abstract(cfg, mesh)
        places = names.places(abstract, cfg)
        wanted = {name: place for name, place, _ in names.tensors(abstract, cfg)}
        shards.check(source, wanted, cfg.tied)

        def read(path, place, leaf):
            name = jax.tree_util.keystr(path[-1:], simple=True)
            return finish(name, _parameter(source, place, leaf, dtype))

        is_place = lambda x: isinstance(x, Place)
        return jax.tree_util.tree_map_with_path(read, places, abstract, is_leaf=is_place), cfg


def _parameter(source: Shards, place: Place, leaf, dtype):
    """Reads one parameter slice by slice; a slice that several devices hold is read once."""
    by_slice: dict[tuple, list] = {}
    for device, index in leaf.sharding.addressable_devices_indices_map(leaf.shape).items():
        bounds = tuple(s.indices(n) for s, n in zip(index, leaf.shape, strict=True))
        by_slice.setdefault(bounds, []).append(device)
    arrays = []
    for bounds, devices in by_slice.items():
        host = _slice(source, place, tuple(slice(*b) for b in bounds), np.dtype(dtype))
        arrays += jax.block_until_ready([jax.device_put(host, device) for device in devices])
        del host  # frees it before the next slice is read
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, arrays)


def _slice(source: Shards, place: Place, index: tuple[slice, ...], dtype) -> np.ndarray:
    """Reads a slice of our array from one tensor per layer (and expert) into one host array."""
    shape, many = tuple(s.stop - s.start for s in index), len(place.leading)
    if not many:
        return np.ascontiguousarray(_read(source, place, place.names[0], index), dtype)
    host = np.empty(shape, dtype)
    names = np.array(place.names, object).reshape(place.leading)[index[:many]]
    for at in np.ndindex(*names.shape):
        host[at] = _read(source, place, str(names[at]), index[many:])
    return host


def _read(source: Shards, place: Place, name: str, index: tuple[slice, ...]) -> np.ndarray:
    shape = tuple(s.stop - s.start for s in index)
    return place.to_ours(source.tensor(name)[place.their_slices(index)], shape)
