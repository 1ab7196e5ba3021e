"""Pads token lists into trees; widths are rounded to a few sizes, so that few shapes compile."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from sip.structs import Tree
from sip.text.segments import Ids
from sip.text.tokenizer import Tokenizer


def trunk_only(tokens_BT: np.ndarray, mask_BT: np.ndarray) -> Tree:
    """Returns a tree without branches (C = 0) of tokens_BT, mask_BT."""
    B = len(tokens_BT)
    none = np.zeros((B, 0, 1), np.int32)
    return Tree(tokens_BT, mask_BT, none, none > 0, np.ones((B, 0), np.int32))


def bucket(n: int, multiple: int = 1) -> int:
    """Rounds `n` up to one of at most four sizes per octave, each a multiple of `multiple`.

    The result depends on n only, never on earlier calls: a resumed run rounds the same way.
    """
    # A power of two between n/8 and n/4; a multiple of `multiple` if that is a power of two.
    step = max(multiple, 1 << max(n.bit_length() - 3, 0))
    return -(-max(n, 1) // step) * step


def padded_tree(
    trunks: Sequence[Ids], branches: Sequence[Sequence[Ids]], pad: int, T: int, C: int, R: int
) -> Tree:
    """Returns a tree of numpy arrays with B = len(trunks) and the widths T, C, R.

    Each branch forks at the end of its trunk. Rows with fewer than C branches get masked ones.
    `pad` is the token id at masked positions.
    """
    tokens_BT, mask_BT = _padded(trunks, T, pad)
    none: Ids = []
    flat = chain.from_iterable([*row, *[none] * (C - len(row))] for row in branches)
    tokens_NR, mask_NR = _padded(list(flat), R, pad)  # N = B * C
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
    """Returns a tree of `rows` rows with T, C and R rounded up by `bucket`.

    T and R are multiples of multiples[0] and multiples[1]. Rows beyond the trunks hold BOS and no
    branch.
    """
    T = bucket(max(map(len, trunks)), multiples[0])
    C = bucket(max(map(len, branches)))
    R = bucket(max(map(len, chain.from_iterable(branches)), default=1), multiples[1])
    extra = rows - len(trunks)
    trunks = [*trunks, *[[tokenizer.bos]] * extra]
    return padded_tree(trunks, [*branches, *[[]] * extra], tokenizer.pad, T, C, R)


def _padded(rows: Sequence[Ids], width: int, pad: int) -> tuple[Any, Any]:
    """Returns (tokens_NW, mask_NW), left aligned, W = width."""
    lengths_N = np.fromiter(map(len, rows), np.int32, len(rows))
    mask_NW = np.arange(width) < lengths_N[:, None]
    tokens_NW = np.full(mask_NW.shape, pad, np.int32)
    # Boolean assignment fills row by row, in the order of the concatenated lists; no Python loop.
    tokens_NW[mask_NW] = np.fromiter(chain.from_iterable(rows), np.int32, int(lengths_N.sum()))
    return tokens_NW, mask_NW
