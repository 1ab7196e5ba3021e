"""Norm, rotary positions and the two attentions of a tree, as functions of arrays."""

import functools
import math

import jax
import jax.numpy as jnp

from sip.mesh import constrain

NEG = -1e30  # finite, so that a row without a single key stays finite


def rms_norm(x, scale_D, eps: float):
    """x / rms(x) * scale over the last axis, computed in float32 (arXiv 1910.07467)."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * scale_D.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


def rope_tables(positions_BN, head_dim: int, theta: float, stretch_P=None, gain: float = 1.0):
    """cos_BNP, sin_BNP of rotary positions (arXiv 2104.09864), halves rotated as in Llama.

    P = H/2 frequencies, each times `stretch_P` (sip/models/rope.py); the tables times `gain`.
    """
    freq = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    freq = freq if stretch_P is None else freq * jnp.asarray(stretch_P, jnp.float32)
    angle = positions_BN[..., None].astype(jnp.float32) * freq[None, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return (cos, sin) if gain == 1.0 else (cos * gain, sin * gain)


def rope(x, cos, sin):
    """Rotates x[.., H]; cos and sin [B, N, H/2] are broadcast over the head axes between."""
    for _ in range(x.ndim - 3):
        cos, sin = cos[..., None, :], sin[..., None, :]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def project(x_BND, w, *, contract: int = 1):
    """x[B, N, ..] times w over x's last and w's first `contract` axes, as one flat matrix product.

    Flat because XLA on CPU takes twice as long for the weight gradient over two axes (B and N).
    """
    B, N = x_BND.shape[:2]
    inner = math.prod(w.shape[:contract])
    out = x_BND.reshape(B * N, inner) @ w.reshape(inner, -1)
    return out.reshape(B, N, *w.shape[contract:])


def largest_divisor(n: int, limit: int) -> int:
    """The largest divisor of n that is at most `limit`."""
    return next(d for d in range(min(n, limit), 0, -1) if n % d == 0)


def _scores(subscripts, q, k, visible):
    scores = jnp.einsum(subscripts, q, k, preferred_element_type=jnp.float32)
    return jnp.where(visible, scores * q.shape[-1] ** -0.5, NEG)


def _softmax(scores_BGTQS, sink_GQ):
    """Over S, and a head's sink, which takes its share and gives nothing."""
    if sink_GQ is None:
        return jax.nn.softmax(scores_BGTQS, axis=-1)
    sink = sink_GQ.astype(jnp.float32)[None, :, None, :, None]
    top = jax.lax.stop_gradient(jnp.maximum(scores_BGTQS.max(axis=-1, keepdims=True), sink))
    weights = jnp.exp(scores_BGTQS - top)
    return weights / (weights.sum(axis=-1, keepdims=True) + jnp.exp(sink - top))


def _within(near, full):
    """Whether keys are near; of a layer for which `full` is true, all are."""
    return near if full is None else near | full


def trunk_attention(
    q_BTGQH, k_BTGH, v_BTGH, segment_BT, chunk: int, window: int = 0, full=None, sink_GQ=None
):
    """Causal attention within a trunk, `chunk` queries at a time -> out_BTGQH.

    With a `window` a query sees that many positions, its own among them, unless `full` is true.
    `sink_GQ`: scores in every softmax's denominator (arXiv 2309.17453).
    """
    B, T, G, Q, H = q_BTGQH.shape
    size = largest_divisor(T, chunk)
    time_S = jnp.arange(T)

    def attend(start):
        q = jax.lax.dynamic_slice_in_dim(q_BTGQH, start, size, axis=1)
        visible = (time_S[None, :] <= (start + jnp.arange(size))[:, None])[None]
        if window:
            first_T = start + jnp.arange(size) - window + 1
            visible = visible & _within(time_S[None, :] >= first_T[:, None], full)[None]
        if segment_BT is not None:
            own = jax.lax.dynamic_slice_in_dim(segment_BT, start, size, axis=1)
            visible = visible & (own[:, :, None] == segment_BT[:, None, :])
        scores = _scores("BTGQH,BSGH->BGTQS", q, k_BTGH, visible[:, None, :, None])
        probs = _softmax(scores, sink_GQ).astype(q.dtype)
        return jnp.einsum("BGTQS,BSGH->BTGQH", probs, v_BTGH)

    if size == T:
        return attend(0)
    out = jax.lax.map(jax.checkpoint(attend), jnp.arange(0, T, size))
    return jnp.moveaxis(out, 0, 1).reshape(B, T, G, Q, H)


def branch_attention(
    q_BCRGQH,
    own,
    trunk,
    past,
    trunk_visible,
    past_visible,
    window: int = 0,
    full=None,
    sink_GQ=None,
):
    """Attention of branches over [trunk, past of the branch, own] -> out_BCRGQH.

    `own` and `past` are (k_BCSGH, v_BCSGH), `trunk` is (k_BTGH, v_BTGH), shared by all branches, no
    key is copied per branch. Each block of keys is attended by itself, and merged by its log of
    summed exponentials. `past` may be None. Visibility of trunk and past is [B, C, S], or
    [B, C, R, S] where a `window` makes it hang on the query. `sink_GQ`: a block without values.
    """
    R = q_BCRGQH.shape[2]
    causal = jnp.arange(R)[:, None] >= jnp.arange(R)[None, :]
    if window:
        near = jnp.arange(R)[:, None] < jnp.arange(R)[None, :] + window
        causal = causal & _within(near, full)
    seen = trunk_visible[:, None, :, _queries(window), None, :]
    blocks = [
        _attend(q_BCRGQH, trunk, seen, "BSGH", "BGCRQ"),
        _attend(q_BCRGQH, own, causal[None, None, None, :, None], "BCSGH", "BCGRQ"),
    ]
    if past is not None:
        filled = past_visible[:, :, None, _queries(window), None, :]
        blocks.append(_attend(q_BCRGQH, past, filled, "BCSGH", "BCGRQ"))
    tops, sums, outs = zip(*blocks, strict=True)
    if sink_GQ is not None:
        sink = sink_GQ.astype(jnp.float32)[None, None, None]
        tops = (*tops, jnp.broadcast_to(jax.lax.stop_gradient(sink), tops[0].shape))
    top = functools.reduce(jnp.maximum, tops)
    shares = [jnp.exp(t - top) for t in tops[: len(blocks)]]
    total = _sum(s * share for s, share in zip(sums, shares, strict=True))
    if sink_GQ is not None:
        total = total + jnp.exp(sink - top)
    merged = _sum(o * (share / total)[..., None] for o, share in zip(outs, shares, strict=True))
    return merged.astype(q_BCRGQH.dtype)


def _queries(window):
    """The index that keeps the axis of queries, or makes one."""
    return slice(None) if window else None


def _sum(arrays):
    return functools.reduce(jnp.add, arrays)


def _attend(q_BCRGQH, kv, visible, keys: str, rows: str):
    """One block of keys -> (top_BCRGQ, sum_BCRGQ, out_BCRGQH), not yet divided, all float32.

    `rows` is the order in which the product comes out: scores are never transposed.
    """
    k, v = kv
    scores = _scores(f"BCRGQH,{keys}->{rows}S", q_BCRGQH, k, visible)
    top = jax.lax.stop_gradient(scores.max(axis=-1))
    weights = jnp.exp(scores - top[..., None])
    out = jnp.einsum(
        f"{rows}S,{keys}->BCRGQH", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    order = lambda x: jnp.einsum(f"{rows}->BCRGQ", x)
    return order(top), order(weights.sum(axis=-1)), out


def chunked_branch_attention(
    q_BCRGQH,
    own,
    trunk,
    past,
    trunk_visible,
    past_visible,
    chunk,
    window=0,
    full=None,
    sink_GQ=None,
):
    """branch_attention, `chunk` branches at a time: scores of all branches never exist together."""
    B, C = q_BCRGQH.shape[:2]
    size = largest_divisor(C, chunk)
    if size == C:
        return branch_attention(
            q_BCRGQH, own, trunk, past, trunk_visible, past_visible, window, full, sink_GQ
        )

    def split(x):
        return jnp.moveaxis(x.reshape(B, C // size, size, *x.shape[2:]), 1, 0)

    def attend(args):
        q, own, past, visible, past_visible = args
        q = constrain(q, "BCRGQH")
        return branch_attention(q, own, trunk, past, visible, past_visible, window, full, sink_GQ)

    out = jax.lax.map(
        jax.checkpoint(attend),
        jax.tree.map(split, (q_BCRGQH, own, past, trunk_visible, past_visible)),
    )
    return jnp.moveaxis(out, 0, 1).reshape(q_BCRGQH.shape)
