"""Losses on pairs: DPO and its variants, its NLL term, and the Bradley-Terry loss of rewards."""

import jax
import jax.numpy as jnp

from sip.objectives.logprobs import masked_pair
from sip.structs import Array, Metrics

DPO_LOSSES = ("sigmoid", "ipo")


def dpo(
    logp_B2: Array,
    ref_logp_B2: Array | None,
    valid_B: Array,
    *,
    beta: float,
    length_B2: Array | None = None,
    loss: str = "sigmoid",
    gamma: float = 0.0,
) -> tuple[Array, Array, Metrics]:
    """DPO loss per valid pair (Rafailov et al. 2023, arXiv 2305.18290, eq. 7), or a variant of it.

    h = ratio_chosen - ratio_rejected with ratio = logp - ref_logp. Column 0 is the chosen sequence,
    column 1 the rejected one. With `length_B2` (tokens) each ratio is divided by its own length.
    Losses:

    sigmoid  -log sigmoid(beta h - gamma)
    ipo      (h - 1 / (2 beta))^2, arXiv 2310.12036, eq. 17

    Without a reference the ratio is logp; sigmoid with lengths and `gamma` is then SimPO (arXiv
    2405.14734, eq. 6). Metrics: `margin` (beta h), `accuracy` (share of pairs with a positive
    margin), `chosen_logp` and `rejected_logp` (nats per sequence). Raises ValueError for another
    `loss`.
    """
    # Mask before any arithmetic: a NaN in an invalid row would still make the gradient NaN, since
    # 0 * NaN is NaN in the backward pass.
    logp_B2 = jnp.where(valid_B[:, None], logp_B2, 0.0)
    ratio_B2 = logp_B2
    if ref_logp_B2 is not None:
        ref_B2 = jax.lax.stop_gradient(jnp.where(valid_B[:, None], ref_logp_B2, 0.0))
        ratio_B2 = logp_B2 - ref_B2
    if length_B2 is not None:
        ratio_B2 = ratio_B2 / jnp.maximum(length_B2, 1).astype(jnp.float32)
    h_B = ratio_B2[:, 0] - ratio_B2[:, 1]
    margin_B = beta * h_B
    metrics = {
        "margin": masked_pair(margin_B, valid_B),
        "accuracy": masked_pair(margin_B > 0, valid_B),
        "chosen_logp": masked_pair(logp_B2[:, 0], valid_B),
        "rejected_logp": masked_pair(logp_B2[:, 1], valid_B),
    }
    if loss == "ipo":
        return *masked_pair(jnp.square(h_B - 0.5 / beta), valid_B), metrics
    if loss != "sigmoid":
        raise ValueError(f"loss {loss!r}: not one of {DPO_LOSSES}")
    return *masked_pair(-jax.nn.log_sigmoid(margin_B - gamma), valid_B), metrics


def nll_chosen(logp_B2: Array, length_B2: Array, valid_B: Array) -> tuple[Array, Array, Metrics]:
    """NLL per token of the chosen sequences, the term that RPO adds to DPO (arXiv 2404.19733)."""
    total, _ = masked_pair(-logp_B2[:, 0], valid_B)
    denom, _ = masked_pair(length_B2[:, 0], valid_B)
    return total, denom, {}


def bradley_terry(
    reward_B2: Array, valid_B: Array, *, margin_B: Array | None = None
) -> tuple[Array, Array, Metrics]:
    """Loss of a reward model per valid pair: -log sigmoid(r_chosen - r_rejected - margin).

    Column 0 is the chosen answer. The margin is that of Llama 2 (arXiv 2307.09288, eq. 2).
    Metrics: `accuracy` (share of pairs with r_chosen > r_rejected), `margin` (r_chosen -
    r_rejected), `chosen_reward` and `rejected_reward`.
    """
    reward_B2 = jnp.where(valid_B[:, None], reward_B2, 0.0)  # before any arithmetic, as in dpo
    gap_B = reward_B2[:, 0] - reward_B2[:, 1]
    metrics = {
        "margin": masked_pair(gap_B, valid_B),
        "accuracy": masked_pair(gap_B > 0, valid_B),
        "chosen_reward": masked_pair(reward_B2[:, 0], valid_B),
        "rejected_reward": masked_pair(reward_B2[:, 1], valid_B),
    }
    lead_B = gap_B if margin_B is None else gap_B - margin_B
    return *masked_pair(-jax.nn.log_sigmoid(lead_B), valid_B), metrics


def centring(reward_B2: Array, valid_B: Array) -> tuple[Array, Array, Metrics]:
    """Mean (r_chosen + r_rejected)^2 of the valid pairs, which pulls rewards towards mean zero
    (arXiv 2312.09244, eq. 2)."""
    total_B = jnp.where(valid_B[:, None], reward_B2, 0.0).sum(-1)
    return *masked_pair(jnp.square(total_B), valid_B), {}
