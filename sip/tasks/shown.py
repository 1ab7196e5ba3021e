"""Greedy answers to a few held-out prompts: an evaluation returns them to be read in samples.jsonl.

For tasks whose evaluation decodes no text of its own.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sip.evals.continuations import SAMPLES
from sip.mesh import full_rows
from sip.run import Run
from sip.structs import Params
from sip.tasks.rl.task import AnswerWriter
from sip.text.segments import Ids
from sip.text.tokenizer import continuation

TOKENS = 128  # most tokens of an answer; half of the model's context if that is less


def answers(
    run: Run, c, mesh, asked: Iterable[Ids], stops: Sequence[int]
) -> Callable[[Params], dict[str, Any]]:
    """Returns params -> {SAMPLES: [(prompt, greedy answer)]} of a run `c`.

    `asked` are prompts; the first `log.samples` that leave room for an answer are taken. Without
    any the dict is empty. `stops` are the token ids that end an answer.
    """
    steps = min(TOKENS, c.model.max_len // 2)
    fitting = (ids for ids in asked if len(ids) + steps <= c.model.max_len)
    some = list(itertools.islice(fitting, c.log.samples))
    if not some:
        return lambda params: {}
    writer = AnswerWriter(c.model, mesh, run.tokenizer, 0, steps, tuple(stops))

    def of(params: Params) -> dict[str, Any]:
        texts = lambda before, after: (
            run.tokenizer.decode(before),
            continuation(run.tokenizer, before, after),
        )
        ids = writer.greedy_ids(params, some, full_rows(mesh, len(some)))
        found = zip(some, ids, strict=True)
        return {SAMPLES: [texts(*both) for both in found]}

    return of
