"""Tests rollouts against teacher forcing, plain loops and hand-worked distributions."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import jaxprs
import numpy as np
import pytest
import tiny

from sip import sampling
from sip.models import decoder
from sip.sampling import SamplingConfig
from sip.structs import UserError

V = tiny.CFG.vocab_size
TOKENS_BT = np.random.default_rng(1).integers(0, V, (3, 6)).astype(np.int32)
FORK_B = np.array([4, 6, 1], np.int32)
ROWS_B = np.array([7, 8, 9], np.int32)
FREE = SamplingConfig()
NARROW = SamplingConfig(temperature=0.7, top_k=5, top_p=0.8)
STOP = (3, 5)


def roll(tokens_BT=TOKENS_BT, fork_B=FORK_B, rows_B=ROWS_B, seed=0, branches=3, steps=5,
         config=FREE, stop=(), cfg=tiny.CFG):  # fmt: skip
    program = sampling.program(cfg, branches, steps, config, stop)
    return program(tiny.params(cfg), tokens_BT, fork_B, rows_B, jax.random.key(seed))


def teacher_forced(rollouts):
    """Returns the model's log-probabilities [B, C, R, V] at each position of the rollouts."""
    B, C, R = rollouts.tokens_BCR.shape
    tree = tiny.trunk_only(TOKENS_BT).replace(
        tokens_BCR=rollouts.tokens_BCR, mask_BCR=rollouts.mask_BCR,
        fork_BC=jnp.broadcast_to(FORK_B[:, None], (B, C)))  # fmt: skip
    hidden = tiny.forward(tiny.params(), tiny.CFG, tiny.trunk_only(tiny.sequences(tree)))[0]
    logits = np.asarray(hidden) @ np.asarray(decoder.unembed(tiny.params(), tiny.CFG))
    logp = np.asarray(jax.nn.log_softmax(logits))
    return tiny.at_forks(np.roll(logp, 1, axis=1), tree)  # scores a token by what precedes it


def test_logits_have_the_soft_cap_of_the_model():
    cfg = tiny.model(final_cap=0.7)
    hidden_BCD = jax.random.normal(jax.random.key(0), (2, 3, cfg.width))
    want = 0.7 * np.tanh(np.asarray(hidden_BCD) @ np.asarray(tiny.params()["unembed"]) / 0.7)
    got = sampling._logits(tiny.params(), cfg, hidden_BCD)
    np.testing.assert_allclose(got, want, atol=1e-5)


def picked(logp_BCRV, rollouts):
    at = np.asarray(rollouts.tokens_BCR)[..., None]
    return np.where(rollouts.mask_BCR, np.take_along_axis(logp_BCRV, at, axis=-1)[..., 0], 0)


def test_logp_is_what_the_model_gives_the_finished_text():
    rollouts = roll()
    want = picked(teacher_forced(rollouts), rollouts)
    np.testing.assert_allclose(rollouts.logp_BCR, want, atol=3e-5)
    np.testing.assert_allclose(rollouts.sample_logp_BCR, want, atol=3e-5)
    assert rollouts.mask_BCR.all()


def truncated(probs_V, config):
    """Computes the sampling distribution of one position in numpy."""
    probs_V = probs_V ** (1 / config.temperature)
    order = np.argsort(-probs_V)
    kept = order[: config.top_k or None]
    shares = probs_V[kept] / probs_V[kept].sum()
    kept = kept[: np.searchsorted(np.cumsum(shares), config.top_p) + 1]
    out = np.zeros_like(probs_V)
    out[kept] = probs_V[kept] / probs_V[kept].sum()
    return out


def test_sample_logp_is_of_the_tempered_and_truncated_distribution():
    rollouts = roll(config=NARROW, stop=STOP)
    logp_BCRV = teacher_forced(rollouts)
    probs = np.apply_along_axis(truncated, -1, np.exp(np.float64(logp_BCRV)), NARROW)
    with np.errstate(divide="ignore"):
        want = picked(np.log(probs), rollouts)
    np.testing.assert_allclose(rollouts.sample_logp_BCR, want, atol=3e-5)
    np.testing.assert_allclose(rollouts.logp_BCR, picked(logp_BCRV, rollouts), atol=3e-5)
    assert np.abs(rollouts.sample_logp_BCR - rollouts.logp_BCR).max() > 0.1


def test_greedy_is_the_argmax_of_a_plain_loop():
    rollouts = roll(branches=1, config=SamplingConfig(temperature=0))
    text = np.pad(TOKENS_BT, ((0, 0), (0, 5)))
    for b, i in np.ndindex(3, 5):
        at = FORK_B[b] + i
        text[b, at:] = 0
        hidden = tiny.forward(tiny.params(), tiny.CFG, tiny.trunk_only(text))[0][b, at - 1]
        text[b, at] = np.argmax(hidden @ decoder.unembed(tiny.params(), tiny.CFG))
    want = [text[b, f : f + 5] for b, f in enumerate(FORK_B)]
    np.testing.assert_array_equal(rollouts.tokens_BCR[:, 0], want)
    np.testing.assert_array_equal(rollouts.sample_logp_BCR, np.zeros((3, 1, 5)))
    np.testing.assert_allclose(
        rollouts.logp_BCR, picked(teacher_forced(rollouts), rollouts), atol=3e-5
    )


@pytest.mark.parametrize(
    ("config", "want"),
    [
        (SamplingConfig(), [0.5, 0.1, 0.25, 0.15]),
        (SamplingConfig(temperature=0.5), np.array([0.25, 0.01, 0.0625, 0.0225]) / 0.345),
        (SamplingConfig(top_k=2), [2 / 3, 0, 1 / 3, 0]),
        (SamplingConfig(top_k=9), [0.5, 0.1, 0.25, 0.15]),
        (SamplingConfig(top_p=0.7), [2 / 3, 0, 1 / 3, 0]),
        (SamplingConfig(top_p=0.8), [5 / 9, 0, 2.5 / 9, 1.5 / 9]),
        (SamplingConfig(top_p=0.01), [1, 0, 0, 0]),
        # 0.5 of the three that top-k leaves is 5/9 already; at temperature 2, 0.4142.
        (SamplingConfig(top_k=3, top_p=0.5), [1, 0, 0, 0]),
        (SamplingConfig(temperature=2, top_k=3, top_p=0.5), [0.585786, 0, 0.414214, 0]),
    ],
)  # fmt: skip
def test_distributions_worked_by_hand(config, want):
    logits = jnp.log(jnp.array([0.5, 0.1, 0.25, 0.15])) + 3
    got = jax.nn.softmax(sampling.sampling_logits(logits[None], config))[0]
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_layers_laid_apart_decode_the_same():
    # Layers of two kinds, and a window that ends within a branch.
    cfg = tiny.model(window=3, full_every=2, sinks=True)
    apart = dataclasses.replace(cfg, decode_apart=True)
    found, want = roll(cfg=apart), roll(cfg=cfg)
    np.testing.assert_array_equal(found.tokens_BCR, want.tokens_BCR)
    np.testing.assert_allclose(found.logp_BCR, want.logp_BCR, atol=1e-5)
    loops = [jaxprs.equations(jax.make_jaxpr(lambda c=c: roll(cfg=c))()) for c in (apart, cfg)]
    assert [sum(e.primitive.name == "scan" for e in found) for found in loops] == [1, 2]


@pytest.mark.parametrize(("spans", "apart"), [(2, True), (3, False)])
def test_caches_that_grow_decode_the_same(spans, apart):
    """8 tokens in spans of 4, and of 3, of which the last has 2; a window ends within a branch."""
    cfg = tiny.model(window=3, layers=2, full_every=2)
    grown = dataclasses.replace(cfg, decode_spans=spans, decode_apart=apart)
    stop = (int(roll(cfg=cfg, steps=8).tokens_BCR[0, 0, 4]),)
    found, want = (roll(cfg=c, steps=8, stop=stop) for c in (grown, cfg))
    np.testing.assert_array_equal(found.tokens_BCR, want.tokens_BCR)
    np.testing.assert_array_equal(found.mask_BCR, want.mask_BCR)
    np.testing.assert_allclose(found.logp_BCR, want.logp_BCR, atol=1e-5)
    lengths_BC = want.mask_BCR.sum(-1)
    assert lengths_BC[0, 0] <= 5 and lengths_BC.max() == 8, "some end early, some do not"
    traced = jax.make_jaxpr(lambda: roll(cfg=grown, steps=8))()
    loops = [e for e in jaxprs.equations(traced) if e.primitive.name == "while"]
    of = lambda shape: shape[-2] if shape[-3::2] == (3, cfg.head_dim) else 0  # branches, channels
    room = -(-8 // spans)
    assert cfg.kv_heads != 3, "the caches of trunks have no axis of branches"
    sizes = [max(of(v.aval.shape) for v in loop.outvars) for loop in loops]
    assert sizes == [*range(room, 8, room), 8]
    less = [[e for e in x.params["cond_jaxpr"].eqns if e.primitive.name == "lt"] for x in loops]
    limits = [int(e.invars[1].val) for (e,) in less]
    assert sum(limits) == 8 and limits[0] == room, "each counts from 0, as sip.costs takes it"


@pytest.mark.parametrize("apart", [True, False])
def test_a_decoding_step_copies_no_cache_that_is_laid_apart(apart):
    cfg, steps = tiny.model(decode_apart=apart), 7  # branches of 7 tokens, a size of no other axis
    program = sampling.program(cfg, 3, steps, FREE, ())
    lowered = program.lower(tiny.params(cfg), TOKENS_BT, FORK_B, ROWS_B, jax.random.key(0))
    shape = rf"f32\[3,{cfg.kv_heads},3,{steps},{cfg.head_dim}\]"
    text = lowered.compile().as_text()
    inside = "\n".join(part for part in text.split("\n\n") if not part.startswith("ENTRY"))
    assert bool(re.search(rf"= {shape}\S* dynamic-update-slice\(", text)) == apart
    assert not re.search(rf"= {shape}\S* copy\(", inside)


def test_the_first_of_the_most_probable_tokens_is_taken():
    rows = [[0, 2, 1, 2], [-np.inf, -1, -np.inf, -1], [5, 5, 5, 5], [0, 1, 2, 3]]
    logits = jnp.array(rows, jnp.float32)[None]
    found = sampling.choose(logits, None, 0, SamplingConfig(temperature=0))[0]
    np.testing.assert_array_equal(found, jnp.argmax(logits, axis=-1))
    np.testing.assert_array_equal(found, [[1, 1, 0, 3]])


def test_noise_belongs_to_the_document_not_to_its_place():
    three = roll()
    # Two of the documents, in other rows, among more branches, in a wider trunk.
    wider = np.pad(TOKENS_BT[[2, 0]], ((0, 0), (0, 2)), constant_values=1)
    two = roll(wider, FORK_B[[2, 0]], ROWS_B[[2, 0]], branches=4)
    for row, other in (0, 1), (2, 0):
        np.testing.assert_array_equal(three.tokens_BCR[row], two.tokens_BCR[other, :3])
        np.testing.assert_allclose(three.logp_BCR[row], two.logp_BCR[other, :3], atol=3e-5)


def test_another_key_document_or_branch_gives_another_rollout():
    same = [np.repeat(x[:1], 3, axis=0) for x in (TOKENS_BT, FORK_B)]
    first, again = roll(*same), roll(*same)
    np.testing.assert_array_equal(first.tokens_BCR, again.tokens_BCR)
    texts = [tuple(r) for r in np.asarray(first.tokens_BCR).reshape(9, 5).tolist()]
    assert len(set(texts)) == 9, "documents of the same text, and their branches, draw apart"
    other = np.asarray(roll(*same, seed=1).tokens_BCR).reshape(9, 5)
    assert not set(texts) & {tuple(r) for r in other.tolist()}


def test_positions_draw_apart():
    logits = jnp.zeros((1, 4, 50))
    keys = sampling.noise_keys(jax.random.key(0), jnp.array([3]), 4)
    draw = lambda i: np.asarray(sampling.choose(logits, keys, i, SamplingConfig())[0])
    assert (draw(0) != draw(1)).any() and (draw(0) == draw(0)).all()


def test_nothing_follows_a_stop_token():
    rollouts = roll(config=NARROW, stop=STOP)
    free = roll(config=NARROW)
    ended = 0
    for index in np.ndindex(3, 3):
        row = np.asarray(free.tokens_BCR[index])
        stops = np.isin(row, STOP)
        length = int(stops.argmax()) + 1 if stops.any() else 5
        ended += length < 5
        np.testing.assert_array_equal(rollouts.mask_BCR[index], np.arange(5) < length)
        for got, full in (
            (rollouts.tokens_BCR, free.tokens_BCR), (rollouts.logp_BCR, free.logp_BCR),
            (rollouts.sample_logp_BCR, free.sample_logp_BCR),
        ):  # fmt: skip
            want = np.where(np.arange(5) < length, full[index], 0)
            np.testing.assert_allclose(got[index], want, atol=3e-5)
    assert 0 < ended < 9


@pytest.mark.slow
def test_decoding_ends_when_all_branches_have(monkeypatch):
    steps, choose = [], sampling.choose

    def counted(logits, keys, position, config):
        jax.debug.callback(lambda i: steps.append(int(i)), position)
        return choose(logits, keys, position, config)

    monkeypatch.setattr(sampling, "choose", counted)
    rollouts = sampling.rollout(
        tiny.params(), tiny.CFG, TOKENS_BT, FORK_B, ROWS_B, jax.random.key(0), branches=2,
        steps=4, sampling=SamplingConfig(), stop=tuple(range(V)))  # fmt: skip
    np.testing.assert_array_equal(rollouts.mask_BCR, np.arange(4) < np.ones((3, 2, 1)))
    jax.effects_barrier()
    assert steps == [0]


def test_draws_follow_the_distribution():
    probs, N = np.array([0.6, 0.3, 0.1]), 4000
    logits = jnp.broadcast_to(jnp.log(jnp.float32(probs)), (1, N, 3))
    keys = sampling.noise_keys(jax.random.key(0), jnp.array([0]), N)
    token, logp, sample_logp = sampling.choose(logits, keys, 0, SamplingConfig())
    share = np.bincount(token[0], minlength=3) / N
    assert (np.abs(share - probs) < 3 * np.sqrt(probs * (1 - probs) / N)).all(), share
    np.testing.assert_allclose(logp[0], np.log(probs)[token[0]], rtol=1e-5)
    np.testing.assert_allclose(sample_logp, logp, rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -0.1), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1)],
)
def test_a_config_that_cannot_be_names_its_field(field, value):
    with pytest.raises(UserError, match=f"sampling.{field}"):
        SamplingConfig(**{field: value})


@pytest.mark.slow  # test_voting has a decoder's answers
def test_answers_to_ragged_branches_are_rollouts_of_the_plain_prompts():
    tree, J, steps = tiny.tree(), 2, 4
    B, C, _ = tree.tokens_BCR.shape
    run = sampling.answering(tiny.CFG, J, steps, SamplingConfig(temperature=0))
    got = run(tiny.params(), tree, jnp.arange(B * C).reshape(B, C), jax.random.key(0))
    fork_N = np.asarray(tree.fork_BC + tree.mask_BCR.sum(-1)).reshape(-1)
    plain = roll(tiny.sequences(tree), fork_N, np.arange(B * C), 0, 1, steps, SamplingConfig(0))
    votes = lambda x: np.asarray(x).reshape(B * C, J, steps)
    for j in range(J):
        np.testing.assert_array_equal(votes(got.tokens_BCR)[:, j], plain.tokens_BCR[:, 0])
        np.testing.assert_allclose(votes(got.logp_BCR)[:, j], plain.logp_BCR[:, 0], atol=3e-5)


@pytest.mark.slow  # the model gives the logp of one rollout below
def test_votes_differ_and_their_logp_is_the_models():
    tree = tiny.tree()
    B, C, R = tree.tokens_BCR.shape
    run = sampling.answering(tiny.CFG, 3, 5, FREE, STOP)
    got = run(tiny.params(), tree, jnp.arange(B * C).reshape(B, C), jax.random.key(3))
    tokens_BCJS = np.asarray(got.tokens_BCR).reshape(B, C, 3, 5)
    assert (tokens_BCJS[:, :, 0] != tokens_BCJS[:, :, 1]).any()
    full = tree.replace(
        tokens_BCR=jnp.zeros((B, C, R + 5), jnp.int32), mask_BCR=jnp.zeros((B, C, R + 5), bool)
    )
    for b, c, j in np.ndindex(B, C, 3):
        n, live = int(tree.mask_BCR[b, c].sum()), np.asarray(got.mask_BCR)[b, c * 3 + j]
        said = np.concatenate([tree.tokens_BCR[b, c, :n], tokens_BCJS[b, c, j], np.zeros(R - n)])
        one = full.replace(
            tokens_BCR=full.tokens_BCR.at[b, c].set(said.astype(np.int32)),
            mask_BCR=full.mask_BCR.at[b, c].set(True),
        )
        if (b, c, j) in ((0, 0, 0), (0, 1, 2), (1, 3, 1), (1, 2, 0)):
            want = np.asarray(tiny.forward(tiny.params(), tiny.CFG, one)[3])[b, c, n : n + 5]
            have = np.asarray(got.logp_BCR)[b, c * 3 + j]
            np.testing.assert_allclose(have, np.where(live, want, 0), atol=3e-5)


def test_a_temperature_near_zero_is_greedy():
    """The two highest logits are equal: greedy takes the first. The others differ little."""
    logits = jnp.array([[[40.0, 41.0, 41.0, 40.999]]])
    keys = jnp.stack([sampling.noise_keys(jax.random.key(s), jnp.array([0]), 1)[0] for s in (1, 2)])
    want = (1, jax.nn.log_softmax(logits[0, 0])[1], 0.0)
    for temperature in (0.0, 5e-324, 1e-40, 3e-20, 9e-6):
        assert SamplingConfig(temperature=temperature) == SamplingConfig(temperature=0.0)
        for key in keys:
            got = sampling.choose(logits, key[None], 0, SamplingConfig(temperature=temperature))
            np.testing.assert_allclose([x[0, 0] for x in got], want, rtol=1e-6)


def test_a_cold_distribution_keeps_the_difference_of_large_logits():
    config = SamplingConfig(temperature=2e-5, top_p=1e-45)  # a float32 cannot hold this top_p
    got = sampling.sampling_logits(jnp.array([5000.0, 5000.0 - 2**-10, -5000.0]), config)
    np.testing.assert_allclose(got, [0, -np.inf, -np.inf])
    got = sampling.sampling_logits(jnp.array([5000.0, 5000.0 - 2**-10]), SamplingConfig(2e-5))
    np.testing.assert_allclose(got, [0, -(2**-10) / 2e-5], rtol=1e-6)
