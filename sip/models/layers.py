"""RMSNorm, rotary positions, and the trunk and branch attention of a tree, as pure functions."""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from sip.mesh import constrain
from sip.structs import soft_cap

NEG = -1e30  # finite: with -inf a row without any visible key would give NaN


def rms_norm(x, scale, eps: float):
    """Computes x / rms(x) * scale over the axes of `scale`, in float32 (arXiv 1910.07467).

    They are x's last axes, usually one: D or H.
    """
    x32 = x.astype(jnp.float32)
    over = tuple(range(-scale.ndim, 0))
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=over, keepdims=True) + eps)
    return (x32 * scale.reshape((1,) * (x.ndim - scale.ndim) + scale.shape)).astype(x.dtype)


def rope_tables(positions_BN, channels: int, theta: float, stretch_P=None, gain: float = 1.0):
    """Returns (cos_BNP, sin_BNP), float32, of rotary positions (arXiv 2104.09864).

    There are P = channels/2 frequencies; channel i pairs with channel i + P, as in Llama.
    `stretch_P` multiplies the frequencies (sip/models/rope.py), `gain` multiplies the tables.
    """
    freq = theta ** (-jnp.arange(0, channels, 2, dtype=jnp.float32) / channels)
    freq = freq if stretch_P is None else freq * jnp.asarray(stretch_P, jnp.float32)
    angle = positions_BN[..., None].astype(jnp.float32) * freq[None, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return (cos, sin) if gain == 1.0 else (cos * gain, sin * gain)


def rope(x, cos, sin):
    """Rotates x[B, N, .., H] in float32; cos and sin [B, N, P] broadcast over the head axes.

    With P < H/2 only the first 2P channels rotate.
    """
    if 2 * cos.shape[-1] < x.shape[-1]:
        turned, rest = x[..., : 2 * cos.shape[-1]], x[..., 2 * cos.shape[-1] :]
        return jnp.concatenate([rope(turned, cos, sin), rest], axis=-1)
    for _ in range(x.ndim - 3):  # [B, N, P] -> [B, N, 1, P] for keys, [B, N, 1, 1, P] for queries
        cos, sin = cos[..., None, :], sin[..., None, :]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def project(x_BND, w, *, contract: int = 1):
    """Contracts the last `contract` axes of x[B, N, ..] with the first of w, as one flat product.

    It is flat, [B*N, in] @ [in, out], because XLA on CPU needs twice as long for a weight gradient
    that sums over two axes (B and N).
    """
    B, N = x_BND.shape[:2]
    inner = math.prod(w.shape[:contract])
    out = x_BND.reshape(B * N, inner) @ w.reshape(inner, -1)
    return out.reshape(B, N, *w.shape[contract:])


def largest_divisor(n: int, limit: int) -> int:
    """Returns the largest divisor of n that is at most `limit`."""
    return next(d for d in range(min(n, limit), 0, -1) if n % d == 0)


@dataclass(frozen=True)
class Scoring:
    """Scale and soft cap of attention scores."""

    scale: float = 0.0  # 0: 1 / sqrt(H)
    cap: float = 0.0  # 0: none


USUAL = Scoring()


def _scores(subscripts, q, k, visible, how: Scoring):
    # Float32 accumulation and scores, also for bfloat16 inputs: softmax needs the precision.
    scores = jnp.einsum(subscripts, q, k, preferred_element_type=jnp.float32)
    scores = scores * (how.scale or q.shape[-1] ** -0.5)
    return jnp.where(visible, soft_cap(scores, how.cap) if how.cap else scores, NEG)


def _softmax(scores_BGTQS, sink_GQ):
    """Softmax over S in float32. A head's sink adds to the denominator and has no value."""
    if sink_GQ is None:
        return jax.nn.softmax(scores_BGTQS, axis=-1)
    sink = sink_GQ.astype(jnp.float32)[None, :, None, :, None]
    # The shift by the maximum cancels out, so it needs no gradient.
    top = jax.lax.stop_gradient(jnp.maximum(scores_BGTQS.max(axis=-1, keepdims=True), sink))
    weights = jnp.exp(scores_BGTQS - top)
    return weights / (weights.sum(axis=-1, keepdims=True) + jnp.exp(sink - top))


def _within(near, full):
    """Returns the window mask `near`, or all True if the traced bool `full` is True."""
    return near if full is None else near | full


def trunk_attention(
    q_BTGQH,
    k_BTGH,
    v_BTGH,
    segment_BT,
    chunk: int,
    window: int = 0,
    full=None,
    sink_GQ=None,
    how: Scoring = USUAL,
):
    """Causal attention within a trunk -> out_BTGQH, at most `chunk` queries at a time.

    Chunks bound memory: scores take [B, G, chunk, Q, T], also in the backward pass, which
    recomputes them. With `segment_BT` (ids of packed documents) a query sees only its own segment.
    With a `window` a query sees that many positions including its own, unless `full` is True.
    `sink_GQ` are scores in every softmax's denominator (arXiv 2309.17453).
    """
    B, T, G, Q, H = q_BTGQH.shape
    size = largest_divisor(T, chunk)  # equal chunks, so that one traced body serves all
    time_S = jnp.arange(T)

    def attend(start):
        # `size` queries against all T keys: `start` is traced, so the keys cannot be cut to the
        # past in a static shape.
        q = jax.lax.dynamic_slice_in_dim(q_BTGQH, start, size, axis=1)
        visible = (time_S[None, :] <= (start + jnp.arange(size))[:, None])[None]
        if window:
            first_T = start + jnp.arange(size) - window + 1
            visible = visible & _within(time_S[None, :] >= first_T[:, None], full)[None]
        if segment_BT is not None:
            own = jax.lax.dynamic_slice_in_dim(segment_BT, start, size, axis=1)
            visible = visible & (own[:, :, None] == segment_BT[:, None, :])
        # visible [1 or B, size, S] -> [.., 1, size, 1, S], the layout of the scores.
        scores = _scores("BTGQH,BSGH->BGTQS", q, k_BTGH, visible[:, None, :, None], how)
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
    how: Scoring = USUAL,
):
    """Attention of branches over [trunk, past of the branch, own branch] -> out_BCRGQH.

    `own` and `past` are (k_BCSGH, v_BCSGH); `past` may be None. `trunk` is (k_BTGH, v_BTGH), shared
    by all branches: no key is copied per branch. Each block of keys is attended separately, and
    the results are merged by their softmax denominators, so blocks are never concatenated.
    The masks of trunk and past are [B, C, S], with a `window` [B, C, R, S], since the window
    depends on the query. `sink_GQ` acts like one more block with a score but no value.
    """
    R = q_BCRGQH.shape[2]
    causal = jnp.arange(R)[:, None] >= jnp.arange(R)[None, :]
    if window:
        near = jnp.arange(R)[:, None] < jnp.arange(R)[None, :] + window
        causal = causal & _within(near, full)
    # Masks get size-1 axes for G and Q (and R without a window): BGCRQS for the trunk, BCGRQS for
    # keys that have an axis C. These are the layouts in which the batched products come out.
    seen = trunk_visible[:, None, :, _queries(window), None, :]
    blocks = [
        _attend(q_BCRGQH, trunk, seen, "BSGH", "BGCRQ", how),
        _attend(q_BCRGQH, own, causal[None, None, None, :, None], "BCSGH", "BCGRQ", how),
    ]
    if past is not None:
        filled = past_visible[:, :, None, _queries(window), None, :]
        blocks.append(_attend(q_BCRGQH, past, filled, "BCSGH", "BCGRQ", how))
    # Every block is relative to its own maximum. Rescale all to the common one, then divide once.
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
    """Returns the index that keeps a mask's query axis R (window) or inserts one of size 1."""
    return slice(None) if window else None


def _sum(arrays):
    return functools.reduce(jnp.add, arrays)


def _attend(q_BCRGQH, kv, visible, keys: str, rows: str, how: Scoring):
    """Attends to one block of keys -> (top_BCRGQ, sum_BCRGQ, out_BCRGQH), all float32.

    `top` is the largest score, `sum` the sum of exponentials relative to it, `out` the weighted
    sum of values before the division by `sum`. `rows` is the axis order in which the batched
    product comes out: the large scores are never transposed, only the small `top` and `sum`.
    """
    k, v = kv
    scores = _scores(f"BCRGQH,{keys}->{rows}S", q_BCRGQH, k, visible, how)
    # In a row without visible keys all scores equal NEG: weights are 1, `top` is NEG, and the
    # merge multiplies the block by exp(NEG - top of the others) = 0.
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
    how: Scoring = USUAL,
):
    """Computes branch_attention on at most `chunk` branches at a time.

    Memory then holds the scores of `chunk` branches, not of all C; the backward pass recomputes
    them chunk by chunk.
    """
    B, C = q_BCRGQH.shape[:2]
    size = largest_divisor(C, chunk)
    if size == C:
        return branch_attention(
            q_BCRGQH, own, trunk, past, trunk_visible, past_visible, window, full, sink_GQ, how
        )

    def split(x):  # [B, C, ..] -> [chunks, B, size, ..]: `map` runs over the first axis
        return jnp.moveaxis(x.reshape(B, C // size, size, *x.shape[2:]), 1, 0)

    def attend(args):
        q, own, past, visible, past_visible = args
        q = constrain(q, "BCRGQH")
        return branch_attention(
            q, own, trunk, past, visible, past_visible, window, full, sink_GQ, how
        )

    out = jax.lax.map(
        jax.checkpoint(attend),
        jax.tree.map(split, (q_BCRGQH, own, past, trunk_visible, past_visible)),
    )
    return jnp.moveaxis(out, 0, 1).reshape(q_BCRGQH.shape)
