"""Packs whole texts into rows of a fixed length, or puts one text into each row.

A packed row has several texts as segments: attention stays within a segment, and positions restart
in each (`Tree.segment_BT`), so training on rows equals training on the texts one by one. Texts are
placed by best-fit decreasing (arXiv 2404.10830): the longest first, each into the fullest row that
has room. Which texts share a row depends on the lengths alone; the order of rows is drawn anew in
each epoch, and batch `step` is found from the step number, so that a run resumes anywhere.
The sources of a mixture have rows and epochs of their own; a weight is a share of the rows.

Letters: N tokens of all texts, P texts (pieces), W rows, T = `width` positions of a row.
"""

import heapq
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from sip.data import pipeline
from sip.padding import trunk_only
from sip.structs import Tree, UserError
from sip.text.segments import Ids
from sip.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Texts:
    """Token ids of many texts, concatenated, and the tokens to learn."""

    tokens_N: np.ndarray  # int32
    learned_N: np.ndarray  # bool
    end_P: np.ndarray  # index after each text

    @property
    def length_P(self) -> np.ndarray:
        """Tokens of each text."""
        return np.diff(self.end_P, prepend=0)


@dataclass(frozen=True)
class Rows:
    """Rows of texts, which are stored as positions and copied on access."""

    texts: Texts
    start_P: np.ndarray  # index in tokens_N of each text's first token, ordered by row
    length_P: np.ndarray
    end_W: np.ndarray  # index in start_P after the texts of each row
    width: int  # T
    pad: int  # token id at padded positions
    packed: bool  # False: one text per row, without segments
    cut: int  # texts that were cut into several, since they are longer than a row
    dropped: int  # texts without a token to learn
    weights: tuple[tuple[str, float], ...] = ()  # mixture: (name, share of the rows) by source
    sizes: tuple[int, ...] = ()  # mixture: rows of each source, which follow each other

    def __len__(self) -> int:
        return len(self.end_W)

    @property
    def fill(self) -> float:
        """Share of the rows' positions that have a token."""
        return float(self.length_P.sum()) / (len(self) * self.width)

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (tokens_T, learned_T, segment_T) of a row; segments from 1, padding 0."""
        tokens_T = np.full(self.width, self.pad, np.int32)
        learned_T, segment_T = np.zeros(self.width, bool), np.zeros(self.width, np.int32)
        at, first = 0, int(self.end_W[index - 1]) if index else 0
        for nth, p in enumerate(range(first, int(self.end_W[index])), 1):
            start, size = int(self.start_P[p]), int(self.length_P[p])
            tokens_T[at : at + size] = self.texts.tokens_N[start : start + size]
            learned_T[at : at + size] = self.texts.learned_N[start : start + size]
            segment_T[at : at + size] = nth
            at += size
        return tokens_T, learned_T, segment_T

    def batch(self, step: int, size: int, *, seed: int) -> tuple[Tree, np.ndarray]:
        """Returns (tree, learned_BT) of a step: `size` rows of the epochs' permutations."""
        if not self.weights:
            return self.stacked(pipeline.epochs(len(self), step, size, seed=seed))
        order = pipeline.mixed(self.sizes, tuple(weight for _, weight in self.weights), seed)
        return self.stacked(order[at] for at in range(step * size, (step + 1) * size))

    def stacked(self, indices: Iterable[int]) -> tuple[Tree, np.ndarray]:
        """Returns (tree, learned_BT) of the rows at `indices`."""
        rows = [self.row(int(i)) for i in indices]
        tokens_BT, learned_BT, segment_BT = map(np.stack, zip(*rows, strict=True))
        tree = trunk_only(tokens_BT, segment_BT > 0)
        return replace(tree, segment_BT=segment_BT) if self.packed else tree, learned_BT


def pack(
    texts: Texts,
    *,
    width: int,
    pad: int,
    packed: bool = True,
    source_P: np.ndarray | None = None,
    weights: tuple[tuple[str, float], ...] = (),
) -> Rows:
    """Puts texts into rows of `width` tokens; `packed` False puts each into a row of its own.

    Of a mixture, `weights` are (name, share) of its sources and `source_P` the source of each text.

    A text longer than a row is cut into several, each with its own positions. The first token of a
    text is not predicted, so a text needs a later token to learn; others are dropped. Raises
    UserError if no text is left.
    """
    start_P, length_P, which_P, cut = _cut(texts, width)
    # Number of tokens to learn before each position, without the first token of each text.
    before = np.concatenate([[0], np.cumsum(texts.learned_N)])
    kept_P = before[start_P + length_P] > before[np.minimum(start_P + 1, start_P + length_P)]
    start_P, length_P, which_P = (x[kept_P] for x in (start_P, length_P, which_P))
    if not len(start_P):
        raise UserError("no text has a token to learn after its first; give longer texts")
    rows = lambda length_P: _best_fit(length_P, width) if packed else np.arange(len(length_P))
    sizes: list[int] = []
    if weights and source_P is not None:
        row_P = np.zeros(len(length_P), np.int64)
        for source, (name, _) in enumerate(weights):
            own_P = source_P[which_P] == source
            if not own_P.any():
                raise UserError(f"data.mix.{name}: no text has a token to learn after its first")
            row_P[own_P] = sum(sizes) + (found := rows(length_P[own_P]))
            sizes.append(int(found.max()) + 1)
    else:
        row_P = rows(length_P)
    # Stable: texts of a row keep their order.
    order_P = np.argsort(row_P, kind="stable")
    return Rows(
        texts,
        start_P[order_P],
        length_P[order_P],
        np.cumsum(np.bincount(row_P)),
        width,
        pad,
        packed,
        cut,
        int((~kept_P).sum()),
        weights,
        tuple(sizes),
    )


def _cut(texts: Texts, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Cuts texts into pieces of at most `width` tokens.

    Returns (start_P, length_P, index of each piece's text, number of texts that were cut).
    """
    whole = texts.length_P
    pieces = -(-whole // width)
    nth = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start_P = np.repeat(texts.end_P - whole, pieces) + nth * width
    length_P = np.minimum(width, np.repeat(texts.end_P, pieces) - start_P)
    return start_P, length_P, np.repeat(np.arange(len(whole)), pieces), int((pieces > 1).sum())


def _best_fit(length_P: np.ndarray, width: int) -> np.ndarray:
    """Returns the row of each text by best-fit decreasing; equal lengths keep their order."""
    rooms: list[list[int]] = [[] for _ in range(width + 1)]  # by free tokens: a heap of rows
    free = 0  # bit n is set if a row has n free tokens
    row_P, rows = np.zeros(len(length_P), np.int64), 0
    for p in np.argsort(-length_P, kind="stable"):
        size = int(length_P[p])
        fits = free >> size
        if fits:
            room = size + (fits & -fits).bit_length() - 1  # the least that is enough
            row = heapq.heappop(rooms[room])
            if not rooms[room]:
                free ^= 1 << room
        else:
            room, row, rows = width, rows, rows + 1
        row_P[p] = row
        if room > size:
            heapq.heappush(rooms[room - size], row)
            free |= 1 << (room - size)
    return row_P


def joined(examples: Iterable[tuple[Ids, Iterable[bool]]]) -> Texts:
    """Concatenates texts, each given as (token ids, the tokens to learn)."""
    tokens, learned, ends = array("i"), array("b"), array("q")
    for ids, counts in examples:
        tokens.extend(ids)
        learned.extend(map(bool, counts))
        ends.append(len(tokens))
    return Texts(np.array(tokens, np.int32), np.array(learned, bool), np.array(ends, np.int64))


def documents(texts: Iterable[str], tokenizer: Tokenizer) -> Texts:
    """Tokenises whole documents, every token of which is learned: BOS, the text, EOS."""

    tokens, ends = array("i"), array("q")
    for text in texts:
        tokens.append(tokenizer.bos)
        tokens.extend(tokenizer.encode(text))
        tokens.append(tokenizer.eos)
        ends.append(len(tokens))
    learned_N = np.ones(len(tokens), bool)
    return Texts(np.array(tokens, np.int32), learned_N, np.array(ends, np.int64))


def described(rows: Rows, drawn: int) -> str:
    """Returns one line: texts and tokens in how many rows, what was cut or dropped, and the epochs
    of a run that draws `drawn` rows."""
    more = [f"{rows.cut:,} longer texts cut"] if rows.cut else []
    more += [f"{rows.dropped:,} without a token to learn left out"] if rows.dropped else []
    if rows.weights:
        whole = sum(weight for _, weight in rows.weights)
        each = zip(rows.weights, rows.sizes, strict=True)
        more += [f"{drawn * w / whole / n:.3g} epochs of {name}" for (name, w), n in each]
    else:
        more.append(f"{drawn / len(rows):.3g} epochs")
    size = f"{len(rows):,} rows of {rows.width:,} ({rows.fill:.1%} full)"
    found = f"{len(rows.start_P):,} texts, {int(rows.length_P.sum()):,} tokens in {size}"
    return "; ".join([found, *more])
