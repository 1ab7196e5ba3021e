"""Likelihood terms: cross-entropy with its z-loss, SFT, and reward-filtered NLL (RF-NLL)."""

import jax.numpy as jnp

from sip.objectives.logprobs import masked_pair, sequence_logprob
from sip.structs import Array, Metrics


def ce(logp: Array, mask: Array) -> tuple[Array, Array, Metrics]:
    """Cross-entropy in nats per token: -sum of logp over `mask`; both have the same, any shape."""
    total, denom = masked_pair(-logp, mask)
    return total, denom, {}


def z_loss(log_z: Array, mask: Array) -> tuple[Array, Array, Metrics]:
    """Mean (log Z)^2 per token of `mask` (any shape), with Z the softmax's denominator.

    It pulls log Z towards 0; at 0 the logits are log-probabilities (arXiv 2204.02311, which uses
    weight 1e-4).
    """
    total, denom = masked_pair(jnp.square(log_z), mask)
    return total, denom, {}


def sft(logp_BCR: Array, mask_BCR: Array, valid_BC: Array) -> tuple[Array, Array, Metrics]:
    """Cross-entropy in nats per token of the valid branches."""
    return ce(logp_BCR, mask_BCR & valid_BC[..., None])


def rf_nll(
    logp_BR: Array, mask_BR: Array, valid_B: Array, *, length_normalize: bool
) -> tuple[Array, Array, Metrics]:
    """NLL in nats of the chosen candidate of each prefix.

    Every token has the same weight, and the denominator counts tokens. With `length_normalize`
    every sequence has the same weight: the mean NLL of its tokens, and the denominator counts
    sequences. The metric `chosen_logp` is the mean log-probability of whole sequences.
    """
    valid_B = valid_B & mask_BR.any(-1)  # an empty candidate has no likelihood to raise
    logp_B = sequence_logprob(logp_BR, mask_BR)
    length_B = mask_BR.sum(-1, dtype=jnp.float32)
    chosen = {"chosen_logp": masked_pair(logp_B, valid_B)}
    if not length_normalize:
        return *ce(logp_BR, mask_BR & valid_B[:, None])[:2], chosen
    return *masked_pair(-logp_B / jnp.maximum(length_B, 1.0), valid_B), chosen
