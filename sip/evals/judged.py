"""Win rates of continuations by a judge, for corpora without a ground truth."""

from collections.abc import Sequence

import numpy as np

from sip.evals.continuations import Prompts
from sip.judge.judged import Judge
from sip.structs import UserError


def win_rate(
    judge: Judge, asked: Prompts, texts: Sequence[str], baseline: Sequence[str]
) -> dict[str, float]:
    """Compares two continuations of each prefix by a judge's scores; equal scores count 1/2.

    Returns `win_rate_judge`, its standard error over prefixes `win_rate_judge_se`, and
    `judge_valid`, the share of prefixes with a valid verdict. The others are left out of the mean,
    and there is no mean over none. Raises UserError if the numbers of continuations differ.
    """
    if not len(texts) == len(baseline) == len(asked):
        raise UserError(
            f"evals: {len(baseline)} baseline continuations for {len(asked)} prefixes; rerun it"
        )
    pairs = [list(pair) for pair in zip(texts, baseline, strict=True)]
    found = judge.score(asked.prefixes, pairs, asked.suffixes, np.ones((len(asked), 2), bool))
    valid_E = found.valid_BK.all(1)
    won_E = (1 + np.sign(found.scores_BK[:, 0] - found.scores_BK[:, 1]))[valid_E] / 2
    share = {"judge_valid": float(valid_E.mean())}
    if not len(won_E):
        return share
    error = float(won_E.std(ddof=1) / np.sqrt(len(won_E))) if len(won_E) > 1 else 0.0
    return {"win_rate_judge": float(won_E.mean()), "win_rate_judge_se": error, **share}
