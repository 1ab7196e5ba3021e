import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sip.models import layers


def test_rms_norm_of_a_hand_worked_vector():
    # rms(3, 4) = sqrt(12.5) = 3.5355339
    x = jnp.array([[[3.0, 4.0]]])
    out = layers.rms_norm(x, jnp.array([1.0, 2.0]), 0.0)
    np.testing.assert_allclose(out[0, 0], [0.8485281, 2.2627417], rtol=1e-6)
    np.testing.assert_allclose(layers.rms_norm(x, jnp.ones(2), 12.5)[0, 0], [0.6, 0.8], rtol=1e-6)


def test_rms_norm_is_computed_in_float32(key):
    x, scale = jax.random.normal(key, (2, 1, 1, 400))
    x = x.astype(jnp.bfloat16)
    out = layers.rms_norm(x, scale.ravel(), 0.0)
    assert out.dtype == jnp.bfloat16
    want = layers.rms_norm(x.astype(jnp.float32), scale.ravel(), 0.0).astype(jnp.bfloat16)
    np.testing.assert_array_equal(out.astype(jnp.float32), want.astype(jnp.float32))


def test_rope_of_hand_worked_angles():
    # theta 100, H 4: channels (0, 2) turn by the position, (1, 3) by a tenth of it.
    x = jnp.array([1.0, 0.0, 0.0, 2.0]).reshape(1, 1, 1, 4)
    cos, sin = layers.rope_tables(jnp.array([[3]]), 4, 100.0)
    want = [np.cos(3), -2 * np.sin(0.3), np.sin(3), 2 * np.cos(0.3)]
    np.testing.assert_allclose(layers.rope(x, cos, sin).ravel(), want, rtol=1e-6)


def test_rope_scores_depend_on_the_distance_alone(key):
    q, k = jax.random.normal(key, (2, 1, 1, 1, 8))
    turn = lambda x, p: layers.rope(x, *layers.rope_tables(jnp.array([[p]]), 8, 100.0)).ravel()
    near = turn(q, 5) @ turn(k, 2)
    np.testing.assert_allclose(near, turn(q, 105) @ turn(k, 102), rtol=1e-4)
    assert abs(near - turn(q, 5) @ turn(k, 3)) > 1e-3


@pytest.mark.parametrize(
    ("n", "limit", "want"), [(12, 5, 4), (12, 100, 12), (7, 3, 1), (1, 8, 1), (16, 8, 8)]
)
def test_largest_divisor_by_hand(n, limit, want):
    assert layers.largest_divisor(n, limit) == want


def test_project_over_several_axes_is_an_einsum(key):
    x, w = jax.random.normal(key, (2, 3, 2, 3, 4)), jax.random.normal(key, (2, 3, 4, 5))
    out = layers.project(x, w, contract=3)
    np.testing.assert_allclose(out, jnp.einsum("BNGQH,GQHD->BND", x, w), rtol=1e-5, atol=1e-5)


def test_a_query_of_zeros_takes_the_mean_of_the_values_it_sees():
    # Trunk values 1, 2, 3, of which branch 0 sees one and branch 1 all; past 10, 20 (one is
    # filled); own 100, 200: every key a branch position sees weighs the same.
    line = lambda *v: jnp.array(v).reshape(1, -1, 1, 1)
    zeros = lambda *shape: jnp.zeros((1, *shape, 1, 1))
    own = jnp.tile(line(100.0, 200.0)[:, None], (1, 2, 1, 1, 1))
    past = jnp.tile(line(10.0, 20.0)[:, None], (1, 2, 1, 1, 1))
    out = layers.branch_attention(
        zeros(2, 2, 1), (zeros(2, 2), own), (zeros(3), line(1.0, 2.0, 3.0)), (zeros(2, 2), past),
        jnp.array([[[True, False, False], [True, True, True]]]), jnp.array([[[True, False]] * 2]),
    )  # fmt: skip
    want = [[111 / 3, 311 / 4], [116 / 5, 316 / 6]]
    np.testing.assert_allclose(out.reshape(2, 2), want, rtol=1e-6)


def test_attention_survives_scores_that_overflow_exp():
    q = jnp.full((1, 1, 1, 1, 1, 1), 1e4)
    own = (jnp.full((1, 1, 1, 1, 1), -1e4), jnp.full((1, 1, 1, 1, 1), 5.0))
    trunk = (jnp.array([1e4, -1e4]).reshape(1, 2, 1, 1), jnp.array([7.0, 9.0]).reshape(1, 2, 1, 1))
    out = layers.branch_attention(q, own, trunk, None, jnp.ones((1, 1, 2), bool), None)
    np.testing.assert_allclose(out.ravel(), [7.0])
