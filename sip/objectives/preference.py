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
    """-log sigmoid(beta (ratio_chosen - ratio_rejected)), ratio = logp - ref_logp, per pair.

    Column 0 is the chosen sequence, 1 the rejected. With `length_B2` each ratio is divided by its
    own length. Rafailov et al. 2023 (2305.18290), eq. 7.
    """
    # Masked before any arithmetic, or a NaN in an invalid row would reach its gradient.
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
    """-logp of the chosen sequences, per token: the term that RPO adds to DPO (2404.19733)."""
    total, _ = masked_pair(-logp_B2[:, 0], valid_B)
    denom, _ = masked_pair(length_B2[:, 0], valid_B)
    return total, denom, {}
