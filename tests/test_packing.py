"""Tests packing: rows that are full, and training on them equal to training on single texts."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny
import tiny_recipe
from workdirs import begun

from sip import mesh
from sip.data import packing
from sip.data.packing import joined, pack
from sip.run import Run
from sip.stages import recipe
from sip.structs import UserError
from sip.tasks.supervised import documents
from sip.text.tokenizer import Byte
from sip.training import losses, step

pytest_plugins = ["tiny_fixtures"]


def texts(*lengths, learned=None):
    """Returns texts of these lengths whose tokens count from 1, all of which are learned."""
    at = np.cumsum([0, *lengths])
    ids = [list(range(a + 1, b + 1)) for a, b in zip(at, at[1:], strict=False)]
    return joined((some, learned or [True] * len(some)) for some in ids)


def rows_of(rows):
    """Returns each row as a list of its texts."""
    found = [rows.row(i) for i in range(len(rows))]
    return [
        [tokens_T[segment_T == s].tolist() for s in range(1, segment_T.max() + 1)]
        for tokens_T, _, segment_T in found
    ]


def test_the_longest_come_first_each_into_the_fullest_row_that_has_room():
    rows = pack(texts(2, 5, 3, 4, 2), width=7, pad=0)
    # 5; then 4; 3 fits beside the 4; then both texts of 2, the first of them beside the 5.
    assert rows_of(rows) == [[[1, 2], [3, 4, 5, 6, 7]], [[8, 9, 10], [11, 12, 13, 14]], [[15, 16]]]
    assert rows.fill == 16 / 21 and not rows.cut and not rows.dropped
    tokens_T, learned_T, segment_T = rows.row(2)
    assert tokens_T.tolist() == [15, 16, 0, 0, 0, 0, 0] and learned_T.sum() == 2
    assert segment_T.tolist() == [1, 1, 0, 0, 0, 0, 0]
    alone = pack(texts(2, 5, 3), width=7, pad=0, packed=False)
    assert rows_of(alone) == [[[1, 2]], [[3, 4, 5, 6, 7]], [[8, 9, 10]]]
    assert alone.stacked([0])[0].segment_BT is None


def test_a_long_text_is_cut_and_one_without_a_prediction_is_left_out():
    rows = pack(texts(7, 1, 2), width=3, pad=0)
    assert rows_of(rows) == [[[1, 2, 3]], [[4, 5, 6]], [[9, 10]]]  # 7 and 8 stand alone
    assert (rows.cut, rows.dropped) == (1, 2)
    assert packing.described(rows, 6) == (
        "3 texts, 8 tokens in 3 rows of 3 (88.9% full); 1 longer texts cut; "
        "2 without a token to learn left out; 2 epochs"
    )
    for none in (texts(1, 1), texts(2, learned=[True, False])):
        with pytest.raises(UserError, match="no text has a token to learn"):
            pack(none, width=3, pad=0)


def test_many_texts_are_packed_whole_and_nearly_full():
    lengths = np.random.default_rng(0).geometric(0.1, 300).clip(2, 64)
    packed, alone = (pack(texts(*lengths), width=64, pad=0, packed=p) for p in (True, False))
    every = lambda rows: sorted(text for row in rows_of(rows) for text in row)
    assert every(packed) == every(alone) and len(every(alone)) == 300
    assert packed.fill > 0.97 and alone.fill < 0.2


def test_a_batch_is_found_from_its_step():
    """Each epoch has every row once, in another order."""
    rows = pack(texts(*[4] * 10), width=8, pad=0)
    seen = [rows.batch(step, 2, seed=3)[0].tokens_BT[:, 0].tolist() for step in range(5)]
    first, second = sum(seen, [])[:5], sum(seen, [])[5:]
    assert sorted(first) == sorted(second) == [1, 9, 17, 25, 33] and first != second
    assert rows.batch(4, 2, seed=3)[0].tokens_BT[:, 0].tolist() == seen[4]


def test_the_sources_of_a_mixture_have_rows_of_their_own_and_shares_of_them():
    """Source a has 2 rows, source b has 3; three of four rows are of a."""
    both = texts(4, 4, 4, 3, 4, 3, 3, 4)
    source_P = np.array([0, 1, 0, 1, 0, 1, 1, 1])
    weights = (("a", 0.75), ("b", 0.25))
    rows = pack(both, width=8, pad=0, source_P=source_P, weights=weights)
    assert rows.sizes == (2, 3) and len(rows) == 5
    firsts = lambda steps: [rows.batch(s, 4, seed=1)[0].tokens_BT[:, 0].tolist() for s in steps]
    of_a = {rows.row(0)[0][0], rows.row(1)[0][0]}
    assert [sum(first in of_a for first in batch) for batch in firsts(range(6))] == [3] * 6
    assert firsts([4]) == firsts(range(5))[4:]
    assert packing.described(rows, 8).endswith("3 epochs of a; 0.667 epochs of b")
    with pytest.raises(UserError, match=r"data\.mix\.b: no text has a token to learn"):
        pack(both, width=8, pad=0, source_P=source_P * 0, weights=weights)


def test_a_document_has_a_beginning_and_an_end():
    byte = Byte()
    found = packing.documents(["ab", "c"], byte)
    assert found.tokens_N.tolist() == [byte.bos, 97, 98, byte.eos, byte.bos, 99, byte.eos]
    assert found.learned_N.all() and found.length_P.tolist() == [4, 3]


def test_a_run_learns_whole_documents(finished, quick, tmp_path, capsys):
    """Every token of a document but BOS is predicted once an epoch."""
    config = tiny_recipe.get_config()
    config.runs.base.task.update(packed=True, length=100)
    config.runs.base.batch = 1
    run = Run(config, "base", str(begun(finished, tmp_path)))
    c = recipe.STAGES["supervised"].resolve(config, "base")
    rows = documents.packed(run, c.split, 100)
    batch = documents.build(run, c, mesh.single()).batch
    assert f"base: {len(rows.start_P)} texts, " in capsys.readouterr().err
    found, bos = run.documents(c.split).texts, run.tokenizer.bos
    trees = [batch(step)[0] for step in range(len(rows))]
    texts = [
        run.tokenizer.decode(tree.tokens_BT[0][tree.segment_BT[0] == s])
        for tree in trees for s in range(1, tree.segment_BT.max() + 1)
    ]  # fmt: skip
    assert sum((tree.tokens_BT == bos).sum() for tree in trees) == len(found)
    assert sorted("".join(texts)) == sorted("".join(found))
    assert all((batch(step)[1] == tree.mask_BT).all() for step, tree in enumerate(trees[:3]))


# Everything that layers of the decoder can do: windows in some layers, sinks, experts with a
# balance, chunks of queries, layers without positions.
EVERY = dict(
    window=3, full_every=2, sinks=True, experts=4, active=2, router_aux=0.3, query_chunk=4,
    remat="block", nope_every=2,
)  # fmt: skip
PATHS = {
    "every": EVERY,
    "dense": dict(),
    "window": dict(window=3),
    "chunks": dict(query_chunk=4, logprob_chunk=4),
    "two_ropes": dict(window=3, full_every=2, rope_local_theta=100.0, attention_cap=5.0),
    "experts": dict(experts=4, active=2, router_aux=0.3),
}


@functools.partial(jax.jit, static_argnums=0)
def loss(cfg, params, batch):
    """Returns totals and denominators of all terms, and the gradient of their means."""

    def mean(params):
        found = step.pairs(values := losses.tokens_terms(cfg, 0.1)(params, None, batch)[0], values)
        return sum(total / denom for total, denom in found.values()), found

    return jax.grad(mean, has_aux=True)(params)


def padded(rows, size):
    """Returns a batch of all rows and `size` rows in total; the others are empty.

    A text alone is the segment 1 of its row, so that packed rows take the same program.
    """
    tree, learned_BT = rows.stacked(range(len(rows)))
    tree = dataclasses.replace(tree, segment_BT=rows_segments(rows))
    more = lambda x: np.pad(x, [(0, size - len(x)), *[(0, 0)] * (x.ndim - 1)])
    tree, learned_BT = jax.tree.map(more, (tree, learned_BT))
    return dataclasses.replace(tree, fork_BC=np.ones_like(tree.fork_BC)), learned_BT


def rows_segments(rows):
    return np.stack([rows.row(i)[2] for i in range(len(rows))])


def problem(name):
    """Returns (model, packed rows, rows of one text each); some tokens are not learned."""
    cfg = tiny.model(**PATHS[name])
    rng = np.random.default_rng(0)
    lengths = [7, 3, 5, 4, 2, 3]
    given = [rng.integers(1, cfg.vocab_size, n).tolist() for n in lengths]
    learned = [[*(rng.random(n - 1) < 0.7), True] for n in lengths]
    both = joined(zip(given, learned, strict=True))
    packed, alone = (pack(both, width=12, pad=0, packed=p) for p in (True, False))
    assert len(packed) < len(alone) and any(len(row) > 2 for row in rows_of(packed))
    return cfg, packed, alone


def compare(cfg, batch, other):
    params = tiny.params(cfg)
    (grads, found), (want_grads, want) = (loss(cfg, params, one) for one in (batch, other))
    assert set(want) == {"ce", "ce/z"} | ({"balance"} if cfg.router_aux else set())
    for term in want:
        np.testing.assert_allclose(found[term], want[term], rtol=2e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-3), grads, want_grads
    )
    assert max(float(abs(x).max()) for x in jax.tree.leaves(want_grads)) > 0.01


def test_packed_training_equals_training_on_single_texts():
    cfg, packed, alone = problem("every")
    batch, other = padded(packed, len(alone)), padded(alone, len(alone))
    compare(cfg, batch, other)
    tree = dataclasses.replace(batch[0], segment_BT=np.ones_like(batch[0].segment_BT))
    mixed, want = (loss(cfg, tiny.params(cfg), x)[1]["ce"] for x in ((tree, batch[1]), other))
    assert abs(float(mixed[0] / mixed[1] - want[0] / want[1])) > 0.01, "the two really differ"


@pytest.mark.slow
@pytest.mark.parametrize("name", PATHS)
def test_packed_training_equals_training_without_segments(name):
    cfg, *both = problem(name)
    batch, other = (rows.stacked(range(len(rows))) for rows in both)
    assert batch[0].segment_BT is not None and other[0].segment_BT is None
    compare(cfg, batch, other)
