"""Tests experts: routing by hand, sorted experts against every expert on every token, meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sip import mesh as meshes
from sip.mesh import MeshConfig
from sip.models import moe, parameters

PLAIN = tiny.model(experts=8, active=2, norm_topk=False)
BIASED = tiny.model(
    experts=8, active=3, expert_bias=True, swiglu_limit=0.7, swiglu_alpha=1.7, router_aux=0.1
)
KINDS = pytest.mark.parametrize(
    "cfg",
    [pytest.param(PLAIN, id="plain", marks=pytest.mark.slow), pytest.param(BIASED, id="biased")],
)


def weights(cfg):
    block = tiny.params(cfg)["blocks"]["block"]
    names = moe.MATRICES + (moe.BIASES if cfg.expert_bias else ())
    return {name: block[name][0] for name in names}


def tokens(B=4, N=6, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((B, N, 16)), jnp.float32)


def every_expert(x_BND, weights, cfg):
    """Computes the same by einsums over all experts, with weight zero for inactive ones."""
    bias = lambda kind: weights[f"b_{kind}"][None, None] if cfg.expert_bias else 0.0
    chosen_BNA, share_BNA = moe.route(moe.router_logits(x_BND, weights, cfg), cfg)
    share_BNE = (jax.nn.one_hot(chosen_BNA, cfg.experts) * share_BNA[..., None]).sum(2)
    gate, up = (
        jnp.einsum("BND,EDF->BNEF", x_BND, weights[f"w_{k}"]) + bias(k) for k in ("gate", "up")
    )
    hidden = moe.gated(gate, up, cfg)
    out_BNED = jnp.einsum("BNEF,EFD->BNED", hidden, weights["w_down"]) + bias("down")
    return (out_BNED * share_BNE[..., None]).sum(2)


def test_routing_by_hand():
    # Logits 0, ln 3, ln 2, ln 2: shares of all 1/8, 3/8, 2/8, 2/8; of the chosen 3/5 and 2/5.
    logits = jnp.log(jnp.array([[[1.0, 3.0, 2.0, 2.0]]]))
    for norm, want in ((True, [0.6, 0.4]), (False, [0.375, 0.25])):
        cfg = tiny.model(experts=4, active=2, norm_topk=norm)
        chosen, share = moe.route(logits, cfg)
        assert chosen.tolist() == [[[1, 2]]], "of equal ones the first"
        np.testing.assert_allclose(share[0, 0], want, rtol=1e-6)


def test_clamped_gates_by_hand():
    # min(9, 7) = 7, sigmoid(1.702 * 7) = 0.9999933; up: -9 -> -7 -> -6, 2 -> 3.
    cfg = tiny.model(experts=1, active=1, swiglu_limit=7.0, swiglu_alpha=1.702)
    out = moe.gated(jnp.array([9.0, 0.5]), jnp.array([-9.0, 2.0]), cfg)
    np.testing.assert_allclose(out, [-41.99972, 1.5 * 0.7007769], rtol=1e-5)
    plain = moe.gated(jnp.array([9.0]), jnp.array([-9.0]), tiny.CFG)
    np.testing.assert_allclose(plain, [-81 / (1 + np.exp(-9))], rtol=1e-6)


def test_load_by_hand():
    # Two tokens count, both go to expert 0, with probabilities 3/4 and 1/2 of it: 2 * 1 * 5/8.
    logits = jnp.log(jnp.array([[[3.0, 1.0], [1.0, 1.0], [1.0, 9.0]]]))
    chosen, mask = jnp.array([[[0], [0], [1]]]), jnp.array([[True, True, False]])
    total, denom = loss(moe.load_balance(logits, chosen, mask))
    np.testing.assert_allclose([total, denom], [2 * 5 / 8 * 2, 2], rtol=1e-6)
    total, denom = loss(moe.load_balance(logits, chosen, jnp.zeros((1, 3), bool)))
    assert (float(total), float(denom)) == (0, 0)


def test_parts_of_a_batch_have_the_balance_of_the_whole_batch():
    """A part whose tokens all choose expert 0, and one whose token chooses expert 1."""
    logits = jnp.log(jnp.array([[[3.0, 1.0], [1.0, 1.0]], [[1.0, 9.0], [1.0, 3.0]]]))
    chosen, mask = jnp.array([[[0], [0]], [[1], [1]]]), jnp.array([[True, True], [True, False]])
    parts = [
        moe.load_balance(logits[i : i + 1], chosen[i : i + 1], mask[i : i + 1]) for i in (0, 1)
    ]
    whole = jax.tree.map(jnp.add, *parts)
    sums = np.sum([loss(part, whole) for part in parts], axis=0)
    # Shares 2/3, 1/3 of the choices, mean probabilities (3/4 + 1/2 + 1/10) / 3 and the rest.
    first = (3 / 4 + 1 / 2 + 1 / 10) / 3
    np.testing.assert_allclose(sums, [3 * 2 * (2 * first + 1 - first) / 3, 3], rtol=1e-6)
    alone = np.sum([loss(part) for part in parts], axis=0)
    assert alone[0] > 1.2 * sums[0], "the parts alone are less balanced"


def loss(part, whole=None):
    """Returns (total, denom) of one layer's sums, as a part of `whole`."""
    part, whole = jax.tree.map(lambda x: x[None], (part, whole or part))
    return part.pair(whole)


@functools.partial(jax.jit, static_argnums=(0, 3))
def value_and_gradients(mixture, x_BND, weights, cfg):
    def loss(x_BND, weights):
        out = mixture(x_BND, weights, cfg)
        return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum(), out

    grads, out = jax.grad(loss, (0, 1), has_aux=True)(x_BND, weights)
    return out, grads


def mixture(x_BND, weights, cfg):
    return moe.mixture(x_BND, weights, cfg)[0]


def close(got, want):
    check = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    jax.tree.map(check, *jax.device_get((got, want)))


@KINDS
def test_sorted_experts_are_every_expert_on_every_token(cfg):
    args = tokens(), weights(cfg), cfg
    out, grads = value_and_gradients(mixture, *args)
    close((out, grads), value_and_gradients(every_expert, *args))
    assert np.abs(out).max() > 0.3
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(grads)), "all learn, the router too"


@pytest.mark.parametrize(
    "sizes", [pytest.param([3, 0, 9, 4], marks=pytest.mark.slow), [5, 5, 5, 5]]
)
@pytest.mark.slow
def test_the_kernel_s_gradient_of_weights_is_that_of_other_devices(sizes):
    """Includes rows in no group, and a number of rows that is not a multiple of a tile."""
    rng, size_E = np.random.default_rng(0), jnp.array(sizes, jnp.int32)
    x, y = (jnp.asarray(rng.standard_normal((20, n)), jnp.float32) for n in (16, 24))
    found = moe.tile_outer(x, y, size_E, interpret=True)
    expert = np.repeat(np.arange(4), sizes)
    want = [x[: len(expert)][expert == e].T @ y[: len(expert)][expert == e] for e in range(4)]
    close(found, np.stack(want))
    close(moe.ragged_outer(x, y, size_E), np.stack(want))


@KINDS
def test_a_token_does_not_notice_the_others(cfg):
    """No token is dropped, however many are routed to one expert."""
    x_BND, w = tokens(), weights(cfg)
    run = jax.jit(mixture, static_argnums=2)
    crowd = jnp.concatenate([x_BND, jnp.repeat(x_BND[:1, :1], 40, 0).repeat(6, 1)])
    want = run(x_BND, w, cfg)
    close(run(crowd, w, cfg)[:4], want)
    close(jnp.stack([run(x_BND[2:3, i : i + 1], w, cfg)[0, 0] for i in range(6)]), want[2])


@pytest.mark.parametrize(
    ("cfg", "shape", "B", "few"),
    [
        # each device its own tokens
        pytest.param(BIASED, (2, 2, 2), 64, False, marks=pytest.mark.slow),
        pytest.param(BIASED, (2, 2, 2), 4, True, marks=pytest.mark.slow),  # as (1, 8, 1)
        pytest.param(PLAIN, (1, 8, 1), 64, False, marks=pytest.mark.slow),
        (BIASED, (1, 8, 1), 3, True),  # a batch that does not divide
        pytest.param(PLAIN, (1, 1, 8), 3, False, marks=pytest.mark.slow),
    ],
)
def test_a_mesh_changes_nothing(cfg, shape, B, few):
    x_BND, w, mesh = tokens(B), weights(cfg), meshes.build(MeshConfig(*shape))
    letters = lambda name: parameters.letters(name, cfg.experts)
    place = lambda name: meshes.sharding(mesh, letters(name), meshes.PARAM_RULES)
    spread = {name: jax.device_put(x, place(name)) for name, x in w.items()}
    assert spread["w_gate"].sharding.shard_shape((8, 16, 24))[0] == 8 // shape[1]
    with jax.set_mesh(mesh):
        assert moe.where_tokens_go(mesh, x_BND.shape, cfg)[1] == few
        got = value_and_gradients(mixture, meshes.put_batch(mesh, x_BND), spread, cfg)
    close(got, value_and_gradients(mixture, x_BND, w, cfg))
