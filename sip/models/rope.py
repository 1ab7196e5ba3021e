"""Rotary positions beyond the length trained on: what becomes of each frequency.

A frequency f turns n = original_len * f / (2 pi) times within the positions trained on. Scalings
divide by `factor` those that turn rarely, and keep those that turn often.
"""

import math

import numpy as np

from sip.models.config import ModelConfig


def stretch_P(cfg: ModelConfig) -> np.ndarray | None:
    """What each of the H/2 frequencies is multiplied by; None: nothing changes.

    linear: all by 1 / factor (arXiv 2306.15595). llama3: a ramp between `low` and `high` turns
    (arXiv 2407.21783's models). yarn: a ramp over channels (arXiv 2309.00071, NTK by parts).
    """
    if cfg.rope_scaling == "none":
        return None
    kept_P = {"linear": _none, "llama3": _by_turns, "yarn": _by_channel}[cfg.rope_scaling](cfg)
    return kept_P + (1 - kept_P) / cfg.rope_factor


def yarn_gain(factor: float) -> float:
    """What cosine and sine are multiplied by where nothing else is said (arXiv 2309.00071)."""
    return 0.1 * math.log(factor) + 1


def _channels(cfg):
    return np.arange(cfg.head_dim // 2, dtype=np.float64)


def _none(cfg):
    return np.zeros(cfg.head_dim // 2)


def _by_turns(cfg):
    frequency_P = cfg.rope_theta ** (-2 * _channels(cfg) / cfg.head_dim)
    turns_P = cfg.rope_original_len * frequency_P / (2 * math.pi)
    return np.clip((turns_P - cfg.rope_low) / (cfg.rope_high - cfg.rope_low), 0, 1)


def _by_channel(cfg):
    first, last = (_channel(cfg, turns) for turns in (cfg.rope_fast, cfg.rope_slow))
    if cfg.rope_truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, cfg.head_dim - 1)
    last += 0.001 * (first == last)  # a step, not a division by zero
    return 1 - np.clip((_channels(cfg) - first) / (last - first), 0, 1)


def _channel(cfg, turns):
    """The channel, not a whole number, whose frequency turns that often."""
    wavelength = cfg.rope_original_len / (2 * math.pi * turns)
    return cfg.head_dim * math.log(wavelength) / (2 * math.log(cfg.rope_theta))
