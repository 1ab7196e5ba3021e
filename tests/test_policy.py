import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sip.objectives import policy

# One prompt, three rollouts of up to two tokens; the third is invalid.
LOGP_BKR = jnp.log(jnp.array([[[0.5, 0.2], [0.3, 0.1], [0.4, 0.4]]]))
OLD_BKR = jnp.log(jnp.array([[[0.25, 0.2], [0.6, 0.7], [0.1, 0.9]]]))
MASK_BKR = jnp.array([[[True, True], [True, False], [True, True]]])
VALID_BK = jnp.array([[True, True, False]])
ADVANTAGE_BK = jnp.array([[1.0, -1.0, 5.0]])


def dr_grpo(logp=LOGP_BKR, old=OLD_BKR, advantage=ADVANTAGE_BK, mask=MASK_BKR, valid=VALID_BK):
    return policy.dr_grpo(logp, old, advantage, mask, valid, clip_low=0.2, clip_high=0.28)


def grad_of(logp, **kwargs):
    return jax.grad(lambda x: dr_grpo(x, **kwargs)[0])(logp)


def test_advantages_are_rewards_minus_the_mean_of_the_valid():
    rewards_BK = jnp.array([[1.0, 0.0, 5.0, 2.0], [3.0, 1.0, 4.0, 0.0]])
    valid_BK = jnp.array([[True, True, False, True], [True] * 4])
    expected = jnp.array([[0.0, -1.0, 0.0, 1.0], [1.0, -1.0, 2.0, -2.0]])
    np.testing.assert_allclose(policy.advantages_dr_grpo(rewards_BK, valid_BK), expected)


# Two rewards of three answers to two prompts: the first has a small spread, the second a large one.
ONE_BK = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
TWO_BK = np.array([[0.0, 1.0, 5.0], [0.0, 0.0, 9.0]])
ALL_BK = np.ones((2, 3), bool)


def combined(parts, weights, valid=ALL_BK, kind="grpo", aggregate="normalise"):
    parts = np.asarray(parts, np.float32)
    return np.asarray(policy.combined_advantages(parts, weights, valid, kind, aggregate))


def test_rewards_one_zero_and_zero_one_differ_only_if_each_is_normalised():
    """arXiv 2601.05242: equal sums hide which of two rewards an answer got."""
    summed = combined([ONE_BK, TWO_BK], (1.0, 1.0), aggregate="sum")
    assert summed[0, 0] == summed[0, 1], "both sums are 1"
    apart = combined([ONE_BK, TWO_BK], (1.0, 1.0))
    each = [(r - r.mean()) / (r.std() + policy.EPS) for r in (ONE_BK[0], TWO_BK[0])]
    other = (TWO_BK[1] - 3) / (TWO_BK[1].std() + policy.EPS)
    total = np.stack([each[0] + each[1], other])
    np.testing.assert_allclose(apart, total / (total.std() + policy.EPS), rtol=1e-4)
    assert apart[0, 0] - apart[0, 1] > 0.5


def test_the_filter_for_flat_groups_looks_at_the_parts():
    """The sums of three rewards are equal, but the rewards are not."""
    parts = np.array([[[1.0, 0.0]], [[0.0, 0.5]], [[0.0, 0.5]]])
    valid, weights = np.ones((1, 2), bool), (1.0, 1.0, 1.0)
    assert policy.flat(combined(parts, weights, valid, aggregate="sum")).tolist() == [True]
    assert policy.flat(combined(parts, weights, valid)).tolist() == [False]
    flat = np.ones((3, 1, 2))
    assert policy.flat(combined(flat, weights, valid)).tolist() == [True]
    opposite = np.array([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 1.0]]])
    cancelled = combined(opposite, (1.0, 1.0), np.ones((1, 3), bool))
    assert (cancelled == 0).all(), "rounding noise is no signal"


def test_weights_scale_normalised_rewards_and_one_reward_is_grpo():
    valid = np.array([[True, True, False], [True] * 3])
    for aggregate in policy.AGGREGATES:
        one = combined([TWO_BK], (2.0,), valid, aggregate=aggregate)
        want = np.asarray(policy.advantages(TWO_BK, valid, "grpo"))
        scale = 1.0 if aggregate == "sum" else np.sqrt((want[valid] ** 2).mean())
        np.testing.assert_allclose(one * scale, want, rtol=2e-3)
        assert one[0, 2] == 0
    heavy = combined([ONE_BK, TWO_BK], (9.0, 1.0))
    assert heavy[0, 0] > heavy[0, 2], "the weight outranks the spread"
    with pytest.raises(ValueError, match="aggregate 'mean'"):
        combined([TWO_BK], (1.0,), aggregate="mean")


def test_advantages_sum_to_zero_over_each_group():
    rewards_BK = jax.random.normal(jax.random.key(0), (16, 7)) * 10
    valid_BK = jax.random.bernoulli(jax.random.key(1), 0.7, (16, 7))
    advantage_BK = policy.advantages_dr_grpo(rewards_BK, valid_BK)
    np.testing.assert_allclose(advantage_BK.sum(-1), jnp.zeros(16), atol=2e-5)
    assert jnp.abs(advantage_BK).max() > 1 and (jnp.where(valid_BK, 0.0, advantage_BK) == 0).all()


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, 1e30])
def test_invalid_rewards_never_matter(bad):
    valid_BK = jnp.array([[True, True, False], [False, False, False]])
    rewards_BK = jnp.where(valid_BK, jnp.array([[1.0, 2.0, 3.0]] * 2), bad)
    expected = jnp.array([[-0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(policy.advantages_dr_grpo(rewards_BK, valid_BK), expected)


@pytest.mark.parametrize("reward", [0.1, 1 / 3, -7.7e4])
def test_equal_rewards_give_exactly_no_gradient(reward):
    old_BKR = jnp.log(jax.random.uniform(jax.random.key(0), (2, 7, 3)))
    mask_BKR, valid_BK = jnp.ones((2, 7, 3), bool), jnp.ones((2, 7), bool).at[0, 3:].set(False)
    advantage_BK = policy.advantages_dr_grpo(jnp.full((2, 7), reward), valid_BK)
    grad = grad_of(old_BKR, old=old_BKR, advantage=advantage_BK, mask=mask_BKR, valid=valid_BK)
    np.testing.assert_array_equal(grad, jnp.zeros((2, 7, 3)))


def test_dr_grpo_of_hand_worked_ratios():
    # Ratios 2 and 1 with A = 1: min(2, 1.28) and 1. Ratio 0.5 with A = -1: min(-0.5, -0.8).
    total, denom, metrics = dr_grpo()
    np.testing.assert_allclose(total, -(1.28 + 1.0 - 0.8), rtol=1e-6)
    assert float(denom) == 2 * 2  # valid rollouts times R, tokens missing or not
    np.testing.assert_allclose(metrics["clip_fraction"], (2, 3))
    kl = (2 - 1 - math.log(2)) + 0 + (0.5 - 1 + math.log(2))
    np.testing.assert_allclose(metrics["approx_kl"], (kl, 3), rtol=1e-6)


def test_clipping_only_stops_what_would_go_further():
    # Ratio 2 is clipped for A = 1 and free for A = -1; ratio 0.5 the other way round.
    good = grad_of(LOGP_BKR)
    np.testing.assert_allclose(good[0, :2], jnp.array([[0.0, -1.0], [0.0, 0.0]]), rtol=1e-6)
    other = grad_of(LOGP_BKR, advantage=-ADVANTAGE_BK)
    np.testing.assert_allclose(other[0, :2], jnp.array([[2.0, 1.0], [-0.5, 0.0]]), rtol=1e-6)


def test_on_policy_gradient_is_minus_the_advantage():
    grad = grad_of(OLD_BKR)
    expected = -(ADVANTAGE_BK * VALID_BK)[..., None] * MASK_BKR
    np.testing.assert_allclose(grad, expected, rtol=1e-6)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf, 1e30])
def test_padding_and_invalid_rollouts_never_matter(bad):
    seen = MASK_BKR & VALID_BK[..., None]
    noisy = {"old": jnp.where(seen, OLD_BKR, -bad)}
    noisy["advantage"] = jnp.where(VALID_BK, ADVANTAGE_BK, bad)
    logp = jnp.where(seen, LOGP_BKR, bad)
    jax.tree.map(np.testing.assert_array_equal, dr_grpo(logp, **noisy), dr_grpo())
    np.testing.assert_array_equal(grad_of(logp, **noisy), grad_of(LOGP_BKR))
    assert not grad_of(LOGP_BKR)[0, 2].any()


def test_invalid_rollouts_equal_removed_rollouts():
    few = LOGP_BKR[:, :2], OLD_BKR[:, :2], ADVANTAGE_BK[:, :2], MASK_BKR[:, :2], VALID_BK[:, :2]
    jax.tree.map(np.testing.assert_array_equal, dr_grpo(), dr_grpo(*few))


def test_no_valid_rollout_is_zero_over_zero():
    total, denom, metrics = dr_grpo(LOGP_BKR * jnp.nan, valid=jnp.zeros((1, 3), bool))
    assert (float(total), float(denom)) == (0, 0)
    assert all(float(t) == 0 and float(d) == 0 for t, d in metrics.values())


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_huge_ratio_keeps_the_gradient_finite(advantage):
    logp_BKR = OLD_BKR + 200.0
    grad = grad_of(logp_BKR, advantage=jnp.full((1, 3), advantage))
    assert jnp.isfinite(grad).all()


def test_microbatches_of_dr_grpo_add_up_to_the_whole():
    args = LOGP_BKR, OLD_BKR, ADVANTAGE_BK, MASK_BKR, VALID_BK
    twice = [jnp.concatenate([x, x[:, ::-1]]) for x in args]
    parts = [dr_grpo(*(x[:1] for x in twice)), dr_grpo(*(x[1:] for x in twice))]
    summed = jax.tree.map(lambda *xs: sum(xs), *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), summed, dr_grpo(*twice))


@pytest.mark.parametrize("denominator", ["old", "advantage"])
def test_old_logprobs_and_advantages_get_no_gradient(denominator):
    value = {"old": OLD_BKR, "advantage": ADVANTAGE_BK}[denominator]
    grad = jax.grad(lambda x: dr_grpo(**{denominator: x})[0])(value)
    assert not grad.any()


def test_advantages_of_hand_worked_groups():
    # One of four right: mean 1/4, deviation sqrt(3)/4; the others' mean is 0 for it, 1/3 for them.
    rewards_BK = jnp.array([[1.0, 0.0, 0.0, 0.0, 9.0], [2.0, 4.0, 9.0, 9.0, 9.0]])
    valid_BK = jnp.array([[True, True, True, True, False], [True, True, False, False, False]])
    found = {kind: policy.advantages(rewards_BK, valid_BK, kind) for kind in policy.ADVANTAGES}
    root = math.sqrt(3)
    expected = {
        "grpo": [[root, -1 / root, -1 / root, -1 / root, 0.0], [-1.0, 1.0, 0.0, 0.0, 0.0]],
        "dr_grpo": [[0.75, -0.25, -0.25, -0.25, 0.0], [-1.0, 1.0, 0.0, 0.0, 0.0]],
        "rloo": [[1.0, -1 / 3, -1 / 3, -1 / 3, 0.0], [-2.0, 2.0, 0.0, 0.0, 0.0]],
    }
    for kind, advantage_BK in found.items():
        np.testing.assert_allclose(advantage_BK, np.array(expected[kind]), rtol=5e-4, err_msg=kind)


@pytest.mark.parametrize("kind", policy.ADVANTAGES)
@pytest.mark.parametrize("reward", [0.1, 1 / 3, -7.7e4, 0.0])
def test_equal_rewards_one_alone_and_none_are_flat(kind, reward):
    valid_BK = jnp.array([[True] * 7, [False] * 4 + [True] * 3, [False] * 6 + [True], [False] * 7])
    rewards_BK = jnp.where(valid_BK, reward, jnp.nan)
    advantage_BK = policy.advantages(rewards_BK, valid_BK, kind)
    np.testing.assert_array_equal(advantage_BK, jnp.zeros((4, 7)))
    assert tuple(map(float, policy.flat_groups(advantage_BK, valid_BK))) == (3, 3)


@pytest.mark.parametrize("kind", policy.ADVANTAGES)
def test_a_group_with_a_difference_is_not_flat(kind):
    rewards_BK, valid_BK = jnp.array([[0.0, 1.0], [1.0, 1.0]]), jnp.ones((2, 2), bool)
    advantage_BK = policy.advantages(rewards_BK, valid_BK, kind)
    assert tuple(map(float, policy.flat_groups(advantage_BK, valid_BK))) == (1, 2)


def surrogate(logp=LOGP_BKR, **changes):
    kwargs = dict(denominator="constant", clip_low=0.2, clip_high=0.28) | changes
    return policy.surrogate(logp, OLD_BKR, ADVANTAGE_BK, MASK_BKR, VALID_BK, **kwargs)


@pytest.mark.parametrize(
    ("denominator", "total", "denom"),
    [
        # The tokens' losses are -1.28 and -1 of the first rollout, 0.8 of the second.
        ("sequence", -(1.28 + 1.0) / 2 + 0.8, 2),
        ("token", -1.28 - 1.0 + 0.8, 3),
        ("constant", -1.28 - 1.0 + 0.8, 4),
    ],
)
def test_the_three_denominators_of_hand_worked_ratios(denominator, total, denom):
    found = surrogate(denominator=denominator)
    np.testing.assert_allclose(found[:2], (total, denom), rtol=1e-6)


def test_clip_higher_lets_a_good_token_grow_further():
    # Ratio 2 with A = 1: bounded by 1 + clip_high.
    np.testing.assert_allclose(surrogate(clip_high=0.2)[0] - surrogate()[0], 0.08, rtol=1e-5)
    np.testing.assert_allclose(surrogate(clip_high=5.0)[0], -(2.0 + 1.0 - 0.8), rtol=1e-6)


@pytest.mark.parametrize("denominator", policy.DENOMINATORS)
def test_k3_of_hand_worked_ratios_is_added_under_the_same_denominator(denominator):
    # Reference over policy: 1/2, 1, and 3 of the second rollout's only token.
    ref_BKR = LOGP_BKR + jnp.log(jnp.array([[[0.5, 1.0], [3.0, 7.0], [jnp.nan, 5.0]]]))
    k3 = [0.5 - math.log(0.5) - 1, 0.0, 3 - math.log(3) - 1]
    plain = surrogate(denominator=denominator)
    found = surrogate(denominator=denominator, beta=0.1, ref_logp_BKR=ref_BKR)
    share = (k3[0] + k3[1]) / 2 + k3[2] if denominator == "sequence" else sum(k3)
    np.testing.assert_allclose(found[0] - plain[0], 0.1 * share, rtol=1e-5)
    assert found[1] == plain[1]
    np.testing.assert_allclose(found[2]["kl"], (sum(k3), 3), rtol=1e-5)


def test_k3_pulls_towards_the_reference_and_nowhere_at_it():
    of = lambda ref: jax.grad(
        lambda x: surrogate(x, beta=1.0, ref_logp_BKR=ref)[0] - surrogate(x)[0]
    )(LOGP_BKR)
    np.testing.assert_allclose(of(LOGP_BKR), jnp.zeros((1, 3, 2)), atol=1e-6)
    grad = of(LOGP_BKR + math.log(3.0))  # d/dlogp of exp(d) - d - 1 is 1 - exp(d)
    np.testing.assert_allclose(grad, jnp.where(MASK_BKR & VALID_BK[..., None], -2.0, 0), rtol=1e-5)


def test_a_kl_term_without_a_reference_and_unknown_choices_are_refused():
    for wrong in (lambda: surrogate(beta=0.1), lambda: surrogate(denominator="mean"),
                  lambda: policy.advantages(ADVANTAGE_BK, VALID_BK, "ppo")):  # fmt: skip
        with pytest.raises(ValueError):
            wrong()
