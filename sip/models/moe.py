"""Mixture of experts: each token is routed to its A most probable experts; no token is dropped.

There is no capacity limit, so a token's output depends on that token only, and a branch gives the
same result as its plain sequence. Tokens are sorted by expert and multiplied group by group
(`jax.lax.ragged_dot`), so the cost is that of A experts per token.

On a mesh every device sorts its own tokens. With many tokens the experts' weights are all-gathered
over fsdp, like those of a dense layer. With few tokens (decoding) the tokens go to all devices
instead: each device applies its own experts, and the outputs are summed.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from sip import mesh as meshes
from sip.models import parameters
from sip.models.config import ModelConfig
from sip.structs import Array, Balance

MATRICES = ("w_router", "w_gate", "w_up", "w_down")
BIASES = ("b_router", "b_gate", "b_up", "b_down")
TILE = 512  # largest tile (rows and columns) of the TPU kernel


def mixture(x_BND, weights, cfg: ModelConfig, mask_BN=None):
    """Returns (out_BND, balance): the weighted sum of each token's experts (arXiv 1701.06538).

    `weights` are the layer's parameters by name. `balance` are the sums of `load_balance` over the
    tokens of `mask_BN`, or None without a mask.
    """
    logits_BNE = router_logits(x_BND, weights, cfg)
    chosen_BNA, share_BNA = route(logits_BNE, cfg)
    experts = {name: x for name, x in weights.items() if "router" not in name}
    out_BND = _on_mesh(x_BND, chosen_BNA, share_BNA, experts, cfg)
    balance = None if mask_BN is None else load_balance(logits_BNE, chosen_BNA, mask_BN)
    return out_BND, balance


def router_logits(x_BND, weights, cfg: ModelConfig):
    """Returns the router's logits_BNE in float32; in bfloat16 close experts would swap places."""
    logits_BNE = jnp.einsum(
        "BND,DE->BNE", x_BND, weights["w_router"], preferred_element_type=jnp.float32
    )
    if cfg.expert_bias:
        logits_BNE = logits_BNE + weights["b_router"].astype(jnp.float32)[None, None]
    return logits_BNE


def route(logits_BNE, cfg: ModelConfig):
    """Returns (chosen_BNA, share_BNA): indices and weights of the A most probable experts.

    With `norm_topk` the weights are a softmax over the A chosen experts and sum to one. Without it
    they are the chosen experts' probabilities in the softmax over all E.
    """
    top_BNA, chosen_BNA = jax.lax.top_k(logits_BNE, cfg.active)
    if cfg.norm_topk:
        return chosen_BNA, jax.nn.softmax(top_BNA, axis=-1)
    return chosen_BNA, jnp.exp(top_BNA - jax.nn.logsumexp(logits_BNE, axis=-1, keepdims=True))


def load_balance(logits_BNE, chosen_BNA, mask_BN) -> Balance:
    """Returns the layer's sums for the load-balancing loss over the tokens of `mask_BN`."""
    E, A = logits_BNE.shape[-1], chosen_BNA.shape[-1]
    mask_BN1 = mask_BN[..., None].astype(jnp.float32)
    # The choices have no gradient; the loss acts on the router through the probabilities.
    chosen_BNE = jax.nn.one_hot(chosen_BNA, E, dtype=jnp.float32).sum(-2) / A
    used_E = (chosen_BNE * mask_BN1).sum((0, 1))
    prob_E = (jax.nn.softmax(logits_BNE, axis=-1) * mask_BN1).sum((0, 1))
    return Balance(used_E, prob_E, mask_BN1.sum())


def gated(gate, up, cfg: ModelConfig):
    """SwiGLU (arXiv 2002.05202); with `swiglu_limit` gpt-oss's variant: clamped, and up + 1."""
    if cfg.swiglu_limit:
        gate = jnp.minimum(gate, cfg.swiglu_limit)
        up = jnp.clip(up, -cfg.swiglu_limit, cfg.swiglu_limit) + 1
    return gate * jax.nn.sigmoid(cfg.swiglu_alpha * gate) * up


_ACROSS = jax.lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), [0], [0])  # x w^T
_OUTER = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])  # x^T y


@jax.custom_vjp
def grouped(x_SI, w_EIO, size_E):
    """Returns out_SO: consecutive groups of `size_E[e]` rows of x, each times w_EIO[e].

    Rows after the last group hold arbitrary values. The custom gradient replaces the default weight
    gradient of `ragged_dot`, which XLA runs as E dense products on TPU.
    """
    return jax.lax.ragged_dot(x_SI, w_EIO, size_E)


def _grouped_back(kept, grad_SO):
    x_SI, w_EIO, size_E = kept
    grad_SI = jax.lax.ragged_dot_general(grad_SO, w_EIO, size_E, _ACROSS)
    outer = functools.partial(jax.lax.platform_dependent, tpu=tile_outer, default=ragged_outer)
    return grad_SI, outer(x_SI, grad_SO, size_E), None


grouped.defvjp(lambda *args: (grouped(*args), args), _grouped_back)


def ragged_outer(x_SI, y_SO, size_E):
    """Returns out_EIO: x^T y over the rows of each expert. XLA on TPU runs E dense products."""
    return jax.lax.ragged_dot_general(x_SI, y_SO, size_E, _OUTER)


def tile_outer(x_SI, y_SO, size_E, interpret: bool = False):
    """Computes `ragged_outer` with JAX's Pallas kernel for TPU, which reads each row once.

    `interpret` runs the kernel in the Pallas interpreter, for tests without a TPU.
    """
    # Imported here: the module is needed on TPU only.
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    # Rows are padded to whole tiles of a multiple of 8 rows. The padding lies after the last group,
    # so it adds nothing.
    rows = min(TILE, -(-len(x_SI) // 8) * 8)
    x_SI, y_SO = (jnp.pad(x, ((0, -len(x) % rows), (0, 0))) for x in (x_SI, y_SO))
    tiles = rows, min(TILE, x_SI.shape[1]), min(TILE, y_SO.shape[1])
    return tgmm(x_SI.T, y_SO, size_E, y_SO.dtype, tiles, interpret=interpret)


def sorted_experts(
    x_MD, chosen_MA, share_MA, weights, cfg: ModelConfig, first=None, leader: Array | bool = True
):
    """Applies the experts in `weights` to M tokens -> out_MD.

    `weights` has all experts, or with `first` the E experts from index `first` on; then choices of
    other experts add zero. `leader` is True on the one device that adds the output biases, among
    devices that each have a part of F.
    """
    A, E = chosen_MA.shape[1], weights["w_gate"].shape[0]
    expert_S = chosen_MA.reshape(-1)  # S = M * A choices; choice s is of token s // A
    if first is not None:
        here = (expert_S >= first) & (expert_S < first + E)
        expert_S = jnp.where(here, expert_S - first, E)  # E: an expert of another device, last
    # Sorting makes each expert's rows contiguous, as `ragged_dot` needs.
    order_S = jnp.argsort(expert_S, stable=True)
    expert_S = expert_S[order_S]
    size_E = jnp.sum(expert_S[:, None] == jnp.arange(E)[None], axis=0, dtype=jnp.int32)

    def ours(x):  # zero the rows after the last group: they may hold anything, also NaN
        return x if first is None else jnp.where((expert_S < E)[:, None], x, 0)

    def times(x, kind, biased=True):
        out = grouped(x, weights[f"w_{kind}"], size_E)
        if cfg.expert_bias:
            bias = weights[f"b_{kind}"][jnp.minimum(expert_S, E - 1)]  # index E is out of range
            out = out + jnp.where(biased, bias, 0)
        return ours(out)

    x_SD = ours(x_MD[order_S // A])
    hidden_SF = gated(times(x_SD, "gate"), times(x_SD, "up"), cfg)
    out_SD = times(hidden_SF, "down", leader)
    # The argsort of a permutation is its inverse: rows go back to the order of (token, choice).
    # Weighted and summed over A in float32.
    out_MAD = out_SD[jnp.argsort(order_S)].reshape(*chosen_MA.shape, -1)
    return (out_MAD.astype(jnp.float32) * share_MA[..., None]).sum(1).astype(x_MD.dtype)


def _on_mesh(x_BND, chosen_BNA, share_BNA, weights, cfg: ModelConfig):
    """Runs `sorted_experts` per device: on the device's tokens with all experts, or on all tokens
    with the device's experts (`where_tokens_go`)."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _flat(x_BND, chosen_BNA, share_BNA, weights, cfg)
    rows, few = where_tokens_go(mesh, x_BND.shape, cfg)
    over = ("fsdp", "tensor") if few else ("tensor",)

    def device(x_BND, chosen_BNA, share_BNA, weights):
        # Gathered inside shard_map: the transpose is then a reduce-scatter of the gradients.
        if not few:
            weights = jax.tree.map(_gathered, weights)
        at = {axis: jax.lax.axis_index(axis) for axis in ("fsdp", "tensor")}
        first = at["fsdp"] * len(weights["w_gate"]) if few else None
        leader = at["tensor"] == 0
        out = _flat(x_BND, chosen_BNA, share_BNA, weights, cfg, first, leader)
        # Over tensor the parts of F are summed, over fsdp the experts of the devices.
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
    """Returns (mesh axes of B, True if tokens move to the experts).

    `shape` is that of x_BND. With fsdp > 1 tokens move if they are fewer numbers than the experts'
    weights, or if B does not divide among the devices. Otherwise the weights are gathered.
    """
    (B, N, _), rows = shape, ("replica", "fsdp")
    whole = B % meshes.ways(mesh, rows) != 0
    replica = ("replica",) if B % meshes.ways(mesh, ("replica",)) == 0 else None
    choices = B * N * cfg.active // meshes.ways(mesh, replica)
    few = mesh.shape["fsdp"] > 1 and (whole or choices <= cfg.experts * cfg.hidden)
    return (replica if few or whole else rows), few


def _flat(x_BND, chosen_BNA, share_BNA, weights, cfg, first=None, leader: Array | bool = True):
    # B and N merge to M = B * N tokens.
    B, N, D = x_BND.shape
    flat = lambda x: x.reshape(B * N, x.shape[-1])
    args = flat(x_BND), flat(chosen_BNA), flat(share_BNA)
    return sorted_experts(*args, weights, cfg, first, leader).reshape(B, N, D)
