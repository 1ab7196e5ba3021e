"""Overlap of training documents with evaluation sets, by n-grams of words.

A document overlaps with a text of a set if `ngram` successive words of it are in the text, in the
same order. Words are runs of letters and digits, in lower case, and single Chinese characters and
Japanese kana; marks between them do not count.
GPT-3 (arXiv 2005.14165, appendix C) compares 13-grams in this way. A text of fewer words than
`ngram` cannot be found; their number is reported.
Letters: N n-grams of a set, W words or n-grams of several documents, D documents.
"""

import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sip.data import files, records
from sip.sections import FieldError, at_least, check
from sip.structs import UserError
from sip.workdir import place

ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # characters without spaces between
WORD = re.compile(rf"[{ALONE}]|[^\W_{ALONE}]+")
SIDES = ("left", "right")
BLOCK = 1024  # documents that are compared at once
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplication by it loses no bit


@dataclass(frozen=True)
class ContaminationConfig:
    """The `data.contamination` section. Without sets nothing is compared.

    A set is a file, a folder, a glob or several of them (.txt, .jsonl or .parquet, also .gz or
    .zst); all strings of its records are its texts, each for itself. Raises UserError.
    """

    against: tuple[tuple[str, str], ...] = ()  # (name, path) of each evaluation set
    ngram: int = 13  # successive words that must be equal
    drop: bool = False  # leaves out documents that overlap, and counts them

    def __post_init__(self):
        check("data.contamination", self, ngram=at_least(1))
        names = [name for name, _ in self.against]
        if len(set(names)) < len(names) or not all(map(all, self.against)):
            raise FieldError("data.contamination", f"against={self.against}: two names or no path")
        if self.drop and not self.against:
            raise FieldError("data.contamination", "drop: needs evaluation sets in `against`")
        placed = tuple((name, place(path)) for name, path in self.against)
        object.__setattr__(self, "against", placed)


@dataclass(frozen=True)
class Overlap:
    """The overlap of documents with one evaluation set."""

    name: str
    documents_D: np.ndarray  # bool: the document overlaps with a text of the set
    found: int  # number of the set's texts that a document overlaps with
    texts: int  # number of the set's texts
    short: int  # number of the set's texts with fewer words than an n-gram

    def __str__(self) -> str:
        short = f"; {self.short:,} texts are too short to be found" if self.short else ""
        return (
            f"{self.documents_D.sum():,} documents overlap with {self.name}, with {self.found:,} "
            f"of its {self.texts:,} texts{short}"
        )


@dataclass(frozen=True)
class _Index:
    """The n-grams of an evaluation set, in ascending order, and the text that each is from."""

    ngrams_N: np.ndarray  # uint64
    text_N: np.ndarray  # index of the text
    texts: int
    short: int


def overlaps(texts: Sequence[str], cfg: ContaminationConfig) -> list[Overlap]:
    """Returns the overlap of documents with each set of `cfg`. Raises UserError for a wrong set."""
    indices = [_index(paths(path), cfg.ngram) for _, path in cfg.against]
    hits_D = [np.zeros(len(texts), bool) for _ in indices]
    found: list[set[int]] = [set() for _ in indices]
    for start in range(0, len(texts), BLOCK):
        ngrams_W, doc_W = _ngrams(texts[start : start + BLOCK], cfg.ngram)
        for index, hit_D, seen in zip(indices, hits_D, found, strict=True):
            # Equal n-grams of several texts lie side by side: [low, high) are those of one.
            low_W, high_W = (np.searchsorted(index.ngrams_N, ngrams_W, side) for side in SIDES)
            hit_W = low_W < high_W
            hit_D[start + doc_W[hit_W]] = True
            for low, high in zip(low_W[hit_W], high_W[hit_W], strict=True):
                seen.update(index.text_N[low:high].tolist())
    each = zip(cfg.against, indices, hits_D, found, strict=True)
    return [Overlap(name, hit_D, len(s), i.texts, i.short) for (name, _), i, hit_D, s in each]


def paths(path: str) -> tuple[str, ...]:
    """Returns the files of an evaluation set; their names tell their formats. Raises UserError."""
    found = files.listed_any(path)
    for file in found:
        if files.format_of(file) not in ("txt", "jsonl", "parquet"):
            raise UserError(
                f"{file}: an evaluation set must be .txt, .jsonl or .parquet, also .gz or .zst"
            )
    return tuple(found)


@functools.lru_cache(maxsize=32)
def _index(files_of_set: tuple[str, ...], n: int) -> _Index:
    texts = [
        text
        for path in files_of_set
        for record, _ in records.read(path, files.format_of(path))
        for text in records.strings(record)
    ]
    if not texts:
        raise UserError(f"{', '.join(files_of_set)}: the evaluation set has no texts")
    ngrams_N, text_N = _ngrams(texts, n)
    order = np.argsort(ngrams_N, kind="stable")
    short = len(texts) - len(np.unique(text_N))
    return _Index(ngrams_N[order], text_N[order], len(texts), short)


def _ngrams(texts: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a 64-bit hash of each n successive words of a text: (uint64 [W], its text [W])."""
    words = [WORD.findall(text.lower()) for text in texts]
    count = sum(map(len, words))
    hash_W = np.fromiter((_word(word) for own in words for word in own), np.uint64, count)
    text_W = np.repeat(np.arange(len(texts)), list(map(len, words)))
    size = max(0, count - n + 1)
    found = np.zeros(size, np.uint64)
    for i in range(n if size else 0):  # a polynomial in FACTOR, modulo 2^64
        found = found * FACTOR + hash_W[i : size + i]
    within = text_W[:size] == text_W[count - size :]  # first and last word are of one text
    return found[within], text_W[:size][within]


@functools.lru_cache(maxsize=1 << 18)
def _word(word: str) -> int:
    # Python's own hash differs from process to process; all must leave out the same documents.
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())
