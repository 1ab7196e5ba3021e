"""How sound a judge's verdicts are, by the source of what was judged.

A judge tells of each candidate what it can, as (total_BK, denom_BK) by name: `judge/flips/quality`.
Here they are summed by source: `judge/flips/quality/rollout`. Whatever else is known of a candidate
(how far several votes on it agree) is another such pair among a judge's statistics.
"""

from collections.abc import Sequence

import numpy as np

from sip import metrics
from sip.judge.judged import Each, Judged
from sip.judge.prompts import Aspect
from sip.judge.voting import Stats


def verdicts(aspect: Aspect, score_BK: np.ndarray, valid_BK: np.ndarray) -> Each:
    """How often each option is the verdict: the one whose value is nearest to the score."""
    nearest_BK = abs(score_BK[..., None] - np.asarray(aspect.values)).argmin(-1)
    return {
        f"says_{'_'.join(option.split())}": ((nearest_BK == o) & valid_BK, valid_BK)
        for o, option in enumerate(aspect.options)
    }


def by_source(judged: Judged, sources: Sequence[str], texts: Sequence[Sequence[str]]) -> Stats:
    """What is known of each candidate, summed by source, and how its score goes with its length.

    `sources` are the K candidates', `texts` are [B][K]. `length` is a correlation once written
    (`metrics.moments`), of characters with the score of an aspect; also over all sources.
    """
    at = {s: [k for k, other in enumerate(sources) if other == s] for s in dict.fromkeys(sources)}
    found = {
        f"{key}/{source}": (float(x_BK[:, k].sum()), float(n_BK[:, k].sum()))
        for key, (x_BK, n_BK) in judged.each.items()
        for source, k in at.items()
    }
    length_BK = np.array([[len(text) for text in row] for row in texts], float)
    for name, (score_BK, valid_BK) in judged.aspects.items():
        key = f"{judged.who}/length/{name}"
        found |= metrics.moments(key, length_BK[valid_BK], score_BK[valid_BK])
        for source, k in at.items():
            live_BK = valid_BK[:, k]
            some = (x_BK[:, k][live_BK] for x_BK in (length_BK, score_BK))
            found |= metrics.moments(f"{key}/{source}", *some)
    return found
