"""Lowers every jitted program at the paper's sizes for 64 TPU devices that this host lacks."""

import dataclasses
import functools
import importlib
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxprs
import pytest
import tiny_recipe  # noqa: F401  (makes configs importable)
from jax.sharding import AbstractMesh, AxisType

from sip import mesh as meshes
from sip import rewriter as rewriters
from sip import sampling
from sip.evals import continuations
from sip.judge import proofread
from sip.models import decoder
from sip.models.presets import preset
from sip.padding import bucket
from sip.stages import rl
from sip.structs import Targets, Tree
from sip.textgen.local import encoding, program_of_stems
from sip.textgen.local import program as judge_program
from sip.training import losses, optim, step

MESH = AbstractMesh((2, 8, 4), meshes.AXES, axis_types=(AxisType.Auto,) * 3)
POLICY, JUDGE = preset("llama_1b4"), preset("llama31_8b")
TX = optim.build(optim.OptimConfig(lr=1e-4, steps=1000))
B, T, R, K = 256, 2048, 128, 16
RL = rl.resolve(importlib.import_module("judge_llama8b").get_config(), "judge")
REWRITER = rl.resolve(importlib.import_module("rewriter_llama8b").get_config(), "rewriter")
REASON = 128  # tokens of a reasoned verdict
LABELS = 64  # documents of a batch of judge training
# 272 verdicts per prefix: 16 x 15 ordered pairs for quality, 16 each for factuality and safety.
JUDGE_B, JUDGE_T, JUDGE_C, JUDGE_R = 16, bucket(2100, 16), bucket(272), bucket(300, 16)


def _array(letters, *shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=meshes.sharding(MESH, letters))


def _tree(B, T, C, R):
    mask = functools.partial(_array, dtype=bool)
    return Tree(
        _array("BT", B, T),
        mask("BT", B, T),
        _array("BCR", B, C, R),
        mask("BCR", B, C, R),
        _array("BC", B, C),
    )


def _branches(T, C, B=B, R=R):
    mask, real = (functools.partial(_array, dtype=d) for d in (bool, jnp.float32))
    return losses.Branches(
        _tree(B, T, C, R),
        mask("BC", B, C),
        real("BC", B, C),
        real("BCR", B, C, R),
        mask("BT", B, T),
    )


def _key():
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=meshes.replicated(MESH))


def _tokens(cfg):
    terms = losses.tokens_terms(cfg)
    return (
        step.make_update(terms, TX, lambda _: {"ce": 1.0}),
        step.abstract_state(cfg, TX, MESH, reference=False),
        (_tree(B, T, 0, 1), _array("BT", B, T, dtype=bool)),
    )


def _objective(name, C, cfg, *, microbatches=1, ce_weight=0.0):
    objective = losses.ObjectiveConfig(name, ce_weight=ce_weight, ce_weight_last=ce_weight)
    update = step.make_update(
        losses.branch_terms(cfg, objective),
        TX,
        losses.branch_weights(objective),
        microbatches=microbatches,
    )
    state = step.abstract_state(cfg, TX, MESH, reference=objective.needs_reference)
    return update, state, _branches(T if ce_weight else T - R, C)


def _judge_training(cfg):
    """Builds an update on pairs in both orders and a text with its reference."""

    def asked(C, M):
        at, token = (_array("BCM", LABELS, C, M, dtype=jnp.int32) for _ in range(2))
        return Targets(at, token, _array("BCM", LABELS, C, M, dtype=bool))

    terms = ("quality", "quality/grades", "factuality")
    update = step.make_update(losses.verdict_terms(cfg), TX, lambda _: dict.fromkeys(terms, 1.0))
    return (
        update,
        step.abstract_state(cfg, TX, MESH, reference=False),
        {
            "quality": (
                _tree(LABELS, T, 2, 320),
                {"quality": asked(2, 1), "quality/grades": asked(2, 16)},
            ),
            "factuality": (_tree(LABELS, T, 1, 160), {"factuality": asked(1, 1)}),
        },
    )


def _policy_gradient(cfg, run=RL):
    """Builds a config's update on a batch of prompts with their answers."""
    tx = optim.build(run.optim)
    update = step.make_update(
        losses.policy_terms(cfg, run.objective),
        tx,
        lambda _: {"policy": 1.0},
        microbatches=run.microbatches,
    )
    batch = _branches(run.model.max_len - run.answer, run.rollouts, run.batch, run.answer)
    return update, step.abstract_state(cfg, tx, MESH, reference=False), batch


def _answers(cfg, run=RL, stops=(2,)):
    program = sampling.program(cfg, run.rollouts, run.answer, run.sampling, stops)
    prompts = _array("BT", run.batch, cfg.max_len - run.answer)
    rows = _array("B", run.batch)
    return program, decoder.abstract(cfg, MESH), prompts, rows, rows, _key()


def _rollout(cfg):
    run = sampling.program(cfg, K, R, sampling.SamplingConfig(top_p=0.9), (2,))
    return (
        run,
        decoder.abstract(cfg, MESH),
        _array("BT", B, T - R),
        _array("B", B),
        _array("B", B),
        _key(),
    )


def _likelihood(cfg):
    return (
        continuations.nll_program(cfg),
        decoder.abstract(cfg, MESH),
        (_tree(B, T, 0, 1), _array("BT", B, T, dtype=bool)),
    )


def _judge(cfg):
    return (
        judge_program(cfg),
        decoder.abstract(cfg, MESH),
        _tree(JUDGE_B, JUDGE_T, JUDGE_C, JUDGE_R),
        _array("BC", JUDGE_B, JUDGE_C),
        _array("O", 2),
    )


def _pairs(cfg):
    """Builds the judge's program for all pairs of 17 candidates, as leaves on stems."""
    leaves = _array("BCRT", JUDGE_B, 16, 17, JUDGE_R), _array("BCR", JUDGE_B, 16, 17)
    stems = _tree(JUDGE_B, JUDGE_T, 17, JUDGE_R)
    return program_of_stems(cfg), decoder.abstract(cfg, MESH), stems, *leaves, _array("O", 2)


def _trunks(cfg):
    return encoding(cfg), decoder.abstract(cfg, MESH), _array("BT", JUDGE_B, JUDGE_T)


def _branches_alone(cfg):
    """Builds the judge's program for branches on cached trunks."""
    kv = (cfg.layers, JUDGE_B, cfg.kv_heads, JUDGE_T, cfg.head_dim)
    trunk = _array("LBGTH", *kv, dtype=cfg.compute_dtype)
    none = (cfg.layers, JUDGE_B, cfg.kv_heads, 0, 1, cfg.head_dim)
    own = _array("LBGCRH", *none, dtype=cfg.compute_dtype)
    unseen = _array("BCR", JUDGE_B, 0, 1, dtype=bool)
    return *_judge(cfg), decoder.Cache(trunk, trunk, own, own, unseen, _array(""))


def _reasons(cfg):
    run = sampling.answering(cfg, 1, REASON, sampling.SamplingConfig(temperature=0.6), (2,))
    tree = _tree(JUDGE_B, JUDGE_T, JUDGE_C, JUDGE_R)
    noise = _array("BC", JUDGE_B, JUDGE_C)
    return run, decoder.abstract(cfg, MESH), tree, noise, _key()


def _gaps(cfg):
    return proofread.program(cfg), decoder.abstract(cfg, MESH), _tree(JUDGE_B, JUDGE_T, K, JUDGE_R)


def _init(cfg):
    fresh = lambda key: step._fresh(decoder.init(cfg, key), TX, True)
    return step._placed(fresh, cfg, TX, MESH, True), _key()


# name -> (what makes the program and its arguments, config, documents of one pass)
PROGRAMS = {
    "init": (_init, POLICY, 0),
    "tokens": (_tokens, POLICY, B),
    "dpo": (functools.partial(_objective, "dpo", 2), POLICY, B),
    "rf_nll": (functools.partial(_objective, "rf_nll", 1), POLICY, B),
    "dr_grpo and ce": (functools.partial(_objective, "dr_grpo", K, ce_weight=0.1), POLICY, B),
    "dr_grpo and ce, 4 microbatches": (
        functools.partial(_objective, "dr_grpo", K, ce_weight=0.1, microbatches=4),
        POLICY,
        B // 4,
    ),
    "rollout": (_rollout, POLICY, B),
    "likelihood": (_likelihood, POLICY, B),
    "judge": (_judge, JUDGE, JUDGE_B),
    "judge's pairs": (_pairs, JUDGE, JUDGE_B),
    "judge's trunks": (_trunks, JUDGE, JUDGE_B),
    "judge's branches": (_branches_alone, JUDGE, JUDGE_B),
    "reasons": (_reasons, JUDGE, JUDGE_B),
    "proofreading": (_gaps, JUDGE, JUDGE_B),
    "judge training": (_judge_training, JUDGE, LABELS),
    "policy gradient": (_policy_gradient, RL.model, RL.batch // RL.microbatches),
    "answers": (_answers, RL.model, RL.batch),
    "rewriter's gradient": (
        functools.partial(_policy_gradient, run=REWRITER),
        REWRITER.model,
        REWRITER.batch // REWRITER.microbatches,
    ),
    "rewrites": (
        functools.partial(_answers, run=REWRITER, stops=(2, 13)),
        REWRITER.model,
        REWRITER.batch,
    ),
}
MODELS = [name for name in PROGRAMS if name not in ("init", "judge's trunks")]
# The same programs as "policy gradient" and "answers", in another run's sizes.
AGAIN = ("rewriter's gradient", "rewrites", "judge training", "dr_grpo and ce, 4 microbatches")
AGAIN += ("rf_nll",)
# Lowered for other tests' sakes, or parts of programs that are lowered here.
OFTEN = (
    "tokens",
    "dpo",
    "likelihood",
    "judge's trunks",
    "judge's branches",
    "reasons",
    "dr_grpo and ce",
)


def each(names, slow=AGAIN):
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in names]


@functools.cache
def _traced(make, cfg):
    program, *args = make(cfg)
    with jax.sharding.use_abstract_mesh(MESH):
        return program.trace(*args)


@functools.cache
def _lowered(name):
    make, cfg, _ = PROGRAMS[name]
    with jax.sharding.use_abstract_mesh(MESH):
        return _traced(make, cfg).lower(lowering_platforms=("tpu",)).as_text()


def _logits(make, cfg):
    """Returns {shape: elements per V} of the shapes with an axis V."""
    live = jaxprs.live(_traced(make, cfg).jaxpr)
    return jaxprs.rows_of(jaxprs.shapes(live), cfg.vocab_size)


def _softmaxes(make, cfg):
    """Returns the elements of the largest softmax of branches over a trunk and over everything."""
    found = jaxprs.shapes(jaxprs.live(_traced(make, cfg).jaxpr), "exp")
    return max(math.prod(s) for s in found if JUDGE_T in s), max(map(math.prod, found))


@pytest.mark.parametrize("name", each(PROGRAMS, AGAIN + OFTEN))
def test_it_lowers_for_64_devices_with_parameters_cut(name):
    text, cfg = _lowered(name), PROGRAMS[name][1]
    assert "mhlo.num_partitions = 64" in text
    assert '<["replica"=2, "fsdp"=8, "tensor"=4]>' in text
    embedding = rf"tensor<{cfg.vocab_size}x{cfg.width}xf32> \{{[^}}]*sdy.sharding = "
    assert re.search(embedding + r'#sdy.sharding<@mesh, \[\{"tensor"\}, \{"fsdp"\}\]>', text)


@pytest.mark.parametrize("name", each(MODELS, AGAIN + OFTEN))
def test_no_more_logits_exist_than_one_chunk_of_each_document(name):
    make, cfg, documents = PROGRAMS[name]
    found = _logits(make, cfg)
    assert any(len(s) > 2 for s in found)  # there are some
    assert max(found.values()) <= documents * cfg.logprob_chunk
    assert T - 1 >= 2 * cfg.logprob_chunk  # so [.., T, V] is beyond the limit


# Fewer positions than a chunk.
FEW = ("dpo", "rf_nll", "rollout", "judge", "judge's branches", "reasons", "judge training")
FEW += ("judge's pairs", "answers", "rewrites")
CHUNKED = [n for n in MODELS if n not in FEW]


@pytest.mark.parametrize(
    "name", each(CHUNKED, slow=[n for n in CHUNKED if n not in ("tokens", "proofreading")])
)
def test_without_chunks_the_logits_would_be_found(name):
    make, cfg, documents = PROGRAMS[name]
    found = _logits(make, dataclasses.replace(cfg, logprob_chunk=4096))
    assert max(found.values()) > documents * cfg.logprob_chunk


@pytest.mark.parametrize("judge", [_judge, _branches_alone])
def test_the_judge_never_attends_from_more_branches_than_a_chunk(judge):
    one = JUDGE_B * JUDGE.kv_heads * JUDGE.queries_per_kv * JUDGE_R * JUDGE_T
    assert JUDGE_C >= 272
    assert _softmaxes(judge, JUDGE) == (JUDGE.branch_chunk * one,) * 2
    whole = dataclasses.replace(JUDGE, branch_chunk=JUDGE_C)
    assert _softmaxes(judge, whole) == (JUDGE_C * one,) * 2  # and would be seen doing it


def test_branches_on_kept_trunks_run_no_trunk():
    rows = lambda make: {
        math.prod(s[:-1])
        for s in jaxprs.shapes(jaxprs.live(_traced(make, JUDGE).jaxpr), "dot_general")
        if s[-1] == JUDGE.hidden
    }
    own = JUDGE_B * JUDGE_C * JUDGE_R
    assert rows(_trunks) == {JUDGE_B * JUDGE_T}
    assert rows(_judge) == {JUDGE_B * JUDGE_T + own} and rows(_branches_alone) == {own}


def test_the_configs_judge_has_llamas_shapes_and_the_papers_batch():
    assert dataclasses.replace(JUDGE, max_len=4096) == RL.model
    assert (RL.batch, RL.rollouts, RL.answer, RL.optim.lr) == (256, 16, 512, 2e-7)


def test_the_configs_rewriter_has_llamas_shapes_and_the_papers_batch():
    assert dataclasses.replace(JUDGE, max_len=2560) == REWRITER.model
    assert (REWRITER.batch, REWRITER.rollouts, REWRITER.optim.lr) == (256, 16, 2e-7)
    assert REWRITER.answer == rewriters.most(128)


@pytest.mark.parametrize(
    "name",
    [
        "dpo",
        "policy gradient",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("tokens", "judge training")),
    ],
)
def test_an_update_donates_its_whole_state(name):
    make, cfg, _ = PROGRAMS[name]
    _, state, _ = make(cfg)
    assert _lowered(name).count("jax.buffer_donor = true") == len(jax.tree.leaves(state))


def test_the_walker_looks_into_every_kind_of_body():
    @jax.custom_vjp
    def custom(x):
        return jnp.exp(x)

    custom.defvjp(lambda x: (custom(x), x), lambda x, g: (g,))

    def body(c, y):
        return jax.lax.cond(y[0] > 0, jnp.sin, lambda c: custom(jnp.cos(c)), c), y

    def program(x):
        x, _ = jax.lax.scan(jax.checkpoint(jax.jit(body)), x, x[:3, None])
        jnp.log(x)
        return jax.lax.while_loop(lambda c: c[0] > 0, jnp.tanh, x)

    jaxpr = jaxprs.live(jax.jit(program).trace(jnp.ones(5)).jaxpr)
    names = {e.primitive.name for e in jaxprs.equations(jaxpr)}
    assert {"sin", "cos", "exp", "tanh"} <= names and "log" not in names
    assert jaxprs.shapes(jaxpr, "cos") == {(5,)}
    assert jaxprs.rows_of({(2, 6), (12, 5), (4, 0)}, 3) == {(2, 6): 4, (12, 5): 20}


def test_every_jitted_program_is_among_these():
    root = Path(sampling.__file__).parent
    found = {str(p.relative_to(root)): p.read_text().count("jax.jit") for p in root.rglob("*.py")}
    assert {k: n for k, n in found.items() if n} == {
        "sampling.py": 2,  # rollout, reasons
        "bench/turns.py": 2,  # ceilings of the machine: no program of a run
        "textgen/local.py": 3,  # judge, its pairs on stems, its trunks alone
        "judge/proofread.py": 1,  # proofreading
        "training/step.py": 4,  # init, of factors too, the updates, the moving average
        "loading.py": 4,  # other dtypes, merged factors, numbers that are not finite
        "models/decoder.py": 1,  # layers that are added
        "training/checksums.py": 2,  # sums of bits
        "evals/continuations.py": 1,  # likelihood
        "evals/likelihoods.py": 2,  # choices, sequences
        # Scores, and evaluations on pairs: the updates are those of training/step.py.
        "training/losses.py": 1,
        "rewards/reward_model.py": 1,
        "tasks/supervised/preferences.py": 1,
        "tasks/supervised/reward_model.py": 1,
    }
