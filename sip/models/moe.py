"""Mixture of experts: each token goes to its A likeliest experts, none is dropped.

A token's output hangs on that token alone, so a branch equals its plain sequence. Tokens are sorted
by expert and multiplied group by group (`jax.lax.ragged_dot`): the work is that of A experts.

On a mesh the sorting is each device's own. Where tokens are many, experts' weights are gathered
over the axis they lie on, as a dense layer's are; where they are few (decoding), the tokens go to
all devices instead, each computes what its experts say, and the sum is what comes back.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from sip import mesh as meshes
from sip.models import parameters
from sip.models.config import ModelConfig
from sip.structs import Array

MATRICES = ("w_router", "w_gate", "w_up", "w_down")
BIASES = ("b_router", "b_gate", "b_up", "b_down")
TILE = 512  # rows and columns that a TPU's kernel holds at a time


def mixture(x_BND, weights, cfg: ModelConfig, mask_BN=None):
    """(out_BND, balance): what each token's experts say, weighted; arXiv 1701.06538, 2101.03961.

    `weights` are the layer's parameters by name. `balance` is (total, denom) of `load_balance` over
    the tokens of `mask_BN`, None without a mask.
    """
    logits_BNE = router_logits(x_BND, weights, cfg)
    chosen_BNA, share_BNA = route(logits_BNE, cfg)
    experts = {name: x for name, x in weights.items() if "router" not in name}
    out_BND = _on_mesh(x_BND, chosen_BNA, share_BNA, experts, cfg)
    balance = None if mask_BN is None else load_balance(logits_BNE, chosen_BNA, mask_BN)
    return out_BND, balance


def router_logits(x_BND, weights, cfg: ModelConfig):
    """logits_BNE, float32: rounded any further they would choose other experts."""
    logits_BNE = jnp.einsum(
        "BND,DE->BNE", x_BND, weights["w_router"], preferred_element_type=jnp.float32
    )
    if cfg.expert_bias:
        logits_BNE = logits_BNE + weights["b_router"].astype(jnp.float32)[None, None]
    return logits_BNE


def route(logits_BNE, cfg: ModelConfig):
    """(chosen_BNA, share_BNA): the likeliest experts, and their weights, which sum to one with
    `norm_topk` (softmax over the chosen), else to what a softmax over all gives them."""
    top_BNA, chosen_BNA = jax.lax.top_k(logits_BNE, cfg.active)
    if cfg.norm_topk:
        return chosen_BNA, jax.nn.softmax(top_BNA, axis=-1)
    return chosen_BNA, jnp.exp(top_BNA - jax.nn.logsumexp(logits_BNE, axis=-1, keepdims=True))


def load_balance(logits_BNE, chosen_BNA, mask_BN):
    """(total, denom) of E * sum over experts of (share of tokens' choices) * (mean probability).

    1 when all experts are used alike (arXiv 2101.03961, eq. 4, over all A choices); denom counts
    tokens, so that micro-batches are averaged by their size.
    """
    E, A = logits_BNE.shape[-1], chosen_BNA.shape[-1]
    mask_BN1 = mask_BN[..., None].astype(jnp.float32)
    count = jnp.maximum(mask_BN1.sum(), 1.0)
    chosen_BNE = jax.nn.one_hot(chosen_BNA, E, dtype=jnp.float32).sum(-2)
    used_E = (chosen_BNE * mask_BN1).sum((0, 1)) / (count * A)
    mean_E = (jax.nn.softmax(logits_BNE, axis=-1) * mask_BN1).sum((0, 1)) / count
    denom = mask_BN1.sum()
    return E * (used_E * mean_E).sum() * denom, denom


def gated(gate, up, cfg: ModelConfig):
    """SwiGLU (arXiv 2002.05202); with a limit gpt-oss's, clamped and with up + 1."""
    if cfg.swiglu_limit:
        gate = jnp.minimum(gate, cfg.swiglu_limit)
        up = jnp.clip(up, -cfg.swiglu_limit, cfg.swiglu_limit) + 1
    return gate * jax.nn.sigmoid(cfg.swiglu_alpha * gate) * up


_ACROSS = jax.lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), [0], [0])  # x w^T
_OUTER = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])  # x^T y


@jax.custom_vjp
def grouped(x_SI, w_EIO, size_E):
    """out_SO: `size_E[e]` rows of x after another times w[e]; rows beyond may hold anything."""
    return jax.lax.ragged_dot(x_SI, w_EIO, size_E)


def _grouped_back(kept, grad_SO):
    x_SI, w_EIO, size_E = kept
    grad_SI = jax.lax.ragged_dot_general(grad_SO, w_EIO, size_E, _ACROSS)
    outer = functools.partial(jax.lax.platform_dependent, tpu=tile_outer, default=ragged_outer)
    return grad_SI, outer(x_SI, grad_SO, size_E), None


grouped.defvjp(lambda *args: (grouped(*args), args), _grouped_back)


def ragged_outer(x_SI, y_SO, size_E):
    """out_EIO: x^T y over the rows of each expert. On TPU XLA makes E dense products of it."""
    return jax.lax.ragged_dot_general(x_SI, y_SO, size_E, _OUTER)


def tile_outer(x_SI, y_SO, size_E, interpret: bool = False):
    """The same by jax's Pallas kernel, which visits each row once."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    rows = min(TILE, -(-len(x_SI) // 8) * 8)
    x_SI, y_SO = (jnp.pad(x, ((0, -len(x) % rows), (0, 0))) for x in (x_SI, y_SO))
    tiles = rows, min(TILE, x_SI.shape[1]), min(TILE, y_SO.shape[1])
    return tgmm(x_SI.T, y_SO, size_E, y_SO.dtype, tiles, interpret=interpret)


def sorted_experts(
    x_MD, chosen_MA, share_MA, weights, cfg: ModelConfig, first=None, leader: Array | bool = True
):
    """out_MD of the experts in `weights`, all of them, or E from number `first` on.

    `leader`: whether the output's biases are added here, of devices that each hold a part of F.
    """
    A, E = chosen_MA.shape[1], weights["w_gate"].shape[0]
    expert_S = chosen_MA.reshape(-1)  # S: tokens' choices
    if first is not None:
        here = (expert_S >= first) & (expert_S < first + E)
        expert_S = jnp.where(here, expert_S - first, E)  # E: another device's
    order_S = jnp.argsort(expert_S, stable=True)
    expert_S = expert_S[order_S]
    size_E = jnp.sum(expert_S[:, None] == jnp.arange(E)[None], axis=0, dtype=jnp.int32)

    def ours(x):  # other rows may hold anything, NaN too
        return x if first is None else jnp.where((expert_S < E)[:, None], x, 0)

    def times(x, kind, biased=True):
        out = grouped(x, weights[f"w_{kind}"], size_E)
        if cfg.expert_bias:
            bias = weights[f"b_{kind}"][jnp.minimum(expert_S, E - 1)]
            out = out + jnp.where(biased, bias, 0)
        return ours(out)

    x_SD = ours(x_MD[order_S // A])
    hidden_SF = gated(times(x_SD, "gate"), times(x_SD, "up"), cfg)
    out_SD = times(hidden_SF, "down", leader)
    out_MAD = out_SD[jnp.argsort(order_S)].reshape(*chosen_MA.shape, -1)
    return (out_MAD.astype(jnp.float32) * share_MA[..., None]).sum(1).astype(x_MD.dtype)


def _on_mesh(x_BND, chosen_BNA, share_BNA, weights, cfg: ModelConfig):
    """`sorted_experts` of each device's tokens, or of all tokens with each device's experts."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _flat(x_BND, chosen_BNA, share_BNA, weights, cfg)
    rows, few = where_tokens_go(mesh, x_BND.shape, cfg)
    over = ("fsdp", "tensor") if few else ("tensor",)

    def device(x_BND, chosen_BNA, share_BNA, weights):
        if not few:  # here, so that its transpose scatters the sum of gradients
            weights = jax.tree.map(_gathered, weights)
        at = {axis: jax.lax.axis_index(axis) for axis in ("fsdp", "tensor")}
        first = at["fsdp"] * len(weights["w_gate"]) if few else None
        leader = at["tensor"] == 0
        out = _flat(x_BND, chosen_BNA, share_BNA, weights, cfg, first, leader)
        return jax.lax.psum(out, over)

    tokens = PartitionSpec(rows, None, None)
    rules = {"E": ("fsdp",), "F": ("tensor",)}
    specs = {x: meshes.spec(parameters.letters(x, cfg.experts), rules) for x in weights}
    run = jax.shard_map(
        device, in_specs=(tokens, tokens, tokens, specs), out_specs=tokens, check_vma=False
    )
    return run(x_BND, chosen_BNA, share_BNA, weights)


def _gathered(x_E):
    return jax.lax.all_gather(x_E, "fsdp", axis=0, tiled=True)


def where_tokens_go(mesh, shape, cfg: ModelConfig):
    """(mesh axes of B, whether tokens go to experts: they do where they are fewer than weights)."""
    (B, N, _), rows = shape, ("replica", "fsdp")
    whole = B % meshes.ways(mesh, rows) != 0
    replica = ("replica",) if B % meshes.ways(mesh, ("replica",)) == 0 else None
    choices = B * N * cfg.active // meshes.ways(mesh, replica)
    few = mesh.shape["fsdp"] > 1 and (whole or choices <= cfg.experts * cfg.hidden)
    return (replica if few or whole else rows), few


def _flat(x_BND, chosen_BNA, share_BNA, weights, cfg, first=None, leader: Array | bool = True):
    B, N, D = x_BND.shape
    flat = lambda x: x.reshape(B * N, x.shape[-1])
    args = flat(x_BND), flat(chosen_BNA), flat(share_BNA)
    return sorted_experts(*args, weights, cfg, first, leader).reshape(B, N, D)
