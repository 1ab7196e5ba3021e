"""Rewards of a thought by what it tells about the true continuation (RLP, arXiv 2510.01265).

    r = log p_theta(suffix | prefix, thought) - log p_phi(suffix | prefix)

phi is a moving average of the policy theta. Both are constants for the gradient, which is that of
the thought's tokens alone. No judge is needed. The paper scores one token after a thought; here it
is the sum over the first `horizon` tokens of the suffix, in nats.
"""

from collections.abc import Sequence

import jax
import numpy as np

from sip.data.thoughts import Fork
from sip.mesh import full_rows, put_batch
from sip.models.config import ModelConfig
from sip.padding import padded_tree
from sip.processes import fetch
from sip.structs import Params, Tree
from sip.text.segments import Ids
from sip.training import losses

MARKS = 2  # tags around a thought


def reward(
    cfg: ModelConfig,
    mesh: jax.sharding.Mesh,
    theta: Params,
    phi: Params,
    forks: Sequence[Fork],
    thoughts: Sequence[Sequence[Ids]],
    tags: tuple[int, int],
    *,
    width: int,
    most: int,
    horizon: int,
    pad: int,
) -> np.ndarray:
    """Returns gain_BK, nats: the rewards of K thoughts at each of B places.

    The prefixes are trunks of `width` tokens, thoughts of at most `most` tokens with their suffix
    are branches. `horizon` is the number of scored tokens of the suffix, `tags` are token ids.
    """
    prefixes = [fork.prefix for fork in forks]
    suffixes = [fork.suffix[:horizon] for fork in forks]
    told = [
        [[tags[0], *thought, tags[1], *suffix] for thought in row]
        for row, suffix in zip(thoughts, suffixes, strict=True)
    ]
    R, K = most + MARKS + horizon, len(thoughts[0])
    extra = full_rows(mesh, len(forks)) - len(forks)
    tree = lambda rows, K, R: padded_tree(
        prefixes + prefixes[:1] * extra, [*rows, *[[]] * extra], pad, width, K, R
    )
    with_BK = _suffix_logp(cfg, mesh, theta, tree(told, K, R), suffixes)
    without_B1 = _suffix_logp(cfg, mesh, phi, tree([[x] for x in suffixes], 1, horizon), suffixes)
    return with_BK - without_B1


def _suffix_logp(cfg: ModelConfig, mesh, params, tree: Tree, suffixes) -> np.ndarray:
    """Returns the log-probability [B, C] of the suffix at the end of each branch, in nats."""
    logp_BCR = fetch(losses.branch_logprobs(cfg)(params, put_batch(mesh, tree)))
    length_BC1 = tree.mask_BCR.sum(-1, keepdims=True)
    at_R = np.arange(tree.mask_BCR.shape[-1])
    out = np.zeros(length_BC1.shape[:2], np.float32)
    for b, suffix in enumerate(suffixes):
        end_C1 = length_BC1[b]
        scored_CR = (at_R >= end_C1 - len(suffix)) & (at_R < end_C1)
        out[b] = np.where(scored_CR, logp_BCR[b], 0.0).sum(-1)
    return out[: len(suffixes)]
