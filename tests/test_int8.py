"""Tests int8 matrices: by hand, against their float values, and as they are loaded."""

import contextlib
import dataclasses

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sip import loading
from sip import mesh as meshes
from sip.bench import int8 as int8_bench
from sip.hf import reading
from sip.judge import prompts
from sip.judge.build import JudgeConfig
from sip.judge.labels.ground_truth import LabelledPrompts
from sip.judge.proofread import ProofreadConfig
from sip.loading import LoadedModel
from sip.models import int8, parameters
from sip.models.int8 import Int8
from sip.models.parameters import COARSE, MATRICES
from sip.structs import UserError
from sip.text.tokenizer import Byte
from sip.training import checkpoints, step

ONE = meshes.single()
EXPERTS = tiny.model(experts=4, active=2)
RAW = {**families.config("llama32_odd"), "torch_dtype": "float32"}
# Experts are more letters of the same rule.
DENSE_AND_EXPERTS = pytest.mark.parametrize(
    "cfg",
    [
        pytest.param(tiny.CFG, id="dense"),
        pytest.param(EXPERTS, id="experts", marks=pytest.mark.slow),
    ],
)


def held(params):
    """Returns the int8 matrices of a model."""
    block = params["blocks"]["block"]
    rounded = {k: int8.quantise(k, x) if k in COARSE else x for k, x in block.items()}
    return {**params, "blocks": {"block": rounded}}


def dequantised(params):
    block = params["blocks"]["block"]
    floats = {k: int8.whole(k, x) if isinstance(x, Int8) else x for k, x in block.items()}
    return {**params, "blocks": {"block": floats}}


def same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), jax.device_get(want))


def test_a_matrix_by_hand():
    w_LDF = jnp.array([[[127.0, -4.0, 0.0], [64.4, 1.0, 0.0]]])
    got = int8.quantise("w_up", w_LDF)
    assert got.q.tolist() == [[[127, -127, 0], [64, 32, 0]]] and got.q.dtype == jnp.int8
    np.testing.assert_allclose(got.scale, [[1.0, 4 / 127, 0.0]], rtol=1e-6)
    x = jnp.array([[[1.0, 2.0]]])
    out = int8.project(x, Int8(got.q[0], got.scale[0]), contract=1)
    np.testing.assert_allclose(out, [[[127 + 128, (-127 + 64) * 4 / 127, 0.0]]], rtol=1e-6)


@pytest.mark.parametrize("name", ["wq", "wo", "w_down"])
def test_no_weight_moves_by_more_than_half_a_step(name):
    w_L = tiny.params()["blocks"]["block"][name]
    got = int8.quantise(name, w_L)
    reads = len(MATRICES[name][0])
    size = np.expand_dims(np.asarray(got.scale), tuple(range(1, 1 + reads)))
    apart = np.abs(np.asarray(int8.whole(name, got)) - w_L)
    assert (apart <= size / 2 * (1 + 1e-4)).all() and apart.max() > 0
    assert got.scale.shape == (w_L.shape[0], *w_L.shape[1 + reads :])


@DENSE_AND_EXPERTS
def test_the_decoder_computes_with_what_int8_stands_for(cfg):
    params, tree = held(tiny.params(cfg)), tiny.tree()
    got, want = (tiny.forward(p, cfg, tree) for p in (params, dequantised(params)))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert np.abs(got[0] - tiny.forward(tiny.params(cfg), cfg, tree)[0]).max() > 1e-3


def test_each_expert_has_scales_of_its_own_and_the_router_stays_as_it_is():
    block = held(tiny.params(EXPERTS))["blocks"]["block"]
    L, E, D, F = EXPERTS.layers, EXPERTS.experts, EXPERTS.width, EXPERTS.hidden
    assert block["w_up"].q.shape == (L, E, D, F) and block["w_up"].scale.shape == (L, E, F)
    assert block["w_down"].scale.shape == (L, E, D)
    assert block["w_router"].dtype == jnp.float32
    last = np.asarray(tiny.params(EXPERTS)["blocks"]["block"]["w_up"][-1, -1])
    largest_F = np.abs(last).max(0) / int8.MOST
    np.testing.assert_allclose(block["w_up"].scale[-1, -1], largest_F, rtol=1e-6)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Saves a Hugging Face checkpoint, and the same parameters as a run."""
    path = tmp_path_factory.mktemp("both")
    families.write(RAW, path / "theirs")
    params, cfg = reading.load(path / "theirs", ONE)
    checkpoints.save_params(str(path / "ours"), params, {"model": dataclasses.asdict(cfg)})
    return str(path / "theirs"), str(path / "ours")


@pytest.mark.slow
def test_either_kind_of_checkpoint_is_held_alike(both):
    theirs, ours = (loading.load_params(path, ONE, "bfloat16")[0] for path in both)
    same(theirs, ours)
    assert ours["blocks"]["block"]["wq"].dtype == ours["embed"].dtype == jnp.bfloat16
    assert ours["blocks"]["block"]["mlp_norm"].dtype == jnp.float32


@pytest.mark.slow
def test_either_kind_is_read_by_one_matrix_at_a_time_into_int8(both, monkeypatch):
    original, parts = checkpoints.reading, []

    @contextlib.contextmanager
    def spied(*args):
        with original(*args) as read:
            yield lambda part: parts.append(part) or read(part)

    monkeypatch.setattr(checkpoints, "reading", spied)
    theirs, ours = (loading.load_params(path, ONE, "int8")[0] for path in both)
    same(theirs, ours)
    same(ours, held(loading.load_params(both[1], ONE)[0]))
    names = [set(part["blocks"]["block"]) & set(COARSE) for part in parts]
    assert sorted(map(len, names)) == [0] + [1] * len(COARSE)
    assert set().union(*names) == set(COARSE)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
@DENSE_AND_EXPERTS
@pytest.mark.slow
def test_it_is_sharded_as_the_weights_are(cfg, tmp_path):
    checkpoints.save_params(str(tmp_path), tiny.params(cfg), {"model": dataclasses.asdict(cfg)})
    mesh = meshes.build(meshes.MeshConfig(2, 2, 2))
    got = loading.load_params(str(tmp_path), mesh, "int8")[0]
    same(got, held(tiny.params(cfg)))
    wq, wo = (got["blocks"]["block"][name] for name in ("wq", "wo"))
    assert tuple(wq.q.sharding.spec) == (None, "fsdp", "tensor", None, None)
    assert tuple(wq.scale.sharding.spec) == (None, "tensor", None, None)
    assert tuple(wo.scale.sharding.spec) == (None, "fsdp")


def test_bytes_are_about_a_quarter(both):
    cfg = loading.recorded_model(both[1])
    wanted = {dtype: step.abstract_params(cfg, ONE, dtype) for dtype in ("float32", "int8")}
    block = {k: int8.size(p["blocks"]["block"]) for k, p in wanted.items()}
    assert 0.25 * block["float32"] < block["int8"] < 0.45 * block["float32"]  # tiny: many scales


ASPECT = dataclasses.replace(prompts.load("quality"), options=("1", "2"))
BYTES = tiny.model(vocab_size=264, max_len=512)


def asked():
    rows = [(f"trunk {i}", [f"branch {c}" for c in range(3)]) for i in range(2)]
    labels_NC = np.array([[0, 1, 0], [1, 1, 0]])
    return LabelledPrompts(ASPECT, rows, labels_NC, np.ones((2, 3), bool))


def test_bfloat16_weights_change_nothing_that_is_computed_in_bfloat16():
    cfg, params = tiny.model(dtype="bfloat16"), tiny.params()
    half = parameters.held(params, jnp.bfloat16)
    assert half["embed"].dtype == jnp.bfloat16
    same(tiny.forward(half, cfg, tiny.tree()), tiny.forward(params, cfg, tiny.tree()))


def test_differences_by_hand():
    p_NCO = np.array([[[0.9, 0.1], [0.6, 0.4], [0.5, 0.5]], [[0.2, 0.8], [0.3, 0.7], [0.9, 0.1]]])
    other_NCO = p_NCO.copy()
    other_NCO[0, 1] = [0.4, 0.6]
    found = int8_bench.differences(asked(), np.log(p_NCO), np.log(other_NCO))
    assert found["verdicts"] == 6 and found["flips"] == 1
    assert found["largest"] == pytest.approx(0.2) and found["mean"] == pytest.approx(0.2 / 6)
    assert found["accuracy_float32"] == pytest.approx(5 / 6) and found["accuracy"] == 1.0


def test_a_judge_is_measured_against_itself():
    params = tiny.params(BYTES)
    load = lambda dtype: LoadedModel(
        held(params) if dtype == "int8" else params, BYTES, Byte(), ONE
    )
    found = int8_bench.measure(load, {"quality": asked()}, ("int8", "float32"))
    assert found["float32"]["aspects"]["quality"]["largest"] == 0.0
    assert 0 < found["int8"]["aspects"]["quality"]["largest"] < 0.2
    assert found["int8"]["bytes"] < found["int8"]["bytes_float32"]


def test_an_unknown_dtype_is_refused():
    with pytest.raises(UserError, match=r"proofread\.param_dtype must be empty or one of"):
        ProofreadConfig(param_dtype="int4")
    with pytest.raises(UserError, match=r"judge\.param_dtype needs backend local"):
        JudgeConfig(backend="truth", weights=(("quality", 1.0),), param_dtype="int8")
