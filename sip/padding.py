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


def bucket(n: int, multiple: int = 1, sizes: int = 4) -> int:
    """Rounds `n` up to one of at most `sizes` sizes per octave, each a multiple of `multiple`.

    `sizes` is a power of two. The result depends on n only, never on earlier calls: a resumed run
    rounds the same way.
    """
    # A power of two between n / (2 * sizes) and n / sizes; a multiple of `multiple` if that is one.
    step = max(multiple, 1 << max(n.bit_length() - sizes.bit_length(), 0))
    return -(-max(n, 1) // step) * step


def multiple(n: int, of: int) -> int:
    """Rounds `n` up to a multiple of `of`: for widths that are the same in all batches of a run."""
    return -(-max(n, 1) // of) * of


def trunk_width(n: int) -> int:
    """Returns the width T of a tree whose longest trunk has `n` tokens."""
    return bucket(n, 16, 8)


def branch_width(n: int) -> int:
    """Returns the width R of a tree whose longest branch has `n` tokens.

    In finer steps than T: most tokens of a judge's tree are in its branches.
    """
    return bucket(n, 8, 32)


def padded_tree(
    trunks: Sequence[Ids], branches: Sequence[Sequence[Ids]], pad: int, T: int, C: int, R: int
) -> Tree:
    """Returns a tree of numpy arrays with B = len(trunks) and the widths T, C, R.

    Each branch forks at the end of its trunk. Rows with fewer than C branches get masked ones.
    `pad` is the token id at masked positions.
    """
    tokens_BT, mask_BT = padded(trunks, T, pad)
    none: Ids = []
    flat = chain.from_iterable([*row, *[none] * (C - len(row))] for row in branches)
    tokens_NR, mask_NR = padded(list(flat), R, pad)  # N = B * C
    fork_BC: Any = np.repeat(mask_BT.sum(1, dtype=np.int32)[:, None], C, axis=1)
    shape = (len(trunks), C, R)
    return Tree(tokens_BT, mask_BT, tokens_NR.reshape(shape), mask_NR.reshape(shape), fork_BC)


def bucketed(
    trunks: Sequence[Ids],
    branches: Sequence[Sequence[Ids]],
    tokenizer: Tokenizer,
    *,
    rows: int,
    width: int = 0,
    longest: int = 0,
) -> Tree:
    """Returns a tree of `rows` rows with widths T, C and R that are rounded up to a few sizes.

    C is `width` unless a row has more branches, R that of `longest` tokens unless one is longer.
    Rows beyond the trunks hold BOS and no branch.
    """
    T = trunk_width(max(map(len, trunks)))
    most = max(map(len, branches))
    C = width if most <= width else bucket(most)
    R = branch_width(max(longest, 1, *map(len, chain.from_iterable(branches))))
    extra = rows - len(trunks)
    trunks = [*trunks, *[[tokenizer.bos]] * extra]
    return padded_tree(trunks, [*branches, *[[]] * extra], tokenizer.pad, T, C, R)


def padded(rows: Sequence[Ids], width: int, pad: int) -> tuple[Any, Any]:
    """Returns (tokens_NW, mask_NW), left aligned, W = width."""
    lengths_N = np.fromiter(map(len, rows), np.int32, len(rows))
    mask_NW = np.arange(width) < lengths_N[:, None]
    tokens_NW = np.full(mask_NW.shape, pad, np.int32)
    # Boolean assignment fills row by row, in the order of the concatenated lists; no Python loop.
    tokens_NW[mask_NW] = np.fromiter(chain.from_iterable(rows), np.int32, int(lengths_N.sum()))
    return tokens_NW, mask_NW
