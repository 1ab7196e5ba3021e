"""DPO and its NLL term."""

import jax
import jax.numpy as jnp

from sip.objectives.logprobs import masked_pair
from sip.structs import Array, Metrics


def dpo(
    logp_B2: Array,
    ref_logp_B2: Array,
    valid_B: Array,
    *,
    beta: float,
    length_B2: Array | None = None,
) -> tuple[Array, Array, Metrics]:
    """DPO loss per valid pair (Rafailov et al. 2023, arXiv 2305.18290, eq. 7).

    The loss is -log sigmoid(beta (ratio_chosen - ratio_rejected)), ratio = logp - ref_logp.
    Column 0 is the chosen sequence, column 1 the rejected one. With `length_B2` (tokens) each ratio
    is divided by its own length. Metrics: `margin` (the sigmoid's argument), `accuracy` (share of
    pairs with a positive margin), `chosen_logp` and `rejected_logp` (nats per sequence).
    """
    # Mask before any arithmetic: a NaN in an invalid row would still make the gradient NaN, since
    # 0 * NaN is NaN in the backward pass.
    logp_B2 = jnp.where(valid_B[:, None], logp_B2, 0.0)
    ref_B2 = jax.lax.stop_gradient(jnp.where(valid_B[:, None], ref_logp_B2, 0.0))
    ratio_B2 = logp_B2 - ref_B2
    if length_B2 is not None:
        ratio_B2 = ratio_B2 / jnp.maximum(length_B2, 1).astype(jnp.float32)
    margin_B = beta * (ratio_B2[:, 0] - ratio_B2[:, 1])
    metrics = {
        "margin": masked_pair(margin_B, valid_B),
        "accuracy": masked_pair(margin_B > 0, valid_B),
        "chosen_logp": masked_pair(logp_B2[:, 0], valid_B),
        "rejected_logp": masked_pair(logp_B2[:, 1], valid_B),
    }
    return *masked_pair(-jax.nn.log_sigmoid(margin_B), valid_B), metrics


def nll_chosen(logp_B2: Array, length_B2: Array, valid_B: Array) -> tuple[Array, Array, Metrics]:
    """NLL per token of the chosen sequences, the term that RPO adds to DPO (arXiv 2404.19733)."""
    total, _ = masked_pair(-logp_B2[:, 0], valid_B)
    denom, _ = masked_pair(length_B2[:, 0], valid_B)
    return total, denom, {}
