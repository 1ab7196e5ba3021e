"""Positions of a tree's tokens, and the masks of the keys that branches attend to."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from sip.models import layers, rope
from sip.models.config import ModelConfig
from sip.structs import Array, Tree


@flax.struct.dataclass
class Context:
    """Rotary tables and attention masks, the same for every layer, so computed once per pass."""

    cos: Array  # [B, N, P], float32
    sin: Array  # [B, N, P], float32
    local: tuple[Array, Array] | None  # the two tables of layers with a window, if they differ
    segment_BT: Array | None
    trunk_visible: Array  # bool [B, C, T], with a window [B, C, R, T]
    past_visible: Array | None  # bool [B, C, S], with a window [B, C, R, S]; None: no past
    wide: tuple[Array, Array | None] | None  # the two masks without the window, with full_every
    mask_BN: Array | None  # tokens counted by the load-balancing loss
    trunk_len: int = flax.struct.field(pytree_node=False)  # trunk positions in N: T, or 0 if cached
    branches: tuple[int, int] = flax.struct.field(pytree_node=False)  # C, R

    def turns(self, layer: "Layer"):
        """Returns the rotary tables (cos, sin) of one layer."""
        cos, sin = self.cos, self.sin
        # `layer` holds traced values of the layer scan: tables are selected, not computed again.
        if self.local is not None and layer.full is not None:  # they come together
            cos, sin = (jnp.where(layer.full, *x) for x in zip((cos, sin), self.local, strict=True))
        if layer.still is not None:  # a turn by the angle 0 changes nothing
            cos, sin = jnp.where(layer.still, 1.0, cos), jnp.where(layer.still, 0.0, sin)
        return cos, sin

    def seen(self, full):
        """Returns the masks (trunk, past) of branches in one layer.

        `full` is a traced bool, True if the layer has no window, or None if all layers are alike.
        """
        trunk, past = self.trunk_visible, self.past_visible
        if full is None or self.wide is None:
            return trunk, past
        # `full` is a traced value of the layer scan, so it selects by `&`, not by a Python `if`.
        all_trunk, all_past = self.wide
        widened = lambda near, all: near | (full & all[:, :, None])
        return widened(trunk, all_trunk), past if past is None else widened(past, all_past)


@flax.struct.dataclass
class Layer:
    """The ways in which layers differ: traced bools of one layer, or arrays [L] of all.

    None: all layers are alike.
    """

    full: Array | None  # no window
    still: Array | None  # no rotary positions


def layers_L(cfg: ModelConfig) -> Layer:
    """Returns the kinds of all layers."""
    every = lambda n: jnp.arange(1, cfg.layers + 1) % n == 0 if n else None
    return Layer(every(cfg.full_every), every(cfg.nope_every))


def context(tree: Tree, cfg: ModelConfig, cache: Any) -> Context:
    """Returns the Context of one pass over `tree`. With a `cache` (decoder.Cache) N covers only the
    new branch positions, C*R; without one it covers trunk and branches, T + C*R."""
    B, T = tree.tokens_BT.shape
    C, R = tree.tokens_BCR.shape[1:]
    time_T = jnp.arange(T)
    trunk_BT = positions_BT(tree)
    # Read from the trunk, not fork_BC itself: in a packed row positions restart with each segment.
    start_BC = jnp.take_along_axis(trunk_BT, tree.fork_BC - 1, axis=1) + 1
    if cache is not None:
        # Real tokens only: padding of a shorter branch in the cache takes no position.
        start_BC = start_BC + cache.seen_BCS.sum(-1)
    branch_BN = (start_BC[:, :, None] + jnp.arange(R)[None, None, :]).reshape(B, C * R)
    positions_BN = branch_BN if cache is not None else jnp.concatenate([trunk_BT, branch_BN], 1)
    visible_BCT = time_T[None, None, :] < tree.fork_BC[:, :, None]
    if tree.segment_BT is not None:
        own_BC = jnp.take_along_axis(tree.segment_BT, tree.fork_BC - 1, axis=1)
        visible_BCT &= own_BC[:, :, None] == tree.segment_BT[:, None, :]
    # A cache may have no branch positions (S = 0): then there is no block of past keys at all.
    past_BCS = cache.seen_BCS if cache is not None and cache.seen_BCS.shape[2] else None
    seen = near(cfg.window, tree.fork_BC, R, visible_BCT, past_BCS)
    stretch_P = rope.stretch_P(cfg)
    cos, sin = layers.rope_tables(
        positions_BN, cfg.rotated, cfg.rope_theta, stretch_P, cfg.rope_gain
    )
    local = None
    if cfg.rope_local_theta:
        local = layers.rope_tables(positions_BN, cfg.rotated, cfg.rope_local_theta)
    wide = (visible_BCT, past_BCS) if cfg.full_every else None
    mask_BN = None
    if cfg.router_aux and cache is None:
        mask_BN = jnp.concatenate([tree.mask_BT, tree.mask_BCR.reshape(B, C * R)], axis=1)
    start = 0 if cache is not None else T
    return Context(cos, sin, local, tree.segment_BT, *seen, wide, mask_BN, start, (C, R))


def positions_BT(tree: Tree):
    """Returns the position of each trunk token, counted from 0 within its segment."""
    B, T = tree.tokens_BT.shape
    time_BT = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
    if tree.segment_BT is None:
        return time_BT
    new_BT = jnp.concatenate(
        [jnp.ones((B, 1), bool), tree.segment_BT[:, 1:] != tree.segment_BT[:, :-1]], axis=1
    )
    # The running maximum of segment starts is the start of each token's own segment.
    return time_BT - jax.lax.cummax(jnp.where(new_BT, time_BT, 0), axis=1)


def near(window: int, fork_BC, R: int, trunk_BCT, past_BCS):
    """Restricts the trunk and past masks of branches to a `window`, per query.

    Masks [B, C, T] and [B, C, S] become [B, C, R, T] and [B, C, R, S]. Without a window they are
    returned as they are. Distances are measured in trunk indices from the branch's own fork, so
    the restarting positions of a packed trunk do not matter here.
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
    # Index of each cached token among the branch's real tokens: padding does not count.
    step_BC1S = (jnp.cumsum(past_BCS, axis=-1) - 1)[:, :, None, :]
    return trunk_BCRT, past_BCS[:, :, None, :] & (step_BC1S > steps_BCR[..., None] - window)
