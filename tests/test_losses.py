"""Tests loss terms on the decoder against log-probabilities of plain sequences."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sip.structs import Targets, UserError
from sip.training import losses
from sip.training.losses import ObjectiveConfig

BRANCHES = {"dpo": 2, "rf_nll": 1, "dr_grpo": 3}
PAIRS = ObjectiveConfig("dpo", beta=0.3, nll_weight=0.2)


@functools.cache
def values(objective):
    """Returns (terms, metrics) of (params, reference, batch)."""
    return jax.jit(losses.branch_terms(tiny.CFG, objective))


@functools.cache
def gradients(objective):
    """Returns the gradients of the summed totals for params and reference."""
    terms = losses.branch_terms(tiny.CFG, objective)
    total = lambda *args: sum(total for total, _ in terms(*args)[0].values())
    return jax.jit(jax.grad(total, argnums=(0, 1)))


def batch(name, advantage=0.0, valid=((True,), (True,))):
    tree = tiny.tree(C=BRANCHES[name])
    B, C, R = tree.tokens_BCR.shape
    return losses.Branches(
        tree, jnp.broadcast_to(jnp.array(valid), (B, C)), jnp.broadcast_to(advantage, (B, C)),
        jnp.full((B, C, R), -2.7), jnp.arange(6)[None] >= jnp.array([[2], [4]]),
    )  # fmt: skip


def sequence_logp(params, tree):
    """Computes logp_BC and length_BC by plain sequences, one per branch."""
    plain = tiny.forward(params, tiny.CFG, tiny.trunk_only(tiny.sequences(tree)))[2]
    logp_BCR = np.where(tree.mask_BCR, tiny.at_forks(plain, tree), 0)
    return logp_BCR.sum(-1), np.asarray(tree.mask_BCR).sum(-1)


def close(got, want, tolerance=1e-5):
    check = lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    jax.tree.map(check, jax.device_get(got), jax.device_get(want))


def test_dpo_of_a_policy_that_is_its_reference_is_ln_2():
    terms, metrics = values(PAIRS)(tiny.params(), tiny.params(), batch("dpo"))
    close(terms["dpo"], (2 * np.log(2), 2.0))
    close(metrics["margin"], (0.0, 2.0))


@pytest.mark.parametrize("normalize", [False, True])
def test_dpo_is_its_formula_on_plain_sequences(normalize):
    objective = dataclasses.replace(PAIRS, length_normalize=normalize)
    b, reference = batch("dpo"), tiny.params(seed=1)
    logp_B2, length_B2 = sequence_logp(tiny.params(), b.tree)
    ratio_B2 = logp_B2 - sequence_logp(reference, b.tree)[0]
    if normalize:
        ratio_B2 = ratio_B2 / length_B2
    margin_B = 0.3 * (ratio_B2[:, 0] - ratio_B2[:, 1])
    terms, metrics = values(objective)(tiny.params(), reference, b)
    close(terms["dpo"], (np.log1p(np.exp(-margin_B)).sum(), 2.0))
    close(terms["nll_chosen"], (-logp_B2[:, 0].sum(), float(length_B2[:, 0].sum())))
    close(metrics["margin"], (margin_B.sum(), 2.0))
    assert np.ptp(length_B2) > 0


def test_rf_nll_of_a_branch_is_the_cross_entropy_of_the_plain_sequence():
    b = batch("rf_nll")
    sequences_BN = tiny.sequences(b.tree)
    at_BN = np.arange(sequences_BN.shape[1])[None] - np.asarray(b.tree.fork_BC)
    mask_BN = (at_BN >= 0) & (at_BN < np.asarray(b.tree.mask_BCR).sum(-1))
    plain = losses.tokens_terms(tiny.CFG)
    want, _ = jax.jit(plain)(tiny.params(), None, (tiny.trunk_only(sequences_BN), mask_BN))
    got, _ = values(ObjectiveConfig("rf_nll"))(tiny.params(), None, b)
    close(got["rf_nll"], want["ce"])


def test_the_blend_adds_the_cross_entropy_of_the_suffix_in_the_trunk():
    b = batch("rf_nll")
    logp_B1, length_B1 = sequence_logp(tiny.params(), b.tree)
    _, _, logp_BT, _ = tiny.forward(tiny.params(), tiny.CFG, b.tree)
    blend = ObjectiveConfig("rf_nll", length_normalize=True, ce_weight=1.0)
    terms, _ = values(blend)(tiny.params(), None, b)
    close(terms["ce"], (-(logp_BT[0, 2:].sum() + logp_BT[1, 4:].sum()), 6.0))
    close(terms["rf_nll"], (-(logp_B1 / length_B1).sum(), 2.0))  # the mean of sequences' means


def test_dr_grpo_on_policy_is_minus_advantage_times_length():
    b = batch("dr_grpo", advantage=jnp.array([0.5, -1.0, 0.5]))
    _, _, _, logp_BCR = tiny.forward(tiny.params(), tiny.CFG, b.tree)
    terms, metrics = values(ObjectiveConfig("dr_grpo"))(
        tiny.params(), None, b.replace(old_logp_BCR=logp_BCR)
    )
    length_BC = np.asarray(b.tree.mask_BCR).sum(-1)
    close(terms, {"dr_grpo": (-(length_BC * [0.5, -1.0, 0.5]).sum(), 6.0 * 3)})
    close(metrics["clip_fraction"][0], 0.0)


@pytest.mark.slow  # test_policy has the objective alone
def test_dr_grpo_of_equal_rewards_has_no_gradient():
    grads, _ = gradients(ObjectiveConfig("dr_grpo"))(tiny.params(), tiny.params(), batch("dr_grpo"))
    assert all((g == 0).all() for g in jax.tree.leaves(grads))


def test_a_pair_of_one_candidate_is_an_error_and_no_gradient_of_zero():
    with pytest.raises(ValueError, match="needs C = 2, not 1"):
        losses._objective(tiny.CFG, losses.ObjectiveConfig("dpo"), None, *_one_candidate())


def _one_candidate():
    tree = tiny.tree(C=1)
    ones = jnp.ones(tree.fork_BC.shape)
    zeros = jnp.zeros(tree.mask_BCR.shape)
    return losses.Branches(tree, ones > 0, ones, zeros, tree.mask_BT), zeros


@pytest.mark.parametrize(
    "name", [n if n == "dpo" else pytest.param(n, marks=pytest.mark.slow) for n in BRANCHES]
)
def test_invalid_rows_have_no_gradient(name):
    advantage = jnp.arange(-1.0, BRANCHES[name] - 1)
    arguments = (tiny.params(), tiny.params(seed=1))
    one = batch(name, advantage, valid=((True,), (False,)))
    other = one.replace(
        tree=one.tree.replace(tokens_BCR=one.tree.tokens_BCR.at[1].add(1) % 16),
        old_logp_BCR=one.old_logp_BCR.at[1].set(jnp.nan),
        advantage_BC=one.advantage_BC.at[1].set(9.0),
    )
    of = gradients(ObjectiveConfig(name))
    grads, reference_grads = of(*arguments, one)
    close(of(*arguments, other)[0], grads, 1e-6)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) > 1e-2
    assert all((g == 0).all() for g in jax.tree.leaves(reference_grads)), "the reference is frozen"
    none = of(*arguments, batch(name, advantage, valid=((False,), (False,))))[0]
    assert all((g == 0).all() for g in jax.tree.leaves(none))


def test_ce_weight_goes_linearly_to_its_last():
    weights = losses.branch_weights(ObjectiveConfig(ce_weight=1.0, ce_weight_last=0.2, ce_steps=4))
    close([weights(i)["ce"] for i in (0, 1, 2, 4, 9)], [1.0, 0.8, 0.6, 0.2, 0.2])
    rising = losses.branch_weights(ObjectiveConfig(ce_weight_last=0.5, ce_steps=2))
    close([rising(i)["ce"] for i in (0, 1, 2)], [0.0, 0.25, 0.5])


def test_weights_name_the_terms_that_there_are():
    assert losses.branch_weights(ObjectiveConfig("rf_nll"))(0) == {"rf_nll": 1.0}
    both = ObjectiveConfig("dpo", nll_weight=0.3, ce_weight=0.5, ce_weight_last=0.5)
    close(losses.branch_weights(both)(7), {"dpo": 1.0, "nll_chosen": 0.3, "ce": 0.5})
    terms = jax.eval_shape(
        losses.branch_terms(tiny.CFG, both), tiny.params(), tiny.params(), batch("dpo")
    )[0]
    assert set(terms) == {"dpo", "nll_chosen", "ce"}


def test_tokens_without_a_past_do_not_count():
    segment_BT = jnp.array([[1, 1, 2, 2, 2, 2], [1, 1, 1, 2, 3, 3]])
    tree = tiny.trunk_only(tiny.tree().tokens_BT, segment_BT)
    mask_BT = jnp.ones((2, 6), bool).at[0, 3].set(False)
    terms, _ = jax.jit(losses.tokens_terms(tiny.CFG))(tiny.params(), None, (tree, mask_BT))
    logp_BT = np.array(tiny.forward(tiny.params(), tiny.CFG, tree)[2])
    assert (logp_BT[[0, 0, 1, 1, 1], [0, 2, 0, 3, 4]] == 0).all(), "the first of each segment"
    close(terms["ce"], (logp_BT[0, 3] - logp_BT.sum(), 12.0 - 5 - 1))


def test_verdict_terms_score_what_is_asked_where_it_is_asked():
    tree = tiny.tree()
    live_BC = tree.mask_BCR[:, :, 1]
    # Of each branch the token that follows position 0, asked once or twice.
    at_BCM = jnp.zeros((*live_BC.shape, 2), jnp.int32)
    token_BCM = jnp.repeat(tree.tokens_BCR[:, :, 1:2], 2, axis=-1)
    twice = Targets(at_BCM, token_BCM, jnp.stack([live_BC, live_BC], -1))
    once = Targets(at_BCM, token_BCM, jnp.stack([live_BC, ~live_BC & False], -1))
    terms, _ = jax.jit(losses.verdict_terms(tiny.CFG))(
        tiny.params(), None, {"quality": (tree, {"quality": once, "quality/grades": twice})}
    )
    n, logp_BCR = int(live_BC.sum()), np.asarray(tiny.forward(tiny.params(), tiny.CFG, tree)[3])
    total = -float(logp_BCR[:, :, 1].sum())
    assert n
    close(terms, {"quality": (total, n), "quality/grades": (2 * total, 2 * n)})


def log_z(hidden):
    """Computes the log of the summed exponentials of the logits with numpy."""
    logits = np.asarray(hidden, np.float64) @ np.asarray(tiny.params()["unembed"], np.float64)
    return np.log(np.exp(logits).sum(-1))


def test_the_z_loss_of_tokens_is_over_the_tokens_that_count():
    tree = tiny.tree()
    mask_BT = jnp.ones((2, 6), bool).at[0, 3].set(False)
    batch = (tiny.trunk_only(tree.tokens_BT), mask_BT)
    plain, _ = jax.jit(losses.tokens_terms(tiny.CFG))(tiny.params(), None, batch)
    terms, _ = jax.jit(losses.tokens_terms(tiny.CFG, 1e-4))(tiny.params(), None, batch)
    log_z_BT = log_z(tiny.forward(tiny.params(), tiny.CFG, tree)[0][:, :-1])
    counted_BT = np.asarray(mask_BT)[:, 1:]
    want = {"ce": plain["ce"], "ce/z": ((log_z_BT**2 * counted_BT).sum(), 9.0)}
    close(terms, want)
    assert set(plain) == {"ce"} and np.abs(log_z_BT).min() > 0.1


def test_the_z_loss_of_verdicts_is_read_where_they_are():
    tree = tiny.tree()
    at_BCM = jnp.array([[[0]] * 4] * 2)
    asked = Targets(at_BCM, tree.tokens_BCR[:, :, 1:2], tree.mask_BCR[:, :, :1])
    batch = {"quality": (tree, {"quality": asked})}
    terms, _ = jax.jit(losses.verdict_terms(tiny.CFG, 1e-4))(tiny.params(), None, batch)
    plain, _ = jax.jit(losses.verdict_terms(tiny.CFG))(tiny.params(), None, batch)
    log_z_BC = log_z(tiny.forward(tiny.params(), tiny.CFG, tree)[1][:, :, 0])
    close(terms, {**plain, "quality/z": ((log_z_BC**2).sum(), 8.0)})


def test_the_z_loss_of_the_blend_is_the_suffixs():
    b = batch("rf_nll")
    blend = ObjectiveConfig("rf_nll", ce_weight=0.5, ce_weight_last=0.5, z_loss=0.1)
    terms, _ = values(blend)(tiny.params(), None, b)
    log_z_BT = log_z(tiny.forward(tiny.params(), tiny.CFG, b.tree)[0])
    want = (log_z_BT[0, 1:5] ** 2).sum() + (log_z_BT[1, 3:5] ** 2).sum()  # read before each token
    close(terms["ce/z"], (want, 6.0))
    plain, _ = values(dataclasses.replace(blend, z_loss=0.0))(tiny.params(), None, b)
    close(plain, {k: v for k, v in terms.items() if k != "ce/z"})
    close(losses.branch_weights(blend)(3), {"rf_nll": 1.0, "ce": 0.5, "ce/z": 0.05})


def test_weights_of_z_losses_are_shares_of_their_cross_entropies():
    weights = {"quality": 1.0, "quality/grades": 0.5}
    assert losses.with_z(weights, 0.0) == weights
    want = {**weights, "quality/z": 0.1, "quality/grades/z": 0.05}
    assert losses.with_z(weights, 0.1) == want


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"name": "ppo"}, r"objective\.name='ppo'"),
        ({"beta": 0.0}, r"objective\.beta"),
        ({"ce_steps": 0}, r"objective\.ce_steps"),
        ({"nll_weight": -1.0}, "objective.nll_weight=-1.0"),
        ({"ce_weight": -1.0}, "objective.ce_weight=-1.0"),
        ({"ce_weight_last": -1.0}, "objective.ce_weight_last=-1.0"),
        ({"z_loss": -1.0, "ce_weight": 1.0}, "objective.z_loss=-1.0"),
        ({"z_loss": 1e-4}, r"objective\.z_loss .*ce_weight_last are 0"),
        ({"name": "rf_nll", "nll_weight": 0.1}, r"objective\.nll_weight .*rf_nll"),
    ],
)
def test_a_config_that_cannot_be_names_its_field(values, match):
    with pytest.raises(UserError, match=match):
        ObjectiveConfig(**values)
