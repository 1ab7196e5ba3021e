"""Fits Bradley-Terry strengths of candidates to some of their pairwise comparisons."""

import numpy as np

PRIOR = 0.5  # weight of a drawn comparison with a virtual candidate of strength 0
STEPS = 100  # most Newton steps; about ten are needed
SMALL = 1e-10  # change of a strength below which the fit has converged


def beats(strength_BK: np.ndarray) -> np.ndarray:
    """Returns p_BKK[b, i, j] = sigmoid(strength i - strength j), the probability that i beats j."""
    return _sigmoid(strength_BK[:, :, None] - strength_BK[:, None])


def fit(
    p_BKK: np.ndarray, seen_BKK: np.ndarray, prior: float | np.ndarray = PRIOR
) -> tuple[np.ndarray, np.ndarray]:
    """Maximises the penalised likelihood. Returns (strength_BK, precision_BKK at the maximum).

        sum over seen pairs of  p log beats(i, j) + (1 - p) log beats(j, i)
        + prior / 2 * sum over i of  log sigmoid(strength i) + log sigmoid(-strength i)

    `p_BKK` is P(i beats j), averaged over both orders, so a tie is half a win. `seen_BKK` marks the
    compared pairs. The likelihood is that of Hunter 2004, Annals of Statistics 32. The prior is
    `prior` (a number, or [B, 1]) drawn comparisons of each candidate with a virtual one of strength
    0. It keeps strengths finite if a candidate won or lost all its comparisons. The function is
    concave. Newton steps scaled by log(1 + d) / d never lower it; d is the largest change of a
    difference of strengths (Sun and Tran-Dinh 2017, arXiv 1703.04599, theorem 2 with nu = 2).
    """
    B, K, _ = p_BKK.shape
    strength_BK = np.zeros((B, K))
    won_BK = np.where(seen_BKK, p_BKK, 0.0).sum(-1)
    for _ in range(STEPS):
        q_BKK = np.where(seen_BKK, beats(strength_BK), 0.0)
        slope_BK = won_BK - q_BKK.sum(-1) + prior * (0.5 - _sigmoid(strength_BK))
        curve_BKK = _precision(strength_BK, seen_BKK, prior)
        step_BK = np.linalg.solve(curve_BKK, slope_BK[..., None])[..., 0]
        apart_BKK = np.where(seen_BKK, step_BK[:, :, None] - step_BK[:, None], 0.0)
        d_B1 = np.maximum(abs(apart_BKK).max((1, 2)), abs(step_BK).max(1))[:, None]
        strength_BK = strength_BK + step_BK * np.log1p(d_B1) / np.maximum(d_B1, 1e-300)
        if d_B1.max() < SMALL:
            break
    return strength_BK, _precision(strength_BK, seen_BKK, prior)


def _precision(strength_BK, seen_BKK, prior):
    """precision_BKK, minus the Hessian: the graph Laplacian of h = p (1 - p), plus the prior."""
    p_BKK, own_BK = beats(strength_BK), _sigmoid(strength_BK)
    information_BKK = np.where(seen_BKK, p_BKK * (1 - p_BKK), 0.0)
    diagonal_BK = information_BKK.sum(-1) + prior * own_BK * (1 - own_BK)
    return diagonal_BK[..., None] * np.eye(strength_BK.shape[1]) - information_BKK


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))
