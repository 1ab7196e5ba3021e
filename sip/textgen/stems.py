"""Branches that begin alike as leaves on common stems, so that what they share is read once.

A comparison of all pairs shows each candidate first in K - 1 branches. A stem is a branch of the
trunk: the first words of the prompt template and the candidate that is shown first. The rest of
each pair is a leaf on it, which attends to trunk and stem. Verdicts are those of plain branches.
"""

import functools
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
    leaves: list[list[list[Ids]]]  # [b][k][m]; equal leaves of a trunk are one list
    places: list[list[tuple[int, int] | None]]  # (k, m) of each branch [b][c]; None: not asked
    sizes: Sizes

    def parts(self, b: int) -> list[Ids]:
        """Returns what is read of the branches of trunk `b`: its stems and its leaves."""
        return [*self.stems[b], *chain.from_iterable(self.leaves[b])]

    def padded(self, rows: Sequence[int], B: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (leaf_BMKW, last_BMK) of some trunks, filled up to B with empty ones: tokens, and
        the place of each leaf's last token, 0 for a leaf that is not there."""
        K, M, W = self.sizes
        different = {id(leaf): leaf for b in rows for stem in self.leaves[b] for leaf in stem}
        number = {each: u for u, each in enumerate(different, start=1)}  # 0: no leaf
        at_BMK = np.zeros((B, M, K), np.int32)
        for row, b in enumerate(rows):
            for k, stem in enumerate(self.leaves[b]):
                at_BMK[row, : len(stem), k] = [number[id(leaf)] for leaf in stem]
        tokens_UW, mask_UW = padded([[], *different.values()], W, pad)
        last_U = np.maximum(mask_UW.sum(-1, dtype=np.int32) - 1, 0)
        return tokens_UW[at_BMK], last_U[at_BMK]


def divided(
    texts: Sequence[Sequence[Text]],
    encoder: Encoder,
    width: int,
    rooms: Sequence[int] | None = None,
) -> Stems | None:
    """Divides branches into stems and leaves; None if that is not worth it, or if one is empty.

    Args:
        texts: The branches [b][c], of one prompt template. Those that follow each other with the
            same first segments share a stem.
        encoder: Encodes their segments.
        width: The number of branches to which plain ones would be padded, if none has more.
        rooms: The most tokens that a branch of each trunk may have: a longer one is not asked.
            None: no limit.
    """
    if not all(_long(text) for row in texts for text in row):
        return None
    count = max(width, *map(len, texts), 0)
    limits = [math.inf] * len(texts) if rooms is None else rooms
    rows = [_row(row, encoder, _most(count), room) for row, room in zip(texts, limits, strict=True)]
    stems, leaves, places = (list(x) for x in zip(*rows, strict=True)) if rows else ([], [], [])
    parts = [x for row in stems for x in row] + [x for b in leaves for k in b for x in k]
    if not parts or not all(parts):
        return None
    most = max(len(k) for b in leaves for k in b)
    sizes = max(map(len, stems)), most, branch_width(max(map(len, parts)))
    longest = max(
        len(stem) + max(map(len, own))
        for row in zip(stems, leaves, strict=True)
        for stem, own in zip(*row, strict=True)
    )
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


def _row(texts: Sequence[Text], encoder: Encoder, most: int, room: float):
    """Divides the branches of one trunk -> (stems, leaves by stem, places)."""
    # Many branches begin or end with the same text. Segments at one place are all Markup or none.
    tokens = functools.cache(functools.partial(tokens_of, encoder))
    # HEAD is even: segments stay at even or odd places when they are encoded apart.
    heads = [text[:HEAD] for text in texts]
    begun, rest = [tokens(head) for head in heads], [tokens(text[HEAD:]) for text in texts]
    sizes = map(len, begun), map(len, rest)
    asked = [c for c, (a, b) in enumerate(zip(*sizes, strict=True)) if a + b <= room]
    groups = _groups([heads[c] for c in asked], most)
    stems: list[Ids] = []
    leaves: list[list[Ids]] = []
    places: list[tuple[int, int] | None] = [None] * len(texts)
    for k, group in enumerate(groups):
        members = [asked[i] for i in group]
        stems.append(begun[members[0]])
        leaves.append([rest[c] for c in members])
        for m, c in enumerate(members):
            places[c] = k, m
    return stems, leaves, places
