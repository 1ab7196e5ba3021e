"""Figures of n sampled answers per problem: mean@n, maj@n, pass@k, diversity, and by difficulty.

Letters: B problems, N answers each. An answer whose check failed counts in none of them.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np


def figures(right_BN, valid_BN, votes: Sequence[Sequence[str]]) -> dict[str, float]:
    """Returns mean@N, maj@N and pass@k for k = 1, 2, 4, .. up to N.

    mean@N  share of right answers of a problem
    maj@N   1 if the most frequent answer is right; of several, their share of right ones
    pass@k  1 - C(n - c, k) / C(n, k) with c of n answers right, the unbiased estimate of the
            chance that one of k is right (arXiv 2107.03374, eq. 1)

    Each is a mean over problems; those without a valid answer, or for pass@k with fewer than k,
    are left out. `votes` are the texts by which answers agree; an empty one is no vote.
    """
    right_BN, valid_BN = np.asarray(right_BN, bool), np.asarray(valid_BN, bool)
    N = right_BN.shape[1]
    both = zip(valid_BN.sum(1).tolist(), (right_BN & valid_BN).sum(1).tolist(), strict=True)
    counts = list(both)
    found = {f"mean@{N}": _mean([c / n for n, c in counts if n])}
    rows = zip(right_BN, valid_BN, votes, strict=True)
    found[f"maj@{N}"] = _mean([majority(*row) for row in rows if row[1].any()])
    for k in (1 << i for i in range(N.bit_length())):
        found[f"pass@{k}"] = _mean([pass_at(k, n, c) for n, c in counts if n >= k])
    return found


def diversity(votes: Sequence[Sequence[str]], texts: Sequence[Sequence[str]]) -> dict[str, float]:
    """Returns the mean number of distinct answers of a problem, and of distinct texts.

    An empty vote is no answer.
    """
    return {
        "distinct_answers": _mean([float(len(set(row) - {""})) for row in votes]),
        "distinct_chains": _mean([float(len(set(row))) for row in texts]),
    }


THIRDS = ("easy", "middle", "hard")


def thirds(start: Sequence[float], now: Sequence[float]) -> dict[str, float]:
    """Returns the mean of `now` on the easiest, middle and hardest third of the problems.

    `start` are the pass rates of the start model, which rank the problems; equal ones keep their
    order. The start's own mean on a third is biased by that choice, so a hard third gains something
    by chance alone.
    """
    order = sorted(range(len(start)), key=lambda i: -start[i])
    ends = [round(len(order) * n / 3) for n in range(4)]
    parts = [order[a:b] for a, b in zip(ends, ends[1:], strict=False)]
    means = [_mean([now[i] for i in part]) for part in parts]
    return dict(zip(THIRDS, means, strict=True))


def pass_at(k: int, n: int, c: int) -> float:
    """Returns the estimate of the chance that one of k answers is right, from c of n."""
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def majority(right_N, valid_N, votes: Sequence[str]) -> float:
    """Returns the share of right ones among the most frequent answers; 0 without a vote."""
    every = zip(votes, right_N, valid_N, strict=True)
    cast = [(vote, bool(right)) for vote, right, valid in every if valid and vote]
    if not cast:
        return 0.0
    counts, right = Counter(vote for vote, _ in cast), dict(cast)
    most = max(counts.values())
    first = [vote for vote, count in counts.items() if count == most]
    return sum(right[vote] for vote in first) / len(first)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
