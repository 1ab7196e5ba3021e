"""Tests that pairs which are read as leaves on stems get the verdicts of plain prompts."""

import dataclasses

import jax
import numpy as np
import pytest

from sip import mesh as meshes
from sip.gap import costs
from sip.judge import prompts
from sip.loading import LoadedModel
from sip.models import decoder
from sip.models.config import ModelConfig
from sip.text.segments import tokens_of
from sip.text.tokenizer import Byte
from sip.textgen import local as local_generator
from sip.textgen import stems
from sip.textgen.local import Local

CFG = ModelConfig(
    vocab_size=264,
    width=16,
    layers=2,
    kv_heads=2,
    queries_per_kv=1,
    head_dim=8,
    hidden=24,
    max_len=640,
    branch_chunk=2,
)
ASPECT = prompts.load("quality")
TEXTS = [
    "one text that goes on for a while",
    "a text that is no shorter than it",
    "the third one ends here, or nearly",
    "4",
    "and one more that is a little longer",
    "the last of them all, and the best",
]
TEXTS = [f"{text}, {text}" for text in TEXTS]
PREFIXES = ["It began so.", "Another beginning, which is longer:", "x"]


def pairs(texts, aspect=ASPECT):
    return [prompts.branch(aspect, a, b) for a in texts for b in texts if a != b]


@pytest.fixture(scope="module")
def params():
    return decoder.init(CFG, jax.random.key(0))


@pytest.fixture
def used(monkeypatch):
    """Records the shapes of leaves that a program reads."""
    found, program = [], local_generator.program_of_stems

    def spy(cfg):
        def run(params, tree, leaves, *rest):
            found.append((tree.fork_BC.shape, leaves.shape))
            return program(cfg)(params, tree, leaves, *rest)

        return run

    monkeypatch.setattr(local_generator, "program_of_stems", spy)
    return found


def chosen(params, rows, *, plain=False, cfg=CFG, mesh=None, batch=16, width=0):
    """The log-probabilities of two options after each branch; `plain` uses no stems."""
    model = Local(LoadedModel(params, cfg, Byte(), mesh or meshes.single()), batch=batch)
    trunks = [prompts.trunk(ASPECT, prefix=p, reference="") for p in PREFIXES[: len(rows)]]
    ask = model.keep(trunks) if plain else model.choose  # kept trunks have plain branches
    return ask(rows, ("A", "B"), width) if plain else ask(trunks, rows, ("A", "B"), width)


ROWS = {
    "all pairs": [pairs(TEXTS)] * 3,
    "candidates that are out": [pairs(TEXTS), pairs(TEXTS[:4]), pairs(TEXTS[:2])],
    "texts that are alike": [pairs([*TEXTS[:4], TEXTS[3] + " "]), [], pairs(TEXTS)],
    "a text that is too long": [pairs([*TEXTS[:5], "long" * 160]), pairs(TEXTS), pairs(TEXTS)],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_verdicts_on_stems_are_those_of_plain_branches(params, rows, used):
    found, plain = chosen(params, rows), chosen(params, rows, plain=True)
    assert used and found.shape == plain.shape
    assert np.allclose(found, plain, atol=1e-5, equal_nan=True)
    assert np.isfinite(found).any() and np.isnan(found).any() == (rows != ROWS["all pairs"])


def test_windows_reach_across_stems(params, used):
    """A window of 12 positions ends within the stem; of 60 within the trunk."""
    rows = ROWS["candidates that are out"]
    whole = chosen(params, rows)
    for window in (12, 60):
        cfg = dataclasses.replace(CFG, window=window, full_every=2)
        found = chosen(params, rows, cfg=cfg)
        assert np.allclose(
            found, chosen(params, rows, cfg=cfg, plain=True), atol=1e-5, equal_nan=True
        )
        assert not np.allclose(found, whole, atol=1e-5, equal_nan=True)
    assert len(used) == 3


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
def test_stems_on_a_mesh_of_eight_equal_one_device(params, used):
    mesh = meshes.build(meshes.MeshConfig(2, 2, 2))
    places = jax.tree.map(lambda x: x.sharding, decoder.abstract(CFG, mesh))
    many = chosen(jax.device_put(params, places), ROWS["all pairs"], mesh=mesh)
    assert np.allclose(many, chosen(params, ROWS["all pairs"]), atol=1e-5)
    assert [trees for trees, _ in used] == [(4, 6), (4, 6)]  # 6 stems; rows fill the mesh


def test_shapes_are_those_of_all_rows_of_a_call(params, used):
    """All pairs of 6 are 6 stems of 5 leaves, if one row has them all."""
    chosen(params, [pairs(TEXTS)] * 3, width=30)
    chosen(params, [pairs(TEXTS[1:]), pairs(TEXTS), pairs(TEXTS[:3])], width=30)
    ((_, C), (_, M, K, _)), other = used
    assert (C, M, K) == (6, 5, 6) and other[1][1:3] == (5, 6)
    assert [stems._most(n) for n in (272, 20, 2, 1, 0)] == [16, 4, 1, 1, 1]


def test_equal_texts_do_not_widen_the_stems_of_all(params, used):
    """Two equal texts that follow each other would be one stem of ten leaves."""
    texts = [*TEXTS[:5], TEXTS[4]]
    twice = [
        prompts.branch(ASPECT, texts[i], texts[j]) for i in range(6) for j in range(6) if i != j
    ]
    rows = [pairs(TEXTS), pairs(TEXTS), twice]
    assert np.allclose(chosen(params, rows), chosen(params, rows, plain=True), atol=1e-5)
    assert used[0][1][1:3] == (5, 6)


def test_what_is_shared_is_counted_once(params):
    model = Local(LoadedModel(params, CFG, Byte(), meshes.single()))
    trunk = prompts.trunk(ASPECT, prefix=PREFIXES[0], reference="")
    rows = pairs(TEXTS)
    meter = costs.Metered(model, Byte())
    meter.choose([trunk], [rows], ("A", "B"))
    size = lambda text: len(tokens_of(Byte(), text))
    heads = {row[:2] for row in rows}
    by_hand = (
        1 + size(trunk) + sum(map(size, heads)) + sum(size(row) - size(row[:2]) for row in rows)
    )
    assert len(heads) == 6 and model.stats()["judge/prompt_tokens"] == (by_hand, 1)
    assert meter.read == by_hand - 1  # BOS


def test_branches_without_a_common_beginning_stay_plain(params, used):
    """Single texts, two candidates, texts of one segment: stems would have more positions."""
    single = [prompts.branch(prompts.load("safety"), text) for text in TEXTS]
    for row in (single, pairs(TEXTS[:2]), ["\na", "\nb", "\nc"]):
        model = Local(LoadedModel(params, CFG, Byte(), meshes.single()))
        assert np.isfinite(model.choose(["x"], [row], ("A", "B"))).all()
    assert not used


@pytest.mark.parametrize("place", [(0, 1), (2, 3, 4)], ids=["stem", "leaf"])
def test_an_empty_stem_or_leaf_divides_nothing(place):
    rows = pairs(TEXTS)
    empty = tuple("" if i in place else x for i, x in enumerate(rows[0]))
    assert stems.divided([rows], Byte(), 0)
    assert stems.divided([[empty, *rows]], Byte(), 0) is None


def test_stems_and_leaves_have_the_tokens_of_their_branches():
    """The leaves of one text are padded once and put at all their places."""
    rows = [pairs(TEXTS), pairs(TEXTS[:4])]
    size = lambda text: len(tokens_of(Byte(), text))
    room = max(map(size, rows[0])) - 1
    long = sum(size(text) > room for text in rows[0])
    found = stems.divided(rows, Byte(), 0, [room, 10_000])
    assert found and long and found.places[0].count(None) == long
    assert None not in found.places[1]
    leaf_BMKW, last_BMK = found.padded([1, 0], 3, pad=Byte().pad)
    for row, b in enumerate([1, 0]):
        for text, place in zip(rows[b], found.places[b], strict=True):
            if place is None:
                assert size(text) > room
                continue
            k, m = place
            leaf = leaf_BMKW[row, m, k, : last_BMK[row, m, k] + 1].tolist()
            assert found.stems[b][k] + leaf == tokens_of(Byte(), text)
    assert (leaf_BMKW[2] == Byte().pad).all() and not last_BMK[2].any()
    used = sum(place is not None for row in found.places for place in row)
    assert (leaf_BMKW[..., 0] != Byte().pad).sum() == used, "no leaf beside those asked"


def test_foreseen_sizes_are_those_of_the_texts():
    texts = pairs([f"{i} and more" for i in range(6)])
    found = stems.divided([texts], Byte(), 0)
    assert found and found.sizes == stems.foreseen(texts, lambda text: len(tokens_of(Byte(), text)))
    assert stems.foreseen(["a", "b"], len) is None and stems.foreseen([], len) is None
