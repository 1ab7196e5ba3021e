"""Log-probabilities of tokens, computed in chunks of positions, and masked sums.

The shift between a token and the hidden state that predicts it happens only in this module.
Logits, softmax and sums are float32, also for bfloat16 hidden states. `unembed` is the matrix
unembed_DV, or a Capped for a model whose logits have a soft cap.
"""

import jax
import jax.numpy as jnp

from sip.mesh import constrain
from sip.structs import Array, Capped, Targets, Tree, soft_cap

Unembed = Array | Capped


def masked_pair(x: Array, mask: Array) -> tuple[Array, Array]:
    """Returns (sum of `x` over `mask`, count of `mask`), float32.

    Masked-out entries may be NaN and get a zero gradient, since they are replaced before the sum.
    """
    total = jnp.where(mask, x.astype(jnp.float32), 0.0).sum()
    return total, mask.sum(dtype=jnp.float32)


def sequence_logprob(logp_BCR: Array, mask_BCR: Array) -> Array:
    """Returns logp_BC, each branch's log-probability in nats: the sum over its masked-in tokens."""
    return jnp.where(mask_BCR, logp_BCR.astype(jnp.float32), 0.0).sum(-1)


def scored_mask(mask_BT: Array, segment_BT: Array | None = None) -> Array:
    """Returns the mask of trunk tokens that have a past: all but the first of a row or segment."""
    past_BT = jnp.ones_like(mask_BT[:, 1:])
    if segment_BT is not None:
        past_BT = segment_BT[:, 1:] == segment_BT[:, :-1]
    return mask_BT & jnp.pad(past_BT, ((0, 0), (1, 0)))


def tree_logprobs(
    trunk_BTD: Array, branch_BCRD: Array, unembed: Unembed, tree: Tree, *, chunk: int
) -> tuple[Array, Array]:
    """Returns (logp_BT, logp_BCR) in nats: logp[.., t] scores tokens[.., t] given its past.

    A branch's first token is predicted by the trunk position fork - 1. Masked-out tokens and those
    without a past (`scored_mask`) get zero. Trunk and branches are two separate passes, so that jit
    removes the one whose result is unused.
    """
    before_BND, targets_BN = _before(trunk_BTD, branch_BCRD, tree)
    logp_BN = chunked_logprobs(before_BND, unembed, targets_BN, chunk=chunk)
    logp_BT = _on_trunk(chunked_logprobs, trunk_BTD, unembed, tree, chunk)
    return logp_BT, jnp.where(tree.mask_BCR, logp_BN.reshape(tree.mask_BCR.shape), 0.0)


def trunk_scores(
    trunk_BTD: Array, unembed: Unembed, tree: Tree, *, chunk: int
) -> tuple[Array, Array]:
    """Returns (logp_BT, log_z_BT): the trunk's part of `tree_logprobs`, and the log of the
    softmax's denominator at the position that predicts each token. Both are zero for tokens that
    are masked out or have no past."""
    both_BT2 = _on_trunk(chunked_scores, trunk_BTD, unembed, tree, chunk)
    return both_BT2[..., 0], both_BT2[..., 1]


def _on_trunk(score, trunk_BTD, unembed, tree: Tree, chunk: int):
    """Applies `score` to each trunk token that has a past, using the position before it."""
    x_BT = score(trunk_BTD[:, :-1], unembed, tree.tokens_BT[:, 1:], chunk=chunk)
    # T-1 scores become T: token 0 has no past. `score` may return further axes, [B, T-1, ..].
    rest = [1] * (x_BT.ndim - 2)
    x_BT = jnp.pad(x_BT, ((0, 0), (1, 0), *[(0, 0)] * len(rest)))
    scored_BT = scored_mask(tree.mask_BT, tree.segment_BT)
    return jnp.where(scored_BT.reshape(*scored_BT.shape, *rest), x_BT, 0.0)


def branch_gaps(
    trunk_BTD: Array, branch_BCRD: Array, unembed: Unembed, tree: Tree, *, chunk: int
) -> Array:
    """Returns gap_BCR (nats, float32, at least 0): the log-probability of the most probable token
    at each branch position minus that of the branch's token. Masked-out positions get zero."""

    def score(unembed, hidden_BND, targets_BN):
        logits_BNV = _logits(hidden_BND, unembed)
        # Log Z cancels in the difference, so logits are enough.
        return logits_BNV.max(-1) - _picked(logits_BNV, targets_BN)

    before_BND, targets_BN = _before(trunk_BTD, branch_BCRD, tree)
    gap_BN = _over_chunks(score, unembed, before_BND, targets_BN, chunk=chunk)
    return jnp.where(tree.mask_BCR, gap_BN.reshape(tree.mask_BCR.shape), 0.0)


def tree_choices(
    trunk_BTD: Array, branch_BCRD: Array, unembed: Unembed, tree: Tree, *, chunk: int
) -> tuple[Array, Array]:
    """Returns (both_BT2, both_BCR2): log-probability and gap of each token, from the same logits.

    Index 0 is as in `tree_logprobs`, index 1 as in `branch_gaps`, for the trunk too; the gap of
    the greedy token is 0. Zeros and the two passes are as in `tree_logprobs`.
    """

    def score(hidden_BND, unembed, targets_BN, *, chunk):
        return _over_chunks(_choice, unembed, hidden_BND, targets_BN, chunk=chunk)

    before_BND, targets_BN = _before(trunk_BTD, branch_BCRD, tree)
    both_BN2 = score(before_BND, unembed, targets_BN, chunk=chunk)
    both_BCR2 = both_BN2.reshape(*tree.mask_BCR.shape, 2)
    both_BT2 = _on_trunk(score, trunk_BTD, unembed, tree, chunk)
    return both_BT2, jnp.where(tree.mask_BCR[..., None], both_BCR2, 0.0)


def _choice(unembed, hidden_BND, targets_BN):
    logits_BNV = _logits(hidden_BND, unembed)
    picked_BN = _picked(logits_BNV, targets_BN)
    log_z_BN = jax.nn.logsumexp(logits_BNV, axis=-1)
    return jnp.stack([picked_BN - log_z_BN, logits_BNV.max(-1) - picked_BN], axis=-1)


def _before(trunk_BTD: Array, branch_BCRD: Array, tree: Tree) -> tuple[Array, Array]:
    """Returns (hidden_BND, tokens_BN): all branch tokens in one row, N = C * R, and the hidden
    state before each."""
    B, C, R = tree.tokens_BCR.shape
    # Position fork - 1 of the trunk predicts token 0 of a branch; branch position i predicts token
    # i + 1, so the last branch position is dropped.
    last_BC1 = (tree.fork_BC - 1)[:, :, None]
    # Forks are in range; "clip" saves the select with NaN of the default mode "fill".
    fork_BCD = jnp.take_along_axis(trunk_BTD, last_BC1, axis=1, mode="clip")
    before_BCRD = jnp.concatenate([fork_BCD[:, :, None], branch_BCRD], axis=2)[:, :, :R]
    return before_BCRD.reshape(B, C * R, before_BCRD.shape[-1]), tree.tokens_BCR.reshape(B, C * R)


def asked_logprobs(branch_BCRD: Array, unembed: Unembed, asked: Targets, *, chunk: int) -> Array:
    """Returns logp_BCM of the target tokens. Unlike `tree_logprobs`, a target is scored by the
    hidden state at its position `at_BCM`, not by the one before."""
    return _asked(chunked_logprobs, branch_BCRD, unembed, asked, chunk)


def asked_scores(
    branch_BCRD: Array, unembed: Unembed, asked: Targets, *, chunk: int
) -> tuple[Array, Array]:
    """Returns (logp_BCM, log_z_BCM): `asked_logprobs`, and the log of the softmax's denominator at
    the same positions."""
    both_BCM2 = _asked(chunked_scores, branch_BCRD, unembed, asked, chunk)
    return both_BCM2[..., 0], both_BCM2[..., 1]


def _asked(score, branch_BCRD, unembed, asked: Targets, chunk: int):
    # Only the M target positions meet the unembedding: [B, C*M, V] logits, not [B, C*R, V].
    B, C, M = asked.at_BCM.shape
    read_BCMD = jnp.take_along_axis(branch_BCRD, asked.at_BCM[..., None], axis=2, mode="clip")
    read_BND = read_BCMD.reshape(B, C * M, branch_BCRD.shape[-1])
    targets_BN = asked.token_BCM.reshape(B, C * M)
    x_BN = score(read_BND, unembed, targets_BN, chunk=chunk)
    return x_BN.reshape(B, C, M, *x_BN.shape[2:])


def chunked_logprobs(
    hidden_BND: Array, unembed: Unembed, targets_BN: Array, *, chunk: int
) -> Array:
    """Returns logp_BN (float32) of `targets_BN` under softmax(hidden @ unembed).

    At most [B, chunk, V] logits exist at a time, in the forward and the backward pass: with a
    vocabulary of 10^5 the logits of all positions would exceed the model's own activations. A
    target outside the vocabulary (padding) gives a finite, meaningless number, so mask it.
    """

    def score(unembed, hidden_BND, targets_BN):
        logits_BNV = _logits(hidden_BND, unembed)
        return _picked(logits_BNV, targets_BN) - jax.nn.logsumexp(logits_BNV, axis=-1)

    return _over_chunks(score, unembed, hidden_BND, targets_BN, chunk=chunk)


def chunked_scores(hidden_BND: Array, unembed: Unembed, targets_BN: Array, *, chunk: int) -> Array:
    """Returns scores_BN2, float32: `chunked_logprobs`, and log Z, the logsumexp of the logits."""

    def score(unembed, hidden_BND, targets_BN):
        logits_BNV = _logits(hidden_BND, unembed)
        log_z_BN = jax.nn.logsumexp(logits_BNV, axis=-1)
        return jnp.stack([_picked(logits_BNV, targets_BN) - log_z_BN, log_z_BN], axis=-1)

    return _over_chunks(score, unembed, hidden_BND, targets_BN, chunk=chunk)


def _picked(logits_BNV, targets_BN):
    """Returns the logits of `targets_BN`, picked by a mask and a sum over V.

    With V sharded over tensor this costs an all-reduce of [B, N]; a gather could all-gather the
    logits instead.
    """
    hit_BNV = jax.lax.broadcasted_iota(jnp.int32, logits_BNV.shape, 2) == targets_BN[..., None]
    return jnp.where(hit_BNV, logits_BNV, 0.0).sum(-1)


def option_logprobs(hidden_BCD: Array, unembed: Unembed, options_O: Array, *, chunk: int) -> Array:
    """Returns logp_BCO (float32) of O option tokens under the softmax over the whole vocabulary.

    The logits of at most `chunk` branches exist at a time.
    """

    def score(unembed, hidden_BCD):
        logits_BCV = _logits(hidden_BCD, unembed)
        picked_BCO = jnp.take(logits_BCV, options_O, axis=-1)
        return picked_BCO - jax.nn.logsumexp(logits_BCV, axis=-1, keepdims=True)

    return _over_chunks(score, unembed, hidden_BCD, chunk=chunk)


def _logits(hidden_BND, unembed):
    unembed_DV = unembed.unembed_DV if isinstance(unembed, Capped) else unembed
    B, N, D = hidden_BND.shape
    # Inputs in the compute dtype, accumulation and result in float32. One flat product, because XLA
    # on CPU would transpose all gradients of logits for a weight gradient that sums over B and N.
    logits = jnp.matmul(
        constrain(hidden_BND, "BND").reshape(B * N, D),
        unembed_DV.astype(hidden_BND.dtype),
        preferred_element_type=jnp.float32,
    )
    logits_BNV = logits.reshape(B, N, unembed_DV.shape[1])
    if isinstance(unembed, Capped):
        logits_BNV = soft_cap(logits_BNV, unembed.cap)
    return constrain(logits_BNV, "BNV")


def _over_chunks(score, unembed, *arrays_BN, chunk):
    """Applies score(unembed, *arrays) to chunks of axis 1; the backward pass recomputes each chunk.

    N is padded to a multiple of `chunk` with zeros, and the padding is cut from the result.
    """
    B, N = arrays_BN[0].shape[:2]
    if N <= chunk:
        return score(unembed, *arrays_BN)
    count = -(-N // chunk)

    def split(x_BN):  # [B, N, ..] -> [count, B, chunk, ..]
        rest = x_BN.shape[2:]
        x_BN = jnp.pad(x_BN, [(0, 0), (0, count * chunk - N)] + [(0, 0)] * len(rest))
        return jnp.moveaxis(x_BN.reshape(B, count, chunk, *rest), 1, 0)

    # All-gather the unembedding once, before the scan, not in every chunk. It is float32 because
    # the backward scan accumulates its gradient over chunks in the dtype of this array.
    whole = lambda x_DV: constrain(x_DV.astype(arrays_BN[0].dtype), "DV").astype(jnp.float32)
    unembed = jax.tree.map(whole, unembed)
    some = jax.checkpoint(score, prevent_cse=False)
    _, out = jax.lax.scan(
        lambda _, xs: (None, some(unembed, *xs)), None, tuple(split(x) for x in arrays_BN)
    )
    out = jnp.moveaxis(out, 0, 1)
    return out.reshape(B, count * chunk, *out.shape[3:])[:, :N]
