import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sip.objectives import preference
from sip.stages import collect
from sip.training import losses

LOGP_B2 = jnp.array([[-4.0, -6.0], [-3.0, -1.0], [-2.0, -9.0]])
REF_B2 = jnp.array([[-5.0, -3.0], [-3.0, -3.0], [-8.0, -1.0]])
LENGTH_B2 = jnp.array([[2, 4], [1, 1], [3, 3]])
VALID_B = jnp.array([True, True, False])


def dpo(logp_B2=LOGP_B2, ref_B2=REF_B2, valid_B=VALID_B, **kwargs):
    return preference.dpo(logp_B2, ref_B2, valid_B, beta=0.5, **kwargs)


def total_of(logp_B2, **kwargs):
    return dpo(logp_B2, **kwargs)[0]


def softplus(x):
    return math.log1p(math.exp(x))


def test_dpo_is_log_two_where_policy_is_reference():
    total, denom, metrics = dpo(REF_B2)
    np.testing.assert_allclose(total / denom, math.log(2), rtol=1e-6)
    assert float(denom) == 2 and float(metrics["margin"][0]) == 0


def test_dpo_of_hand_worked_pairs():
    # Ratios (1, -3) and (0, 2): margins 0.5 * 4 = 2 and 0.5 * -2 = -1; the third row is invalid.
    total, denom, metrics = dpo()
    np.testing.assert_allclose(total, softplus(-2) + softplus(1), rtol=1e-6)
    assert float(denom) == 2
    expected = {"margin": 1, "accuracy": 1, "chosen_logp": -7, "rejected_logp": -7}
    assert {k: float(v[0]) for k, v in metrics.items()} == expected
    assert all(float(v[1]) == 2 for v in metrics.values())


def test_accuracy_counts_the_pairs_with_a_positive_margin():
    # The third margin is 0.5 * (6 - -8) = 7, so two of three are positive.
    metrics = dpo(valid_B=jnp.ones(3, bool))[2]
    assert tuple(map(float, metrics["accuracy"])) == (2, 3)


def test_length_normalised_dpo_of_hand_worked_pairs():
    # Ratios (1/2, -3/4) and (0, 2): margins 0.5 * 1.25 and -1.
    total, denom, _ = dpo(length_B2=LENGTH_B2)
    np.testing.assert_allclose(total, softplus(-0.625) + softplus(1), rtol=1e-6)
    assert float(denom) == 2


def test_an_empty_sequence_has_ratio_zero_when_length_normalised():
    # The first pair's rejected has no token: margin 0.5 * (1/2 - 0).
    logp_B2, ref_B2 = LOGP_B2.at[0, 1].set(0.0), REF_B2.at[0, 1].set(0.0)
    total, _, _ = dpo(logp_B2, ref_B2, length_B2=LENGTH_B2.at[0, 1].set(0))
    np.testing.assert_allclose(total, softplus(-0.25) + softplus(1), rtol=1e-6)


def test_dpo_gradient_is_beta_sigma_of_minus_the_margin():
    grad_B2 = jax.grad(total_of)(LOGP_B2)
    weight = 0.5 / (1 + math.exp(2))
    np.testing.assert_allclose(grad_B2[0], jnp.array([-weight, weight]), rtol=1e-5)


@pytest.mark.parametrize("length_B2", [None, LENGTH_B2.at[2].set(0)])
@pytest.mark.parametrize("bad", [jnp.nan, -jnp.inf, 1e30])
def test_invalid_pairs_have_zero_gradient_whatever_they_hold(bad, length_B2):
    noisy_B2 = LOGP_B2.at[2].set(bad)
    ref_B2 = REF_B2.at[2].set(bad)
    grad_B2 = jax.grad(total_of)(noisy_B2, ref_B2=ref_B2, length_B2=length_B2)
    clean_B2 = jax.grad(total_of)(LOGP_B2, length_B2=length_B2)
    np.testing.assert_array_equal(grad_B2, clean_B2)
    np.testing.assert_array_equal(grad_B2[2], jnp.zeros(2))


def test_invalid_pairs_equal_removed_pairs():
    for length_B2 in None, LENGTH_B2:
        few = None if length_B2 is None else length_B2[:2]
        kept = dpo(LOGP_B2[:2], REF_B2[:2], VALID_B[:2], length_B2=few)
        jax.tree.map(np.testing.assert_array_equal, dpo(length_B2=length_B2), kept)


def test_no_valid_pair_is_zero_over_zero():
    total, denom, metrics = dpo(LOGP_B2 * jnp.nan, valid_B=jnp.zeros(3, bool))
    assert (float(total), float(denom)) == (0, 0)
    assert all(float(t) == 0 and float(d) == 0 for t, d in metrics.values())


def test_the_reference_gets_no_gradient():
    grad_B2 = jax.grad(lambda ref_B2: dpo(ref_B2=ref_B2)[0])(REF_B2)
    np.testing.assert_array_equal(grad_B2, jnp.zeros((3, 2)))


def test_microbatches_of_dpo_add_up_to_the_whole():
    parts = [dpo(LOGP_B2[r], REF_B2[r], VALID_B[r]) for r in (slice(0, 1), slice(1, 3))]
    summed = jax.tree.map(lambda *xs: sum(xs), *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), summed, dpo())


def test_ipo_of_hand_worked_pairs():
    # h = 4 and -2, 1 / (2 beta) = 1.
    total, denom, metrics = dpo(loss="ipo")
    np.testing.assert_allclose(total, (4 - 1) ** 2 + (-2 - 1) ** 2, rtol=1e-6)
    assert float(denom) == 2 and float(metrics["margin"][0]) == 1  # beta h: 2 - 1
    # Per token h = 1.25 and -2, the form that TRL calls ipo.
    total, _, _ = dpo(loss="ipo", length_B2=LENGTH_B2)
    np.testing.assert_allclose(total, (1.25 - 1) ** 2 + (-2 - 1) ** 2, rtol=1e-6)


def test_simpo_is_length_normalised_without_a_reference():
    # log-probabilities per token (-2, -1.5) and (-3, -1): beta h = -0.25 and -1, gamma 0.3.
    total, _, _ = dpo(ref_B2=None, length_B2=LENGTH_B2, gamma=0.3)
    np.testing.assert_allclose(total, softplus(0.25 + 0.3) + softplus(1 + 0.3), rtol=1e-6)


def test_an_unknown_loss_is_an_error():
    with pytest.raises(ValueError, match="'hinge': not one of"):
        dpo(loss="hinge")


REWARD_B2 = jnp.array([[2.0, -1.0], [0.5, 1.5], [jnp.nan, 0.0]])


def test_bradley_terry_of_hand_worked_pairs():
    # Gaps 3 and -1; with margins 1 and 0.5 they are 2 and -1.5.
    total, denom, metrics = preference.bradley_terry(REWARD_B2, VALID_B)
    np.testing.assert_allclose(total, softplus(-3) + softplus(1), rtol=1e-6)
    assert float(denom) == 2
    expected = {"margin": 2, "accuracy": 1, "chosen_reward": 2.5, "rejected_reward": 0.5}
    assert {k: float(v[0]) for k, v in metrics.items()} == expected
    margin_B = jnp.array([1.0, 0.5, 9.0])
    total, _, shifted = preference.bradley_terry(REWARD_B2, VALID_B, margin_B=margin_B)
    np.testing.assert_allclose(total, softplus(-2) + softplus(1.5), rtol=1e-6)
    assert shifted == metrics, "a margin changes the loss alone"


def test_an_invalid_pair_of_rewards_has_no_gradient():
    both = lambda r: preference.bradley_terry(r, VALID_B)[0] + preference.centring(r, VALID_B)[0]
    grad_B2 = jax.grad(both)(REWARD_B2)
    assert np.isfinite(grad_B2).all() and (grad_B2[2] == 0).all() and (grad_B2[:2] != 0).all()


def test_centring_is_the_mean_square_of_the_sum():
    total, denom, _ = preference.centring(REWARD_B2, VALID_B)
    assert (float(total), float(denom)) == (1 + 4, 2)


def test_nll_chosen_is_per_token_of_the_valid_chosen():
    logp_B2 = LOGP_B2.at[2].set(jnp.nan)
    total, denom, _ = preference.nll_chosen(logp_B2, LENGTH_B2, VALID_B)
    assert (float(total), float(denom)) == (4 + 3, 2 + 1)


def choose(scores_BK, valid_BK, epsilon=0.25):
    """(chosen_B, rejected_B, valid_B) of `collect.pick`; candidate k is the one token k."""
    valid_BK = np.array(valid_BK, bool)
    B, K = valid_BK.shape
    tokens_BKR = np.tile(np.arange(K)[:, None], (B, 1, 1))
    every = np.ones((B, K, 1), bool)
    pool = collect.Pool(tokens_BKR, every, valid_BK, ["rollout"] * K, [], np.zeros(every.shape))
    p = SimpleNamespace(
        candidates=collect.CandidateConfig(epsilon=epsilon),
        objective=losses.ObjectiveConfig("dpo"), suffix=1, documents=0,
    )  # fmt: skip
    rows = dict(tokens_BT=np.zeros((B, 3), int), mask_BT=np.ones((B, 3), bool), fork_B=np.ones(B))
    branches, *_ = collect.pick(p, rows, pool, np.array(scores_BK), valid_BK)
    chosen_B, rejected_B = branches.tree.tokens_BCR[:, :, 0].T
    return chosen_B.tolist(), rejected_B.tolist(), branches.valid_BC[:, 0].tolist()


def test_a_pair_is_the_best_and_the_worst():
    assert choose([[1.0, 3.0, 0.5], [2.0, 0.0, 1.0]], np.ones((2, 3))) == (
        [1, 0],
        [2, 1],
        [True, True],
    )


@pytest.mark.parametrize("gap, valid", [(0.0, False), (0.25, False), (0.5, True)])
def test_a_margin_up_to_epsilon_is_a_tie(gap, valid):
    assert choose([[1.0, 1.0 + gap, 1.0]], np.ones((1, 3)))[2] == [valid]


@pytest.mark.parametrize("bad", [9.0, -9.0, np.nan, np.inf])
def test_invalid_candidates_are_never_chosen_or_rejected(bad):
    assert choose([[bad, 1.0, bad, 2.0]], [[0, 1, 0, 1]]) == ([3], [1], [True])


@pytest.mark.parametrize("valid", [[0, 0, 0], [0, 1, 0]])
def test_fewer_than_two_valid_candidates_give_no_pair(valid):
    assert choose([[5.0, 1.0, np.nan]], [valid])[2] == [False]


def test_one_candidate_never_makes_a_pair():
    assert choose([[5.0], [2.0]], [[1], [0]], 0.0)[2] == [False, False]


def test_best_is_the_first_of_the_best_valid():
    scores_BK = jnp.array([[1.0, 3.0, 3.0, 9.0], [1.0, 2.0, 3.0, 4.0], [-5.0, -7.0, -6.0, 0.0]])
    valid_BK = jnp.array([[True, True, True, False], [False] * 4, [True, True, True, False]])
    index_B, valid_B = collect.best(scores_BK, valid_BK)
    assert valid_B.tolist() == [True, False, True]
    assert index_B[0] == 1 and index_B[2] == 0


TOKENS_BKR = np.array([[[1, 2, 9], [1, 2, 8], [1, 2, 9], [1, 3, 0], [1, 0, 0], [1, 2, 7]]])
LENGTHS_BK = np.array([[2, 2, 3, 2, 1, 2]])
MASK_BKR = np.arange(3) < LENGTHS_BK[..., None]


def test_later_duplicates_are_switched_off_whatever_the_padding():
    merged = collect.merge_duplicates(TOKENS_BKR, MASK_BKR, np.ones((1, 6), bool))
    assert merged.tolist() == [[True, False, True, True, True, False]]


def test_a_duplicate_of_an_invalid_candidate_stays():
    valid_BK = np.array([[False, True, True, True, False, True]])
    merged = collect.merge_duplicates(TOKENS_BKR, MASK_BKR, valid_BK)
    assert merged.tolist() == [[False, True, True, True, False, False]]


def test_duplicates_are_only_looked_for_within_a_prefix():
    tokens_BKR, mask_BKR = np.ones((2, 1, 3), int), np.ones((2, 1, 3), bool)
    assert collect.merge_duplicates(tokens_BKR, mask_BKR, np.ones((2, 1), bool)).all()


def test_a_shorter_candidate_is_no_duplicate_where_padding_equals_the_token():
    tokens_BKR = np.zeros((1, 2, 2), int)
    mask_BKR = np.array([[[True, True], [True, False]]])
    assert collect.merge_duplicates(tokens_BKR, mask_BKR, np.ones((1, 2), bool)).all()
