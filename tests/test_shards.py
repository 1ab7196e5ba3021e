"""Tests which file a tensor of a checkpoint is read from."""

import json
import shutil

import families
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sip import mesh
from sip.hf import reading, shards
from sip.structs import UserError

NORM, FIRST, SECOND = "model.norm.weight", "one.safetensors", "two.safetensors"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The directory of a small checkpoint in one file."""
    path = tmp_path_factory.mktemp("checkpoint")
    families.write(families.config("llama2"), path)
    return path


@pytest.fixture
def single(written, tmp_path):
    """Returns (directory, tensors) of a copy of `written`."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return tmp_path, load_file(tmp_path / shards.SINGLE)


def split(path, tensors, more=(), **moved):
    """Writes two shards: `more` tensors are in the second too; the index is changed by `moved`."""
    (path / shards.SINGLE).unlink()
    names = sorted(tensors)
    parts = {FIRST: names[:4], SECOND: names[4:]}
    for file, some in parts.items():
        held = {name: tensors[name] for name in some}
        save_file(held | (dict(more) if file == SECOND else {}), path / file)
    index = {name: file for file, some in parts.items() for name in some} | moved
    index = {name: file for name, file in index.items() if file}
    (path / shards.INDEX).write_text(json.dumps({"weight_map": index}))
    return names


def value(path, name):
    with shards.opened(path) as source:
        return np.asarray(source.tensor(name)[:], np.float32)


def test_the_index_decides_about_a_tensor_in_two_shards(single):
    path, tensors = single
    name = min(tensors)
    split(path, tensors, {name: tensors[name] * 2})
    np.testing.assert_array_equal(value(path, name), tensors[name])
    index = json.loads((path / shards.INDEX).read_text())
    index["weight_map"][name] = SECOND
    (path / shards.INDEX).write_text(json.dumps(index))
    np.testing.assert_array_equal(value(path, name), tensors[name] * 2)
    del index["weight_map"][name]
    (path / shards.INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"tensor {name} is in {FIRST} and in {SECOND}"):
        value(path, name)


def test_a_single_file_counts_and_an_index_left_beside_it_does_not(single):
    path, tensors = single
    split(path, {name: x * 3 for name, x in tensors.items()})
    save_file(tensors, path / shards.SINGLE)
    np.testing.assert_array_equal(value(path, NORM), tensors[NORM])


@pytest.mark.parametrize("file", ["../one.safetensors", "/etc/passwd", 3, None])
def test_an_index_names_files_of_its_own_directory(file, single):
    path, tensors = single
    split(path, tensors)
    index = {"weight_map": {NORM: file}}
    (path / shards.INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"{shards.INDEX}: weight_map.{NORM}"):
        value(path, NORM)


def test_an_adapter_beside_the_weights_is_named(single):
    (single[0] / shards.ADAPTER).write_text("{}")
    with pytest.raises(UserError, match=f"{shards.ADAPTER}: an adapter"):
        value(single[0], NORM)


def test_more_layers_than_tensors_are_refused_before_their_names_are_made(single):
    path = single[0]
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**raw, "num_hidden_layers": 4000}))
    with pytest.raises(UserError, match="num_hidden_layers 4000, but the files beside it"):
        reading.load(path, mesh.single())


def test_a_stored_head_has_to_equal_the_embedding_that_it_is_tied_to(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MOST_ROWS", 5)
    families.write(families.config("llama32_odd"), tmp_path)
    file = tmp_path / shards.SINGLE
    tensors = load_file(file)
    tensors.pop(shards.HEAD, None)
    embed = tensors[shards.EMBED]
    unlike = embed.copy()
    unlike[-1, 0] += 1
    for head, good in ((embed.copy(), True), (unlike, False), (embed[:-1].copy(), False)):
        save_file({**tensors, shards.HEAD: head}, file)
        if good:
            reading.load(tmp_path, mesh.single())
            continue
        with pytest.raises(UserError, match=f"{shards.HEAD} differs from .*tie_word_embeddings"):
            reading.load(tmp_path, mesh.single())
