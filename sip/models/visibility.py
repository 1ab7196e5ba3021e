"""Where the tokens of a tree stand, and what a window leaves of what a branch sees."""

import jax
import jax.numpy as jnp

from sip.structs import Tree


def positions_BT(tree: Tree):
    """Position of each trunk token within its segment."""
    B, T = tree.tokens_BT.shape
    time_BT = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
    if tree.segment_BT is None:
        return time_BT
    new_BT = jnp.concatenate(
        [jnp.ones((B, 1), bool), tree.segment_BT[:, 1:] != tree.segment_BT[:, :-1]], axis=1
    )
    return time_BT - jax.lax.cummax(jnp.where(new_BT, time_BT, 0), axis=1)


def near(window: int, fork_BC, R: int, trunk_BCT, past_BCS):
    """What each branch position sees of trunk and past: with a window what is near, by query.

    Trunk places count from the branch's own fork, so a packed trunk needs no positions here.
    """
    if not window:
        return trunk_BCT, past_BCS
    steps_BCR = jnp.arange(R)[None, None, :]  # from the fork
    if past_BCS is not None:
        steps_BCR = steps_BCR + past_BCS.sum(-1)[:, :, None]
    place_BCR1 = (fork_BC[:, :, None] + steps_BCR)[..., None]
    place_1T = jnp.arange(trunk_BCT.shape[2])[None, None, None, :]
    trunk_BCRT = trunk_BCT[:, :, None, :] & (place_1T > place_BCR1 - window)
    if past_BCS is None:
        return trunk_BCRT, None
    step_BC1S = (jnp.cumsum(past_BCS, axis=-1) - 1)[:, :, None, :]
    return trunk_BCRT, past_BCS[:, :, None, :] & (step_BC1S > steps_BCR[..., None] - window)
