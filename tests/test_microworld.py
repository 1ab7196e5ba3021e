"""Tests the micro-world, its documents and the TFDS builder."""

import dataclasses
import hashlib
import os
import re

import numpy as np
import pytest

from sip.data.documents import DataConfig, is_built
from sip.data.microworld import lexicon, settings
from sip.data.microworld import world as worlds
from sip.data.microworld.oracle import MicroworldTruth
from sip.data.microworld.world import KINDS, Microworld, World, WorldConfig
from sip.structs import UserError

SMALL = WorldConfig(entities=6, train=60, validation=20, test=30)
HASH = "19aa4109bce0526c7413630ea6fb33017aef8ca1669deca07254e5cc3d25579e"
FROZEN = """World, oracle and the definition of quality are frozen: judges are tuned on them.
A change makes all earlier figures incomparable: it needs a decision, a new FORMAT and new hash."""


def texts(config, split):
    return [text for text, _, _ in World(config).documents(split)]


def cut(text):
    ends = [m.end() for m in lexicon.WORD.finditer(text)]
    return text[: ends[38]], text[ends[38] : ends[62]]


def test_world_oracle_and_quality_are_frozen():
    truth = MicroworldTruth(WorldConfig())
    documents = texts(dataclasses.replace(WorldConfig(), train=200, test=0, validation=0), "train")
    prefixes, suffixes = map(list, zip(*map(cut, documents), strict=True))
    world = [truth.world.names, truth.world.facts_EA.tolist(), truth.world.myths_EA.tolist()]
    scores = truth.score(prefixes, suffixes)
    rounded = [(name, value.round(6).tolist()) for name, value in sorted(scores.items())]
    frozen = repr((world, documents, rounded, truth.rewrite(prefixes, suffixes, 24)))
    assert hashlib.sha256(frozen.encode()).hexdigest() == HASH, FROZEN


def test_the_same_config_gives_the_same_documents_and_another_seed_others():
    assert texts(SMALL, "train") == texts(SMALL, "train")
    assert texts(SMALL, "train") != texts(dataclasses.replace(SMALL, seed=1), "train")


def test_splits_share_the_world_and_no_document():
    config = dataclasses.replace(WorldConfig(), train=3000)
    splits = [texts(config, split) for split in worlds.SPLITS]
    assert [len(split) for split in splits] == [2500, 1500, 3000]
    assert len(set().union(*splits)) == 7000
    assert len({w for split in splits for text in split for w in worlds.split(text)}) <= 330


def test_a_later_split_drops_the_documents_of_earlier_ones(monkeypatch):
    kinds = iter([0, 1, 0, 2, 3, 3, 4])
    monkeypatch.setattr(World, "_kind", lambda self, draw: next(kinds))
    monkeypatch.setattr(worlds._Author, "write", lambda author: author.kind)
    config = dataclasses.replace(SMALL, train=2, validation=0, test=1)
    kinds = iter([0, 0, 1, 1, 4])  # test writes 0; train tries 0, 1, 1, 4
    assert texts(config, "train") == ["elaborated", "bad"]


def test_every_document_has_its_title_and_length():
    for text, _, entity in World(dataclasses.replace(WorldConfig(), test=500)).documents("test"):
        words = worlds.split(text)
        assert 67 <= len(words) <= 80 and worlds.join(words) == text
        assert text.startswith(f"About {World(SMALL).names[entity]}. " if entity < 6 else "About ")


def test_corpus_proxies_leave_the_room_the_method_needs():
    config = dataclasses.replace(WorldConfig(), test=1500)
    truth = MicroworldTruth(config)
    documents = list(truth.world.documents("test"))
    prefixes, suffixes = map(list, zip(*(cut(text) for text, _, _ in documents), strict=True))
    found = truth.score(prefixes, suffixes)
    kinds = np.array([kind for _, kind, _ in documents])
    of = {name: kinds == k for k, name in enumerate(KINDS)}
    assert 0.60 <= found["factuality"].mean() <= 0.70 and 0.76 <= found["safety"].mean() <= 0.83
    assert found["safety"][of["unsafe"]].mean() < 0.2 and found["facts"].mean() > 1.2
    assert found["facts_right"][of["hearsay"]].sum() < 0.2 * found["facts"][of["hearsay"]].sum()
    for name in ("plain", "elaborated"):
        assert found["factuality"][of[name]].mean() > 0.95
        assert (found["grammatical"][of[name]] == 1).all() and (
            found["safety"][of[name]] == 1
        ).all()
    assert found["safety"][~of["unsafe"]].all()


def test_registers_show_in_the_prefix():
    for text, kind, _ in World(dataclasses.replace(WorldConfig(), test=300)).documents("test"):
        prefix = set(worlds.split(cut(text)[0]))
        insults = {w for words in lexicon.TOXIC.values() for w in words.split()}
        assert bool(prefix & insults) == (KINDS[kind] == "unsafe")
        assert ("that" in prefix and KINDS[kind] == "hearsay") or KINDS[kind] != "hearsay"


def test_values_and_names_are_distinct_words():
    world = World(WorldConfig(values_per_attribute=16))
    words = [*world.names, *(word for values in world.values for word in values)]
    assert len(set(words)) == len(words) == 48 + 6 * 16
    assert (world.facts_EA != world.myths_EA).all()


@pytest.mark.slow
def test_a_world_may_have_100_000_entities():
    truth = MicroworldTruth(WorldConfig(entities=100_000, train=50, validation=0, test=0))
    documents = texts(truth.world.config, "train")
    prefixes, suffixes = map(list, zip(*map(cut, documents), strict=True))
    assert len(set(truth.world.names)) == 100_000
    assert (truth.score(prefixes, truth.rewrite(prefixes, suffixes, 24))["safety"] == 1).all()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("register", [0.0, 1.0])
def test_any_mixture_can_be_written(name, register):
    fractions = {kind: float(kind == name) for kind in KINDS}
    config = dataclasses.replace(SMALL, train=40, register=register, **fractions)
    assert len(texts(config, "train")) == 40
    assert {kind for _, kind, _ in World(config).documents("train")} == {KINDS.index(name)}


@pytest.mark.parametrize(
    "field, value",
    [
        ("entities", 1), ("entities", 10**9), ("values_per_attribute", 1),
        ("values_per_attribute", 99), ("train", -1), ("plain", 0.9), ("wrong", 1.5),
        ("bad", float("nan")), ("register", -0.1),
    ],
)  # fmt: skip
def test_an_impossible_world_names_the_field(field, value):
    with pytest.raises(UserError, match=field):
        WorldConfig(**{field: value})


def test_more_documents_than_a_world_has_is_an_error():
    author = lambda *_: type("Author", (), {"write": lambda self: "always the same"})()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match=r"world\.test"):
        patch.setattr(worlds, "_Author", author)
        texts(SMALL, "test")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    builder = Microworld(data_dir=str(tmp_path_factory.mktemp("data")), world=SMALL)
    builder.download_and_prepare()
    return builder


def test_the_built_set_is_the_documents(built):
    for split in worlds.SPLITS:
        rows = list(built.as_data_source(split))
        expected = {(t, k, World(SMALL).names[e]) for t, k, e in World(SMALL).documents(split)}
        assert {
            (r["text"].decode(), int(r["kind"]), r["entity"].decode()) for r in rows
        } == expected
    assert len(built.as_data_source("train[:50%]")) == 30
    assert built.info.features["kind"].names == list(KINDS)


def test_array_record_files_without_tensorflow(built):
    assert any(re.search("array_record", path.name) for path in built.data_path.iterdir())


def test_another_world_or_format_never_reuses_the_set(built, monkeypatch):
    data_dir = built._data_dir_root
    same = Microworld(data_dir=data_dir, world=dataclasses.replace(SMALL))
    assert same.data_path == built.data_path and same.data_path.exists()
    cfg = DataConfig("microworld", split="train", world=dataclasses.asdict(SMALL))
    assert str(same.data_path) == os.path.join(data_dir, SMALL.folder())
    assert is_built(cfg, data_dir) and not is_built(cfg, f"{data_dir}/typo")
    for field in dataclasses.fields(SMALL):
        value = getattr(SMALL, field.name)
        fractions = {"plain": 0.3, "elaborated": 0.1} if field.name in KINDS else {}
        fractions |= {"hearsay": 0.28, "unsafe": 0.20, "bad": 0.12} if fractions else {}
        less = (value or 2) - 1 if isinstance(value, int) else value / 2
        change = fractions or {field.name: less}
        other = Microworld(data_dir=data_dir, world=dataclasses.replace(SMALL, **change))
        assert not other.data_path.exists(), field.name
        assert not is_built(
            dataclasses.replace(cfg, world=dataclasses.asdict(SMALL) | change), data_dir
        )
    monkeypatch.setattr(settings, "FORMAT", settings.FORMAT + 1)
    assert not Microworld(data_dir=data_dir, world=SMALL).data_path.exists()
