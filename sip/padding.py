"""Padded trees of token lists: widths rounded to few sizes, so that few shapes compile."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from sip.structs import Tree
from sip.text.segments import Ids
from sip.text.tokenizer import Tokenizer


def trunk_only(tokens_BT: np.ndarray, mask_BT: np.ndarray) -> Tree:
    """A tree without branches."""
    B = len(tokens_BT)
    none = np.zeros((B, 0, 1), np.int32)
    return Tree(tokens_BT, mask_BT, none, none > 0, np.ones((B, 0), np.int32))


def bucket(n: int, multiple: int = 1) -> int:
    """`n` rounded up to one of a few sizes per octave, each a multiple of `multiple`.

    A function of n alone: with sizes that grow by history a resumed run would round differently.
    """
    step = max(multiple, 1 << max(n.bit_length() - 3, 0))
    return -(-max(n, 1) // step) * step


def padded_tree(
    trunks: Sequence[Ids], branches: Sequence[Sequence[Ids]], pad: int, T: int, C: int, R: int
) -> Tree:
    """A tree of numpy arrays; each branch forks at its trunk's end, missing branches are masked."""
    tokens_BT, mask_BT = _padded(trunks, T, pad)
    none: Ids = []
    flat = chain.from_iterable([*row, *[none] * (C - len(row))] for row in branches)
    tokens_NR, mask_NR = _padded(list(flat), R, pad)
    fork_BC: Any = np.repeat(mask_BT.sum(1, dtype=np.int32)[:, None], C, axis=1)
    shape = (len(trunks), C, R)
    return Tree(tokens_BT, mask_BT, tokens_NR.reshape(shape), mask_NR.reshape(shape), fork_BC)


def bucketed(
    trunks: Sequence[Ids],
    branches: Sequence[Sequence[Ids]],
    tokenizer: Tokenizer,
    *,
    rows: int,
    multiples: tuple[int, int],
) -> Tree:
    """A tree of `rows` rows, the last ones empty, whose T, C and R are sizes of `bucket`: T and R
    are multiples of the two `multiples`."""
    T = bucket(max(map(len, trunks)), multiples[0])
    C = bucket(max(map(len, branches)))
    R = bucket(max(map(len, chain.from_iterable(branches)), default=1), multiples[1])
    extra = rows - len(trunks)
    trunks = [*trunks, *[[tokenizer.bos]] * extra]
    return padded_tree(trunks, [*branches, *[[]] * extra], tokenizer.pad, T, C, R)


def _padded(rows: Sequence[Ids], width: int, pad: int) -> tuple[Any, Any]:
    """(tokens_NW, mask_NW), left aligned."""
    lengths_N = np.fromiter(map(len, rows), np.int32, len(rows))
    mask_NW = np.arange(width) < lengths_N[:, None]
    tokens_NW = np.full(mask_NW.shape, pad, np.int32)
    tokens_NW[mask_NW] = np.fromiter(chain.from_iterable(rows), np.int32, int(lengths_N.sum()))
    return tokens_NW, mask_NW
