"""LoRA (arXiv 2106.09685): W + (alpha / rank) A B, where only the factors A and B are trained.

The base W is frozen: it has no gradient and no optimiser state, and may be stored in bfloat16 or
int8 (as in QLoRA, arXiv 2305.14314, which uses 4 bits). B starts at zero, so the adapted model
starts exactly as the base. The base therefore is the reference of a loss that needs one.

An `Adapted` is accepted wherever parameters are. `decoder.apply` multiplies by W and by A, B
separately, so neither W's gradient nor the merged matrix is ever computed. `merged` returns plain
parameters.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from sip.mesh import param_sharding
from sip.models import int8, layers
from sip.models.config import ModelConfig
from sip.models.int8 import Int8
from sip.models.parameters import COARSE, EXPERTS, FACTORS, MATRICES
from sip.sections import above, at_least, check
from sip.structs import Array, Params, UserError


@dataclass(frozen=True)
class LoraConfig:
    """Rank and matrices of LoRA factors. With rank 0 all parameters are trained."""

    rank: int = 0  # Z, columns of A and rows of B; 0: no factors
    alpha: float = 16.0  # A B is scaled by alpha / rank
    matrices: tuple[str, ...] = COARSE  # names of the matrices with factors
    int8: bool = False  # store the frozen matrices in int8

    def __post_init__(self):
        check("lora", self, rank=at_least(0), alpha=above(0))
        if not self.matrices or len(set(self.matrices)) < len(self.matrices):
            raise UserError(
                f"lora.matrices must name at least one matrix, each once, not {self.matrices}"
            )
        for name in self.matrices:
            if name not in COARSE:
                raise UserError(f"lora.matrices: no {name!r}; there are {', '.join(COARSE)}")
        if self.int8 and not self.rank:
            raise UserError("lora.int8 needs a frozen base, but with lora.rank 0 nothing is frozen")

    def check(self, cfg: ModelConfig) -> None:
        """Raises UserError if a named matrix belongs to experts, which cannot have factors, or has
        fewer rows or columns than the rank."""
        if self.rank and cfg.scalar:
            raise UserError(
                "lora.rank: a reward model's head would stay random, since LoRA trains factors of "
                "matrices only; use rank 0 with model.scalar"
            )
        theirs = [name for name in self.matrices if cfg.experts and name in EXPERTS]
        if self.rank and theirs:
            raise UserError(
                f"lora.matrices: {theirs[0]} belongs to experts, which cannot have factors; "
                f"use some of {', '.join(n for n in COARSE if n not in EXPERTS)}"
            )

        sizes = {"D": cfg.width, "G": cfg.kv_heads, "Q": cfg.queries_per_kv, "H": cfg.head_dim}
        sizes["F"] = cfg.hidden
        for name in self.matrices:
            most = min(math.prod(sizes[a] for a in side) for side in MATRICES[name])
            if self.rank > most:
                raise UserError(f"lora.rank={self.rank}: must be <= {most}, the size of {name}")

    @property
    def scale(self) -> float:
        """The factor alpha / rank of A B."""
        return self.alpha / self.rank


OFF = LoraConfig()


@flax.struct.dataclass
class Adapted:
    """A frozen base and its float32 factors by name.

    `wq_a` has the input axes of `wq` and Z, `wq_b` has Z and the output axes of `wq`.
    """

    base: Params
    factors: dict[str, Array]
    scale: float = flax.struct.field(pytree_node=False)


def _block(base: Params) -> dict[str, Any]:
    return base["blocks"]["block"]


def base_of(params: Params) -> Params:
    """Returns the base of adapted parameters; plain parameters are returned as they are."""
    return params.base if isinstance(params, Adapted) else params


def learned(params: Params) -> Params:
    """Returns the parameters that an update changes: the factors, or all plain parameters."""
    return params.factors if isinstance(params, Adapted) else params


def relearned(params: Params, new: Params) -> Params:
    """Returns `params` with `new` in place of its learned parameters."""
    return dataclasses.replace(params, factors=new) if isinstance(params, Adapted) else new


def flat(params: Params) -> Params:
    """Returns one parameter tree with each factor next to its matrix, as the decoder expects it."""
    if not isinstance(params, Adapted):
        return params
    # Only B carries alpha / rank, and B is small: the activations need no extra product.
    scaled = {k: x * params.scale if k.endswith("_b") else x for k, x in params.factors.items()}
    return {**params.base, "blocks": {"block": {**_block(params.base), **scaled}}}


def project(x_BND, a, b, *, contract: int):
    """Returns x A B, which a layer adds to x W. B carries the scale (`flat`)."""
    # (x A) B costs Z * (in + out) per token; A B first would build a full matrix.
    a, b = a.astype(x_BND.dtype), b.astype(x_BND.dtype)
    return layers.project(layers.project(x_BND, a, contract=contract), b)


def _shapes(base: Params, lora: LoraConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Returns (axis letters, shape) of each factor by name; both begin with L."""
    found = {}
    for name in lora.matrices:
        held = _block(base)[name]
        shape = (held.q if isinstance(held, Int8) else held).shape
        sizes = dict(zip("".join(("L", *MATRICES[name])), shape, strict=True), Z=lora.rank)
        for factor in (f"{name}_a", f"{name}_b"):
            letters = "".join(("L", *FACTORS[factor]))
            found[factor] = letters, tuple(sizes[a] for a in letters)
    return found


def init(base: Params, lora: LoraConfig, key) -> dict[str, Array]:
    """Returns fresh factors: A truncated normal with deviation fan_in^-1/2, B zero."""
    factors = {}
    # shape[1:-1] of A [L, .., Z] are the input axes.
    for i, (name, (_, shape)) in enumerate(sorted(_shapes(base, lora).items())):
        if name.endswith("_b"):
            factors[name] = jnp.zeros(shape, jnp.float32)
            continue
        draw = jax.nn.initializers.truncated_normal(math.prod(shape[1:-1]) ** -0.5)
        factors[name] = draw(jax.random.fold_in(key, i), shape, jnp.float32)
    return factors


def abstract(base: Params, lora: LoraConfig, mesh) -> Adapted:
    """Returns shapes, dtypes and shardings of adapted parameters; those of `base` are kept."""

    def factor(name, letters, shape):
        place = param_sharding(mesh, letters, shape, name)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)

    shapes = _shapes(base, lora)
    return Adapted(base, {k: factor(k, *found) for k, found in shapes.items()}, lora.scale)


def merged(params: Adapted) -> Params:
    """Returns plain parameters of the adapted model.

    The sum W + scale A B is computed in float32 and stored in the base's dtype, or in float32 for
    an int8 base. A bfloat16 base rounds what was learned.
    """
    block = {name: _merged(name, held, params) for name, held in _block(params.base).items()}
    return {**params.base, "blocks": {"block": block}}


def _merged(name: str, held, params: Adapted):
    adapted = f"{name}_a" in params.factors
    if not adapted and not isinstance(held, Int8):
        return held
    w_L = int8.whole(name, held) if isinstance(held, Int8) else held
    if not adapted:
        return w_L
    return (w_L.astype(jnp.float32) + _product(name, params)).astype(w_L.dtype)


def _product(name: str, params: Adapted):
    """Returns scale * A B of all layers, in the shape of the matrix."""
    a, b = params.factors[f"{name}_a"], params.factors[f"{name}_b"]
    # Input axes flattened to I, output axes to O. "highest": TPUs multiply in bfloat16 by default.
    a_LIZ, b_LZO = a.reshape(a.shape[0], -1, a.shape[-1]), b.reshape(*b.shape[:2], -1)
    product = jnp.einsum("LIZ,LZO->LIO", a_LIZ, b_LZO, precision="highest")
    return params.scale * product.reshape(*a.shape[:-1], *b.shape[2:])
