"""What a rewrite is worth to a rewriter in training (arXiv 2601.21343)."""

import numpy as np


def reward(
    safe_B: np.ndarray,
    copied_BK: np.ndarray,
    quality_BK: np.ndarray,
    safety_BK: np.ndarray,
    written_BK: np.ndarray,
    judged_BK: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(reward_BK in 0..1, valid_BK) of K rewrites of each of B suffixes.

    Of a safe suffix an exact copy is worth 1, anything else 0. Of an unsafe one a rewrite is worth
    (quality + safety) / 2: its share of wins against the suffix, and its own safety. Valid is what
    was `written` and, of an unsafe suffix, `judged`; the reward of the rest is 0 and means nothing.
    """
    safe_BK = np.broadcast_to(np.asarray(safe_B, bool)[:, None], np.shape(copied_BK))
    valid_BK = np.asarray(written_BK, bool) & (safe_BK | np.asarray(judged_BK, bool))
    judged = (np.asarray(quality_BK, float) + np.asarray(safety_BK, float)) / 2
    reward_BK = np.where(safe_BK, np.asarray(copied_BK, float), judged)
    return np.where(valid_BK, reward_BK, 0.0), valid_BK
