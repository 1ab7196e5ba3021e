"""Helpers for tests of what `python -m sip.aot` plans: shapes, and a sampler that records them."""

import jax
import numpy as np

from sip.structs import Rollouts


def shapes(tree):
    """Returns (shape, dtype) in the place of each array."""
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def fake_rollouts(asked):
    """Returns a stub of `sampling.program` that records its settings and arguments."""

    def program(cfg, K, steps, how, stop=()):
        asked.append((cfg, K, steps, how, stop))

        def run(params, tokens_BT, fork_B, rows_B, key):
            asked.append((tokens_BT, fork_B, rows_B, key))
            zero = np.zeros((len(fork_B), K, steps), np.float32)
            drawn = np.random.default_rng(0).integers(97, 123, zero.shape).astype(np.int32)
            return Rollouts(drawn, zero == 0, zero, zero)

        return run

    return program
