import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sip.objectives import likelihood

LOGP_BR = jnp.array([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0], [-7.0, -8.0, -9.0]])
MASK_BR = jnp.array([[True, True, False], [True, True, True], [True, False, False]])
VALID_B = jnp.array([True, False, True])


def pair(term):
    return float(term[0]), float(term[1])


def test_ce_sums_and_counts_the_tokens_under_the_mask():
    assert pair(likelihood.ce(LOGP_BR, MASK_BR)) == (1 + 2 + 4 + 5 + 6 + 7, 6)


def test_the_z_loss_squares_log_z_over_the_tokens_under_the_mask():
    assert pair(likelihood.z_loss(LOGP_BR, MASK_BR)) == (1 + 4 + 16 + 25 + 36 + 49, 6)


def test_sft_is_ce_over_the_valid_branches():
    assert pair(likelihood.sft(LOGP_BR[None], MASK_BR[None], VALID_B[None])) == (1 + 2 + 7, 3)
    keep = jnp.array([0, 2])
    kept = likelihood.ce(LOGP_BR[keep], MASK_BR[keep])
    assert pair(likelihood.sft(LOGP_BR[None], MASK_BR[None], VALID_B[None])) == pair(kept)


@pytest.mark.parametrize("normalize, expected", [(False, (10.0, 3.0)), (True, (1.5 + 7.0, 2.0))])
def test_rf_nll_counts_tokens_or_sequences(normalize, expected):
    term = likelihood.rf_nll(LOGP_BR, MASK_BR, VALID_B, length_normalize=normalize)
    assert pair(term) == expected
    assert pair(term[2]["chosen_logp"]) == (-3.0 - 7.0, 2.0)


@pytest.mark.parametrize("normalize", [False, True])
def test_rf_nll_skips_a_chosen_candidate_without_tokens(normalize):
    empty = MASK_BR.at[0].set(False)
    term = likelihood.rf_nll(LOGP_BR, empty, VALID_B, length_normalize=normalize)
    assert pair(term) == (7.0, 1.0)


@pytest.mark.parametrize("normalize", [False, True])
def test_rf_nll_with_nothing_valid_is_zero_with_zero_gradient(normalize):
    def total(logp_BR):
        none_B = jnp.zeros(3, bool)
        return likelihood.rf_nll(logp_BR, MASK_BR, none_B, length_normalize=normalize)[:2]

    grad, denom = jax.grad(total, has_aux=True)(LOGP_BR * jnp.nan)
    assert float(total(LOGP_BR * jnp.nan)[0]) == 0 and float(denom) == 0
    np.testing.assert_array_equal(grad, jnp.zeros((3, 3)))


@pytest.mark.parametrize("normalize", [False, True])
def test_rf_nll_has_no_gradient_outside_valid_tokens(normalize):
    seen_BR = MASK_BR & VALID_B[:, None]

    def total(logp_BR):
        return likelihood.rf_nll(logp_BR, MASK_BR, VALID_B, length_normalize=normalize)[0]

    noisy_BR = jnp.where(seen_BR, LOGP_BR, jnp.nan)
    np.testing.assert_array_equal(total(noisy_BR), total(LOGP_BR))
    np.testing.assert_array_equal(jax.grad(total)(noisy_BR) != 0, seen_BR)


@pytest.mark.parametrize("normalize", [False, True])
def test_rf_nll_of_microbatches_adds_up_to_the_whole(normalize):
    def term(rows):
        args = LOGP_BR[rows], MASK_BR[rows], VALID_B[rows]
        return likelihood.rf_nll(*args, length_normalize=normalize)

    parts = [term(slice(0, 1)), term(slice(1, 2)), term(slice(2, 3))]
    summed = jax.tree.map(lambda *xs: sum(xs), *parts)
    jax.tree.map(np.testing.assert_allclose, summed, term(slice(0, 3)))
    assert float(parts[0][1]) > 0 and float(parts[1][1]) == 0
