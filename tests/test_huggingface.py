"""Tests Hugging Face data sets of local directories."""

import json

import pytest

from sip.data import documents, huggingface
from sip.data.documents import DataConfig
from sip.structs import UserError

datasets = pytest.importorskip("datasets")
TEXTS = [f"note {i}" for i in range(40)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns a directory of save_to_disk: train of 30 notes, test of 10."""
    path = tmp_path_factory.mktemp("saved") / "notes"
    of = lambda texts: datasets.Dataset.from_dict({"id": range(len(texts)), "body": texts})
    own = {"train": of([*TEXTS[:29], None]), "test": of(TEXTS[30:])}
    datasets.DatasetDict(own).save_to_disk(str(path))
    return str(path)


def load(path, split="train", **changes):
    return documents.load(DataConfig("huggingface", path, split, field="body", **changes), "")


def test_splits_and_slices_of_a_saved_data_set(saved):
    found = load(saved)
    assert found.texts == TEXTS[:29] and found.read == 30
    assert found.left_out == {"with a field 'body' that is null": 1}
    assert load(saved, "train[10:-50%]").texts == TEXTS[10:15]
    assert load(saved, "test[:2]+train[:1]").texts == [*TEXTS[30:32], TEXTS[0]]
    assert huggingface.digest(saved, "body") != huggingface.digest(saved, "id")


def test_a_data_set_without_a_split_is_divided_by_hash_if_so_asked(saved):
    with pytest.raises(UserError, match="no split 'validation', only train, test; with data.parts"):
        load(saved, "validation")
    for part in ("train", "test"):
        found = load(saved, part, parts="hash").texts
        assert found == [text for text in TEXTS[:29] if documents.part(text) == part] and found


def test_a_directory_of_json_lines_is_a_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    made = tmp_path / "data"
    made.mkdir()
    (made / "a.jsonl").write_text("".join(json.dumps({"body": t}) + "\n" for t in TEXTS))
    assert load(str(made)).texts == TEXTS


def test_a_wrong_field_and_a_wrong_directory_are_named(saved, tmp_path):
    with pytest.raises(
        UserError, match="no field 'text'; set data.field .--field. to one of id, body"
    ):
        documents.load(DataConfig("huggingface", saved), "")
    (tmp_path / "a.jsonl").write_text("{}")
    for path, said in (("a.jsonl", "not a directory"), ("none", "not a directory"), ("", "")):
        with pytest.raises(UserError, match=f"cannot load the Hugging Face data set: {said}"):
            load(str(tmp_path / path))


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs datasets: pip install 'sip-jax\[data\]'"):
        load("some/where")
