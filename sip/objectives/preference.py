"""Online DPO and the choice of its pairs."""

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


def best(scores_BK: Array, valid_BK: Array) -> tuple[Array, Array]:
    """(index_B, valid_B): the first of the best valid candidates; invalid where there is none."""
    index_B = jnp.argmax(jnp.where(valid_BK, scores_BK, -jnp.inf), axis=-1)
    return index_B, jnp.any(valid_BK, axis=-1)


def select(scores_BK: Array, valid_BK: Array, *, epsilon: float) -> tuple[Array, Array, Array]:
    """(chosen_B, rejected_B, valid_B): the best and the worst valid candidate of each prefix.

    A pair is valid where best - worst > epsilon; else it is a tie, or fewer than two are valid.
    """
    scores_BK, valid_BK = jnp.asarray(scores_BK), jnp.asarray(valid_BK)
    chosen_B, _ = best(scores_BK, valid_BK)
    rejected_B, _ = best(-scores_BK, valid_BK)
    gap_B = _at(scores_BK, chosen_B) - _at(scores_BK, rejected_B)
    return chosen_B, rejected_B, (chosen_B != rejected_B) & (gap_B > epsilon)


def merge_duplicates(tokens_BKR: Array, mask_BKR: Array, valid_BK: Array) -> Array:
    """valid_BK without the candidates that repeat an earlier valid one, token by token.

    What stands under a False mask does not matter.
    """
    tokens_BKR, mask_BKR = jnp.asarray(tokens_BKR), jnp.asarray(mask_BKR)
    valid_BK = jnp.asarray(valid_BK)
    tokens_BKR = jnp.where(mask_BKR, tokens_BKR, 0)
    same_BKKR = tokens_BKR[:, :, None] == tokens_BKR[:, None]
    same_BKK = (same_BKKR & (mask_BKR[:, :, None] == mask_BKR[:, None])).all(-1)
    earlier_KK = jnp.tri(valid_BK.shape[1], k=-1, dtype=bool)  # [later, earlier]
    return valid_BK & ~(same_BKK & earlier_KK[None] & valid_BK[:, None, :]).any(-1)


def _at(x_BK, index_B):
    return jnp.take_along_axis(x_BK, index_B[:, None], axis=1)[:, 0]
