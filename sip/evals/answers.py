"""Evaluates how likely a model finds the answers of held-out conversations, and scores answers to
questions about a generated world by its ground truth."""

import math
from collections.abc import Sequence

import jax
import numpy as np

from sip.data.documents import Truth
from sip.data.packing import Rows
from sip.data.questions import Question
from sip.evals.continuations import nll_program
from sip.loading import LoadedModel
from sip.mesh import full_rows, put_batch

FIGURES = ("nll", "perplexity")
SCORES = ("win_rate", "right", "factuality", "safety", "repetition", "facts", "ended")
MOST_NLL = 700.0  # exp of more is no number


def evaluate(model: LoadedModel, rows: Rows, *, most: int, batch: int) -> dict[str, float]:
    """Returns the mean negative log-likelihood (nats) per learned token, and its exponential.

    The first `most` rows are scored, `batch` at a time.
    """
    run, total, count = nll_program(model.cfg), 0.0, 0.0
    size, end = full_rows(model.mesh, batch), min(most, len(rows))
    with jax.set_mesh(model.mesh):
        for first in range(0, end, size):
            live = min(size, end - first)
            # The last batch is filled with rows that do not count, so that one program serves all.
            tree, learned_BT = rows.stacked([*range(first, first + live), *[0] * (size - live)])
            learned_BT[live:] = False
            pair = run(model.params, put_batch(model.mesh, (tree, learned_BT)))
            total, count = total + float(pair[0]), count + float(pair[1])
    nll = total / count
    return {"nll": nll, "perplexity": math.exp(min(nll, MOST_NLL))}


def scores(
    truth: Truth, asked: Sequence[Question], texts: Sequence[str], ended_E: Sequence[bool]
) -> dict[str, float]:
    """Returns the means over answers by the names in SCORES.

    win_rate: against the faultless answers of the questions, by quality; ties count 1/2. right: the
    fact that is asked for is stated rightly. ended: with a stop token (`ended_E`).
    """
    found = truth.score_answers(asked, texts)
    known = truth.score_answers(asked, [x.answer for x in asked])
    won_E = truth.compare(found["quality"], known["quality"])
    values = {**found, "win_rate": won_E, "ended": np.asarray(ended_E)}
    return {name: float(np.mean(values[name])) for name in SCORES}
