"""Metrics of a judge's reliability, by the source of the candidates.

A judge returns metrics per candidate as (total_BK, denom_BK) by name, such as
`judge/flips/quality`. This module sums them by source: `judge/flips/quality/rollout`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from sip import metrics
from sip.judge.judged import Each, Judged
from sip.judge.prompts import Aspect
from sip.judge.voting import Stats


def verdicts(aspect: Aspect, score_BK: np.ndarray, valid_BK: np.ndarray) -> Each:
    """Counts the option with the value nearest to each score, as `says_OPTION`."""
    nearest_BK = abs(score_BK[..., None] - np.asarray(aspect.values)).argmin(-1)
    return {
        f"says_{'_'.join(option.split())}": ((nearest_BK == o) & valid_BK, valid_BK)
        for o, option in enumerate(aspect.options)
    }


WHY = {  # reasons of the metrics `invalid_REASON`, see `verdicts.unread` and `voting.vote`
    "failed": "without an answer (a failed request, or a prompt that is too long)",
    "cut": "cut before their end (max_tokens)",
    "unread": "without a verdict",
    "unlisted": "with an option that is not among the server's log-probabilities (http.logprobs)",
    "other_words": "where the judge was about to write other words (min_mass)",
}


def reasons(stats: Stats) -> str:
    """Lists why verdicts or votes are invalid, from a judge's metrics; "" if all are valid."""
    return _why({name: total for name, (total, _) in stats.items()}, ".0f")


def shares(figures: Mapping[str, float]) -> str:
    """Lists why verdicts or votes are invalid, from logged averages; "" if all are valid.

    Metrics of single sources are left out.
    """
    return _why({name: x for name, x in figures.items() if name.count("/") == 2}, ".0%")


def _why(counts: Mapping[str, float], form: str) -> str:
    """Lists the metrics `invalid_REASON` that are not 0, each number in the format `form`."""
    return "; ".join(
        f"{name.rpartition('/')[2]}: {x:{form}} {text}"
        for name, x in counts.items()
        for reason, text in WHY.items()
        if x and f"/invalid_{reason}/" in name
    )


def by_source(judged: Judged, sources: Sequence[str], texts: Sequence[Sequence[str]]) -> Stats:
    """Sums the metrics of each candidate by source, and relates scores to text lengths.

    `sources` are the K candidates', `texts` are [B][K]. The metric `length/ASPECT[/SOURCE]` is
    logged as a correlation (`metrics.moments`) of a text's characters with its score on the aspect,
    over all sources and for each source.
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
