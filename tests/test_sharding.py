"""Tests that eight devices give the same as one: placement, updates, rollouts and verdicts."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sip import mesh as meshes
from sip import sampling
from sip.loading import LoadedModel
from sip.mesh import put_batch
from sip.models import decoder
from sip.models.config import ModelConfig
from sip.structs import Tree
from sip.text.tokenizer import Byte
from sip.textgen.local import Local
from sip.training import losses, optim, step

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")

# Every size divides by 8, so that any mesh of eight devices cuts it.
CFG = ModelConfig(
    vocab_size=264,
    width=16,
    layers=2,
    kv_heads=8,
    queries_per_kv=2,
    head_dim=4,
    hidden=24,
    max_len=64,
    remat="block",
    query_chunk=8,
    branch_chunk=2,
    logprob_chunk=5,
)
B, T, R, K = 8, 16, 6, 4
MESHES = {"2x2x2": (2, 2, 2), "1x8x1": (1, 8, 1), "1x1x8": (1, 1, 8), "8x1x1": (8, 1, 1)}
SLOW = pytest.mark.slow
# The fast suite cuts along all three axes at once.
FOUR_MESHES = pytest.mark.parametrize(
    "name", ["2x2x2", *(pytest.param(name, marks=SLOW) for name in ("1x1x8", "1x8x1", "8x1x1"))]
)
# eps far above rounding, since Adam's first step, g / (|g| + eps), blows up the noise of a tiny g.
OPTIM = optim.OptimConfig(lr=0.01, steps=10, eps=1e-3, weight_decay=0.1, schedule="constant")
TXS = {
    "adamw": optim.build(OPTIM),
    "muon": optim.build(dataclasses.replace(OPTIM, name="muon", mu_dtype="bfloat16")),
}
BLEND = {"ce_weight": 0.5, "ce_weight_last": 0.5}
OBJECTIVES = {
    "dpo": losses.ObjectiveConfig("dpo", nll_weight=0.1),
    "rf_nll": losses.ObjectiveConfig("rf_nll"),
    "dr_grpo": losses.ObjectiveConfig("dr_grpo", **BLEND),
}
POLICY = losses.PolicyConfig("grpo", "token", clip_high=0.28, beta=0.1)
LOSSES = ["tokens", *OBJECTIVES, "policy"]
BRANCHES = {"dpo": 2, "rf_nll": 1, "dr_grpo": K, "policy": K}


def _mesh(name):
    return meshes.single() if name == "one" else meshes.build(meshes.MeshConfig(*MESHES[name]))


@functools.cache
def _params():
    return decoder.init(CFG, jax.random.key(0))


def _placed(mesh):
    places = jax.tree.map(lambda x: x.sharding, decoder.abstract(CFG, mesh))
    return jax.device_put(_params(), places)


def _tree(C):
    """Returns ragged documents and branches: all devices have different numbers of tokens."""
    rng = np.random.default_rng(C)
    length_B1 = rng.integers(R + 2, T + 1, (B, 1))
    length_BC1 = rng.integers(1, R + 1, (B, C, 1))
    fork_BC = np.repeat(length_B1 - R, C, axis=1).astype(np.int32)
    tokens = lambda *shape: rng.integers(0, CFG.vocab_size, shape).astype(np.int32)
    return Tree(
        tokens(B, T), np.arange(T) < length_B1, tokens(B, C, R), np.arange(R) < length_BC1, fork_BC
    )


def _branch_batch(name):
    C = BRANCHES[name]
    tree, rng = _tree(C), np.random.default_rng(1)
    valid_BC = np.ones((B, C), bool)
    valid_BC[2] = False
    after_BT = np.arange(T) >= tree.fork_BC[:, :1]
    logp_BCR = rng.normal(-5.6, 0.1, (B, C, R)).astype(np.float32)
    return losses.Branches(
        tree,
        valid_BC,
        rng.normal(size=(B, C)).astype(np.float32),
        logp_BCR,
        tree.mask_BT & after_BT,
    )


def _problem(name):
    """Returns (terms, weights, batch) of a loss."""
    if name == "tokens":
        tree = _tree(0)
        return losses.tokens_terms(CFG), lambda _: {"ce": 1.0}, (tree, tree.mask_BT)
    if name == "policy":
        return losses.policy_terms(CFG, POLICY), lambda _: {"policy": 1.0}, _branch_batch(name)
    objective = OBJECTIVES[name]
    return (
        losses.branch_terms(CFG, objective),
        losses.branch_weights(objective),
        _branch_batch(name),
    )


def _start(mesh, reference, optimiser="adamw"):
    """Returns a state whose reference is not the policy; otherwise DPO's margins would be 0."""
    state = step.state_of(_placed(mesh), CFG, TXS[optimiser], mesh, reference=reference)
    return state.replace(reference=jax.tree.map(lambda x: 1.01 * x, state.reference))


def _run(program, *args):
    """Returns (outputs, compiled text), compiled without optimisation in half the time."""
    compiled = program.lower(*args).compile({"xla_backend_optimization_level": 0})
    return compiled(*args), compiled.as_text()


@functools.cache
def _update(name, where, microbatches, optimiser="adamw"):
    """Returns ((state, metrics) after one update, the program's text)."""
    terms, weights, batch = _problem(name)
    mesh = _mesh(where)
    update = step.make_update(terms, TXS[optimiser], weights, microbatches=microbatches)
    start = _start(mesh, name in ("dpo", "policy"), optimiser)
    with jax.set_mesh(mesh):
        return _run(update.program, start, put_batch(mesh, batch), update.rates_S)


def _devices(tree):
    return {len(x.sharding.device_set) for x in jax.tree.leaves(tree)}


def _close(one, many, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-5, atol=atol), one, many)


def _adam(state):
    nodes = jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu"))
    return next(x for x in nodes if hasattr(x, "mu"))


def _cuts(params):
    """Counts the different pieces of each sharded parameter."""
    pieces = lambda x: len({str(s.index) for s in x.addressable_shards})
    flat = {**params["blocks"]["block"], **params}
    return {k: pieces(x) for k, x in flat.items() if k != "blocks"}


@FOUR_MESHES
def test_parameters_reference_and_moments_are_cut_over_fsdp_and_tensor(name):
    _, fsdp, tensor = MESHES[name]
    state = step.init_state(CFG, TXS["adamw"], _mesh(name), 0, reference=True)
    matrices = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down", "embed", "unembed")
    norms = ("attention_norm", "mlp_norm", "final_norm")
    wanted = {**dict.fromkeys(matrices, fsdp * tensor), **dict.fromkeys(norms, fsdp)}
    for params in (state.params, state.reference, _adam(state).mu, _adam(state).nu):
        assert _cuts(params) == wanted
        assert _devices(params) == {8}


def test_each_letter_lies_on_the_axis_its_rule_names():
    places = jax.tree.map(lambda x: x.sharding.spec, decoder.abstract(CFG, _mesh("2x2x2")))
    block = places["blocks"]["block"]
    assert block["wq"] == P(None, "fsdp", "tensor", None, None)  # LDGQH
    assert block["wk"] == block["wv"] == P(None, "fsdp", "tensor", None)  # LDGH
    assert block["wo"] == P(None, "tensor", None, None, "fsdp")  # LGQHD
    assert block["w_gate"] == block["w_up"] == P(None, "fsdp", "tensor")  # LDF
    assert block["w_down"] == P(None, "tensor", "fsdp")  # LFD
    assert places["embed"] == P("tensor", "fsdp") and places["unembed"] == P("fsdp", "tensor")
    assert places["final_norm"] == P("fsdp")


def test_a_batch_is_cut_over_replica_and_fsdp():
    tree = put_batch(_mesh("2x2x2"), _tree(2))
    assert {x.sharding.spec for x in jax.tree.leaves(tree)} == {P(("replica", "fsdp"))}
    assert {x.addressable_shards[0].data.shape[0] for x in jax.tree.leaves(tree)} == {B // 4}


def _check_update(name, where, microbatches):
    (one, one_metrics), _ = _update(name, "one", 1)
    (many, many_metrics), _ = _update(name, where, microbatches)
    assert _devices(one) == {1} and _devices(many) == {8}
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), one.params, _params())
    assert min(jax.tree.leaves(moved)) > 1e-3  # a thousand times the tolerance below
    _close(one.params, many.params, atol=2e-6)
    _close(_adam(one), _adam(many), atol=1e-6)
    _close(one_metrics, many_metrics, atol=1e-5)
    assert _cuts(many.params) == _cuts(_start(_mesh(where), True).params) == _cuts(_adam(many).mu)


FAST = {("dpo", 1)}


@pytest.mark.parametrize(
    ("name", "microbatches"),
    [
        pytest.param(name, n, marks=() if (name, n) in FAST else SLOW, id=f"{name}-{n}")
        for name in LOSSES
        for n in (1, 2)
    ],
)
def test_an_update_on_eight_devices_equals_one_on_one(name, microbatches):
    _check_update(name, "2x2x2", microbatches)


def test_no_branch_of_an_update_waits_for_other_devices():
    """Several CPU devices that meet in a branch may wait for ever."""
    _, text = _update("dpo", "2x2x2", 1)
    bodies = {b.split("(")[0].split()[0].lstrip("%"): b for b in re.split(r"\n(?=%|ENTRY)", text)}
    branches = re.findall(r"(?:true|false)_computation=%?([\w.-]+)", text)
    branches += re.findall(r"branch_computations=\{%?([\w.-]+), %?([\w.-]+)\}", text)
    names = [n for each in branches for n in ([each] if isinstance(each, str) else each)]
    assert len(names) == 2 and "all-reduce(" in text
    for name in names:
        assert not re.search(r"(all-|reduce-scatter|collective-)[\w-]*\(", bodies[name]), name


@pytest.mark.slow  # the update above is cut along all three axes
@pytest.mark.parametrize("where", ["1x1x8", "1x8x1", "8x1x1"])
def test_any_mesh_of_eight_gives_the_same_update(where):
    _check_update("dpo", where, 1)


def _moments(state):
    """Returns {(kind, path of the parameter): first moment} of every parameter."""
    nodes = jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu"))
    return {
        (type(node).__name__, jax.tree_util.keystr(path[-1:], simple=True)): x
        for node in nodes
        if hasattr(node, "mu")
        for path, x in jax.tree_util.tree_leaves_with_path(node.mu)
    }


@pytest.mark.slow  # test_optim has Muon, the update is that of AdamW
def test_an_update_of_muon_on_eight_devices_equals_one_on_one():
    (one, _), _ = _update("tokens", "one", 1, "muon")
    (many, _), _ = _update("tokens", "2x2x2", 1, "muon")
    assert _devices(one) == {1} and _devices(many) == {8}
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), one.params, _params())
    assert min(jax.tree.leaves(moved)) > 1e-3
    _close(one.params, many.params, atol=1e-5)
    first, other = _moments(one), _moments(many)
    assert {kind for kind, _ in first} == {"MuonState", "ScaleByAdamState"}
    assert {x.dtype for x in first.values()} == {jnp.dtype("bfloat16")}
    wide = lambda tree: jax.tree.map(lambda x: np.asarray(x, np.float32), list(tree.values()))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-2, atol=1e-9),
        *map(wide, (first, other)),
    )
    cuts = _cuts(_start(_mesh("2x2x2"), False, "muon").params)
    assert {
        k: len({str(s.index) for s in x.addressable_shards}) for (_, k), x in other.items()
    } == cuts


@functools.cache
def _roll(where):
    """Returns (rollouts, some of which stop early; the program's text)."""
    mesh, tree = _mesh(where), _tree(1)
    run = sampling.program(CFG, K, R, sampling.SamplingConfig(), tuple(range(40)))
    args = (tree.tokens_BT, tree.fork_BC[:, 0], np.arange(B, dtype=np.int32))
    with jax.set_mesh(mesh):
        return _run(run, _placed(mesh), *put_batch(mesh, args), jax.random.key(3))


@FOUR_MESHES
def test_rollouts_are_the_same_tokens_on_any_mesh(name):
    (one, _), (many, _) = _roll("one"), _roll(name)
    assert _devices(one) == {1} and _devices(many) == {8}
    np.testing.assert_array_equal(many.tokens_BCR, one.tokens_BCR)
    np.testing.assert_array_equal(many.mask_BCR, one.mask_BCR)
    np.testing.assert_allclose(many.logp_BCR, one.logp_BCR, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(many.sample_logp_BCR, one.sample_logp_BCR, rtol=1e-5, atol=1e-5)
    assert not one.mask_BCR.all() and len(np.unique(one.tokens_BCR)) > B  # neither full nor equal


def _gathered(text):
    """Returns the number of elements of each all-gather's result."""
    found = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather(?:-start)?\(", text)
    return {math.prod(map(int, shape.split(","))) for shape in found}


def _decoding(cfg, where="2x2x2"):
    """Returns the elements of each all-gather in the decoding loop of a compiled rollout."""
    mesh, tree = _mesh(where), _tree(1)
    run = jax.jit(functools.partial(sampling.rollout, cfg=cfg, branches=K, steps=R, **ROLL))
    args = dict(tokens_BT=tree.tokens_BT, fork_B=tree.fork_BC[:, 0], rows_B=np.arange(B))
    with jax.set_mesh(mesh):
        shapes = jax.tree.map(jnp.asarray, put_batch(mesh, args))
        lowered = run.lower(decoder.abstract(cfg, mesh), key=jax.random.key(3), **shapes)
        text = lowered.compile({"xla_backend_optimization_level": 0}).as_text()
    return _gathered("\n".join(line for line in text.splitlines() if "/decode/" in line))


ROLL = dict(sampling=sampling.SamplingConfig())


@pytest.mark.slow  # test_lowering counts gathers
def test_parameters_are_gathered_once_for_all_tokens_where_there_is_room():
    params = decoder.abstract(CFG, _mesh("2x2x2"))
    weights = {k: math.prod(x.shape[1:]) // 2 for k, x in params["blocks"]["block"].items()}
    whole = {weights[k] for k in ("wq", "wo", "w_gate", "w_down")}
    assert not whole & _decoding(CFG)
    assert whole <= _decoding(dataclasses.replace(CFG, gather_gib=0.0)), "else for each token"


@pytest.mark.parametrize("name", ["tokens", pytest.param("dr_grpo", marks=SLOW), "rollout"])
def test_nothing_is_gathered_but_weights(name):
    """If an activation were gathered over the batch, every device would compute it in full."""
    _, text = _roll("2x2x2") if name == "rollout" else _update(name, "2x2x2", 1)
    params = decoder.abstract(CFG, _mesh("2x2x2"))
    together = CFG.layers if name == "rollout" else 1  # before its loop all layers' at once
    block = params["blocks"]["block"].items()
    weights = {k: together * math.prod(x.shape[1:]) // 2 for k, x in block}
    weights |= {"embed": CFG.vocab_size * CFG.width // 2}
    weights |= {"norm": CFG.width, "norms": together * CFG.width}
    argmax = B // 4 * K * 2  # of a token, over a vocabulary in two parts
    small = {together * CFG.width // 2}
    assert set(weights.values()) - small <= _gathered(text)
    assert _gathered(text) <= {*weights.values(), argmax}
    assert " all-to-all(" not in text and " collective-permute(" not in text


@functools.cache
def _judge(where):
    mesh = _mesh(where)
    params = _placed(mesh)
    trunks = ["A prompt:", ("Another", " one"), "x", "of the length", ""]
    branches = [["\na", "\nlonger one"], ["\nbb"], ["c", "d", "e"], [], ["what"]]
    return params, Local(LoadedModel(params, CFG, Byte(), mesh), batch=4).choose(
        trunks, branches, ("y", "n")
    )


@FOUR_MESHES
def test_verdicts_are_the_same_on_any_mesh(name):
    (one_params, one), (many_params, many) = _judge("one"), _judge(name)
    assert _devices(one_params) == {1} and _devices(many_params) == {8}
    assert np.isfinite(one).any(-1).sum() == 7
    np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-5)
