"""Names of tensors, ours and theirs: one table for both directions.

A row says where a parameter lies there and how: "GQH D" is a matrix whose rows are our axes G, Q, H
and whose columns are D. All else follows from the letters: which rows and columns hold a slice of
our array, and how they are turned. Families differ in which of the parameters they have.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from sip.models import parameters
from sip.structs import Params

TOP = {  # ours -> (theirs, our letters, their letters)
    "embed": ("model.embed_tokens.weight", "VD", "V D"),
    "final_norm": ("model.norm.weight", "D", "D"),
    "unembed": ("lm_head.weight", "DV", "V D"),
}
_LAYER_NAMES = {  # of each layer; ours has L in front
    "attention_norm": "input_layernorm.weight",
    "wq": "self_attn.q_proj.weight",
    "wk": "self_attn.k_proj.weight",
    "wv": "self_attn.v_proj.weight",
    "bq": "self_attn.q_proj.bias",
    "bk": "self_attn.k_proj.bias",
    "bv": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "wo": "self_attn.o_proj.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "w_gate": "mlp.gate_proj.weight",
    "w_up": "mlp.up_proj.weight",
    "w_down": "mlp.down_proj.weight",
}
_LETTERS = {  # ours, theirs: of a matrix there the rows are what it writes
    **{
        name: (letters, letters) for name, letters in (parameters.NORMS | parameters.BIASES).items()
    },
    **{name: (i + o, f"{o} {i}") for name, (i, o) in parameters.MATRICES.items()},
}
LAYER = {name: (theirs, *_LETTERS[name]) for name, theirs in _LAYER_NAMES.items()}


@dataclass(frozen=True)
class Place:
    """Where one parameter lies there, all layers of it."""

    names: tuple[str, ...]  # a tensor per layer, or one
    layered: bool
    letters: str  # ours, without L
    groups: tuple[str, ...]  # an axis of theirs each
    shape: tuple[int, ...]  # ours, without L

    @property
    def sizes(self) -> dict[str, int]:
        """By letter."""
        return dict(zip(self.letters, self.shape, strict=True))

    @property
    def their_shape(self) -> tuple[int, ...]:
        """Of each of the tensors."""
        return tuple(math.prod(self.sizes[a] for a in group) for group in self.groups)

    def their_slices(self, ours: tuple[slice, ...]) -> tuple[slice, ...]:
        """The rows and columns that hold a slice of our array.

        Of letters that share an axis there only the first may be cut; then they are one piece.
        """
        cut = dict(zip(self.letters, ours, strict=True))
        return tuple(self._span(group, cut) for group in self.groups)

    def _span(self, group: str, cut) -> slice:
        first, *rest = group
        inner = math.prod(self.sizes[a] for a in rest)
        whole = all(cut[a].indices(self.sizes[a]) == (0, self.sizes[a], 1) for a in rest)
        start, stop, step = cut[first].indices(self.sizes[first])
        assert whole and step == 1, (group, cut)  # as the rules of sip/mesh.py cut
        return slice(start * inner, stop * inner)

    def to_ours(self, theirs: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """What was read there, as our array of that `shape`."""
        sizes = dict(zip(self.letters, shape, strict=True))
        order = "".join(self.groups)
        split = theirs.reshape([sizes[a] for a in order])
        return split.transpose([order.index(a) for a in self.letters])

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """Our whole array of one layer, as it lies there."""
        order = "".join(self.groups)
        turned = ours.transpose([self.letters.index(a) for a in order])
        return turned.reshape(self.their_shape)


def _place(path, leaf) -> Place:
    name = str(path[-1].key)
    if name in TOP:
        theirs, letters, groups = TOP[name]
        return Place((theirs,), False, letters, tuple(groups.split()), leaf.shape)
    theirs, letters, groups = LAYER[name]
    names = tuple(f"model.layers.{i}.{theirs}" for i in range(leaf.shape[0]))
    return Place(names, True, letters, tuple(groups.split()), leaf.shape[1:])


def places(params: Params) -> Params:
    """For each parameter, also an abstract one, its Place."""
    return jax.tree_util.tree_map_with_path(_place, params)


def tensors(params: Params) -> list[tuple[str, Place, Callable[[], np.ndarray]]]:
    """(name there, place, what fetches our array of that layer), in their order."""
    leaves = jax.tree.leaves(places(params), is_leaf=lambda x: isinstance(x, Place))
    found = [
        (name, place, functools.partial(_part, leaf, i if place.layered else None))
        for place, leaf in zip(leaves, jax.tree.leaves(params), strict=True)
        for i, name in enumerate(place.names)
    ]
    return sorted(found, key=lambda row: _order(row[0]))


def _part(leaf, layer: int | None) -> np.ndarray:
    return np.asarray(leaf if layer is None else leaf[layer])


def _order(name: str) -> tuple[int, int, str]:
    """Embedding, layers by number, the rest."""
    parts = name.split(".")
    if parts[1] == "layers":
        return 1, int(parts[2]), name
    return (0 if parts[1] == "embed_tokens" else 2), 0, name
