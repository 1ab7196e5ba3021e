"""Tests rows of several answers to a prompt: grouping, batches, loss and gradient, evaluation."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny

from sip.data.preferences import Tokens
from sip.mesh import single
from sip.tasks import pairs
from sip.tasks.pairs import PairSet
from sip.tasks.ranked import RankSet, grouped
from sip.training import losses, step

CFG = tiny.model(scalar=True)
EOS = 2
P, Q = [1, 4, 5], [1, 6]  # prompts
A, B, C, D = [5, 6, EOS], [7, EOS], [8, 3, 9, EOS], [3, EOS]  # answers
PAIRS = [
    Tokens(P, A, B, 0.5),
    Tokens(P, B, C),
    Tokens(Q, C, D, 1.5),
    Tokens(P, A, C),
    Tokens(P, D, A),
    Tokens(Q, D, B),
]
TERMS = losses.reward_terms(CFG, margin_weight=0.7)
WEIGHTS = {"reward": 1.0, "centring": 0.3}


def pairs_of(row):
    """Lists (prompt, chosen, rejected, margin) of a row's pairs."""
    return [(row.prompt, row.answers[i], row.answers[j], margin) for i, j, margin in row.pairs]


def test_pairs_of_three_answers_are_one_row_and_a_fourth_answer_opens_another():
    one, other, last = grouped(PAIRS, 3)
    assert one.answers == [A, B, C] and one.pairs == [(0, 1, 0.5), (1, 2, 0.0), (0, 2, 0.0)]
    assert other.prompt == Q and other.answers == [C, D, B]
    assert last.prompt == P and last.answers == [D, A] and last.pairs == [(0, 1, 0.0)]
    assert [len(row.pairs) for row in grouped(PAIRS, 4)] == [4, 2]


def test_every_pair_is_in_one_row_whatever_the_number_of_answers():
    key = lambda pair: str(pair)
    given = sorted(((x.prompt, x.chosen, x.rejected, x.margin or 0.0) for x in PAIRS), key=key)
    for together in range(2, 6):
        rows = grouped(PAIRS, together)
        assert sorted((pair for row in rows for pair in pairs_of(row)), key=key) == given
        assert all(len(row.answers) <= together for row in rows)


def test_two_pairs_of_the_same_answers_are_never_in_one_row():
    twice = [Tokens(P, A, B), Tokens(P, B, C), Tokens(P, B, A), Tokens(P, A, B)]
    assert [row.pairs for row in grouped(twice, 3)] == [
        [(0, 1, 0.0), (1, 2, 0.0)],
        [(0, 1, 0.0)],
        [(0, 1, 0.0)],
    ]


def test_two_answers_together_are_the_batches_of_pairs():
    given = [*PAIRS, PAIRS[0], Tokens(P, B, A)]  # a pair twice, and in the other order
    one = PairSet({"learned": given, "validation": given[:3]}, 0)
    two = RankSet({part: grouped(rows, 2) for part, rows in one.parts.items()}, 0)
    batches = lambda found: [found.batch(1, 5, seed=3), *found.held_out("validation", 2)]
    for want, got in zip(batches(one), batches(two), strict=True):
        live = want.valid_B
        jax.tree.map(np.testing.assert_array_equal, got.tree, want.tree)
        np.testing.assert_array_equal(got.valid_BP[:, 0], live)
        np.testing.assert_array_equal(got.margin_BP[live, 0], want.margin_B[live])
        np.testing.assert_array_equal(got.pair_BP2[live], np.tile([0, 1], (live.sum(), 1, 1)))


def whole(together, size=0):
    """Returns all pairs as one batch, of `size` rows if there are fewer."""
    rows = grouped(PAIRS, together)
    return RankSet({"learned": [], "test": rows}, 0)._batch(rows, size or len(rows))


@functools.partial(jax.jit, static_argnums=1)
def gradient(batch, microbatches=1):
    """Returns (gradient, loss, metrics)."""
    return step.gradient(TERMS, tiny.params(CFG), None, batch, WEIGHTS, microbatches)


def close(got, want):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), got, want)


@pytest.mark.parametrize(("together", "size", "microbatches"), [(4, 0, 1), (3, 4, 1), (3, 4, 2)])
def test_loss_and_gradient_of_rows_are_those_of_pairs_one_by_one(together, size, microbatches):
    """Also with a padded row, and with microbatches of unequal numbers of pairs."""
    alone, rows = whole(2), whole(together, size)
    assert len(rows.valid_BP) < len(alone.valid_BP) and rows.valid_BP.sum() == len(PAIRS)
    assert not rows.valid_BP.all()
    close(gradient(rows, microbatches), gradient(alone))


def test_padding_never_matters():
    rows = whole(3, 4)
    off_BP, off_BCR = ~rows.valid_BP, ~rows.tree.mask_BCR
    assert off_BP.any() and off_BCR.all(-1).any(), "a padded pair and a padded answer"
    changed = dataclasses.replace(
        rows,
        tree=dataclasses.replace(rows.tree, tokens_BCR=np.where(off_BCR, 11, rows.tree.tokens_BCR)),
        pair_BP2=np.where(off_BP[..., None], np.array([2, 1], np.int32), rows.pair_BP2),
        margin_BP=np.where(off_BP, np.float32(9), rows.margin_BP),
    )
    close(gradient(changed), gradient(rows))


def test_figures_of_held_out_pairs_are_those_of_pairs_one_by_one():
    found = []
    for together in (2, 3):
        rows = RankSet({"learned": [], "test": grouped(PAIRS, together)}, 0)
        how = jax.jit(TERMS), rows, "test", single(), 2, tiny.params(CFG), None
        found.append(pairs.figures(*how))
    assert found[0]["pairs"] == len(PAIRS) and 0 < found[0]["accuracy"] < 1
    assert found[1] == pytest.approx(found[0], rel=1e-4)
