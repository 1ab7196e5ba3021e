"""From the probabilities of the verdict tokens to scores; what cannot be read is masked."""

from collections.abc import Sequence

import numpy as np


def direct(
    logp_BCO: np.ndarray, values_O: Sequence[float], *, min_mass: float
) -> tuple[np.ndarray, np.ndarray]:
    """(score_BC, valid_BC): the options' values averaged under their renormalised probabilities.

    A verdict is invalid where a log-probability is NaN or infinite upwards, or where the options
    together have less than `min_mass`: the judge was about to say something else. Its score is 0.
    """
    readable_BC = np.all(logp_BCO < np.inf, axis=-1)  # False for NaN too
    p_BCO = np.exp(np.where(readable_BC[..., None], logp_BCO, -np.inf).astype(np.float64))
    mass_BC = p_BCO.sum(-1)
    valid_BC = readable_BC & (mass_BC >= min_mass) & (mass_BC > 0)
    score_BC = p_BCO @ np.asarray(values_O, np.float64) / np.where(valid_BC, mass_BC, 1.0)
    return np.where(valid_BC, score_BC, 0.0), valid_BC
