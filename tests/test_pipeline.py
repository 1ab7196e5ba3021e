"""Tests that batches are a function of the step only."""

import numpy as np
import pytest

from sip.data import chunks, pipeline
from sip.structs import UserError
from sip.text.tokenizer import Byte


@pytest.fixture(scope="module")
def corpus():
    """Returns 22 chunks of different lengths, two per document."""
    texts = [f"{i:02} is a document" for i in range(11)]
    return chunks.cut(texts, Byte(), prefix_min=3, prefix_max=9, suffix=6)


def rows(batch):
    return [tuple(row) for row in batch["tokens_BT"].tolist()]


def same(a, b):
    assert a.keys() == b.keys()
    return all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_a_step_gives_the_same_batch_whatever_came_before(corpus):
    batches = pipeline.Batches(corpus, batch=4, seed=0)
    first = [batches[step] for step in range(12)]
    resumed = pipeline.Batches(corpus, batch=4, seed=0)
    assert all(same(resumed[step], first[step]) for step in (11, 3, 3, 0, 7))
    assert not same(first[0], first[1])


@pytest.fixture(scope="module")
def mixture():
    """Returns 44 chunks of documents of two sources, weights 3 and 1; a short one is skipped."""
    texts = [f"{i:02} is a document" for i in range(21)] + ["short", "99 is a document"]
    source_D = np.array([i % 3 // 2 for i in range(23)])
    found = chunks.cut(texts, Byte(), prefix_min=3, prefix_max=9, suffix=6)
    return chunks.mixed(found, source_D, (("often", 0.75), ("seldom", 0.25)))


def test_a_mixture_is_a_function_of_the_step_with_epochs_of_each_source(mixture):
    batches = pipeline.Batches(mixture, batch=8, seed=0)
    assert same(batches[7], pipeline.Batches(mixture, batch=8, seed=0)[7])
    parts = [batches.rows(5, i, 4) for i in range(4)]
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    assert same(joined, batches[5])
    of = lambda batch: np.array([doc % 3 // 2 for doc in batch["doc_B"]])
    assert all((of(batches[step]) == 0).sum() == 6 for step in range(20))
    every = [
        row
        for step in range(40)
        for row in zip(of(batches[step]), rows(batches[step]), strict=True)
    ]
    for source in (0, 1):
        own, size = [row for i, row in every if i == source], (mixture.source_B == source).sum()
        first, second = own[:size], own[size : 2 * size]
        assert len(set(first)) == size == len(set(second)) and first != second


def test_one_source_of_a_mixture_is_the_whole_without_it(corpus):
    alone = chunks.mixed(corpus, np.zeros(11, int), (("only", 2.0),))
    one, other = (pipeline.Batches(found, batch=4, seed=3) for found in (corpus, alone))
    assert all(same(one[step], other[step]) for step in range(12))


def test_a_source_without_a_long_document_is_named(corpus):
    wrong = chunks.mixed(corpus, np.zeros(11, int), (("a", 1.0), ("b", 1.0)))
    with pytest.raises(
        UserError, match="data.mix.b: no document of the run's split is long enough"
    ):
        pipeline.Batches(wrong, batch=4, seed=0)


def test_a_batch_is_its_chunks_stacked(corpus):
    batch = pipeline.Batches(corpus, batch=22, seed=1, shuffle=False)[5]
    for i, chunk in enumerate(corpus):
        assert batch["tokens_BT"][i].tolist() == chunk["tokens_T"].tolist()
        live = [True] * chunk["length"] + [False] * (15 - chunk["length"])
        assert batch["mask_BT"][i].tolist() == live
        assert (batch["fork_B"][i], batch["doc_B"][i]) == (chunk["fork"], chunk["doc"])
    assert batch["tokens_BT"].dtype == batch["fork_B"].dtype == np.int32
    assert batch["mask_BT"].dtype == bool and not batch["mask_BT"].all()


def test_an_epoch_has_every_chunk_once_and_the_next_another_order(corpus):
    batches = pipeline.Batches(corpus, batch=11, seed=0)
    epochs = [rows(batches[2 * e]) + rows(batches[2 * e + 1]) for e in range(3)]
    assert all(len(set(epoch)) == 22 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])


def test_the_epoch_is_independent_of_the_batch_size(corpus):
    small, large = (pipeline.Batches(corpus, batch=b, seed=0) for b in (4, 12))
    thirty_six = [row for step in range(9) for row in rows(small[step])]
    assert thirty_six == [row for step in range(3) for row in rows(large[step])]


def test_the_seed_chooses_the_order(corpus):
    orders = [rows(pipeline.Batches(corpus, batch=22, seed=s)[0]) for s in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_rows_of_processes_make_the_global_batch(corpus, processes):
    batches = pipeline.Batches(corpus, batch=8, seed=3)
    for step in (0, 2, 9):
        parts = [batches.rows(step, p, processes) for p in range(processes)]
        joined = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
        assert same(joined, batches[step])


def test_a_batch_may_be_larger_than_the_corpus(corpus):
    found = rows(pipeline.Batches(corpus, batch=50, seed=0)[0])
    assert len(found) == 50 and len(set(found)) == 22


def test_impossible_batches_are_named(corpus):
    with pytest.raises(UserError, match="batch=0"):
        pipeline.Batches(corpus, batch=0, seed=0)
    with pytest.raises(UserError, match="batch=6 does not divide among 4 processes"):
        pipeline.Batches(corpus, batch=6, seed=0).rows(0, 0, 4)
