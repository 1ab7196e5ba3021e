"""Scaling of rotary frequencies for contexts longer than the trained length.

A frequency f makes n = original_len * f / (2 pi) turns within the trained length. A scaling divides
frequencies with few turns by `rope_factor` and keeps frequencies with many turns.
"""

import math

import numpy as np

from sip.models.config import ModelConfig


def stretch_P(cfg: ModelConfig) -> np.ndarray | None:
    """Returns the factor of each of the P frequencies, or None without scaling.

    linear: 1 / rope_factor for all (arXiv 2306.15595). llama3: a ramp between `rope_low` and
    `rope_high` turns (the models of arXiv 2407.21783). yarn: a ramp over channels (arXiv
    2309.00071, NTK by parts). longrope: 1 / the published divisors (arXiv 2402.13753), those for
    short texts if `max_len` is at most the trained length. transformers chooses by the length of
    each text; here one choice holds for all texts, as cached keys and branches need.
    """
    if cfg.rope_scaling == "none":
        return None
    if cfg.rope_scaling == "longrope":
        long = cfg.max_len > cfg.rope_original_len
        return 1 / np.array(cfg.rope_long if long else cfg.rope_short, np.float64)
    # 1 keeps a frequency, 0 divides it; numpy float64, since this runs once, while tracing.
    kept_P = {"linear": _none, "llama3": _by_turns, "yarn": _by_channel}[cfg.rope_scaling](cfg)
    return kept_P + (1 - kept_P) / cfg.rope_factor


def yarn_gain(factor: float) -> float:
    """Returns YaRN's default factor of cosine and sine, 0.1 ln(factor) + 1 (arXiv 2309.00071).

    It is 1 for a factor up to 1.
    """
    return 0.1 * math.log(max(factor, 1.0)) + 1


def longrope_gain(factor: float, original_len: int) -> float:
    """Returns longrope's default factor of cosine and sine (arXiv 2402.13753)."""
    if factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original_len))


def _channels(cfg):
    return np.arange(cfg.rotated // 2, dtype=np.float64)


def _none(cfg):
    return np.zeros(cfg.rotated // 2)


def _by_turns(cfg):
    frequency_P = cfg.rope_theta ** (-2 * _channels(cfg) / cfg.rotated)
    turns_P = cfg.rope_original_len * frequency_P / (2 * math.pi)
    return np.clip((turns_P - cfg.rope_low) / (cfg.rope_high - cfg.rope_low), 0, 1)


def _by_channel(cfg):
    # More turns mean a lower channel, so the ramp starts at the channel of `rope_fast`.
    first, last = (_channel(cfg, turns) for turns in (cfg.rope_fast, cfg.rope_slow))
    if cfg.rope_truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, cfg.rotated - 1)
    last += 0.001 * (first == last)  # a step, not a division by zero
    return 1 - np.clip((_channels(cfg) - first) / (last - first), 0, 1)


def _channel(cfg, turns):
    """The fractional channel index whose frequency makes `turns` turns in the trained length."""
    wavelength = cfg.rope_original_len / (2 * math.pi * turns)
    return cfg.rotated * math.log(wavelength) / (2 * math.log(cfg.rope_theta))
