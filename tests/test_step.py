"""Tests the update on a loss of three numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from sip import mesh as meshes
from sip.objectives.logprobs import masked_pair
from sip.structs import TrainState
from sip.training import optim, step

W = np.array([0.5, -1.0, 2.0], np.float32)


def terms(params, reference, batch):
    """Returns two squared errors, each over its own rows."""
    out_B = batch["x"] @ params["w"]
    near = masked_pair((out_B - 1.0) ** 2, batch["near"])
    return {"near": near, "far": masked_pair(out_B**2, batch["far"])}, {
        "out": masked_pair(out_B, batch["far"])
    }


def rising(at):
    """Returns weights(step)."""
    return {"near": 1.0, "far": 0.5 + at}


@functools.cache
def updater(microbatches=1, weights=rising):
    return step.make_update(terms, TX, weights, microbatches=microbatches)


TX = optim.build(optim.OptimConfig(lr=0.1, steps=10, warmup_steps=5))


def state(reference=None):
    """Returns a state with new buffers, because the update donates them."""
    params = {"w": jnp.array(W)}
    zero = lambda: jnp.zeros((), jnp.int32)
    return TrainState(zero(), params, TX.init(params), reference, zero(), zero())


def batch(seed=0, near=(1, 1, 1, 0, 0, 0, 0, 0), far=(0, 0, 1, 1, 1, 1, 0, 1)):
    x_BD = np.random.default_rng(seed).standard_normal((8, 3)).astype(np.float32)
    return {"x": x_BD, "near": np.array(near, bool), "far": np.array(far, bool)}


def same(got, want, **tolerance):
    check = functools.partial(np.testing.assert_allclose, **{"rtol": 0, "atol": 0} | tolerance)
    jax.tree.map(check, jax.device_get(got), jax.device_get(want))


def test_the_loss_is_the_weighted_sum_of_means():
    b = batch()
    _, metrics = updater()(state().replace(step=jnp.int32(2)), b)
    out_B = b["x"] @ W
    near, far = ((out_B - 1) ** 2)[:3], (out_B**2)[[2, 3, 4, 5, 7]]
    same(metrics["loss/near"], (near.sum(), 3.0), rtol=1e-5)
    same(metrics["loss/far"], (far.sum(), 5.0), rtol=1e-5)
    same(metrics["loss/total"], (near.mean() + 2.5 * far.mean(), 1.0), rtol=1e-5)
    same(metrics["out"], (out_B[[2, 3, 4, 5, 7]].sum(), 5.0), rtol=1e-5)
    slope = 2 * (out_B[:3] - 1) @ b["x"][:3] / 3 + 5 * (out_B * b["far"]) @ b["x"] / 5
    same(metrics["grad/norm"], (np.linalg.norm(slope), 1.0), rtol=1e-5)


@pytest.mark.parametrize("microbatches", [2, 4, 8])
def test_microbatches_change_nothing(microbatches):
    whole, metrics = updater()(state(), batch())
    parts, others = updater(microbatches)(state(), batch())
    same(parts, whole, rtol=1e-5)
    same(others, metrics, rtol=1e-5)


@pytest.mark.parametrize("microbatches", [1, 4])
def test_a_term_without_valid_items_is_zero_and_changes_nothing(microbatches):
    b = batch(far=[0] * 8)
    alone, _ = updater(microbatches, lambda at: {"near": 1.0, "far": 0.0})(state(), b)
    got, metrics = updater(microbatches)(state(), b)
    same(got, alone)
    same(metrics["loss/far"], (0.0, 0.0))
    assert np.isfinite(metrics["loss/total"][0])


def test_a_batch_without_any_valid_item_changes_no_parameter():
    got, metrics = updater()(state(), batch(near=[0] * 8, far=[0] * 8))
    same(got.params, {"w": W})
    same((metrics["loss/total"], metrics["grad/norm"]), ((0.0, 1.0), (0.0, 1.0)))
    assert int(got.skipped) == 0 and int(got.step) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_batch_that_is_not_finite_changes_nothing_and_is_counted(bad):
    before, _ = updater()(state(), batch())
    kept = jax.device_get((before.params, before.opt_state))
    spoiled = batch()
    spoiled["x"][2, 1] = bad  # 1e30 overflows in the square
    after, metrics = updater()(before, spoiled)
    same((after.params, after.opt_state), kept)
    assert [int(x) for x in (after.step, after.skipped_in_row, after.skipped)] == [2, 1, 1]
    same(metrics.pop("grad/skipped_in_row"), (1.0, 1.0))
    assert not any(float(x) for x in jax.tree.leaves(metrics)), "a skipped update measured nothing"


def test_bad_batches_count_up_until_a_good_one():
    spoiled = batch()
    spoiled["x"][2, 1] = np.nan
    now, rows = state(), []
    for b in spoiled, spoiled, batch(), spoiled:
        now, _ = updater()(now, b)
        rows.append((int(now.skipped_in_row), int(now.skipped)))
    assert rows == [(1, 1), (2, 2), (0, 2), (1, 3)]
    assert int(optax.tree_utils.tree_get(now.opt_state, "count", filtering=is_adam)) == 1


def is_adam(path, value):
    return any("ScaleByAdam" in str(part) for part in path)


def test_rows_that_a_mask_hides_may_hold_anything():
    spoiled = batch()
    spoiled["x"][6] = 1e9  # in neither mask
    same(updater()(state(), spoiled)[0], updater()(state(), batch())[0])


def test_the_reference_outlives_donated_updates():
    now = step.state_of(tiny.params(), tiny.CFG, TX, meshes.single(), reference=True)
    product = lambda x, y: jax.tree.reduce(jnp.add, jax.tree.map(lambda a, b: (a * b).sum(), x, y))
    towards = lambda params, reference, b: ({"sum": (product(params, reference) * b[0], b[0])}, {})
    update = step.make_update(towards, TX, lambda at: {"sum": 1.0})
    for _ in range(2):
        before = now
        now, _ = update(now, jnp.ones(2))
        assert all(x.is_deleted() for x in jax.tree.leaves(before.params)), "donated"
    same(now.reference, tiny.params())
    assert not any(x.is_deleted() for x in jax.tree.leaves(tiny.params())), "the caller keeps his"
    assert (now.params["embed"] != now.reference["embed"]).any() and int(now.step) == 2


def test_a_fresh_state_is_what_abstract_state_says():
    mesh = meshes.single()
    with jax.default_prng_impl("unsafe_rbg"):  # the default takes seconds to compile
        fresh = step.init_state(tiny.CFG, TX, mesh, 3, reference=True)
        other = step.init_state(tiny.CFG, TX, mesh, 4, reference=True)
    abstract = step.abstract_state(tiny.CFG, TX, mesh, reference=True)
    describe = lambda x: (x.shape, x.dtype, x.sharding)
    assert jax.tree.map(describe, fresh) == jax.tree.map(describe, abstract)
    same(fresh.reference, fresh.params)
    assert (fresh.params["embed"] != other.params["embed"]).any()
    assert step.abstract_state(tiny.CFG, TX, mesh, reference=False).reference is None


@pytest.mark.parametrize("where", ["parameters", "moments"])
def test_an_update_with_a_result_that_is_not_finite_is_skipped(where):
    """Loss and gradient are finite; one number overflows in the optimiser."""

    def update(grads, moments, params):
        large = jnp.array([1.0, 1.0, 3e38]) * 10 * jnp.sign(grads["w"])
        small = jnp.zeros(3)
        return ({"w": large}, small) if where == "parameters" else ({"w": small}, large)

    tx = optax.GradientTransformation(lambda params: jnp.ones(3), update)
    zero = lambda: jnp.zeros((), jnp.int32)
    before = TrainState(zero(), {"w": jnp.array(W)}, tx.init(W), None, zero(), zero())
    after, metrics = step.make_update(terms, tx, rising)(before, batch())
    same((after.params, after.opt_state), ({"w": W}, np.ones(3)))
    assert [int(x) for x in (after.step, after.skipped_in_row, after.skipped)] == [1, 1, 1]
    assert not float(metrics["loss/total"][1]), "a skipped update measured nothing"


def test_runs_that_differ_in_their_schedule_share_a_program_and_no_others_do():
    cfg = optim.OptimConfig(lr=0.1, steps=10)
    make = lambda **changes: step.make_update(
        terms, optim.build(dataclasses.replace(cfg, **changes)), rising
    )
    one, other = make(), make(lr=0.2, steps=99, schedule="wsd", warmup_steps=3)
    assert one.program is other.program and not np.array_equal(one.rates_S, other.rates_S)
    for changes in (dict(b1=0.8), dict(weight_decay=0.1), dict(clip_norm=2.0), dict(name="muon")):
        assert make(**changes).program is not one.program, changes


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("params", 3e38),
        ("mu", np.nan),
        ("mu", np.inf),
        ("nu", -1.0),
        ("nu", np.inf),
        ("nu", np.nan),
    ],
)
def test_a_state_that_may_overflow_is_kept(where, value):
    before, _ = updater()(state(), batch())
    spoil = lambda x: x.at[1].set(value)
    if where == "params":
        before = before.replace(params=jax.tree.map(spoil, before.params))
    else:
        opt_state = optax.tree.set(
            before.opt_state,
            **{where: jax.tree.map(spoil, optax.tree.get(before.opt_state, where))},
        )
        before = before.replace(opt_state=opt_state)
    kept = jax.device_get((before.params, before.opt_state))
    after, _ = updater()(before, {**batch(), "x": np.zeros((8, 3), np.float32)})
    same((after.params, after.opt_state), kept)
    assert int(after.skipped) == 1


@pytest.mark.parametrize("name", ["mu", "nu"])
@pytest.mark.parametrize("at", [0, 9, 15])
def test_a_state_with_a_nan_on_one_of_several_devices_is_kept(name, at):
    """A least number over devices may drop it."""
    split = jax.sharding.NamedSharding(jax.make_mesh((4,), ("d",)), jax.P("d"))
    params = {"w": jax.device_put(jnp.ones(16), split)}
    spoiled = jax.device_put(jnp.zeros(16).at[at].set(np.nan), split)
    opt_state = optax.tree.set(TX.init(params), **{name: {"w": spoiled}})
    assert not jax.jit(TX.stays_finite)(params, opt_state)
    assert jax.jit(TX.stays_finite)(params, TX.init(params))


@pytest.mark.parametrize("ok", [True, False])
def test_a_gpu_selects_and_does_not_branch(ok, monkeypatch):
    """A branch there stops the host until the gradient is known."""
    apply = lambda grads, opt_state, old: (old - grads, opt_state + 1)
    found = []
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda name=backend: name)
        args = jnp.bool_(ok), jnp.float32(1), jnp.float32(2), jnp.float32(1)
        one = lambda ok, *rest: step._applied_if(ok, apply, *rest)
        found.append(str(jax.make_jaxpr(one)(*args)).count("cond["))
        same(one(*args), (1.0, 2.0) if ok else (2.0, 1.0))
    assert found == [1, 0]


def test_a_gradient_of_infinite_norm_is_skipped():
    """Its entries are finite, and so is the loss."""
    steep = lambda params, reference, b: ({"l": (params["w"][0] * 1e20, jnp.float32(1))}, {})
    after, _ = step.make_update(steep, TX, lambda at: {"l": 1.0})(state(), batch())
    same(after.params, {"w": W})
    assert int(after.skipped) == 1


def test_a_result_that_is_checked_before_is_the_one_checked_afterwards():
    after_all = step.make_update(terms, dataclasses.replace(TX, stays_finite=None), rising)
    known, checked = state(), state()
    for seed in range(4):
        known, _ = updater()(known, batch(seed))
        checked, _ = after_all(checked, batch(seed))
    same(known, checked, rtol=1e-6)
    assert TX.stays_finite is not None and int(known.skipped) == 0


def test_a_result_that_is_checked_before_has_no_memory_of_its_own():
    """At most a gradient and its clipped copy are held beside a donated state."""
    tx, size = optim.build(optim.OptimConfig(lr=0.1, steps=10)), 4 << 16
    held = lambda params, reference, b: ({"l": ((params["w"] * b["x"]).sum(), jnp.float32(1))}, {})
    zero = lambda: jnp.zeros((), jnp.int32)
    params = {"w": jnp.ones(size // 4)}
    now = TrainState(zero(), params, tx.init(params), None, zero(), zero())
    temporary = [
        step.make_update(held, one, lambda at: {"l": 1.0})
        .trace(now, {"x": np.ones(size // 4, np.float32)})
        .lower()
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        / size
        for one in (tx, dataclasses.replace(tx, stays_finite=None))
    ]
    assert temporary[0] < 2.1 < temporary[1], temporary
