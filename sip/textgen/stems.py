"""Branches that begin alike as leaves on common stems, so that what they share is read once.

A comparison of all pairs shows each candidate first in K - 1 branches. A stem is a branch of the
trunk: the first words of the prompt template and the candidate that is shown first. The rest of
each pair is a leaf on it, which attends to trunk and stem. Verdicts are those of plain branches.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from sip.padding import branch_width, padded
from sip.text.segments import Ids, Text, tokens_of
from sip.text.tokenizer import Encoder

HEAD = 2  # segments of a stem: words of the template, and the text that is shown first
WORTH = 0.75  # of the positions of plain branches; if stems and leaves have more, they are not used

Sizes = tuple[int, int, int]  # K stems of a trunk, M leaves of a stem, width W of both


@dataclass(frozen=True)
class Stems:
    """Stems and leaves of several trunks."""

    stems: list[list[Ids]]  # [b][k]
    leaves: list[list[list[Ids]]]  # [b][k][m]
    places: list[list[tuple[int, int] | None]]  # (k, m) of each branch [b][c]; None: not asked
    sizes: Sizes

    def parts(self, b: int) -> list[Ids]:
        """Returns what is read of the branches of trunk `b`: its stems and its leaves."""
        return [*self.stems[b], *chain.from_iterable(self.leaves[b])]

    def padded(self, rows: Sequence[int], B: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (leaf_BMKW, last_BMK) of some trunks, filled up to B with empty ones: tokens, and
        the place of each leaf's last token, 0 for a leaf that is not there."""
        K, M, W = self.sizes
        none: Ids = []
        leaves = [self.leaves[b] for b in rows] + [[]] * (B - len(rows))
        flat = [
            row[k][m] if k < len(row) and m < len(row[k]) else none
            for row in leaves
            for m in range(M)
            for k in range(K)
        ]
        tokens_NW, mask_NW = padded(flat, W, pad)
        last_N = np.maximum(mask_NW.sum(-1, dtype=np.int32) - 1, 0)
        return tokens_NW.reshape(B, M, K, W), last_N.reshape(B, M, K)


def divided(
    texts: Sequence[Sequence[Text]], ids: Sequence[Sequence[Ids]], encoder: Encoder, width: int
) -> Stems | None:
    """Divides branches into stems and leaves; None if that is not worth it, or if one is empty.

    Args:
        texts: The branches [b][c]. Those that follow each other with the same first segments share
            a stem.
        ids: Their token ids; empty for one that is not asked.
        encoder: What encoded them.
        width: The number of branches to which plain ones would be padded, if none has more.
    """
    if not all(_long(text) for row in texts for text in row):
        return None
    count = max(width, *map(len, ids), 0)
    rows = [_row(*row, encoder, _most(count)) for row in zip(texts, ids, strict=True)]
    stems, leaves, places = (list(x) for x in zip(*rows, strict=True)) if rows else ([], [], [])
    parts = [x for row in stems for x in row] + [x for b in leaves for k in b for x in k]
    if not parts or not all(parts):
        return None
    most = max(len(k) for b in leaves for k in b)
    sizes = max(map(len, stems)), most, branch_width(max(map(len, parts)))
    longest = max(len(x) for row in ids for x in row)
    return Stems(stems, leaves, places, sizes) if _worth(sizes, count, longest) else None


def foreseen(texts: Sequence[Text], size: Callable[[Text], int], tail: int = 0) -> Sizes | None:
    """Returns the sizes to which `divided` divides the branches of a trunk, whose segments have
    `size` tokens and `tail` more at their end; None if that is not worth it."""
    if not texts or not all(map(_long, texts)):
        return None
    groups = _groups([text[:HEAD] for text in texts], _most(len(texts)))
    widest = max(max(size(text[:HEAD]), size(text[HEAD:]) + tail) for text in texts)
    sizes = len(groups), max(map(len, groups)), branch_width(widest)
    return sizes if _worth(sizes, len(texts), max(map(size, texts)) + tail) else None


def _long(text: Text) -> bool:
    return isinstance(text, tuple) and len(text) > HEAD


def _most(count: int) -> int:
    """Returns the most leaves of a stem among `count` branches: K - 1 of all pairs of K texts.

    Equal texts that follow each other would make a stem of twice as many.
    """
    return max(1, math.isqrt(count))


def _worth(sizes: Sizes, count: int, longest: int) -> bool:
    """Says if stems and leaves are cheaper than `count` plain branches."""
    K, M, W = sizes
    return K * (1 + M) * W <= WORTH * count * branch_width(longest)


def _groups(heads: Sequence[Text], most: int) -> list[list[int]]:
    """Returns the places of heads that follow each other and are equal, at most `most` together."""
    found: list[list[int]] = []
    for c, head in enumerate(heads):
        if found and heads[found[-1][0]] == head and len(found[-1]) < most:
            found[-1].append(c)
        else:
            found.append([c])
    return found


def _row(texts: Sequence[Text], ids: Sequence[Ids], encoder: Encoder, most: int):
    """Divides the branches of one trunk -> (stems, leaves by stem, places)."""
    asked = [c for c, own in enumerate(ids) if own]
    groups = _groups([texts[c][:HEAD] for c in asked], most)
    stems: list[Ids] = []
    leaves: list[list[Ids]] = []
    places: list[tuple[int, int] | None] = [None] * len(ids)
    for k, group in enumerate(groups):
        members = [asked[i] for i in group]
        begun = len(tokens_of(encoder, texts[members[0]][:HEAD]))
        stems.append(ids[members[0]][:begun])
        leaves.append([ids[c][begun:] for c in members])
        for m, c in enumerate(members):
            places[c] = k, m
    return stems, leaves, places
