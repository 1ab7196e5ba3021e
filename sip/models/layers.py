"""RMSNorm, rotary positions, and the trunk and branch attention of a tree, as pure functions."""

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from sip.mesh import constrain
from sip.structs import Array, soft_cap

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
ATTENDED = "attended"  # name of what remat "dots" keeps of attention
SPANS = 8  # at most so many lengths of keys are compiled for a trunk


@dataclass(frozen=True)
class Block:
    """Keys and values that queries attend to: [B, G, S, H], with `own` [B, G, C, S, H]."""

    kv: tuple[Array, Array]
    visible: Array | None  # mask that broadcasts to BGCRQS; None: all are
    own: bool  # each branch has its own keys


def _product(x, y, own: bool, contract: tuple[int, int]):
    """Contracts one axis each of x and y, in float32, for each document, head (and branch).

    Queries have axes [B, G, C, R, Q, ..]; C (unless `own`), R and Q are one axis of the product.
    """
    batch = tuple(range(3 if own else 2))
    dims = (((contract[0],), (contract[1],)), (batch, batch))
    return jax.lax.dot_general(x, y, dims, preferred_element_type=jnp.float32)


def _rows(x_BGCRQ, own: bool):
    """Reshapes [B, G, C, R, Q, ..] to [B, G, C, R*Q, ..], or [B, G, C*R*Q, ..] if not `own`."""
    B, G, C, _, _, *rest = x_BGCRQ.shape
    return x_BGCRQ.reshape(B, G, *((C,) if own else ()), -1, *rest)


def _scores(q_BGCRQH, block: Block, how: Scoring):
    """Returns the scores_BGCRQS before masking, float32 also for bfloat16: softmax needs it."""
    axis = 4 if block.own else 3
    axes = axis, axis
    scores = _product(_rows(q_BGCRQH, block.own), block.kv[0], block.own, axes)
    scores = scores.reshape(*q_BGCRQH.shape[:-1], -1)
    scores = scores * (how.scale or q_BGCRQH.shape[-1] ** -0.5)
    return soft_cap(scores, how.cap) if how.cap else scores


def _hidden(scores, block: Block, near):
    """Adds NEG to scores of keys that are not visible.

    `near` are the layer's queries. The barrier ties the mask to them: in a scan over layers XLA
    would otherwise compute the mask once, in the size of the scores, and read it in every layer.
    Decoding has one query a branch: its masks are small, and on TPU the barrier copies them.
    """
    visible = block.visible
    if visible is None:
        return scores
    if near.shape[3] > 1:  # R
        visible, _ = jax.lax.optimization_barrier((visible, near))
    return scores + jnp.where(visible, 0.0, NEG)


def _meet(q_BGCRQH, block: Block, how: Scoring):
    """Attends to one block -> (top_BGCRQ, sum_BGCRQ, out_BGCRQH), all float32.

    `top` is the largest score, `sum` the sum of exponentials relative to it, `out` the weighted
    sum of values before the division by `sum`.
    """
    scores = _hidden(_scores(q_BGCRQH, block, how), block, q_BGCRQH)
    # In a row without visible keys all scores are about NEG, and so is `top`: the merge multiplies
    # the block by exp(NEG - top of the others) = 0.
    top = scores.max(axis=-1)
    weights = jnp.exp(scores - top[..., None])
    v, axis = block.kv[1], 4 if block.own else 3
    out = _product(_rows(weights.astype(v.dtype), block.own), v, block.own, (axis, axis - 1))
    return top, weights.sum(axis=-1), out.reshape(q_BGCRQH.shape)


def _attend(q_BGCRQH, blocks, sink_GQ, how: Scoring):
    """Attends to several blocks -> (out_BGCRQH, total_BGCRQ).

    `total` is the log of the softmax's denominator, float32. The results of blocks are merged by
    their denominators, so keys are never concatenated. `sink_GQ` acts like one more block with a
    score but no value.
    """
    tops, sums, outs = zip(*(_meet(q_BGCRQH, block, how) for block in blocks), strict=True)
    # Every block is relative to its own maximum. Rescale all to the common one, then divide once.
    top = functools.reduce(jnp.maximum, tops)
    sink = None if sink_GQ is None else _wide(sink_GQ)
    top = top if sink is None else jnp.maximum(top, sink)
    shares = [jnp.exp(t - top) for t in tops]
    total = _sum(s * share for s, share in zip(sums, shares, strict=True))
    total = total if sink is None else total + jnp.exp(sink - top)
    merged = _sum(o * (share / total)[..., None] for o, share in zip(outs, shares, strict=True))
    return merged.astype(q_BGCRQH.dtype), top + jnp.log(total)


def _wide(sink_GQ):
    return sink_GQ.astype(jnp.float32)[None, :, None, None, :]


def _sum(arrays):
    return functools.reduce(jnp.add, arrays)


def _pull(q_BGCRQH, block: Block, given, how: Scoring):
    """Returns the gradients (q_BGCRQH, k, v) of one block, float32.

    `given` are (`total`, the gradient of the output, the sum over H of output and gradient).
    Weights are recomputed from the `total` of all blocks (arXiv 2205.14135, section B.2). A
    product that contracts the queries has the large array second, and its small result is turned:
    XLA on CPU would copy the large one transposed.
    """
    (k, v), own, (total_BGCRQ, pull_BGCRQH, delta_BGCRQ) = block.kv, block.own, given
    axis = 4 if own else 3
    scores = _scores(q_BGCRQH, block, how)
    weights = jnp.exp(_hidden(scores, block, q_BGCRQH) - total_BGCRQ[..., None])
    rows_q, rows_pull = _rows(q_BGCRQH, own), _rows(pull_BGCRQH, own)
    grad_v = _product(rows_pull, _rows(weights.astype(v.dtype), own), own, (axis - 1, axis - 1))
    pulled = _product(rows_pull, v, own, (axis, axis)).reshape(scores.shape)
    grad = weights * (pulled - delta_BGCRQ[..., None])
    if how.cap:
        grad = grad * (1 - (scores / how.cap) ** 2)
    grad, scale = _rows(grad.astype(k.dtype), own), how.scale or q_BGCRQH.shape[-1] ** -0.5
    grad_q = _product(grad, k, own, (axis, axis - 1)).reshape(q_BGCRQH.shape) * scale
    grad_k = _product(rows_q, grad, own, (axis - 1, axis - 1)) * scale
    return grad_q, grad_k.swapaxes(-1, -2), grad_v.swapaxes(-1, -2)


def _pull_sink(sink_GQ, total_BGCRQ, delta_BGCRQ):
    """Returns the gradient of the sinks: they have a weight but no value."""
    if sink_GQ is None:
        return None
    weight = jnp.exp(_wide(sink_GQ) - total_BGCRQ)
    return -(weight * delta_BGCRQ).sum((0, 2, 3)).astype(sink_GQ.dtype)


def _kept(x):
    """Names a result of attention, which its gradient needs, for the policy `dots`."""
    return checkpoint_name(x, ATTENDED)


def _delta(out, pull):
    return (out.astype(jnp.float32) * pull.astype(jnp.float32)).sum(-1)


def _within(near, full):
    """Returns the window mask `near`, or all True if the traced bool `full` is True."""
    return near if full is None else near | full


@dataclass(frozen=True)
class Rule:
    """Settings of attention that are fixed when it is compiled."""

    chunk: int  # queries of a trunk, or branches, per step
    window: int
    how: Scoring


def trunk_attention(
    q_BGTQH,
    k_BGTH,
    v_BGTH,
    segment_BT,
    chunk: int,
    window: int = 0,
    full=None,
    sink_GQ=None,
    how: Scoring = USUAL,
):
    """Causal attention within a trunk -> out_BGTQH, at most `chunk` queries at a time.

    Chunks bound memory: scores take [B, G, chunk, Q, T], also in the backward pass, which
    recomputes them. Chunks meet only the keys before their span's end, see `_spans`. With
    `segment_BT` (ids of packed documents) a query sees only its own segment. With a `window` a
    query sees that many positions including its own, unless `full` is True. `sink_GQ` are scores in
    every softmax's denominator (arXiv 2309.17453).
    """
    rule = Rule(largest_divisor(q_BGTQH.shape[2], chunk), window, how)
    return _trunk(rule, q_BGTQH, k_BGTH, v_BGTH, segment_BT, full, sink_GQ)


def _spans(rule: Rule, T: int) -> list[tuple[int, int]]:
    """Returns (first query, end) of at most SPANS spans of whole chunks.

    Keys after a span's end are never multiplied. More spans would save more of them and take
    longer to compile.
    """
    chunks = T // rule.chunk
    count = min(chunks, SPANS)
    cuts = [rule.chunk * (i * chunks // count) for i in range(count + 1)]
    return list(itertools.pairwise(cuts))


def _key_spans(rule: Rule, begin: int, end: int, segment_BT, full) -> list[tuple[int, int, bool]]:
    """Returns (first key, end, masked) of the blocks of keys that a span of queries meets.

    Keys before the span that all its queries see are a block without a mask.
    """
    whole = segment_BT is None and not rule.window
    if whole and begin:
        return [(0, begin, False), (begin, end, True)]
    first = max(begin - rule.window + 1, 0) if rule.window and full is None else 0
    return [(first, end, True)]


def _trunk_mask(rule: Rule, start, first: int, end: int, segment_BT, full):
    """Returns the mask of a chunk of queries from `start` on for the keys from `first` to `end`."""
    query_R, time_S = start + jnp.arange(rule.chunk), jnp.arange(first, end)
    visible = (time_S[None, :] <= query_R[:, None])[None]
    if rule.window:
        near = time_S[None, :] > query_R[:, None] - rule.window
        visible = visible & _within(near, full)[None]
    if segment_BT is not None:
        own_BR = jax.lax.dynamic_slice_in_dim(segment_BT, start, rule.chunk, axis=1)
        visible = visible & (own_BR[:, :, None] == segment_BT[:, None, first:end])
    return visible[:, None, None, :, None]  # [1 or B, G=1, C=1, R, Q=1, S]


def _trunk_blocks(rule: Rule, start, spans, k, v, segment_BT, full) -> list[Block]:
    def block(first, end, masked):
        mask = _trunk_mask(rule, start, first, end, segment_BT, full) if masked else None
        return Block((k[:, :, first:end], v[:, :, first:end]), mask, False)

    return [block(*span) for span in spans]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _trunk(rule: Rule, q, k, v, segment_BT, full, sink_GQ):
    return _trunk_forward(rule, q, k, v, segment_BT, full, sink_GQ)[0]


def _trunk_forward(rule: Rule, q, k, v, segment_BT, full, sink_GQ):
    parts = []
    for begin, end in _spans(rule, q.shape[2]):
        spans = _key_spans(rule, begin, end, segment_BT, full)

        def attend(_, start, spans=spans):
            blocks = _trunk_blocks(rule, start, spans, k, v, segment_BT, full)
            return None, _attend(_at(q, start, rule), blocks, sink_GQ, rule.how)

        parts.append(_steps(attend, None, range(begin, end, rule.chunk), axis=3)[1])
    out, total = map(_joined, zip(*parts, strict=True))
    out, total = _kept(out), _kept(total)
    return out, (q, k, v, segment_BT, full, sink_GQ, out, total)


def _trunk_backward(rule: Rule, kept, pull):
    q, k, v, segment_BT, full, sink_GQ, out, total = kept
    delta = _delta(out, pull)
    parts, grad_k, grad_v = [], *(jnp.zeros(x.shape, jnp.float32) for x in (k, v))
    for begin, end in _spans(rule, q.shape[2]):
        spans = _key_spans(rule, begin, end, segment_BT, full)

        def back(sums, start, spans=spans):
            blocks = _trunk_blocks(rule, start, spans, k, v, segment_BT, full)
            q_, *given = (_at(x, start, rule) for x in (q, total, pull, delta))
            found = [_pull(q_, block, given, rule.how) for block in blocks]
            new = [(of_k, of_v) for _, of_k, of_v in found]
            grad_q = _sum(of_q for of_q, *_ in found)
            return jax.tree.map(jnp.add, sums, new), grad_q.astype(q.dtype)

        zeros = [(jnp.zeros_like(grad_k[:, :, a:b]),) * 2 for a, b, _ in spans]
        more, grad_q = _steps(back, zeros, range(begin, end, rule.chunk), axis=3)
        parts.append(grad_q)
        for (a, b, _), (more_k, more_v) in zip(spans, more, strict=True):
            grad_k, grad_v = grad_k.at[:, :, a:b].add(more_k), grad_v.at[:, :, a:b].add(more_v)
    grad_sink = _pull_sink(sink_GQ, total[:, :, None], delta[:, :, None])
    return _joined(parts), grad_k.astype(k.dtype), grad_v.astype(v.dtype), None, None, grad_sink


_trunk.defvjp(_trunk_forward, _trunk_backward)


def _at(x, start, rule: Rule):
    """Returns x[B, G, T, ..] at a chunk of positions from `start`, as [B, G, C=1, R, ..]."""
    return jax.lax.dynamic_slice_in_dim(x, start, rule.chunk, axis=2)[:, :, None]


def _joined(parts):
    """Joins parts [B, G, C=1, R, ..] along R -> [B, G, T, ..]."""
    return jnp.concatenate(parts, axis=3)[:, :, 0]


def branch_attention(
    q_BGCRQH,
    own,
    trunk,
    past,
    trunk_visible,
    past_visible,
    chunk: int,
    window: int = 0,
    full=None,
    sink_GQ=None,
    how: Scoring = USUAL,
):
    """Attention of branches over [trunk, past of the branch, own branch] -> out_BGCRQH.

    `own` and `past` are (k_BGCSH, v_BGCSH); `past` may be None. `trunk` is (k_BGTH, v_BGTH), shared
    by all branches: no key is copied per branch. At most `chunk` branches are computed at a time,
    so memory holds their scores, not those of all C, in the backward pass too. The masks of trunk
    and past are [B, C, S], with a `window` [B, C, R, S], since the window depends on the query.
    """
    rule = Rule(largest_divisor(q_BGCRQH.shape[2], chunk), window, how)
    masks = trunk_visible, past_visible, full
    return _branches(rule, q_BGCRQH, own, trunk, past, masks, sink_GQ)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _branches(rule: Rule, q, own, trunk, past, masks, sink_GQ):
    return _branches_forward(rule, q, own, trunk, past, masks, sink_GQ)[0]


def _branches_forward(rule: Rule, q, own, trunk, past, masks, sink_GQ):
    def attend(_, start):
        some, blocks = _some_branches(rule, start, q.shape[3], own, trunk, past, masks)
        return None, _attend(some(q), blocks, sink_GQ, rule.how)

    _, (out, total) = _steps(attend, None, range(0, q.shape[2], rule.chunk), axis=2)
    out, total = _kept(out), _kept(total)
    return out, (q, own, trunk, past, masks, sink_GQ, out, total)


def _branches_backward(rule: Rule, kept, pull):
    q, own, trunk, past, masks, sink_GQ, out, total = kept
    delta = _delta(out, pull)

    def back(sums, start):
        some, blocks = _some_branches(rule, start, q.shape[3], own, trunk, past, masks)
        given = [some(x) for x in (total, pull, delta)]
        found = [_pull(some(q), block, given, rule.how) for block in blocks]
        grad_q = _sum(x for x, *_ in found).astype(q.dtype)
        (_, *of_trunk), *others = found
        others = [tuple(x.astype(own[0].dtype) for x in kv) for _, *kv in others]
        return jax.tree.map(jnp.add, sums, tuple(of_trunk)), (grad_q, others)

    zeros = tuple(constrain(jnp.zeros(x.shape, jnp.float32), "BGTH") for x in trunk)
    starts = range(0, q.shape[2], rule.chunk)
    of_trunk, (grad_q, (of_own, *of_past)) = _steps(back, zeros, starts, axis=2)
    of_trunk = tuple(x.astype(trunk[0].dtype) for x in of_trunk)
    grad_sink = _pull_sink(sink_GQ, total, delta)
    return grad_q, of_own, of_trunk, of_past[0] if of_past else None, None, grad_sink


_branches.defvjp(_branches_forward, _branches_backward)


def _some_branches(rule: Rule, start, R: int, own, trunk, past, masks):
    """Returns (some, blocks) of a chunk of branches: `some` takes it from an array [B, G, C, ..],
    `blocks` are the keys that it meets, those of the trunk first."""
    trunk_visible, past_visible, full = masks
    take = lambda x, axis: jax.lax.dynamic_slice_in_dim(x, start, rule.chunk, axis)

    def some(x):
        return constrain(take(x, 2), "BGCRQH"[: x.ndim])

    def mask(visible):  # [B, C, S] or [B, C, R, S] -> [B, G=1, C, R or 1, Q=1, S]
        queries = slice(None) if rule.window else None
        return take(visible, 1)[:, None, :, queries, None, :]

    order_R = jnp.arange(R)
    causal = order_R[:, None] >= order_R[None, :]
    if rule.window:
        causal = causal & _within(order_R[:, None] < order_R[None, :] + rule.window, full)
    # A branch of one token sees itself.
    causal = None if R == 1 else causal[None, None, None, :, None]
    pair = lambda kv: (some(kv[0]), some(kv[1]))
    blocks = [Block(trunk, mask(trunk_visible), False), Block(pair(own), causal, True)]
    if past is not None:
        blocks.append(Block(pair(past), mask(past_visible), True))
    return some, blocks


def _steps(step, carry: Any, starts: range, axis: int) -> tuple[Any, Any]:
    """Runs step(carry, start) for each start; results are joined along `axis`."""
    if len(starts) == 1:
        return step(carry, starts[0])
    carry, out = jax.lax.scan(step, carry, jnp.arange(starts.start, starts.stop, starts.step))

    def join(x):  # [steps, .., size, ..] -> [.., steps * size, ..]
        x = jnp.moveaxis(x, 0, axis)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    return carry, jax.tree.map(join, out)
