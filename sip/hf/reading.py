"""Import: a checkpoint's tensors onto a mesh, each device's slices and no more.

What the host holds beside the result is one slice of one parameter for one device, all layers of
it: a model is never whole in host memory, unless one device holds it whole.
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
    """Parameters in `dtype` on `mesh`, and their model's config.

    float32 holds what is stored exactly; bfloat16 rounds to nearest. `finish` is called with each
    parameter, all layers of it, before the next is read, and makes what is kept. Raises UserError,
    before any tensor is read, naming the file and the tensor or field that does not fit.
    """
    cfg = configs.read(directory)
    abstract = decoder.abstract(cfg, mesh)
    places = names.places(abstract)
    with shards.opened(directory) as source:
        wanted = {name: place for name, place, _ in names.tensors(abstract)}
        shards.check(source, wanted, cfg.tied)

        def read(path, place, leaf):
            name = jax.tree_util.keystr(path[-1:], simple=True)
            return finish(name, _parameter(source, place, leaf, dtype))

        is_place = lambda x: isinstance(x, Place)
        return jax.tree_util.tree_map_with_path(read, places, abstract, is_leaf=is_place), cfg


def _parameter(source: Shards, place: Place, leaf, dtype):
    """One parameter, slice by slice; a slice that several devices hold is read once."""
    by_slice: dict[tuple, list] = {}
    for device, index in leaf.sharding.addressable_devices_indices_map(leaf.shape).items():
        bounds = tuple(s.indices(n) for s, n in zip(index, leaf.shape, strict=True))
        by_slice.setdefault(bounds, []).append(device)
    arrays = []
    for bounds, devices in by_slice.items():
        host = _slice(source, place, tuple(slice(*b) for b in bounds), np.dtype(dtype))
        arrays += jax.block_until_ready([jax.device_put(host, device) for device in devices])
        del host
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, arrays)


def _slice(source: Shards, place: Place, index: tuple[slice, ...], dtype) -> np.ndarray:
    """A slice of our array, read tensor by tensor into its place."""
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
