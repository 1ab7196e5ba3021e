"""Tests RoPE scaling by hand: theta 16 and 8 channels give 1, 1/2, 1/4, 1/8."""

import math

import jax.numpy as jnp
import numpy as np
import tiny

from sip.models import layers, rope


def stretch(kind, **changes):
    cfg = tiny.model(
        head_dim=8, rope_theta=16.0, rope_scaling=kind, rope_factor=4.0, **changes
    )  # fmt: skip
    return rope.stretch_P(cfg)


def test_without_scaling_nothing_is_multiplied():
    assert rope.stretch_P(tiny.CFG) is None


def test_linear_divides_every_frequency():
    np.testing.assert_allclose(stretch("linear"), [0.25] * 4)


def test_llama3_keeps_what_turns_often_and_divides_what_turns_rarely():
    # Trained on 50, near 16 pi positions: near 8, 4, 2 and 1 turns, and 2 is a third of the ramp.
    found = stretch("llama3", rope_original_len=50, rope_low=1.0, rope_high=4.0)
    turns = 50 / (2 * math.pi) / np.array([1, 2, 4, 8])
    kept = np.clip((turns - 1) / 3, 0, 1)
    assert kept[0] == 1 and 0.3 < kept[2] < 0.34 and kept[3] == 0
    np.testing.assert_allclose(found, kept + (1 - kept) / 4)


def test_yarn_ramps_over_channels():
    # Trained on 64 pi positions channel 0 turns 32 times, 1 turns 16 times, 3 turns 4 times.
    length = math.ceil(64 * math.pi)
    found = stretch("yarn", rope_original_len=length, rope_fast=16.0, rope_slow=4.0)
    kept = np.array([1, 1, 0.5, 0])
    exact = stretch(
        "yarn", rope_original_len=length, rope_fast=16.0, rope_slow=4.0, rope_truncate=False
    )
    np.testing.assert_allclose(exact, kept + (1 - kept) / 4, atol=5e-3)
    # Whole channels: a little over 1 down to 1, a little over 3 up to 4.
    kept = np.array([1, 1, 2 / 3, 1 / 3])
    np.testing.assert_allclose(found, kept + (1 - kept) / 4)


def test_yarn_s_gain():
    np.testing.assert_allclose(rope.yarn_gain(math.e**2), 1.2)
    assert rope.yarn_gain(1.0) == 1.0


def test_tables_are_stretched_and_scaled():
    positions = jnp.array([[3]])
    cos, sin = layers.rope_tables(positions, 4, 100.0, np.array([1.0, 0.5]), 2.0)
    np.testing.assert_allclose(cos.ravel(), [2 * np.cos(3), 2 * np.cos(0.15)], rtol=1e-6)
    np.testing.assert_allclose(sin.ravel(), [2 * np.sin(3), 2 * np.sin(0.15)], rtol=1e-6)


def test_longrope_has_one_set_of_divisors_for_all_texts():
    said = dict(rope_original_len=32, rope_dims=4, rope_short=(1.0, 2.0), rope_long=(4.0, 8.0))
    np.testing.assert_allclose(stretch("longrope", max_len=32, **said), [1, 0.5])
    np.testing.assert_allclose(stretch("longrope", max_len=33, **said), [0.25, 0.125])
    # sqrt(1 + ln 8 / ln 64) = sqrt(1.5)
    np.testing.assert_allclose(rope.longrope_gain(8.0, 64), 1.5**0.5)
    assert rope.longrope_gain(1.0, 64) == 1.0


def test_only_the_first_channels_rotate():
    cos, sin = layers.rope_tables(jnp.array([[3]]), 2, 100.0)
    x = jnp.array([1.0, 0.0, 5.0, 7.0]).reshape(1, 1, 1, 4)
    want = [np.cos(3), np.sin(3), 5, 7]
    np.testing.assert_allclose(layers.rope(x, cos, sin).ravel(), want, rtol=1e-6)
