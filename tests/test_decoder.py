"""Tests trunk and branches against plain sequences, and plain sequences against numpy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny import forward

from sip.models import decoder, rope
from sip.structs import Tree, UserError

# All that families add, in one model; its window ends within the trunk and within branches.
ODD = tiny.model(
    qkv_bias=True, qk_norm=True, window=3,
    rope_scaling="yarn", rope_factor=4.0, rope_original_len=16, rope_gain=1.2, rope_theta=20.0,
)  # fmt: skip
# gpt-oss's: the second layer has no window; 3 of 5 experts, some clamped.
MIXED = tiny.model(
    qkv_bias=True, out_bias=True, sinks=True, window=3, full_every=2, experts=5, active=3,
    expert_bias=True, swiglu_limit=0.7, swiglu_alpha=1.7,
)  # fmt: skip
# Gemma's, Granite's, OLMo's, Phi's and SmolLM3's: layers with a window, without, without rotation.
FAR = tiny.model(
    layers=3, norms="both", norm_plus_one=True, whole_qk_norm=True, activation="gelu_tanh",
    mlp_bias=True, attention_scale=0.7, attention_cap=1.5, final_cap=2.0, embed_scale=3.0,
    residual_scale=0.8, logit_divisor=0.5, rope_dims=2, rope_theta=30.0, rope_local_theta=5.0,
    window=3, full_every=2, nope_every=3,
)  # fmt: skip
AFTER = tiny.model(
    norms="post", rope_scaling="longrope", rope_original_len=32, rope_factor=2.0, rope_gain=1.2,
    rope_short=(1.0, 2.0), rope_long=(1.5, 4.0),
)  # fmt: skip
KINDS = pytest.mark.parametrize("cfg", [tiny.CFG, ODD, MIXED], ids=["plain", "odd", "mixed"])
# Packed, a layer with a window and one without are tested in one model.
PACKED = pytest.mark.parametrize(
    ("cfg", "pack"),
    [
        pytest.param(tiny.CFG, False, id="False-plain", marks=pytest.mark.slow),
        pytest.param(ODD, False, id="False-odd", marks=pytest.mark.slow),
        pytest.param(MIXED, False, id="False-mixed", marks=pytest.mark.slow),
        pytest.param(tiny.CFG, True, id="True-plain", marks=pytest.mark.slow),
        pytest.param(ODD, True, id="True-odd", marks=pytest.mark.slow),
        pytest.param(MIXED, True, id="True-mixed"),
        pytest.param(FAR, True, id="True-far", marks=pytest.mark.slow),
    ],
)


@functools.partial(jax.jit, static_argnums=1)
def gradients(params, cfg, tree):
    def loss(params):
        out = decoder.apply(params, cfg, tree)
        hidden = jnp.concatenate([out.trunk_BTD.ravel(), out.branch_BCRD.ravel()])
        return hidden @ jnp.cos(jnp.arange(hidden.size)) / 10, hidden

    return jax.grad(loss, has_aux=True)(params)


def close(got, want, tolerance=2e-5):
    got, want = jax.device_get((got, want))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.float32(a), np.float32(b), rtol=tolerance, atol=tolerance
        ),
        got,
        want,
    )


def numpy_norm(x, scale, cfg, over=-1):
    scale = scale + 1 if cfg.norm_plus_one else scale
    return x / np.sqrt((x * x).mean(over, keepdims=True) + cfg.norm_eps) * scale


def numpy_rope(x_TH, cfg, theta):
    """Rotates the first channels; a `theta` of 0 rotates none."""
    T, H = len(x_TH), cfg.rope_dims or cfg.head_dim
    if not theta:
        return x_TH
    frequency = theta ** (-np.arange(0, H, 2) / H)
    stretch = rope.stretch_P(cfg)
    frequency = frequency if stretch is None else frequency * stretch
    turn = cfg.rope_gain * np.exp(1j * np.arange(T)[:, None] * frequency)
    z = (x_TH[:, : H // 2] + 1j * x_TH[:, H // 2 : H]) * turn
    return np.concatenate([z.real, z.imag, x_TH[:, H:]], axis=1)


def numpy_head(p, h_TD, cfg, kind, at):
    """Computes queries, keys or values of one head, before rotation."""
    if cfg.whole_qk_norm and kind != "v":  # all heads at once
        x = np.einsum("td,d...->t...", h_TD, p[f"w{kind}"])
        over = tuple(range(1, x.ndim))
        return numpy_norm(x, p[f"whole_{kind}_norm"], cfg, over)[(slice(None), *at)]
    x = h_TD @ p[f"w{kind}"][(slice(None), *at)]
    x = x + p[f"b{kind}"][at] if cfg.qkv_bias else x
    if not cfg.qk_norm or kind == "v":
        return x
    return numpy_norm(x, p[f"{kind}_norm"], cfg)


def numpy_cap(x, cap):
    return cap * np.tanh(x / cap) if cap else x


def numpy_attention(p, h_TD, cfg, window, theta):
    T = len(h_TD)
    out_TD = np.zeros_like(h_TD) + (p["bo"] if cfg.out_bias else 0)
    seen = np.tri(T) - (np.tri(T, k=-window) if window else 0)
    for g, i in np.ndindex(cfg.kv_heads, cfg.queries_per_kv):
        q = numpy_rope(numpy_head(p, h_TD, cfg, "q", (g, i)), cfg, theta)
        k = numpy_rope(numpy_head(p, h_TD, cfg, "k", (g,)), cfg, theta)
        scores = q @ k.T * (cfg.attention_scale or cfg.head_dim**-0.5)
        weights = seen * np.exp(numpy_cap(scores, cfg.attention_cap))
        v = numpy_head(p, h_TD, cfg, "v", (g,))
        sink = np.exp(p["sinks"][g, i]) if cfg.sinks else 0
        out_TD += weights / (weights.sum(1, keepdims=True) + sink) @ v @ p["wo"][g, i]
    return out_TD


def numpy_experts(p, h_TD, cfg):
    """Runs every expert on every token, weighted by a softmax over the active ones."""
    logits_TE = h_TD @ p["w_router"] + p["b_router"]
    kept_TE = logits_TE >= np.sort(logits_TE)[:, -cfg.active][:, None]
    share_TE = kept_TE * np.exp(logits_TE) / (kept_TE * np.exp(logits_TE)).sum(1, keepdims=True)
    out_TD, limit = 0, cfg.swiglu_limit
    for e in range(cfg.experts):
        gate = np.minimum(h_TD @ p["w_gate"][e] + p["b_gate"][e], limit)
        up = np.clip(h_TD @ p["w_up"][e] + p["b_up"][e], -limit, limit) + 1
        said = gate / (1 + np.exp(-cfg.swiglu_alpha * gate)) * up @ p["w_down"][e] + p["b_down"][e]
        out_TD += share_TE[:, e, None] * said
    return out_TD


def numpy_mlp(p, h_TD, cfg):
    bias = lambda name: p[f"b_{name}"] if cfg.mlp_bias else 0
    gate, up = h_TD @ p["w_gate"] + bias("gate"), h_TD @ p["w_up"] + bias("up")
    if cfg.activation == "silu":
        gate = gate / (1 + np.exp(-gate))
    else:  # the tanh form of GELU (arXiv 1606.08415)
        gate = gate / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    return (gate * up) @ p["w_down"] + bias("down")


def numpy_forward(params, cfg, tokens_T):
    """Computes hidden states of one plain sequence, by loops over layers and heads, in float64."""
    params = jax.tree.map(np.float64, params)
    x_TD = params["embed"][tokens_T] * cfg.embed_scale
    before = lambda x_TD, scale: x_TD if cfg.norms == "post" else numpy_norm(x_TD, p[scale], cfg)
    after = lambda x_TD, scale: x_TD if cfg.norms == "pre" else numpy_norm(x_TD, p[scale], cfg)
    every = lambda n: n and (layer + 1) % n == 0
    for layer in range(cfg.layers):
        p = jax.tree.map(lambda x, layer=layer: x[layer], params["blocks"]["block"])
        window = 0 if every(cfg.full_every) else cfg.window
        theta = (window and cfg.rope_local_theta) or cfg.rope_theta
        theta = 0 if every(cfg.nope_every) else theta
        h_TD = before(x_TD, "attention_norm")
        out_TD = after(numpy_attention(p, h_TD, cfg, window, theta), "attention_post_norm")
        x_TD = x_TD + out_TD * cfg.residual_scale
        h_TD = before(x_TD, "mlp_norm")
        out_TD = (numpy_experts if cfg.experts else numpy_mlp)(p, h_TD, cfg)
        x_TD = x_TD + after(out_TD, "mlp_post_norm") * cfg.residual_scale
    return numpy_norm(x_TD, params["final_norm"], cfg) / cfg.logit_divisor


@pytest.mark.parametrize("cfg", [tiny.CFG, ODD, MIXED, FAR, AFTER])
def test_a_trunk_is_the_model_written_out_in_numpy(cfg):
    params, tree = tiny.params(cfg), tiny.tree()
    want = [numpy_forward(params, cfg, np.asarray(row)) for row in tree.tokens_BT]
    trunk_BTD, _, logp_BT, _ = forward(params, cfg, tree)
    close(trunk_BTD, np.stack(want), 5e-5 if cfg is FAR else 2e-5)
    logits_BTV = numpy_cap(np.stack(want) @ np.float64(params["unembed"]), cfg.final_cap)
    for b, t in np.ndindex(2, 5):
        row = logits_BTV[b, t]
        next_token = int(tree.tokens_BT[b, t + 1])
        close(logp_BT[b, t + 1], row[next_token] - np.log(np.exp(row).sum()))


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({}, 2e-5),
        ({"kv_heads": 1, "queries_per_kv": 3, "tied": True}, 2e-5),
        ({"dtype": "bfloat16"}, 0.06),
        (dataclasses.asdict(ODD), 2e-5),
        (dataclasses.asdict(MIXED), 2e-5),
        (dataclasses.asdict(FAR), 5e-5),
    ],
)
def test_a_branch_equals_the_plain_sequence(changes, tolerance):
    cfg, tree = tiny.model(**changes), tiny.tree()
    params = tiny.params(cfg)
    _, branch_BCRD, _, logp_BCR = forward(params, cfg, tree)
    plain = forward(params, cfg, tiny.trunk_only(tiny.sequences(tree)))
    close(branch_BCRD, tiny.at_forks(plain[0].astype(jnp.float32), tree), tolerance)
    close(logp_BCR, np.where(tree.mask_BCR, tiny.at_forks(plain[2], tree), 0), tolerance)
    assert np.ptp(tree.fork_BC) > 2 and np.abs(logp_BCR).max() > 1


@pytest.mark.parametrize(
    ("cfg", "changes"),
    [
        pytest.param(
            tiny.CFG,
            {"remat": "block", "branch_chunk": 2, "query_chunk": 2},
            marks=pytest.mark.slow,
        ),
        (tiny.CFG, {"remat": "dots"}),
        pytest.param(
            ODD, {"remat": "block", "branch_chunk": 2, "query_chunk": 2}, marks=pytest.mark.slow
        ),
        pytest.param(
            MIXED, {"remat": "block", "branch_chunk": 2, "query_chunk": 2}, marks=pytest.mark.slow
        ),
        pytest.param(
            FAR, {"remat": "block", "branch_chunk": 2, "query_chunk": 2}, marks=pytest.mark.slow
        ),
    ],
)
def test_saving_memory_changes_neither_values_nor_gradients(cfg, changes):
    params, tree = tiny.params(cfg), tiny.tree()
    saving = dataclasses.replace(cfg, **changes)
    # Rounding depends on the CPU: up to 4e-5 for values near 1.
    close(gradients(params, saving, tree), gradients(params, cfg, tree), tolerance=1e-4)


def visibility(tree, vocab, window):
    """Returns [N, N]: the hidden state of one position depends on the embedding of another.

    Found by gradients. With a window only one layer is used, because two layers see twice as far.
    """
    cfg = tiny.model(vocab_size=vocab, window=window, layers=1 if window else 2)
    params = tiny.params(cfg)

    def hidden(embed_VD):
        out = decoder.apply({**params, "embed": embed_VD}, cfg, tree)
        both = jnp.concatenate([out.trunk_BTD[0], out.branch_BCRD[0].reshape(-1, cfg.width)])
        return both @ jnp.linspace(-1, 1, cfg.width)

    gradient_NVD = jax.jit(jax.jacrev(hidden))(params["embed"])
    order = np.concatenate([tree.tokens_BT[0], np.ravel(tree.tokens_BCR[0])])
    assert sorted(order) == list(range(vocab)), "a token of its own for every position"
    return np.abs(gradient_NVD).max(-1)[:, order] > 0


def everyone_differs(T, C, R, fork_C, segment_T=None):
    tokens = np.random.default_rng(0).permutation(T + C * R)
    return Tree(
        jnp.asarray(tokens[None, :T]), jnp.ones((1, T), bool),
        jnp.asarray(tokens[T:].reshape(1, C, R)), jnp.ones((1, C, R), bool),
        jnp.array([fork_C]), None if segment_T is None else jnp.array([segment_T]),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("segment_T", "window"),
    [
        pytest.param(None, 0, marks=pytest.mark.slow),
        ([1, 1, 1, 1, 2, 2], 2),
        pytest.param(None, 2, marks=pytest.mark.slow),
        pytest.param([1, 1, 1, 1, 2, 2], 0, marks=pytest.mark.slow),
    ],
)
def test_gradients_show_who_sees_whom(segment_T, window):
    T, C, R, fork_C = 6, 3, 2, [2, 6, 5]
    segments = np.array(segment_T or [1] * T)
    want = np.zeros((T + C * R, T + C * R), bool)
    want[:T, :T] = np.tri(T, dtype=bool) & (segments[:, None] == segments)
    for c, fork in enumerate(fork_C):
        own = slice(T + c * R, T + c * R + R)
        want[own, :fork] = segments[:fork] == segments[fork - 1]
        want[own, own] = np.tri(R, dtype=bool)
    place_N = np.array([*range(T), *(fork + r for fork in fork_C for r in range(R))])
    want &= (place_N[:, None] - place_N < window) | (window == 0)
    tree = everyone_differs(T, C, R, fork_C, segment_T)
    np.testing.assert_array_equal(visibility(tree, T + C * R, window), want)


def packed(tree):
    """Returns two documents of 6 tokens in a row of 12, and their branches on it."""
    return Tree(
        tree.tokens_BT.reshape(1, 12), tree.mask_BT.reshape(1, 12),
        tree.tokens_BCR.reshape(1, 8, 3), tree.mask_BCR.reshape(1, 8, 3),
        (tree.fork_BC + jnp.array([[0], [6]])).reshape(1, 8),
        jnp.repeat(jnp.array([[3, 1]]), 6, axis=1),
    )  # fmt: skip


@KINDS
def test_a_packed_trunk_equals_separate_documents(cfg):
    apart = tiny.tree()
    want = forward(tiny.params(cfg), cfg, apart)
    got = forward(tiny.params(cfg), cfg, packed(apart))
    close([a.reshape(b.shape) for a, b in zip(got, want, strict=True)], list(want))


def steps_of(tree, sizes):
    """Splits the tree's branches into pieces of `sizes` tokens."""
    ends = np.cumsum(sizes)
    for start, end in zip(ends - sizes, ends, strict=True):
        part = slice(start, end)
        yield tree.replace(
            tokens_BCR=tree.tokens_BCR[:, :, part], mask_BCR=tree.mask_BCR[:, :, part]
        )


@functools.partial(jax.jit, static_argnames=("cfg", "keep_cache"))
def apply(cfg, tree, cache=None, keep_cache=True):
    return decoder.apply(tiny.params(cfg), cfg, tree, cache=cache, keep_cache=keep_cache)


@PACKED
def test_cached_decoding_equals_the_full_pass(cfg, pack):
    tree = packed(tiny.tree()) if pack else tiny.tree(R=5)
    cache = apply(cfg, tiny.trunk_only(tree.tokens_BT, tree.segment_BT)).cache
    cache, parts = decoder.grow(cache, *tree.tokens_BCR.shape[1:]), []
    assert not cache.k_LBGCSH.any() and int(cache.length) == 0
    for part in steps_of(tree, [1, 1, 1] if pack else [1, 1, 3]):
        new = apply(cfg, part, cache)
        cache, parts = new.cache, [*parts, new.branch_BCRD]
    whole, there = apply(cfg, tree), tree.mask_BCR
    shown = lambda x_BCRD: jnp.where(there[..., None], x_BCRD, 0)
    close(shown(jnp.concatenate(parts, axis=2)), shown(whole.branch_BCRD))
    hide = lambda x: jnp.where(there[None, :, None, ..., None], x, 0)
    kept = lambda c: c.replace(k_LBGCSH=hide(c.k_LBGCSH), v_LBGCSH=hide(c.v_LBGCSH))
    close(kept(cache), kept(whole.cache))


@PACKED
def test_whole_branches_on_a_kept_trunk_equal_the_full_pass(cfg, pack):
    tree = packed(tiny.tree()) if pack else tiny.tree()
    kept = apply(cfg, tiny.trunk_only(tree.tokens_BT, tree.segment_BT)).cache
    out = apply(cfg, tree, decoder.grow(kept, tree.tokens_BCR.shape[1], 0), keep_cache=False)
    assert out.cache is None and out.trunk_BTD.shape[1] == 0
    close(out.branch_BCRD, apply(cfg, tree).branch_BCRD)


def test_a_trunk_does_not_notice_its_branches():
    params, tree = tiny.params(), tiny.tree()
    trunk_BTD, branch_BCRD, logp_BT, logp_BCR = forward(
        params, tiny.CFG, tiny.trunk_only(tree.tokens_BT)
    )
    assert branch_BCRD.shape == (2, 0, 1, 16) and logp_BCR.shape == (2, 0, 1)
    want = forward(params, tiny.CFG, tree)
    close((trunk_BTD, logp_BT), (want[0], want[2]))


def test_tied_embeddings_are_one_matrix():
    cfg = tiny.model(tied=True)
    assert "unembed" not in tiny.params(cfg)
    np.testing.assert_array_equal(
        decoder.unembed(tiny.params(cfg), cfg), tiny.params(cfg)["embed"].T
    )


def test_matrices_begin_at_the_width_that_their_fan_in_asks_for():
    cfg, key = tiny.model(width=64, hidden=96), jax.random.key(0, impl="unsafe_rbg")
    params = jax.jit(lambda key: decoder.init(cfg, key))(key)
    block, norms = params["blocks"]["block"], ["attention_norm", "mlp_norm"]
    for name, want in {
        "wq": 64**-0.5, "w_up": 64**-0.5, "wo": 16**-0.5 / 2, "w_down": 96**-0.5 / 2,
    }.items():  # fmt: skip
        assert abs(float(block[name].std()) / (want * 0.8796) - 1) < 0.1, name  # cut at 2 sigma
    assert all((block[n] == 1).all() for n in norms)
    assert not np.allclose(block["wq"][0], block["wq"][1]), "layers differ"
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"float32"}


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_len", 0), ("vocab_size", 0), ("layers", -1), ("kv_heads", 0), ("hidden", 0),
     ("branch_chunk", 0), ("head_dim", 3), ("dtype", "float16"), ("remat", "all"), ("window", -1),
     ("rope_scaling", "dynamic"), ("rope_theta", 1.0), ("rope_factor", 0.5), ("rope_gain", 0.0),
     ("rope_low", 4.0), ("rope_slow", 0.0), ("full_every", 2), ("active", 1), ("experts", 2),
     ("expert_bias", True), ("swiglu_limit", 7.0), ("router_aux", 0.1), ("norms", "none"),
     ("activation", "gelu"), ("rope_dims", 3), ("rope_dims", 6), ("rope_short", (1.0, 2.0)),
     ("rope_local_theta", 5.0), ("nope_every", -1), ("attention_scale", -1.0),
     ("attention_cap", -1.0), ("final_cap", float("nan")), ("embed_scale", 0.0),
     ("residual_scale", -1.0), ("logit_divisor", float("inf"))],
)  # fmt: skip
def test_a_config_that_cannot_be_names_its_field(field, value):
    named = "active" if field == "experts" else field
    with pytest.raises(UserError, match=rf"model\.{named}"):
        tiny.model(**{field: value})


@pytest.mark.parametrize("kind", ["llama3", "yarn"])
def test_a_scaling_that_needs_the_length_trained_on_says_so(kind):
    with pytest.raises(UserError, match=f"rope_original_len is needed by {kind}"):
        tiny.model(rope_scaling=kind)
