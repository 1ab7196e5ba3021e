"""Arithmetic of the generation-verification gap (arXiv 2412.02674), on plain arrays.

A policy f writes N answers to each of B prompts; an answer y has a utility u in 0..1 and a score s
by a verifier. A weight w(s) turns f into the policy that keeps what the verifier likes:

    J_x      = mean of u                        the utility of f on prompt x
    J_x[w]   = sum of w u / sum of w            the utility of the reweighted policy
    gap_x    = J_x[w] - J_x = Cov(w, u) / E[w]  (Cov and E over the answers)
    relative = gap_x / (1 - J_x)                the part of the possible gain

Gap and relative gap are means over prompts of these figures. Rules for what the paper leaves open:

ties          Equal scores have equal weights. A quantile keeps an exact number of answers: those
              at its border share what is left, as a random choice among them does on average.
no verdict    An answer without a valid verdict has weight 0, and counts in J_x.
empty filter  A prompt of which nothing is kept teaches nothing: its gap is 0. It is counted.
J_x = 1       There is nothing to gain: the prompt is left out of the relative gap. It is counted.
no utility    An answer whose utility is unknown counts nowhere.

Letters: B prompts, N answers each, V verifiers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SAME = 1e-9  # utilities and scores that differ by at most this are equal


@dataclass(frozen=True)
class Gaps:
    """The gap of one policy, verifier and weight, by prompt."""

    before_B: np.ndarray  # J_x
    after_B: np.ndarray  # J_x[w]; J_x if nothing is kept
    asked_B: np.ndarray  # the prompt has an answer with a known utility; the others count nowhere
    empty_B: np.ndarray  # nothing is kept
    solved_B: np.ndarray  # J_x = 1
    kept_B: np.ndarray  # kept share of the answers, their mean weight

    @property
    def gap_B(self) -> np.ndarray:
        """The gap by prompt; meaningful only under `asked_B`."""
        return self.after_B - self.before_B

    @property
    def room_B(self) -> np.ndarray:
        """Prompts that have a relative gap."""
        return self.asked_B & ~self.solved_B

    @property
    def relative_B(self) -> np.ndarray:
        """The relative gap by prompt; meaningful only under `room_B`."""
        return self.gap_B / np.where(self.solved_B, 1.0, 1.0 - self.before_B)


def gaps(utility_BN, known_BN, weight_BN) -> Gaps:
    """Returns the gap by prompt, of weights in 0..1.

    `known_BN` marks the answers whose utility is known.
    """
    u_BN, w_BN = (np.where(known_BN, x, 0.0) for x in (utility_BN, weight_BN))
    count_B, total_B = known_BN.sum(1), w_BN.sum(1)
    before_B = u_BN.sum(1) / np.maximum(count_B, 1)
    asked_B, empty_B = count_B > 0, total_B <= 0
    after_B = (w_BN * u_BN).sum(1) / np.where(empty_B, 1.0, total_B)
    return Gaps(
        before_B,
        np.where(empty_B, before_B, after_B),
        asked_B,
        asked_B & empty_B,
        asked_B & (before_B >= 1.0 - SAME),
        total_B / np.maximum(count_B, 1),
    )


def top(score_BN, valid_BN, quantile: float) -> np.ndarray:
    """Returns weight_BN that keeps the best 1 - quantile of each prompt's valid answers."""
    valid_BN = np.asarray(valid_BN, bool)
    above_BN, equal_BN = _ranked(score_BN, valid_BN)
    keep_B1 = (1.0 - quantile) * valid_BN.sum(1, keepdims=True)
    # Of a group of equal answers, as much is kept as is left after all better ones.
    share_BN = (keep_B1 - above_BN) / np.maximum(equal_BN, 1)
    return np.where(valid_BN, np.clip(share_BN, 0.0, 1.0), 0.0)


def above(score_BN, valid_BN, threshold: float) -> np.ndarray:
    """Returns weight_BN that keeps the valid answers with at least the score `threshold`."""
    return (np.asarray(valid_BN, bool) & (np.asarray(score_BN) >= threshold - SAME)).astype(float)


def tilted(score_BN, valid_BN, beta: float) -> np.ndarray:
    """Returns weight_BN = exp(s / beta), as of KL-regularised RL, divided by its maximum."""
    s_BN = np.where(valid_BN, score_BN, -np.inf)
    most_B1 = s_BN.max(1, keepdims=True, initial=-np.inf)
    shifted_BN = s_BN - np.where(np.isfinite(most_B1), most_B1, 0.0)
    return np.exp(shifted_BN / beta)


def all_of(weights: Sequence[np.ndarray]) -> np.ndarray:
    """Returns weight_BN of an ensemble that keeps what every verifier keeps (logical AND)."""
    return np.prod(np.stack(weights), axis=0)


def _ranked(score_BN, valid_BN) -> tuple[np.ndarray, np.ndarray]:
    """Returns (number of valid answers with a higher score, with an equal one), both [B, N]."""
    s_BN = np.asarray(score_BN, float)
    more_BNN = s_BN[:, None, :] > s_BN[:, :, None] + SAME
    same_BNN = np.abs(s_BN[:, None, :] - s_BN[:, :, None]) <= SAME
    live_B1N = valid_BN[:, None, :]
    return (more_BNN & live_B1N).sum(-1), (same_BNN & live_B1N).sum(-1)


def best_of(k: int, score_BN, valid_BN, utility_BN, known_BN) -> np.ndarray:
    """Returns the expected utility [B] of the best by score among k answers drawn of the N.

    Drawn without replacement, so this is an unbiased estimate for k fresh answers; with
    score = utility in {0, 1} it is pass@k. Equal scores share. An answer without a valid verdict is
    chosen only if all k have none, and then at random. NaN for a prompt with fewer than k answers
    of known utility.
    """
    found = np.full(len(np.asarray(score_BN)), np.nan)
    rows = zip(*map(np.asarray, (score_BN, valid_BN, utility_BN, known_BN)), strict=True)
    for b, (s_N, ok_N, u_N, known_N) in enumerate(rows):
        s_N, u_N = np.where(ok_N, s_N, -np.inf)[known_N], u_N[known_N]
        n = len(s_N)
        if n < k:
            continue
        total = 0.0
        for value in np.unique(s_N):
            at = s_N == value
            below, equal = int((s_N < value).sum()), int(at.sum())
            # The best of k has this score: none is higher, not all are lower.
            chance = math.comb(below + equal, k) - math.comb(below, k)
            total += chance / math.comb(n, k) * u_N[at].mean()
        found[b] = total
    return found


def correlations(score_VBN, valid_VBN) -> tuple[np.ndarray, np.ndarray]:
    """Returns Pearson's correlations [V, V] of verifiers: over all answers, and within prompts.

    Within prompts, each prompt's mean is subtracted first. Only answers on which both verdicts are
    valid count. NaN if one of the two does not vary.
    """
    V = len(score_VBN)
    over, within = np.full((V, V), np.nan), np.full((V, V), np.nan)
    for i in range(V):
        for j in range(V):
            both_BN = valid_VBN[i] & valid_VBN[j]
            a_BN, b_BN = score_VBN[i], score_VBN[j]
            over[i, j] = _pearson(a_BN[both_BN], b_BN[both_BN])
            centred = [_centred(x_BN, both_BN)[both_BN] for x_BN in (a_BN, b_BN)]
            within[i, j] = _pearson(*centred)
    return over, within


def _centred(x_BN, mask_BN) -> np.ndarray:
    mean_B1 = np.where(mask_BN, x_BN, 0.0).sum(1, keepdims=True)
    return x_BN - mean_B1 / np.maximum(mask_BN.sum(1, keepdims=True), 1)


def _pearson(a_N, b_N) -> float:
    if len(a_N) < 2 or np.ptp(a_N) <= SAME or np.ptp(b_N) <= SAME:
        return math.nan
    return float(np.corrcoef(a_N, b_N)[0, 1])


def frontier(cost_C, value_C) -> np.ndarray:
    """Marks the compute-optimal entries: no other costs as little or less and is worth more.

    An entry with a cost or value that is not finite is none. Of equal entries the first counts.
    """
    cost_C, value_C = np.asarray(cost_C, float), np.asarray(value_C, float)
    found = np.zeros(len(cost_C), bool)
    best = -math.inf
    for i in np.lexsort((-value_C, cost_C)):
        if math.isfinite(cost_C[i]) and value_C[i] > best:
            found[i], best = True, value_C[i]
    return found
