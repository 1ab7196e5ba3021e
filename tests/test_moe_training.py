"""Tests training of experts: the load-balancing term, and eight devices against one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from sip import mesh as meshes
from sip import sampling
from sip.mesh import MeshConfig, put_batch
from sip.models import decoder, moe
from sip.structs import Targets, Tree
from sip.training import losses, optim, step

# gpt-oss's, every size of which divides by two.
CFG = tiny.model(
    qkv_bias=True, out_bias=True, sinks=True, window=3, full_every=2, experts=4, active=2,
    expert_bias=True, swiglu_limit=0.7, swiglu_alpha=1.7, router_aux=0.3, remat="block",
    branch_chunk=2, query_chunk=4,
)  # fmt: skip
TX = optim.build(optim.OptimConfig(lr=0.01, steps=10, eps=1e-3))
CE = losses.balanced(CFG, lambda _: {"ce": 1.0})


def tree(B=8):
    """Returns documents of different lengths without branches, and the mask of their tokens."""
    found = tiny.tree(B=B, T=8)
    mask_BT = np.arange(8) < np.resize([8, 5, 6, 3], B)[:, None]
    none = jnp.zeros((B, 0, 1), jnp.int32)
    tokens_BT = np.where(mask_BT, found.tokens_BT, 0)
    return Tree(tokens_BT, mask_BT, none, none > 0, none[:, :, 0]), mask_BT


def flat_router(params):
    """Returns a router that scores all experts equally."""
    block = params["blocks"]["block"]
    zero = {name: jnp.zeros_like(block[name]) for name in ("w_router", "b_router")}
    return {**params, "blocks": {"block": {**block, **zero}}}


@functools.partial(jax.jit, static_argnums=0)
def values(cfg, params, batch):
    found = losses.tokens_terms(cfg)(params, None, batch)[0]
    return step.pairs(found, found)


@pytest.mark.slow
def test_the_balance_of_equal_probabilities_is_one_and_padding_is_no_token():
    batch, params = tree(), tiny.params(CFG)
    total, denom = values(CFG, flat_router(params), batch)["balance"]
    assert float(denom) == CFG.layers * batch[1].sum() < batch[1].size * CFG.layers
    np.testing.assert_allclose(total / denom, 1.0, rtol=1e-6)
    found = values(CFG, params, batch)["balance"]
    assert found[0] / found[1] > 1.01
    other = np.where(batch[1], batch[0].tokens_BT, 7)
    again = values(CFG, params, (batch[0].replace(tokens_BT=other), batch[1]))
    np.testing.assert_allclose(again["balance"], found, rtol=1e-5)


def test_only_a_weight_makes_it_a_term():
    off = dataclasses.replace(CFG, router_aux=0.0)
    assert values(off, tiny.params(CFG), tree()).keys() == {"ce"}
    weights = lambda _: {"ce": 1.0}
    assert losses.balanced(off, weights) is weights
    assert CE(0) == {"ce": 1.0, "balance": 0.3}


def start(mesh):
    places = jax.tree.map(lambda x: x.sharding, decoder.abstract(CFG, mesh))
    params = jax.device_put(tiny.params(CFG), places)
    return step.state_of(params, CFG, TX, mesh, reference=False)


@functools.cache
def updated(shape, microbatches=1):
    mesh = meshes.build(MeshConfig(*shape), jax.devices()[: int(np.prod(shape))])
    update = step.make_update(losses.tokens_terms(CFG), TX, CE, microbatches=microbatches)
    with jax.set_mesh(mesh):
        return update(start(mesh), put_batch(mesh, tree()))


def close(one, many, atol):
    check = lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-5, atol=atol)
    jax.tree.map(check, *jax.device_get((one, many)))


def routed(params, reference, batch):
    """Two layers of routers without experts; the batch is (x_BND, mask_BN)."""
    logits = [jnp.einsum("BND,DE->BNE", batch[0], w_DE) for w_DE in params]
    one = lambda x: moe.load_balance(x, jax.lax.top_k(x, 2)[1], batch[1])
    return {"balance": jax.tree.map(lambda *x: jnp.stack(x), *map(one, logits))}, {}


def test_microbatches_change_the_balance_by_rounding_only():
    rng = np.random.default_rng(0)
    batch = rng.standard_normal((8, 5, 3)), np.arange(5) < np.arange(8)[:, None]
    params = jnp.asarray(rng.standard_normal((2, 3, 4)), jnp.float32)
    of = lambda n, params: step.gradient(routed, params, None, batch, {"balance": 1.0}, n)
    one, many = (jax.jit(functools.partial(of, n))(params) for n in (1, 8))  # of 0..5 tokens
    close(one, many, 1e-6)
    assert one[1] > 1.01 and jnp.abs(one[0]).max() > 1e-3


@pytest.mark.slow  # compiles for long
def test_microbatches_of_verdicts_change_nothing():
    """Verdicts of two aspects: every pass and layer has a balance of its own."""
    rng = np.random.default_rng(1)
    batch = {}
    for name, C in (("quality", 2), ("safety", 1)):
        found, shape = tiny.tree(seed=C, B=4, T=4, C=C, R=2), (4, C, 1)
        mask = np.ones(shape, bool)
        mask[0] = False  # of another size in every microbatch
        asked = Targets(np.zeros(shape, int), rng.integers(0, 16, shape), mask)
        batch[name] = found, {name: asked}
    cfg = dataclasses.replace(tiny.model(experts=4, active=1, router_aux=0.5), layers=1)
    weights = losses.balanced(cfg, lambda _: {"quality": 1.0, "safety": 1.0})(0)

    def found(microbatches):
        terms = losses.verdict_terms(cfg)
        of = lambda params: step.gradient(terms, params, None, batch, weights, microbatches)
        return jax.device_get(jax.jit(of)(tiny.params(cfg)))

    one, many = found(1), found(4)
    close(one, many, 1e-6)
    total, denom = one[2]["loss/balance"]
    assert total / denom > 1.01


@pytest.mark.slow  # compiles for long
@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 4, 2)])
def test_microbatches_on_eight_devices_change_nothing(shape):
    (one, one_metrics), (many, many_metrics) = updated((1, 1, 1)), updated(shape, 2)
    close(one_metrics, many_metrics, 1e-5)
    close(one.params, many.params, 1e-5)


@pytest.mark.slow  # compiles for long
@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 4, 2)])
def test_an_update_on_eight_devices_equals_one_on_one(shape):
    (one, one_metrics), (many, many_metrics) = updated((1, 1, 1)), updated(shape)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), one.params, tiny.params(CFG))
    assert min(jax.tree.leaves(moved)) > 1e-4
    close(one_metrics, many_metrics, 1e-5)
    close(one.params, many.params, 1e-5)


def test_each_expert_lies_on_the_axes_its_letters_name():
    places = decoder.abstract(CFG, meshes.build(MeshConfig(2, 2, 2)))["blocks"]["block"]
    specs = {name: x.sharding.spec for name, x in places.items()}
    assert specs["w_gate"] == specs["w_up"] == P(None, "fsdp", None, "tensor")  # LEDF
    assert specs["w_down"] == P(None, "fsdp", "tensor", None)  # LEFD
    assert specs["b_gate"] == P(None, "fsdp", "tensor")  # LEF
    assert specs["w_router"] == P(None, None, "fsdp")  # LDE
    assert specs["sinks"] == P(None, "tensor", None)  # LGQ


@pytest.mark.slow  # test_sharding has rollouts, test_moe the layer
def test_rollouts_on_eight_devices_are_those_of_one():
    run = sampling.program(CFG, 4, 5, sampling.SamplingConfig(temperature=1.0))
    tokens_BT, fork_B = np.asarray(tiny.tree().tokens_BT), np.array([6, 4], np.int32)

    def rollouts(mesh):
        places = jax.tree.map(lambda x: x.sharding, decoder.abstract(CFG, mesh))
        with jax.set_mesh(mesh):
            batch = put_batch(mesh, (tokens_BT, fork_B, np.arange(2)))
            return run(jax.device_put(tiny.params(CFG), places), *batch, jax.random.key(1))

    one, many = rollouts(meshes.single()), rollouts(meshes.build(MeshConfig(2, 2, 2)))
    np.testing.assert_array_equal(one.tokens_BCR, many.tokens_BCR)
    close(one.logp_BCR, many.logp_BCR, 1e-5)


@pytest.mark.slow  # test_session deepens a dense model
def test_copies_of_layers_change_nothing_at_first():
    """The output biases of copied layers are zero too."""
    deep = dataclasses.replace(CFG, layers=4)
    params = decoder.deepen(tiny.params(CFG), deep)
    assert not params["blocks"]["block"]["b_down"][2:].any()
    want, got = (
        tiny.forward(p, c, tiny.tree()) for p, c in ((tiny.params(CFG), CFG), (params, deep))
    )
    close(want, got, 1e-5)
