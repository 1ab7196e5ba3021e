"""Answers of a prompt that share its trunk, with the given pairs among them, for reward models.

A prompt is encoded once for all answers of its row, and an answer once for all pairs that it is in
(InstructGPT, arXiv 2203.02155, section 3.5).
"""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sip.data import pipeline
from sip.data.preferences import Tokens
from sip.padding import multiple, padded_tree
from sip.text.segments import Ids
from sip.training.losses import RankBatch


@dataclass(frozen=True)
class Row:
    """A prompt with distinct answers, as token ids, and pairs of these answers."""

    prompt: Ids
    answers: list[Ids]
    pairs: list[tuple[int, int, float]]  # indices of the chosen and the rejected answer; margin


def grouped(pairs: Sequence[Tokens], together: int) -> list[Row]:
    """Groups pairs of equal prompts into rows of at most `together` distinct answers, in order.

    A pair joins the latest row of its prompt if it fits, else it opens a new row. A second pair of
    the same two answers, in either order, opens a new row too. So a row of C answers has at most
    C (C - 1) / 2 pairs, and with `together` 2 every pair is a row of its own.
    """
    rows: list[Row] = []
    latest: dict[tuple[int, ...], Row] = {}  # by prompt
    for pair in pairs:
        prompt = tuple(pair.prompt)
        if prompt not in latest or not _fits(latest[prompt], pair, together):
            latest[prompt] = Row(pair.prompt, [], [])
            rows.append(latest[prompt])
        row = latest[prompt]
        chosen, rejected = (_index(row.answers, ids) for ids in (pair.chosen, pair.rejected))
        row.pairs.append((chosen, rejected, pair.margin or 0.0))
    return rows


def _fits(row: Row, pair: Tokens, together: int) -> bool:
    new = [ids for ids in (pair.chosen, pair.rejected) if ids not in row.answers]
    if new:
        return len(row.answers) + len(new) <= together
    both = {row.answers.index(pair.chosen), row.answers.index(pair.rejected)}
    return all({i, j} != both for i, j, _ in row.pairs)


def _index(answers: list[Ids], ids: Ids) -> int:
    """Returns the index of an answer, which is added if it is new."""
    if ids not in answers:
        answers.append(ids)
    return answers.index(ids)


@dataclass(frozen=True, eq=False)
class RankSet:
    """Rows by part: of the split to learn from, validation and test. All batches have one shape: T
    tokens of a prompt, C answers of R tokens, P pairs."""

    parts: Mapping[str, Sequence[Row]]  # learned | validation | test
    pad: int

    @functools.cached_property
    def widths(self) -> tuple[int, int, int, int]:
        """(T, C, R, P) of the largest rows; T and R are rounded up."""
        every = list(itertools.chain.from_iterable(self.parts.values()))
        prompt = max(len(row.prompt) for row in every)
        answer = max(len(ids) for row in every for ids in row.answers)
        C, P = max(len(row.answers) for row in every), max(len(row.pairs) for row in every)
        return multiple(prompt, 8), C, multiple(answer, 8), P

    def count(self, part: str) -> int:
        """Returns the number of pairs of a part."""
        return sum(len(row.pairs) for row in self.parts[part])

    def batch(self, step: int, size: int, *, seed: int) -> RankBatch:
        """Returns the rows of a step. Each epoch is a permutation that depends on `seed`."""
        found = self.parts["learned"]
        rows = pipeline.epochs(len(found), step, size, seed=seed)
        return self._batch([found[i] for i in rows], size)

    def held_out(self, part: str, size: int) -> Iterator[RankBatch]:
        """Yields all rows of a part in batches; the last one is filled up with rows without valid
        pairs."""
        found = self.parts[part]
        for start in range(0, len(found), size):
            yield self._batch(found[start : start + size], size)

    def _batch(self, rows: Sequence[Row], size: int) -> RankBatch:
        T, C, R, P = self.widths
        pair_BP2 = np.zeros((size, P, 2), np.int32)
        valid_BP, margin_BP = np.zeros((size, P), bool), np.zeros((size, P), np.float32)
        for b, row in enumerate(rows):
            for p, (chosen, rejected, margin) in enumerate(row.pairs):
                pair_BP2[b, p], valid_BP[b, p], margin_BP[b, p] = (chosen, rejected), True, margin
        rows = [*rows, *[rows[0]] * (size - len(rows))]
        tree = padded_tree([x.prompt for x in rows], [x.answers for x in rows], self.pad, T, C, R)
        return RankBatch(tree, pair_BP2, valid_BP, margin_BP)
