"""Likelihood terms: cross-entropy and its z-loss, SFT and reward-filtered NLL."""

import jax.numpy as jnp

from sip.objectives.logprobs import masked_pair, sequence_logprob
from sip.structs import Array, Metrics


def ce(logp: Array, mask: Array) -> tuple[Array, Array, Metrics]:
    """-sum logp over the tokens of `mask` (any shape), per token."""
    total, denom = masked_pair(-logp, mask)
    return total, denom, {}


def z_loss(log_z: Array, mask: Array) -> tuple[Array, Array, Metrics]:
    """(log Z)^2 over the tokens of `mask` (any shape), per token; Z is the softmax's denominator.

    It pulls log Z towards 0, where logits are log-probabilities (arXiv 2204.02311, weight 1e-4).
    """
    total, denom = masked_pair(jnp.square(log_z), mask)
    return total, denom, {}


def sft(logp_BCR: Array, mask_BCR: Array, valid_BC: Array) -> tuple[Array, Array, Metrics]:
    """Cross-entropy of the valid branches, per token."""
    return ce(logp_BCR, mask_BCR & valid_BC[..., None])


def rf_nll(
    logp_BR: Array, mask_BR: Array, valid_B: Array, *, length_normalize: bool
) -> tuple[Array, Array, Metrics]:
    """NLL of the best candidate (`preference.best`) of each prefix.

    Per token: every token weighs the same. `length_normalize`: every sequence does, by the mean
    of its tokens, per sequence.
    """
    valid_B = valid_B & mask_BR.any(-1)
    logp_B = sequence_logprob(logp_BR, mask_BR)
    length_B = mask_BR.sum(-1, dtype=jnp.float32)
    chosen = {"chosen_logp": masked_pair(logp_B, valid_B)}
    if not length_normalize:
        return *ce(logp_BR, mask_BR & valid_B[:, None])[:2], chosen
    return *masked_pair(-logp_B / jnp.maximum(length_B, 1.0), valid_B), chosen
