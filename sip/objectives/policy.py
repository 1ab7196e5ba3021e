"""Policy gradients on groups of K rollouts: one clipped surrogate with three kinds of advantages
and three denominators.

algorithm  arXiv       advantages  denominator
GRPO       2402.03300  "grpo"      "sequence"; with a KL term if beta > 0
Dr. GRPO   2503.20783  "dr_grpo"   "constant"
DAPO       2503.14476  "grpo"      "token"; with clip_high > clip_low
RLOO       2402.14740  "rloo"      "constant"; REINFORCE on whole rollouts, up to a constant factor
"""

import jax
import jax.numpy as jnp

from sip.objectives.logprobs import masked_pair
from sip.structs import Array, Metrics

ADVANTAGES = ("grpo", "dr_grpo", "rloo")
AGGREGATES = ("sum", "normalise")
DENOMINATORS = ("sequence", "token", "constant")
# Bound on |log ratio| in nats. Without it exp may overflow to inf, and the gradient of the branch
# that `min` does not select is 0 * inf = NaN.
MAX_LOG_RATIO = 20.0
EPS = 1e-4  # added to a group's standard deviation, in units of the reward


def advantages(rewards_BK: Array, valid_BK: Array, kind: str) -> Array:
    """Returns advantage_BK of each valid reward relative to its group; 0 for an invalid reward.

    grpo: (r - mean) / (deviation + EPS) with the deviation over n. dr_grpo: r - mean. rloo: r -
    mean of the others = (r - mean) n / (n - 1). The advantages of equal rewards, or of a single
    one, are exactly 0. Raises ValueError for another `kind`.
    """
    centred_BK = advantages_dr_grpo(rewards_BK, valid_BK)
    n_B1 = valid_BK.sum(-1, keepdims=True).astype(centred_BK.dtype)
    if kind == "dr_grpo":
        return centred_BK
    if kind == "rloo":
        return centred_BK * n_B1 / jnp.maximum(n_B1 - 1, 1)
    if kind != "grpo":
        raise ValueError(f"advantages of kind {kind!r}: not one of {ADVANTAGES}")
    variance_B1 = (centred_BK**2).sum(-1, keepdims=True) / jnp.maximum(n_B1, 1)
    return centred_BK / (jnp.sqrt(variance_B1) + EPS)


def advantages_dr_grpo(rewards_BK: Array, valid_BK: Array) -> Array:
    """Returns advantage_BK = r - mean of the group's valid r (Dr. GRPO); invalid rewards give 0."""
    # Subtract the maximum before the mean, so that equal rewards give exact zeros. Rounding noise
    # instead of zero would become full-size updates, since Adam normalises gradients.
    top_B1 = jnp.where(valid_BK, rewards_BK, -jnp.inf).max(-1, keepdims=True)
    centred_BK = jnp.where(valid_BK, rewards_BK - top_B1, 0.0)
    mean_B1 = centred_BK.sum(-1, keepdims=True) / jnp.maximum(valid_BK.sum(-1, keepdims=True), 1)
    return jnp.where(valid_BK, centred_BK - mean_B1, 0.0)


def combined_advantages(
    parts_PBK: Array, weights_P: Array, valid_BK: Array, kind: str, aggregate: str
) -> Array:
    """Returns advantage_BK of several rewards.

    sum: `advantages` of the weighted sum of the rewards. normalise: each reward gives advantages of
    its own, which are summed by weight and divided by their deviation over the batch (GDPO, arXiv
    2601.05242, eqs. 4 to 6). Then a reward with a small spread counts as much as one with a large
    spread, and rewards (1, 0) and (0, 1) differ though their sums are equal. Raises ValueError for
    another `aggregate`.
    """
    weights_P11 = jnp.asarray(weights_P, jnp.float32)[:, None, None]
    if aggregate == "sum":
        return advantages((weights_P11 * parts_PBK).sum(0), valid_BK, kind)
    if aggregate != "normalise":
        raise ValueError(f"aggregate {aggregate!r}: not one of {AGGREGATES}")
    each_PBK = jnp.stack([advantages(part_BK, valid_BK, kind) for part_BK in parts_PBK])
    total_BK = (weights_P11 * each_PBK).sum(0)
    # Opposite advantages of two rewards cancel up to rounding: such a group is flat.
    size_BK = (weights_P11 * jnp.abs(each_PBK)).sum(0)
    total_BK = jnp.where(jnp.abs(total_BK) <= 1e-5 * size_BK, 0.0, total_BK)
    # The mean over the batch is 0, as that of every group is.
    square, count = masked_pair(total_BK**2, valid_BK)
    return total_BK / (jnp.sqrt(square / jnp.maximum(count, 1)) + EPS)


def flat(advantage_BK: Array) -> Array:
    """Returns flat_B, True for groups without a learning signal: all valid rewards are equal.

    Of several rewards that are normalised, the parts decide: equal sums may have a signal.
    """
    return (advantage_BK == 0).all(-1)


def flat_groups(advantage_BK: Array, valid_BK: Array) -> tuple[Array, Array]:
    """Returns (number of `flat` groups, number of groups) among groups with a valid answer."""
    return masked_pair(flat(advantage_BK), valid_BK.any(-1))


def surrogate(
    logp_BKR: Array,
    old_logp_BKR: Array,
    advantage_BK: Array,
    mask_BKR: Array,
    valid_BK: Array,
    *,
    denominator: str,
    clip_low: float,
    clip_high: float,
    beta: float = 0.0,
    ref_logp_BKR: Array | None = None,
) -> tuple[Array, Array, Metrics]:
    """Clipped surrogate loss of PPO with an optional KL term, on K rollouts per prompt.

    The loss of a token is -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) + beta k3 with
    rho = exp(logp - old_logp). k3 = exp(d) - d - 1 with d = ref_logp - logp estimates
    KL(policy || reference). Denominators:

    sequence  mean over each rollout's tokens, then mean over valid rollouts
    token     mean over all tokens of valid rollouts
    constant  sum over tokens / (number of valid rollouts * R): R positions, used or not

    Metrics per token: `clip_fraction`; `approx_kl` = rho - 1 - log rho; with `beta`, `kl` = k3.
    Raises ValueError if `beta` is given without `ref_logp_BKR`, or for another `denominator`.
    """
    mask_BKR = mask_BKR & valid_BK[..., None]
    # Mask before exp: a NaN in padding would make the gradient NaN even if it is masked later.
    log_BKR = _log_ratio(logp_BKR, jax.lax.stop_gradient(old_logp_BKR), mask_BKR)
    rho_BKR = jnp.exp(log_BKR)
    a_BK1 = jax.lax.stop_gradient(advantage_BK)[..., None]
    free_BKR = rho_BKR * a_BK1
    clipped_BKR = jnp.clip(rho_BKR, 1.0 - clip_low, 1.0 + clip_high) * a_BK1
    loss_BKR = -jnp.minimum(free_BKR, clipped_BKR)
    metrics = {
        "clip_fraction": masked_pair(clipped_BKR < free_BKR, mask_BKR),
        "approx_kl": masked_pair(rho_BKR - 1.0 - log_BKR, mask_BKR),
    }
    if beta:
        if ref_logp_BKR is None:
            raise ValueError(f"beta {beta} needs ref_logp_BKR, log-probabilities of a reference")
        d_BKR = _log_ratio(jax.lax.stop_gradient(ref_logp_BKR), logp_BKR, mask_BKR)
        k3_BKR = jnp.exp(d_BKR) - d_BKR - 1.0
        loss_BKR = loss_BKR + beta * k3_BKR
        metrics["kl"] = masked_pair(k3_BKR, mask_BKR)
    return *_sums(loss_BKR, mask_BKR, valid_BK, denominator), metrics


def _log_ratio(logp_BKR, other_BKR, mask_BKR):
    log_BKR = jnp.where(mask_BKR, logp_BKR - other_BKR, 0.0)
    return jnp.clip(log_BKR, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def _sums(loss_BKR, mask_BKR, valid_BK, denominator: str) -> tuple[Array, Array]:
    """Returns (total, denom); the denominator depends on masks only, as training.step requires."""
    rollouts = valid_BK.sum(dtype=jnp.float32)
    if denominator == "sequence":
        length_BK1 = jnp.maximum(mask_BKR.sum(-1, keepdims=True), 1)
        return masked_pair(loss_BKR / length_BK1, mask_BKR)[0], rollouts
    total, tokens = masked_pair(loss_BKR, mask_BKR)
    if denominator == "token":
        return total, tokens
    if denominator != "constant":
        raise ValueError(f"denominator {denominator!r}: not one of {DENOMINATORS}")
    return total, rollouts * mask_BKR.shape[-1]


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
    """Computes `surrogate` with the constant denominator of Dr. GRPO (arXiv 2503.20783), valid
    rollouts * R, in place of the rollouts' lengths."""
    return surrogate(
        logp_BKR,
        old_logp_BKR,
        advantage_BK,
        mask_BKR,
        valid_BK,
        denominator="constant",
        clip_low=clip_low,
        clip_high=clip_high,
    )
