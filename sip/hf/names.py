"""Maps our parameters to Hugging Face tensors: one table of names and layouts for both directions.

A row of the table has the tensor's name, our axes and the tensor's axes. "GQH D" is a matrix whose
rows are our axes G, Q, H (flattened) and whose columns are our axis D. The code derives the rest
from these letters: which rows and columns hold a slice of our array, and the transpose. Families
differ in their parameters and in how tensors are shared. Qwen and Mixtral have one tensor per
expert; gpt-oss has one tensor for all experts, in which gate and up columns alternate. Phi has the
rows of q, k and v below each other in one tensor, and those of gate and up in another.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from sip.models import parameters
from sip.models.config import ModelConfig
from sip.structs import Params

TOP = {  # our name: (tensor name, our axes, the tensor's axes)
    "embed": ("model.embed_tokens.weight", parameters.OUTER["embed"], "V D"),
    "final_norm": ("model.norm.weight", parameters.OUTER["final_norm"], "D"),
    "unembed": ("lm_head.weight", parameters.OUTER["unembed"], "V D"),
    "score": ("score.weight", parameters.OUTER["score"], "O D"),
}
_LAYER_NAMES = {  # tensors of one layer; our arrays have a leading axis L
    "attention_norm": "input_layernorm.weight",
    "wq": "self_attn.q_proj.weight",
    "wk": "self_attn.k_proj.weight",
    "wv": "self_attn.v_proj.weight",
    "bq": "self_attn.q_proj.bias",
    "bk": "self_attn.k_proj.bias",
    "bv": "self_attn.v_proj.bias",
    "bo": "self_attn.o_proj.bias",
    "sinks": "self_attn.sinks",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "whole_q_norm": "self_attn.q_norm.weight",
    "whole_k_norm": "self_attn.k_norm.weight",
    "wo": "self_attn.o_proj.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "w_gate": "mlp.gate_proj.weight",
    "w_up": "mlp.up_proj.weight",
    "w_down": "mlp.down_proj.weight",
    "b_gate": "mlp.gate_proj.bias",
    "b_up": "mlp.up_proj.bias",
    "b_down": "mlp.down_proj.bias",
}
_POST_NAMES = {  # with norms of the sublayers' outputs
    "attention_post_norm": "post_attention_layernorm.weight",
    "mlp_norm": "pre_feedforward_layernorm.weight",
    "mlp_post_norm": "post_feedforward_layernorm.weight",
}
_PHI_NAMES = {
    "wq": "self_attn.qkv_proj.weight",
    "wk": "self_attn.qkv_proj.weight",
    "wv": "self_attn.qkv_proj.weight",
    "w_gate": "mlp.gate_up_proj.weight",
    "w_up": "mlp.gate_up_proj.weight",
}
STACKS = (("wq", "wk", "wv"), ("w_gate", "w_up"))  # of Phi: rows below each other
_QWEN_NAMES = {  # Qwen's mixture of experts; {expert} is the index of the expert
    "w_router": "mlp.gate.weight",
    "w_gate": "mlp.experts.{expert}.gate_proj.weight",
    "w_up": "mlp.experts.{expert}.up_proj.weight",
    "w_down": "mlp.experts.{expert}.down_proj.weight",
}
_MIXTRAL_NAMES = {
    "w_router": "block_sparse_moe.gate.weight",
    "w_gate": "block_sparse_moe.experts.{expert}.w1.weight",
    "w_up": "block_sparse_moe.experts.{expert}.w3.weight",
    "w_down": "block_sparse_moe.experts.{expert}.w2.weight",
}
_LETTERS = {  # (our axes, the tensor's axes); a Hugging Face matrix is [outputs, inputs]
    **{
        name: (letters, letters) for name, letters in (parameters.NORMS | parameters.BIASES).items()
    },
    **{name: (i + o, f"{o} {i}") for name, (i, o) in parameters.MATRICES.items()},
}
_table = lambda names: {name: (theirs, *_LETTERS[name]) for name, theirs in names.items()}
LAYER = _table(_LAYER_NAMES)
QWEN_LAYER = LAYER | _table(_QWEN_NAMES)
MIXTRAL_LAYER = LAYER | _table(_MIXTRAL_NAMES)
PHI_LAYER = LAYER | _table(_PHI_NAMES)
POST_LAYER = LAYER | _table(_POST_NAMES)
# gpt-oss has one tensor for all experts, and each expert's matrix is [inputs, outputs].
GPT_OSS_LAYER = LAYER | {
    "w_router": ("mlp.router.weight", "DE", "E D"),
    "b_router": ("mlp.router.bias", "E", "E"),
    "w_gate": ("mlp.experts.gate_up_proj", "EDF", "E D F"),
    "w_up": ("mlp.experts.gate_up_proj", "EDF", "E D F"),
    "b_gate": ("mlp.experts.gate_up_proj_bias", "EF", "E F"),
    "b_up": ("mlp.experts.gate_up_proj_bias", "EF", "E F"),
    "w_down": ("mlp.experts.down_proj", "EFD", "E F D"),
    "b_down": ("mlp.experts.down_proj_bias", "ED", "E D"),
}
TURNS = {"w_gate": (0, 2), "w_up": (1, 2), "b_gate": (0, 2), "b_up": (1, 2)}  # alternate columns


@dataclass(frozen=True)
class Place:
    """Position and layout of one parameter, with all its layers, in Hugging Face tensors."""

    names: tuple[str, ...]  # one tensor per index along the leading axes, in order
    leading: tuple[int, ...]  # sizes of our axes that are split into tensors: layers, experts
    letters: str  # our axes, without the leading ones
    groups: tuple[str, ...]  # the tensor's axes, each a group of our axes
    shape: tuple[int, ...]  # our shape, without the leading axes
    turn: tuple[int, int] = (0, 1)  # (i, n): every n-th column of the tensor, starting at i
    rows: tuple[int, int] = (0, 0)  # (i, n): of n rows of the tensor, those from i; n = 0: all

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each of our axes by letter."""
        return dict(zip(self.letters, self.shape, strict=True))

    @property
    def their_shape(self) -> tuple[int, ...]:
        """Shape of each tensor, with the rows and columns of parameters that share it."""
        whole = (*self._own_shape[:-1], self._own_shape[-1] * self.turn[1])
        return (self.rows[1], *whole[1:]) if self.rows[1] else whole

    @property
    def _own_shape(self) -> tuple[int, ...]:
        return tuple(math.prod(self.sizes[a] for a in group) for group in self.groups)

    def their_slices(self, ours: tuple[slice, ...]) -> tuple[slice, ...]:
        """Returns the slices of the tensor that contain a slice of our array.

        If columns alternate, columns of the other parameter are included. Of our axes that share an
        axis of the tensor, only the first may be sliced, so that the result is contiguous.
        """
        cut = dict(zip(self.letters, ours, strict=True))
        *rest, last = (self._span(group, cut) for group in self.groups)
        if self.rows[1]:
            start = self.rows[0]
            rest[0] = slice(start + rest[0].start, start + rest[0].stop)
        return (*rest, slice(last.start * self.turn[1], last.stop * self.turn[1]))

    def _span(self, group: str, cut) -> slice:
        first, *rest = group
        inner = math.prod(self.sizes[a] for a in rest)
        whole = all(cut[a].indices(self.sizes[a]) == (0, self.sizes[a], 1) for a in rest)
        start, stop, step = cut[first].indices(self.sizes[first])
        # The sharding rules of sip/mesh.py cut only the first axis of a group.
        assert whole and step == 1, (group, cut)
        return slice(start * inner, stop * inner)

    def to_ours(self, theirs: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Converts the values read from a tensor to our array of shape `shape`."""
        sizes = dict(zip(self.letters, shape, strict=True))
        order = "".join(self.groups)
        own = theirs[..., self.turn[0] :: self.turn[1]]
        split = own.reshape([sizes[a] for a in order])
        return split.transpose([order.index(a) for a in self.letters])

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """Converts our array of one tensor to the tensor's layout.

        If parameters share the tensor, this returns only our rows or columns.
        """
        order = "".join(self.groups)
        turned = ours.transpose([self.letters.index(a) for a in order])
        return turned.reshape(self._own_shape)


def _place(layer, rows, path, leaf) -> Place:
    name = str(path[-1].key)
    theirs, letters, groups = (TOP | layer)[name]
    leading = leaf.shape[: leaf.ndim - len(letters)]
    names = tuple(_name(theirs, at) for at in np.ndindex(*leading))
    turn = TURNS[name] if layer is GPT_OSS_LAYER and name in TURNS else (0, 1)
    own = rows[name] if name in rows else (0, 0)
    shape = leaf.shape[len(leading) :]
    return Place(names, leading, letters, tuple(groups.split()), shape, turn, own)


def _name(theirs: str, at: tuple[int, ...]) -> str:
    """Returns the full name of a tensor of the model, of a layer, or of an expert in a layer."""
    return f"model.layers.{at[0]}.{theirs.format(expert=at[-1])}" if at else theirs


def _layer(cfg: ModelConfig):
    """Returns the table of the layers' tensors."""
    if cfg.experts:
        return GPT_OSS_LAYER if cfg.expert_bias else QWEN_LAYER if cfg.qk_norm else MIXTRAL_LAYER
    if cfg.norms != "pre":
        return POST_LAYER
    return PHI_LAYER if cfg.fused else LAYER


def _rows(block) -> dict[str, tuple[int, int]]:
    """Returns Place.rows of the parameters that share tensors in a file of Phi."""
    found = {}
    for stack in STACKS:
        # An array has the axes L, D, then those of the tensor's rows.
        sizes = [math.prod(block[name].shape[2:]) for name in stack]
        starts = [sum(sizes[:i]) for i in range(len(stack))]
        found |= {name: (at, sum(sizes)) for name, at in zip(stack, starts, strict=True)}
    return found


def places(params: Params, cfg: ModelConfig) -> Params:
    """Returns the Place of each parameter; `params` may be abstract."""
    rows = _rows(params["blocks"]["block"]) if cfg.fused else {}
    return jax.tree_util.tree_map_with_path(functools.partial(_place, _layer(cfg), rows), params)


def tensors(params: Params, cfg: ModelConfig) -> list[tuple[str, Place, Callable[[], np.ndarray]]]:
    """Lists all Hugging Face tensors of a model: (name, place, function that builds the tensor).

    Order: embedding, layers by number, the rest. Each tensor is listed once. For a tensor that
    parameters share, the place is that of the first parameter.
    """
    leaves = jax.tree.leaves(places(params, cfg), is_leaf=lambda x: isinstance(x, Place))
    parts: dict[str, list] = {}
    for place, leaf in zip(leaves, jax.tree.leaves(params), strict=True):
        for at, name in zip(np.ndindex(*place.leading), place.names, strict=True):
            parts.setdefault(name, []).append((place, leaf, at))
    found = [(name, of_it[0][0], functools.partial(_whole, of_it)) for name, of_it in parts.items()]
    return sorted(found, key=lambda row: _order(row[0]))


def _whole(parts) -> np.ndarray:
    parts = sorted(parts, key=lambda part: (part[0].turn, part[0].rows))
    found = [place.to_theirs(np.asarray(leaf[at])) for place, leaf, at in parts]
    if parts[0][0].rows[1]:
        return np.concatenate(found)
    # Stacking on a new last axis and flattening it makes the columns alternate.
    return found[0] if len(found) == 1 else np.stack(found, -1).reshape(parts[0][0].their_shape)


def _order(name: str) -> tuple[int, int, str]:
    """Returns a sort key: embedding, layers by number, the rest."""
    parts = name.split(".")
    if parts[1] == "layers":
        return 1, int(parts[2]), name
    return (0 if parts[1] == "embed_tokens" else 2), 0, name  # score.weight is one of the rest
