"""Training of low rank: W + (alpha / rank) A B, of which the factors A and B alone are learned.

LoRA (arXiv 2106.09685). The base is frozen: it has no gradient and no optimiser state, and may be
held in bfloat16 or int8 (as in QLoRA, arXiv 2305.14314, there in 4 bits). B begins at zero, so the
first adapted model is the base, exactly, and the base is the reference of a loss that wants one.

`Adapted` goes wherever parameters go: `decoder.apply` multiplies by W and by the factors one after
the other, so that W's gradient and the merged matrix never exist. `merged` makes plain parameters.
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
from sip.structs import Array, Params, UserError


@dataclass(frozen=True)
class LoraConfig:
    """Which matrices get factors, and of what rank. Rank 0: all parameters are trained, as ever."""

    rank: int = 0
    alpha: float = 16.0  # what the factors add is scaled by alpha / rank
    matrices: tuple[str, ...] = COARSE
    int8: bool = False  # the frozen matrices are held in int8

    def __post_init__(self):
        if self.rank < 0 or self.alpha <= 0:
            raise UserError("lora.rank must not be negative, lora.alpha positive")
        if not self.matrices or len(set(self.matrices)) < len(self.matrices):
            raise UserError("lora.matrices must name at least one, and none twice")
        for name in self.matrices:
            if name not in COARSE:
                raise UserError(f"lora.matrices: no {name!r}; there are {', '.join(COARSE)}")
        if self.int8 and not self.rank:
            raise UserError("lora.int8 holds a frozen base, but lora.rank 0 freezes nothing")

    def check(self, cfg: ModelConfig) -> None:
        """Raises UserError where a matrix is one of many experts', which get no factors."""
        theirs = [name for name in self.matrices if cfg.experts and name in EXPERTS]
        if self.rank and theirs:
            raise UserError(
                f"lora.matrices: {theirs[0]} belongs to experts, which get no factors; "
                f"others: {', '.join(n for n in COARSE if n not in EXPERTS)}"
            )

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank


OFF = LoraConfig()


@flax.struct.dataclass
class Adapted:
    """A frozen base, and factors (float32) by name: `wq_a` reads as `wq` does, `wq_b` writes."""

    base: Params
    factors: dict[str, Array]
    scale: float = flax.struct.field(pytree_node=False)


def _block(base: Params) -> dict[str, Any]:
    return base["blocks"]["block"]


def base_of(params: Params) -> Params:
    """The parameters without their factors."""
    return params.base if isinstance(params, Adapted) else params


def learned(params: Params) -> Params:
    """What an update changes: the factors, or without any all parameters."""
    return params.factors if isinstance(params, Adapted) else params


def relearned(params: Params, new: Params) -> Params:
    """`params` with other learned ones."""
    return dataclasses.replace(params, factors=new) if isinstance(params, Adapted) else new


def flat(params: Params) -> Params:
    """Factors beside their matrices, and scaled, as the decoder's layers look for them."""
    if not isinstance(params, Adapted):
        return params
    scaled = {k: x * params.scale if k.endswith("_b") else x for k, x in params.factors.items()}
    return {**params.base, "blocks": {"block": {**_block(params.base), **scaled}}}


def project(x_BND, a, b, *, contract: int):
    """What a layer's factors add to x times their matrix."""
    a, b = a.astype(x_BND.dtype), b.astype(x_BND.dtype)
    return layers.project(layers.project(x_BND, a, contract=contract), b)


def _shapes(base: Params, lora: LoraConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Letters, L first, and shape of each factor."""
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
    """Factors: A truncated normal by fan-in, B zero."""
    factors = {}
    for i, (name, (_, shape)) in enumerate(sorted(_shapes(base, lora).items())):
        if name.endswith("_b"):
            factors[name] = jnp.zeros(shape, jnp.float32)
            continue
        draw = jax.nn.initializers.truncated_normal(math.prod(shape[1:-1]) ** -0.5)
        factors[name] = draw(jax.random.fold_in(key, i), shape, jnp.float32)
    return factors


def abstract(base: Params, lora: LoraConfig, mesh) -> Adapted:
    """Shapes, dtypes and shardings: of `base` as they are, of the factors by their letters."""

    def factor(name, letters, shape):
        place = param_sharding(mesh, letters, shape, name)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)

    shapes = _shapes(base, lora)
    return Adapted(base, {k: factor(k, *found) for k, found in shapes.items()}, lora.scale)


def merged(params: Adapted) -> Params:
    """Plain parameters of the adapted model: added in float32, matrices in the base's dtype
    (float32 for one in int8). A dtype of less than float32 rounds what was learned."""
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
    """scale * A B of all layers."""
    a, b = params.factors[f"{name}_a"], params.factors[f"{name}_b"]
    a_LIZ, b_LZO = a.reshape(a.shape[0], -1, a.shape[-1]), b.reshape(*b.shape[:2], -1)
    product = jnp.einsum("LIZ,LZO->LIO", a_LIZ, b_LZO, precision="highest")
    return params.scale * product.reshape(*a.shape[:-1], *b.shape[2:])
