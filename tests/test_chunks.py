"""Tests that prefix and suffix join to the document; expected numbers are worked out by hand."""

import time

import numpy as np
import pytest

from sip.data import chunks
from sip.structs import UserError
from sip.text.tokenizer import Byte

BOS, PAD = Byte.bos, Byte.pad


def cut(texts, **changes):
    sizes = dict(prefix_min=4, prefix_max=6, suffix=3)
    return chunks.cut(texts, Byte(), **sizes | changes)


def row(chunk):
    return chunk["tokens_T"].tolist()


def test_the_chunks_of_one_document():
    """BOS + 11 bytes: forks are at 4 and 7; at 10 no complete suffix is left."""
    found = cut(["abcdefghijk"])
    assert [row(c) for c in found] == [
        [BOS, *b"abcdef", PAD, PAD],
        [*b"abcdefghi"],
    ]
    assert [(c["fork"], c["length"], c["doc"]) for c in found] == [(4, 7, 0), (6, 9, 0)]
    assert len(cut(["abcdefghijkl"])) == 3


def test_the_chunks_of_two_documents_never_mix():
    found = cut(["abcdef", "ABCDEFGHIJKL"])
    assert [c["doc"] for c in found] == [0, 1, 1, 1]
    assert row(found[3]) == [*b"DEFGHIJKL"]


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 9, 4), (5, 5, 7), (3, 100, 2)])
def test_prefixes_and_suffixes_are_the_document_itself(sizes):
    prefix_min, prefix_max, suffix = sizes
    rng = np.random.default_rng(0)
    texts = ["x" * int(n) + "".join(map(chr, rng.integers(32, 126, n))) for n in range(0, 60, 7)]
    found = cut(texts, prefix_min=prefix_min, prefix_max=prefix_max, suffix=suffix)
    expected = []
    for doc, text in enumerate(texts):
        ids, fork = [BOS, *text.encode()], prefix_min
        while fork + suffix <= len(ids):
            prefix = ids[max(0, fork - prefix_max) : fork]
            expected.append((doc, prefix, ids[fork : fork + suffix]))
            fork += suffix
    got = [(c["doc"], row(c)[: c["fork"]], row(c)[c["fork"] : c["length"]]) for c in found]
    assert got == expected and len(found) > 9
    assert all(row(c)[c["length"] :] == [PAD] * (prefix_max + suffix - c["length"]) for c in found)


def test_short_documents_are_counted():
    found = cut(["abc", "abcdefg", "", "abcdef"])
    assert (len(found), found.documents, found.skipped) == (2, 4, 2)
    assert [c["doc"] for c in found] == [1, 3]


def test_too_many_short_documents_are_an_error():
    texts = ["abcdefg", "abc"]
    assert len(cut(texts, max_skipped_fraction=0.5)) == 1
    lower = r"lower data.cut.prefix_min \(4\) or data.cut.suffix \(3\)"
    said = f"1 of 2 documents.*= 7 tokens.*max_skipped_fraction=0.4 allows; {lower}, or raise data"
    with pytest.raises(UserError, match=said):
        cut(texts, max_skipped_fraction=0.4)
    for nothing in ([], ["abcde"]):
        with pytest.raises(UserError, match=rf"prefix_min \+ suffix = 7 tokens; {lower}"):
            cut(nothing)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(prefix_min=7), "prefix_min=7 is above prefix_max=6"),
        (dict(prefix_min=0), "prefix_min=0"),
        (dict(suffix=0), "suffix=0"),
    ],
)
def test_impossible_sizes_are_named(changes, named):
    with pytest.raises(UserError, match=named):
        cut(["abcdefghijk"], **changes)


def test_rows_are_padded_copies():
    found = cut(["abcdefghijk"])
    found[1]["tokens_T"][:] = 0
    assert row(found[1]) == [*b"abcdefghi"] and found[1]["tokens_T"].dtype == np.int32


def test_an_index_beyond_the_end_is_an_index_error():
    found = cut(["abcdefg"])
    with pytest.raises(IndexError):
        found[len(found)]


def test_a_corpus_is_cut_in_seconds():
    start = time.process_time()
    found = cut(["x" * 64] * 40_000, prefix_min=40, prefix_max=40, suffix=24)
    assert len(found) == 40_000 and time.process_time() - start < 5
