"""Policy gradients on groups of rollouts: Dr. GRPO (Liu et al. 2025, 2503.20783)."""

import jax
import jax.numpy as jnp

from sip.objectives.logprobs import masked_pair
from sip.structs import Array, Metrics

MAX_LOG_RATIO = 20.0  # beyond it exp overflows and the gradient of the unused side of min is NaN


def advantages_dr_grpo(rewards_BK: Array, valid_BK: Array) -> Array:
    """advantage_BK = r - mean of the group's valid r, not divided by its deviation; invalid: 0."""
    # Centred on the best first: equal rewards give exact zeros, which Adam cannot blow up.
    top_B1 = jnp.where(valid_BK, rewards_BK, -jnp.inf).max(-1, keepdims=True)
    centred_BK = jnp.where(valid_BK, rewards_BK - top_B1, 0.0)
    mean_B1 = centred_BK.sum(-1, keepdims=True) / jnp.maximum(valid_BK.sum(-1, keepdims=True), 1)
    return jnp.where(valid_BK, centred_BK - mean_B1, 0.0)


def dr_grpo(
    logp_BKR: Array,
    old_logp_BKR: Array,
    advantage_BK: Array,
    mask_BKR: Array,
    valid_BK: Array,
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Array, Array, Metrics]:
    """-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), rho = exp(logp - old_logp).

    Summed over tokens, per valid rollout and its R positions, filled or not: a constant in place
    of the length. Metrics: `clip_fraction`, `approx_kl` = rho - 1 - log rho, per token.
    """
    mask_BKR = mask_BKR & valid_BK[..., None]
    # Masked before exp, or a NaN in padding would reach its gradient.
    log_BKR = jnp.where(mask_BKR, logp_BKR - jax.lax.stop_gradient(old_logp_BKR), 0.0)
    log_BKR = jnp.clip(log_BKR, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    rho_BKR = jnp.exp(log_BKR)
    a_BK1 = jax.lax.stop_gradient(advantage_BK)[..., None]
    free_BKR = rho_BKR * a_BK1
    clipped_BKR = jnp.clip(rho_BKR, 1.0 - clip_low, 1.0 + clip_high) * a_BK1
    total, _ = masked_pair(-jnp.minimum(free_BKR, clipped_BKR), mask_BKR)
    metrics = {
        "clip_fraction": masked_pair(clipped_BKR < free_BKR, mask_BKR),
        "approx_kl": masked_pair(rho_BKR - 1.0 - log_BKR, mask_BKR),
    }
    return total, valid_BK.sum(dtype=jnp.float32) * mask_BKR.shape[-1], metrics
