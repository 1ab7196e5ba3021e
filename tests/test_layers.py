import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sip.costs import flops
from sip.models import layers


def test_rms_norm_of_a_hand_worked_vector():
    # rms(3, 4) = sqrt(12.5) = 3.5355339
    x = jnp.array([[[3.0, 4.0]]])
    out = layers.rms_norm(x, jnp.array([1.0, 2.0]), 0.0)
    np.testing.assert_allclose(out[0, 0], [0.8485281, 2.2627417], rtol=1e-6)
    np.testing.assert_allclose(layers.rms_norm(x, jnp.ones(2), 12.5)[0, 0], [0.6, 0.8], rtol=1e-6)


def test_rms_norm_is_computed_in_float32(key):
    x, scale = jax.random.normal(key, (2, 1, 1, 400))
    x = x.astype(jnp.bfloat16)
    out = layers.rms_norm(x, scale.ravel(), 0.0)
    assert out.dtype == jnp.bfloat16
    want = layers.rms_norm(x.astype(jnp.float32), scale.ravel(), 0.0).astype(jnp.bfloat16)
    np.testing.assert_array_equal(out.astype(jnp.float32), want.astype(jnp.float32))


def test_rope_of_hand_worked_angles():
    # theta 100, H 4: channels (0, 2) turn by the position, (1, 3) by a tenth of it.
    x = jnp.array([1.0, 0.0, 0.0, 2.0]).reshape(1, 1, 1, 4)
    cos, sin = layers.rope_tables(jnp.array([[3]]), 4, 100.0)
    want = [np.cos(3), -2 * np.sin(0.3), np.sin(3), 2 * np.cos(0.3)]
    np.testing.assert_allclose(layers.rope(x, cos, sin).ravel(), want, rtol=1e-6)


def test_rope_scores_depend_on_the_distance_alone(key):
    q, k = jax.random.normal(key, (2, 1, 1, 1, 8))
    turn = lambda x, p: layers.rope(x, *layers.rope_tables(jnp.array([[p]]), 8, 100.0)).ravel()
    near = turn(q, 5) @ turn(k, 2)
    np.testing.assert_allclose(near, turn(q, 105) @ turn(k, 102), rtol=1e-4)
    assert abs(near - turn(q, 5) @ turn(k, 3)) > 1e-3


@pytest.mark.parametrize(
    ("n", "limit", "want"), [(12, 5, 4), (12, 100, 12), (7, 3, 1), (1, 8, 1), (16, 8, 8)]
)
def test_largest_divisor_by_hand(n, limit, want):
    assert layers.largest_divisor(n, limit) == want


def test_project_over_several_axes_is_an_einsum(key):
    x, w = jax.random.normal(key, (2, 3, 2, 3, 4)), jax.random.normal(key, (2, 3, 4, 5))
    out = layers.project(x, w, contract=3)
    np.testing.assert_allclose(out, jnp.einsum("BNGQH,GQHD->BND", x, w), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sink", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_query_of_zeros_takes_the_mean_of_the_values_it_sees(sink):
    # Trunk values 1, 2, 3, of which branch 0 sees one and branch 1 all; past 10, 20 (one is
    # filled); own 100, 200: every key a branch position sees weighs the same, a sink twice as much.
    line = lambda *v: jnp.array(v).reshape(1, 1, -1, 1)
    zeros = lambda *shape: jnp.zeros((1, 1, *shape, 1))
    own = jnp.tile(line(100.0, 200.0)[:, :, None], (1, 1, 2, 1, 1))
    past = jnp.tile(line(10.0, 20.0)[:, :, None], (1, 1, 2, 1, 1))
    out = layers.branch_attention(
        zeros(2, 2, 1), (zeros(2, 2), own), (zeros(3), line(1.0, 2.0, 3.0)), (zeros(2, 2), past),
        jnp.array([[[True, False, False], [True, True, True]]]), jnp.array([[[True, False]] * 2]),
        chunk=2, sink_GQ=jnp.log(jnp.full((1, 1), float(sink))) if sink else None,
    )  # fmt: skip
    want = [[111 / (3 + sink), 311 / (4 + sink)], [116 / (5 + sink), 316 / (6 + sink)]]
    np.testing.assert_allclose(out.reshape(2, 2), want, rtol=1e-6)


def test_a_branch_s_sinks_are_those_of_the_trunk_and_learn_alike(key):
    q_BGTQH, k, v = jax.random.normal(key, (3, 1, 2, 5, 3, 4))
    k_BGTH, v_BGTH = k[:, :, :, 0], v[:, :, :, 0]
    sink_GQ = jnp.linspace(-1.0, 2.0, 6).reshape(2, 3)

    def trunk(q, k, v, sink):
        return layers.trunk_attention(q, k, v, None, 5, sink_GQ=sink)[:, :, 2:]

    def branch(q, k, v, sink):
        some = lambda x: x[:, :, None, 2:]
        own, before = (some(k), some(v)), (k[:, :, :2], v[:, :, :2])
        seen = jnp.ones((1, 1, 2), bool)
        out = layers.branch_attention(some(q), own, before, None, seen, None, 1, sink_GQ=sink)
        return out[:, :, 0]

    loss = lambda attend: lambda *x: (attend(*x) ** 2).sum()
    found, want = (
        jax.jit(jax.value_and_grad(loss(f), (0, 1, 2, 3)))(q_BGTQH, k_BGTH, v_BGTH, sink_GQ)
        for f in (branch, trunk)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, want)
    assert np.abs(want[1][3]).min() > 1e-3


def test_attention_survives_scores_that_overflow_exp():
    q = jnp.full((1, 1, 1, 1, 1, 1), 1e4)
    own = (jnp.full((1, 1, 1, 1, 1), -1e4), jnp.full((1, 1, 1, 1, 1), 5.0))
    trunk = (jnp.array([1e4, -1e4]).reshape(1, 1, 2, 1), jnp.array([7.0, 9.0]).reshape(1, 1, 2, 1))
    out = layers.branch_attention(q, own, trunk, None, jnp.ones((1, 1, 2), bool), None, 1)
    np.testing.assert_allclose(out.ravel(), [7.0])


def plain_attention(q_BGTQH, k_BGTH, v_BGTH, visible_BTS, sink_GQ, how):
    """Attention by one softmax over all keys and a sink."""
    scores = jnp.einsum("BGTQH,BGSH->BGTQS", q_BGTQH, k_BGTH) * (how.scale or 0.5)
    scores = how.cap * jnp.tanh(scores / how.cap) if how.cap else scores
    scores = jnp.where(visible_BTS[:, None, :, None], scores, -jnp.inf)
    if sink_GQ is not None:
        wide = jnp.broadcast_to(sink_GQ[None, :, None, :, None], (*scores.shape[:-1], 1))
        scores = jnp.concatenate([scores, wide], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1)[..., : k_BGTH.shape[2]]
    return jnp.einsum("BGTQS,BGSH->BGTQH", weights, v_BGTH)


ALL = dict(window=4, sinks=True, segments=True, how=layers.Scoring(scale=0.7, cap=1.5))


# Chunks: several in a span (1), one in each (5), one in all (20).
@pytest.mark.parametrize(
    ("chunk", "given"),
    [
        pytest.param(1, {}, id="several-plain", marks=pytest.mark.slow),
        pytest.param(5, ALL, id="one in each-all"),
        pytest.param(20, {}, id="one-plain", marks=pytest.mark.slow),
        pytest.param(5, {}, id="one in each-plain", marks=pytest.mark.slow),
        pytest.param(1, ALL, id="several-all", marks=pytest.mark.slow),
        pytest.param(20, ALL, id="one-all", marks=pytest.mark.slow),
    ],
)
def test_a_trunk_in_spans_is_one_softmax_and_so_are_its_gradients(chunk, given, key):
    T, given = 20, dict(dict(window=0, sinks=False, segments=False, how=layers.USUAL), **given)
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.normal(size=(2, 2, T, *s)), jnp.float32) for s in ((3, 4), (4,), (4,))
    )
    sink_GQ = jnp.linspace(-1.0, 2.0, 6).reshape(2, 3) if given["sinks"] else None
    segment_BT = jnp.asarray([[1] * 7 + [2] * 13, [1] * 20]) if given["segments"] else None
    at = np.arange(T)
    seen = (at[None, :] <= at[:, None]) & (at[:, None] - at < (given["window"] or T))
    seen = np.broadcast_to(seen, (2, T, T))
    if given["segments"]:
        seen = seen & (segment_BT[:, :, None] == segment_BT[:, None])
    target = jnp.asarray(rng.normal(size=q.shape), jnp.float32)

    def ours(q, k, v, sink):
        return layers.trunk_attention(
            q, k, v, segment_BT, chunk, given["window"], None, sink, given["how"]
        )

    plain = lambda q, k, v, sink: plain_attention(q, k, v, jnp.asarray(seen), sink, given["how"])
    both = lambda f: jax.jit(jax.value_and_grad(lambda *x: (f(*x) * target).sum(), (0, 1, 2, 3)))
    found, want = (both(f)(q, k, v, sink_GQ) for f in (ours, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), found, want)
    assert min(np.abs(x).max() for x in jax.tree.leaves(want[1])) > 0.1


def test_a_trunk_in_spans_multiplies_few_keys_that_no_query_sees():
    q, kv = jnp.zeros((1, 1, 64, 1, 2)), jnp.zeros((1, 1, 64, 2))
    work = lambda chunk: flops.count(
        jax.make_jaxpr(lambda q, k, v: layers.trunk_attention(q, k, v, None, chunk))(q, kv, kv)
    )[flops.READ]
    whole = 2 * 2 * 64 * 64 * 2  # scores and values, 64 queries, 64 keys, H = 2
    # Eight spans meet 1/8, 2/8, .. of the keys, whatever the number of chunks: 36/64 of all.
    assert [work(n) for n in (64, 32, 8, 2)] == [
        whole,
        whole * 3 / 4,
        whole * 36 / 64,
        whole * 36 / 64,
    ]


@pytest.mark.parametrize("window", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_chunks_of_branches_change_neither_values_nor_gradients(window):
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=(2, 2, *shape)), jnp.float32)
    q, own, trunk, past = (
        normal(4, 3, 2, 4), (normal(4, 3, 4), normal(4, 3, 4)), (normal(5, 4), normal(5, 4)),
        (normal(4, 2, 4), normal(4, 2, 4)),
    )  # fmt: skip
    queries = (3,) if window else ()
    seen, filled = (jnp.asarray(rng.random((2, 4, *queries, n)) < 0.6) for n in (5, 2))
    sink_GQ = jnp.linspace(-1.0, 2.0, 4).reshape(2, 2)

    def loss(chunk, q, own, trunk, past, sink):
        out = layers.branch_attention(
            q, own, trunk, past, seen, filled, chunk, window, None, sink, layers.Scoring(cap=1.5)
        )
        return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum()

    both = lambda n: jax.jit(jax.value_and_grad(functools.partial(loss, n), range(5)))
    found, want = (both(n)(q, own, trunk, past, sink_GQ) for n in (1, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), found, want)
    assert min(np.abs(x).max() for x in jax.tree.leaves(want[1])) > 0.01
