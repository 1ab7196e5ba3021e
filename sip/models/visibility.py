"""Where the tokens of a tree stand, and what a window leaves of what a branch sees."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from sip.models import layers, rope
from sip.models.config import ModelConfig
from sip.structs import Array, Tree


@flax.struct.dataclass
class Context:
    """What every layer needs of the tree; T, C, R are read from the arrays' shapes."""

    cos: Array
    sin: Array
    segment_BT: Array | None
    trunk_visible: Array  # [B, C, T], with a window [B, C, R, T]
    past_visible: Array | None  # [B, C, S], with a window [B, C, R, S]
    wide: tuple[Array, Array | None] | None  # both without the window, where some layers have none
    mask_BN: Array | None  # tokens that the load of experts counts
    trunk_len: int = flax.struct.field(pytree_node=False)
    branches: tuple[int, int] = flax.struct.field(pytree_node=False)  # C, R

    def seen(self, full):
        """(trunk, past) that branches see in a layer; `full`: whether it has no window, or None."""
        trunk, past = self.trunk_visible, self.past_visible
        if full is None or self.wide is None:
            return trunk, past
        all_trunk, all_past = self.wide
        widened = lambda near, all: near | (full & all[:, :, None])
        return widened(trunk, all_trunk), past if past is None else widened(past, all_past)


def full_L(cfg: ModelConfig):
    """Which layers have no window, where some have one; None: all are alike."""
    if not cfg.full_every:
        return None
    return jnp.arange(1, cfg.layers + 1) % cfg.full_every == 0


def context(tree: Tree, cfg: ModelConfig, cache: Any) -> Context:
    """Positions and visibility. In cached mode only the branches are new."""
    B, T = tree.tokens_BT.shape
    C, R = tree.tokens_BCR.shape[1:]
    time_T = jnp.arange(T)
    trunk_BT = positions_BT(tree)
    start_BC = jnp.take_along_axis(trunk_BT, tree.fork_BC - 1, axis=1) + 1
    if cache is not None:
        start_BC = start_BC + cache.seen_BCS.sum(-1)
    branch_BN = (start_BC[:, :, None] + jnp.arange(R)[None, None, :]).reshape(B, C * R)
    positions_BN = branch_BN if cache is not None else jnp.concatenate([trunk_BT, branch_BN], 1)
    visible_BCT = time_T[None, None, :] < tree.fork_BC[:, :, None]
    if tree.segment_BT is not None:
        own_BC = jnp.take_along_axis(tree.segment_BT, tree.fork_BC - 1, axis=1)
        visible_BCT &= own_BC[:, :, None] == tree.segment_BT[:, None, :]
    past_BCS = cache.seen_BCS if cache is not None and cache.seen_BCS.shape[2] else None
    seen = near(cfg.window, tree.fork_BC, R, visible_BCT, past_BCS)
    stretch_P = rope.stretch_P(cfg)
    cos, sin = layers.rope_tables(
        positions_BN, cfg.head_dim, cfg.rope_theta, stretch_P, cfg.rope_gain
    )
    wide = (visible_BCT, past_BCS) if cfg.full_every else None
    mask_BN = None
    if cfg.router_aux and cache is None:
        mask_BN = jnp.concatenate([tree.mask_BT, tree.mask_BCR.reshape(B, C * R)], axis=1)
    start = 0 if cache is not None else T
    return Context(cos, sin, tree.segment_BT, *seen, wide, mask_BN, start, (C, R))


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
