"""Tests LoRA factors on a frozen base: same function merged or not; nothing else is trained."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import jaxprs
import numpy as np
import pytest
import tiny

from sip import loading
from sip import mesh as meshes
from sip import run as runs
from sip.mesh import put_batch
from sip.models import decoder, int8, lora, presets
from sip.models.lora import LoraConfig
from sip.models.parameters import MATRICES
from sip.objectives.logprobs import masked_pair
from sip.structs import UserError
from sip.training import checkpoints, losses, optim, step

CFG = tiny.CFG
LORA = LoraConfig(rank=2, alpha=3.0)
SOME = LoraConfig(rank=2, alpha=3.0, matrices=("wq", "wo", "w_down"), int8=True)
# eps far above rounding, since Adam's first step blows up the noise of a tiny gradient.
OPTIM = optim.OptimConfig(lr=0.05, steps=9, eps=1e-3, weight_decay=0.1, schedule="constant")
TX = optim.build(OPTIM)
ONE = meshes.single()


def rounded(params):
    """Returns the matrices in int8."""
    block = params["blocks"]["block"]
    held = {k: int8.quantise(k, x) if k in MATRICES else x for k, x in block.items()}
    return {**params, "blocks": {"block": held}}


def adapted(wanted=LORA, base=None, seed=1) -> lora.Adapted:
    """Returns factors that differ from their initial values."""
    base = tiny.params(CFG) if base is None else base
    rng = np.random.default_rng(seed)
    draw = lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32)
    shapes = jax.eval_shape(lambda: lora.init(base, wanted, jax.random.key(0)))
    return lora.Adapted(base, jax.tree.map(draw, shapes), wanted.scale)


def close(got, want, **tolerance):
    tolerance = {"rtol": 1e-5, "atol": 1e-5} | tolerance
    check = functools.partial(np.testing.assert_allclose, **tolerance)
    jax.tree.map(check, jax.device_get(got), jax.device_get(want))


def same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), jax.device_get(want))


def state(wanted=LORA, *, mesh=ONE):
    """Returns a state at step 0 with its own buffers, because an update donates them."""
    base = rounded(tiny.params(CFG)) if wanted.int8 else tiny.params(CFG)
    base = jax.tree.map(jnp.copy, base)
    return step.adapted_state(base, CFG, TX, mesh, 0, adapter=wanted)


def texts():
    tokens_BT = np.random.default_rng(0).integers(0, CFG.vocab_size, (4, 6))
    return jax.device_get(tiny.trunk_only(tokens_BT)), np.ones((4, 6), bool)


@functools.cache
def updater():
    return step.make_update(losses.tokens_terms(CFG), TX, lambda _: {"ce": 1.0})


def updates(state, times):
    found = []
    for _ in range(times):
        state, metrics = updater()(state, texts())
        found.append({k: float(total) / float(denom) for k, (total, denom) in metrics.items()})
    return state, found


def test_factors_by_hand():
    x, a, b = jnp.array([[[1.0, 2.0]]]), jnp.array([[3.0], [4.0]]), jnp.array([[5.0, 6.0]])
    assert lora.project(x, a, b, contract=1).tolist() == [[[55.0, 66.0]]]
    base = {"blocks": {"block": {"w_up": jnp.ones((1, 2, 2)), "w_down": jnp.ones((1, 2, 2))}}}
    found = lora.merged(lora.Adapted(base, {"w_up_a": a[None], "w_up_b": b[None]}, 0.5))
    assert found["blocks"]["block"]["w_up"].tolist() == [[[8.5, 10.0], [11.0, 13.0]]]
    assert found["blocks"]["block"]["w_down"] is base["blocks"]["block"]["w_down"]


@pytest.mark.slow  # test_dpo_begins_at_ln_2, and gradients of the merged
def test_a_fresh_adapter_changes_nothing_and_a_learned_one_what_its_merged_one_does():
    tree, base = tiny.tree(), tiny.params(CFG)
    fresh = lora.Adapted(base, lora.init(base, LORA, jax.random.key(0)), LORA.scale)
    want = tiny.forward(base, CFG, tree)
    same(tiny.forward(fresh, CFG, tree), want)
    assert all(float(jnp.abs(x).max()) > 0 for k, x in fresh.factors.items() if k.endswith("_a"))
    got = tiny.forward(adapted(), CFG, tree)
    close(got, tiny.forward(lora.merged(adapted()), CFG, tree), atol=1e-4)
    assert np.abs(got[0] - want[0]).max() > 0.1


def test_a_base_in_int8_is_adapted_alike():
    params, tree = adapted(SOME, rounded(tiny.params(CFG))), tiny.tree()
    close(tiny.forward(params, CFG, tree), tiny.forward(lora.merged(params), CFG, tree), atol=1e-4)


def test_gradients_of_factors_are_those_of_the_merged_matrices_by_the_chain_rule():
    params, tree = adapted(dataclasses.replace(SOME, int8=False)), tiny.tree()
    loss = lambda params: tiny.forward(params, CFG, tree)[3].sum()
    got = jax.grad(lambda factors: loss(params.replace(factors=factors)))(params.factors)
    whole = jax.grad(loss)(lora.merged(params))["blocks"]["block"]["wo"]
    a, b = params.factors["wo_a"], params.factors["wo_b"]  # LGQHZ, LZD
    close(got["wo_a"], SOME.scale * jnp.einsum("LGQHD,LZD->LGQHZ", whole, b), atol=1e-4)
    close(got["wo_b"], SOME.scale * jnp.einsum("LGQHZ,LGQHD->LZD", a, whole), atol=1e-4)


def test_no_gradient_of_a_frozen_matrix_is_ever_computed():
    tree, params = tiny.trunk_only(np.zeros((4, 5), int)), adapted()
    loss = lambda params: decoder.apply(params, CFG, tree).trunk_BTD.sum()
    of_factors = lambda factors: loss(params.replace(factors=factors))

    def products(loss, x):
        found = jaxprs.shapes(jaxprs.live(jax.make_jaxpr(jax.grad(loss))(x)), "dot_general")
        return {tuple(sorted(shape)) for shape in found}  # some are transposed after the product

    D, GQH, GH, F = 16, 16, 8, 24
    matrices = {(D, GQH), (GH, D), (D, F)}
    assert matrices <= products(loss, params.base)
    assert not matrices & products(of_factors, params.factors)


@pytest.mark.slow  # any optimiser goes on: test_checkpoints
def test_three_updates_of_factors_alone_a_save_and_three_more_are_six(tmp_path):
    start = state(SOME)
    base, before = jax.device_get(start.params.base), jax.device_get(start.params.factors)
    six, found = updates(start, 6)
    same(six.params.base, base)
    assert all(np.abs(x - before[k]).max() > 1e-3 for k, x in six.params.factors.items())
    assert found[-1]["loss/ce"] < found[0]["loss/ce"] - 0.1
    three, _ = updates(state(SOME), 3)
    with checkpoints.manager(str(tmp_path)) as manager:
        checkpoints.save(manager, three, {})
    with checkpoints.manager(str(tmp_path)) as manager:
        abstract = step.abstract_state(CFG, TX, ONE, reference=False, adapter=SOME)
        again, _ = checkpoints.restore(manager, abstract)
    same(updates(again, 3)[0], six)


def test_the_base_is_the_reference():
    """By hand: the loss is the mean square of 0.5 * A B, because the base is subtracted."""
    a, b = jnp.array([[[3.0], [4.0]]]), jnp.array([[[1.0, -2.0]]])
    base = {"blocks": {"block": {"w_up": jnp.full((1, 2, 2), 7.0)}}}
    params = lora.Adapted(base, {"w_up_a": a, "w_up_b": b}, 0.5)
    tx = optim.build(OPTIM)
    start = dataclasses.replace(step._fresh(params.factors, tx, False), params=params)

    def terms(params, reference, batch):
        apart = [lora.merged(params), reference]
        w, old = (x["blocks"]["block"]["w_up"] for x in apart)
        return {"x": masked_pair((w - old).reshape(1, -1) ** 2 + 0 * batch, batch > 0)}, {}

    update = step.make_update(terms, tx, lambda _: {"x": 1.0}, microbatches=2)
    after, metrics = update(start, jnp.ones((2, 4)))
    total, denom = metrics["loss/x"]
    assert float(total / denom) == pytest.approx(0.25 * (9 + 36 + 16 + 64) / 4)
    assert after.params.base["blocks"]["block"]["w_up"].tolist() == [[[7.0, 7.0], [7.0, 7.0]]]
    assert after.reference is None and step.frozen(after) is after.params.base


def test_dpo_begins_at_ln_2():
    tree = tiny.tree(B=4, C=2)
    zeros_BCR = jnp.zeros(tree.tokens_BCR.shape)
    rows = losses.Branches(tree, zeros_BCR[..., 0] == 0, zeros_BCR[..., 0], zeros_BCR, tree.mask_BT)
    terms = jax.jit(losses.branch_terms(CFG, losses.ObjectiveConfig("dpo")))
    at = state()
    total, denom = terms(at.params, step.frozen(at), rows)[0]["dpo"]
    assert float(total / denom) == pytest.approx(math.log(2), abs=1e-6)


def on_eight():
    """Returns a mesh, a state on it, and an equal state on a single device."""
    mesh = meshes.build(meshes.MeshConfig(2, 2, 2))
    return mesh, state(SOME, mesh=mesh), state(SOME)


EIGHT = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")


@EIGHT
@pytest.mark.slow  # test_sharding has the letters
def test_factors_lie_as_their_letters_say_and_compute_the_same():
    mesh, cut, _ = on_eight()
    specs = {k: tuple(x.sharding.spec) for k, x in cut.params.factors.items()}
    assert specs["wq_a"] == (None, "fsdp", None)
    assert specs["wq_b"] == (None, None, "tensor", None, None)
    assert specs["wo_a"] == (None, "tensor", None, None, None)
    assert specs["wo_b"] == (None, None, "fsdp")
    moments = jax.tree.leaves(cut.opt_state[1])
    assert {x.sharding for x in cut.params.factors.values()} <= {x.sharding for x in moments}
    want, tree = adapted(SOME, rounded(tiny.params(CFG))), tiny.tree(B=4)
    places = jax.tree.map(lambda x: x.sharding, cut.params)
    with jax.set_mesh(mesh):
        got = tiny.forward(jax.device_put(want, places), CFG, tree)
    close(got, tiny.forward(want, CFG, tree), atol=1e-4)


@EIGHT
@pytest.mark.slow
def test_an_update_on_eight_devices_is_one_on_one():
    mesh, cut, alone = on_eight()
    alone, _ = updates(alone, 1)
    with jax.set_mesh(mesh):
        cut, _ = updater()(cut, put_batch(mesh, texts()))
    close(cut.params, alone.params, atol=2e-4)


@pytest.mark.slow
def test_a_run_is_read_merged_as_it_is_or_in_int8(tmp_path):
    wanted = dataclasses.replace(SOME, int8=False)
    params = adapted(wanted)
    record = {"model": dataclasses.asdict(CFG), "config": {"lora": dataclasses.asdict(wanted)}}
    checkpoints.save_params(str(tmp_path), params, record)
    want = lora.merged(params)
    load = lambda dtype="": loading.load_params(str(tmp_path), ONE, dtype)[0]
    close(load(), want, atol=0)
    same(load("int8")["blocks"]["block"]["wk"], int8.quantise("wk", want["blocks"]["block"]["wk"]))


def test_what_is_trained_and_kept_for_it_is_counted():
    """Rank 16 on all matrices of Llama 3 8B has 41,943,040 parameters, a well-known number."""
    cfg = presets.preset("llama3_8b")
    adapter = LoraConfig(rank=16, int8=True)
    found = step.abstract_state(cfg, TX, ONE, reference=True, adapter=adapter)
    D, G, Q, H, F, L = 4096, 8, 4, 128, 14336, 32
    by_hand = 16 * L * (2 * (D + G * Q * H) + 2 * (D + G * H) + 3 * (D + F))
    trained = sum(math.prod(x.shape) for x in found.params.factors.values())
    assert trained == by_hand == 41_943_040
    assert int8.size(found.params.factors) == 4 * by_hand and found.reference is None
    assert 8 * by_hand <= int8.size(found.opt_state) < 8 * by_hand + 100
    matrices, embeddings = 6_979_321_856, 2 * 128256 * 4096
    assert matrices + 2 * embeddings < int8.size(found.params.base) < 9.15e9


def test_muon_moves_each_layers_factors_in_orthogonal_directions():
    tx = optim.build(dataclasses.replace(OPTIM, name="muon", weight_decay=0.0))
    factors = adapted(LoraConfig(rank=2, matrices=("wq",))).factors
    moved = jax.jit(lambda g: tx.update(g, tx.init(g), g)[0])(factors)
    for name, shape in (("wq_a", (2, 16, 2)), ("wq_b", (2, 2, 16))):
        values_LZ = np.linalg.svd(np.asarray(moved[name]).reshape(shape), compute_uv=False)
        lengths_LZ = values_LZ / (OPTIM.lr * OPTIM.rms * math.sqrt(16))
        assert ((lengths_LZ > 0.6) & (lengths_LZ < 1.3)).all(), lengths_LZ


def test_parameters_in_bfloat16_are_moved_in_float32_and_rounded():
    cfg = dataclasses.replace(CFG, param_dtype="bfloat16")
    shapes = step.abstract_state(cfg, TX, ONE, reference=False)
    assert shapes.params["embed"].dtype == jnp.bfloat16
    assert shapes.params["final_norm"].dtype == jnp.float32
    assert all(x.dtype != jnp.bfloat16 for x in jax.tree.leaves(shapes.opt_state))

    def terms(params, reference, batch):
        return {"x": masked_pair((params["w"].astype(jnp.float32) - 1.0) ** 2, batch)}, {}

    tx = optim.build(dataclasses.replace(OPTIM, weight_decay=0.0))
    update = step.make_update(terms, tx, lambda _: {"x": 1.0})
    w = jnp.array([0.5, -1.0, 2.0, 256.0])  # their gradients are exact in bfloat16
    after = {}
    for dtype in (jnp.bfloat16, jnp.float32):
        start = step._fresh({"w": w.astype(dtype)}, tx, False)
        after[dtype], _ = update(start, jnp.ones(4, bool))
    half, whole = after[jnp.bfloat16], after[jnp.float32]
    np.testing.assert_array_equal(half.params["w"], whole.params["w"].astype(jnp.bfloat16))
    same(half.opt_state, whole.opt_state)
    assert half.params["w"][3] == 256.0 != whole.params["w"][3]  # lost, as the docstring says


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(rank=-1), r"lora\.rank=-1: must be >= 0"),
        (dict(rank=1, alpha=0.0), r"lora\.alpha=0\.0: must be finite and > 0"),
        (dict(rank=1, matrices=("embed",)), r"lora\.matrices: no 'embed'"),
        (dict(rank=1, matrices=("wq", "wq")), "each once"),
        (dict(int8=True), r"lora\.int8 needs a frozen base"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        LoraConfig(**changes)


def test_what_factors_add_is_scaled_by_alpha_over_rank():
    assert lora.LoraConfig(rank=4, alpha=2.0).scale == 0.5


def test_fresh_parameters_are_not_frozen():
    with pytest.raises(UserError, match=r"lora\.rank: LoRA needs init_from"):
        run = dict.fromkeys(f.name for f in dataclasses.fields(runs.RunConfig))
        runs.RunConfig(**{**run, "init_from": "", "lora": LORA})


@pytest.mark.slow  # deepening: test_session
def test_an_int8_base_is_deepened_as_any():
    base = rounded(tiny.params(CFG))
    block = decoder.deepen(base, dataclasses.replace(CFG, layers=3))["blocks"]["block"]
    old = base["blocks"]["block"]
    same(jax.tree.map(lambda x: x[:2], block["wq"]), old["wq"])
    same(jax.tree.map(lambda x: x[2], block["wq"]), jax.tree.map(lambda x: x[0], old["wq"]))
    assert not np.asarray(block["wo"].q[2]).any() and not np.asarray(block["wo"].scale[2]).any()
