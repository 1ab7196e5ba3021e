"""Tests checkpoints: saving, restoring, moving to another mesh, and rejecting other directories."""

import dataclasses
import functools
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding, PartitionSpec

from sip import loading
from sip import mesh as meshes
from sip.models import decoder
from sip.structs import UserError
from sip.training import checkpoints, checksums, optim, step

OPTIM = optim.OptimConfig(lr=0.1, steps=5)
TX = optim.build(OPTIM)
ONE, EIGHT = meshes.single(), functools.partial(meshes.build, meshes.MeshConfig(2, 2, 2))
RECORD = {"model": {"width": 16}, "position": 7, "names": ["a", "b"]}


def state(at=3, mesh=ONE, cfg=tiny.CFG, tx=TX):
    """Returns a state in which all arrays differ."""
    leaves, tree = jax.tree.flatten(step.abstract_state(cfg, tx, mesh, reference=True))
    rng = np.random.default_rng(at)
    draw = lambda x: rng.integers(1, 9, x.shape) if x.dtype == jnp.int32 else rng.random(x.shape)
    arrays = [jax.device_put(draw(x).astype(x.dtype), x.sharding) for x in leaves]
    return jax.tree.unflatten(tree, arrays).replace(
        step=jax.device_put(np.int32(at), leaves[0].sharding)
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with one checkpoint; tests that damage it copy it first."""
    directory = tmp_path_factory.mktemp("saved")
    with checkpoints.manager(str(directory)) as manager:
        checkpoints.save(manager, state(), RECORD)
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def restore(directory, mesh=ONE, cfg=tiny.CFG, *, reference=True, at=None, tx=TX):
    with checkpoints.manager(str(directory)) as manager:
        abstract = step.abstract_state(cfg, tx, mesh, reference=reference)
        return checkpoints.restore(manager, abstract, at)


def identical(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), jax.device_get(want))
    assert jax.tree.map(lambda x: x.dtype, got) == jax.tree.map(lambda x: x.dtype, want)


def test_a_state_comes_back_bit_for_bit(saved):
    got, record = restore(saved)
    identical(got, state())
    assert record == RECORD == checkpoints.record(str(saved))
    assert int(got.step) == 3 and checkpoints.exists(str(saved))


def test_a_state_moves_to_another_mesh_and_back(saved, tmp_path):
    mesh = EIGHT()
    got, _ = restore(saved, mesh)
    identical(got, state())
    want = step.abstract_state(tiny.CFG, TX, mesh, reference=True)
    places = lambda tree: jax.tree.map(lambda x: x.sharding, tree)
    assert places(got) == places(want)
    assert len(got.params["embed"].sharding.device_set) == 8
    with checkpoints.manager(str(tmp_path)) as manager:
        checkpoints.save(manager, got, {})
    identical(restore(tmp_path)[0], state())


def test_parameters_come_alone(saved):
    for mesh in ONE, EIGHT():
        got = checkpoints.restore_params(str(saved), decoder.abstract(tiny.CFG, mesh))
        identical(got, state().params)


def test_a_save_is_of_its_moment_though_updates_take_the_buffers(tmp_path):
    update = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
    with checkpoints.manager(str(tmp_path)) as manager:
        now = state()
        checkpoints.save(manager, now, RECORD)
        for _ in range(3):
            now = update(now)
    identical(restore(tmp_path)[0], state())


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"mu_dtype": "bfloat16"}, marks=pytest.mark.slow),
        pytest.param({"name": "muon"}, marks=pytest.mark.slow),
        pytest.param({"name": "muon", "mu_dtype": "bfloat16"}, marks=pytest.mark.slow),
    ],
    ids=lambda changes: "-".join(changes.values()),
)
def test_any_optimiser_goes_on_bit_for_bit(changes, tmp_path):
    tx = optim.build(dataclasses.replace(OPTIM, **changes))
    rng = np.random.default_rng(0)
    draw = lambda x: np.asarray(rng.standard_normal(x.shape), np.float32)

    @jax.jit
    def update(state, grads):
        _, opt_state = tx.update(grads, state.opt_state, state.params)
        moved, opt_state = tx.update(grads, opt_state, state.params)
        params = jax.tree.map(jnp.add, state.params, moved)
        return state.replace(params=params, opt_state=opt_state)

    grads = jax.tree.map(draw, tiny.params())
    begun = update(step.state_of(tiny.params(), tiny.CFG, tx, ONE, reference=False), grads)
    with checkpoints.manager(str(tmp_path)) as manager:
        checkpoints.save(manager, begun, RECORD)
    got, _ = restore(tmp_path, reference=False, tx=tx)
    identical(got, begun)
    identical(update(got, grads), update(begun, grads))
    identical(restore(tmp_path, EIGHT(), reference=False, tx=tx)[0], begun)


def test_a_state_of_another_optimiser_is_refused(saved, capfd):
    muon = optim.build(dataclasses.replace(OPTIM, name="muon"))
    refused(lambda: restore(saved, tx=muon), saved, "opt_state")
    assert "Traceback" not in capfd.readouterr().err


def test_the_last_saves_are_kept(tmp_path):
    with checkpoints.manager(str(tmp_path), keep=2) as manager:
        for at in 1, 2, 3:
            checkpoints.save(manager, state(at), {"at": at})
        checkpoints.save(manager, state(3).replace(params=state(9).params), {"at": 9})
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["2", "3"]
    got, record = restore(tmp_path)
    identical(got, state(3))
    assert record == {"at": 3}, "a step that is saved stays as it was saved"
    assert restore(tmp_path, at=2)[1] == {"at": 2}


def test_a_save_that_was_cut_off_is_not_chosen(copy):
    for name in "5.orbax-checkpoint-tmp", "7.orbax-checkpoint-tmp-1700000000":
        shutil.copytree(copy / "checkpoints" / "3", copy / "checkpoints" / name)
        shutil.rmtree(copy / "checkpoints" / name / "record")
    identical(restore(copy)[0], state())
    assert checkpoints.record(str(copy)) == RECORD


def refused(call, *culprits):
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    for culprit in culprits:
        assert str(culprit) in message
    return message


@pytest.mark.parametrize(
    ("changes", "culprits"),
    [
        ({"vocab_size": 32}, ("embed is (16, 16)", "(32, 16)")),
        ({"layers": 3}, ("blocks/block/attention_norm is (2, 16)", "(3, 16)")),
        ({"tied": True}, ("unembed is (16, 16)", "absent")),
    ],
)
def test_another_model_is_refused_naming_the_parameter(saved, changes, culprits, capfd):
    cfg = tiny.model(**changes)
    refused(lambda: restore(saved, cfg=cfg), saved, *culprits)
    params = decoder.abstract(cfg, ONE)
    refused(lambda: checkpoints.restore_params(str(saved), params), saved, *culprits)
    assert "Traceback" not in capfd.readouterr().err


def test_a_state_without_a_reference_is_not_one_with(saved, tmp_path, capfd):
    said = "it has a reference, but the run's objective needs no reference"
    refused(lambda: restore(saved, reference=False), saved, said)
    with checkpoints.manager(str(tmp_path)) as manager:
        checkpoints.save(manager, state().replace(reference=None), RECORD)
    refused(lambda: restore(tmp_path), tmp_path, "has no reference", "needs a reference")
    assert restore(tmp_path, reference=False)[0].reference is None
    assert "Traceback" not in capfd.readouterr().err


def test_what_is_not_there_is_named(saved, tmp_path):
    abstract = decoder.abstract(tiny.CFG, ONE)
    none = str(tmp_path / "none")
    assert not checkpoints.exists(none)
    refused(lambda: checkpoints.restore_params(none, abstract), none)
    refused(lambda: checkpoints.record(none), none)
    refused(lambda: restore(tmp_path), tmp_path)
    refused(lambda: restore(saved, at=8), saved, 8)
    assert not os.path.exists(none), "looking makes nothing"


@pytest.mark.parametrize("item", ["params", "rest", "record"])
def test_a_checkpoint_that_lost_an_item_is_refused(copy, item):
    shutil.rmtree(copy / "checkpoints" / "3" / item)
    refused(lambda: restore(copy), item)


@pytest.mark.parametrize("file", ["record/metadata", "params/manifest.ocdbt", "params/_METADATA"])
def test_a_corrupt_checkpoint_is_refused(copy, file):
    (copy / "checkpoints" / "3" / file).write_bytes(b"{not it")
    refused(lambda: restore(copy), copy)


@pytest.fixture
def swapped(copy, tmp_path):
    """A run with checkpoints 3 and 5; the parameters of 5 are readable, but those of step 3."""
    with checkpoints.manager(str(copy)) as manager:
        checkpoints.save(manager, state(5), {"at": 5})
    folder = copy / "checkpoints"
    shutil.rmtree(folder / "5" / "params")
    shutil.copytree(folder / "3" / "params", folder / "5" / "params")
    return copy


def test_arrays_that_are_not_those_saved_are_refused_by_every_reader(swapped):
    said = ("checkpoints/5", "params/", "checksum", "to use checkpoint 3")
    params = decoder.abstract(tiny.CFG, ONE)
    half = decoder.abstract(dataclasses.replace(tiny.CFG, param_dtype="bfloat16"), ONE)
    refused(lambda: restore(swapped), *said)
    refused(lambda: checkpoints.restore_params(str(swapped), params), *said)
    refused(lambda: checkpoints.restore_params(str(swapped), half), *said)
    with checkpoints.reading(str(swapped), params) as read:
        refused(lambda: read({"embed": params["embed"]}), *said)


def test_a_run_continues_from_the_last_checkpoint_that_is_whole(swapped, capsys):
    abstract = step.abstract_state(tiny.CFG, TX, ONE, reference=True)
    with checkpoints.manager(str(swapped)) as manager:
        got, record = checkpoints.restore_last(manager, abstract)
        checkpoints.save(manager, state(5), {"at": 5})
    identical(got, state(3))
    assert record == RECORD
    assert "damaged-5, continuing from step 3" in capsys.readouterr().err
    identical(restore(swapped)[0], state(5))


def test_a_checkpoint_under_the_name_of_another_step_is_damaged(copy):
    shutil.copytree(copy / "checkpoints" / "3", copy / "checkpoints" / "4")
    with pytest.raises(checkpoints.Damaged, match="it holds step 3"):
        restore(copy)


def test_an_edited_record_is_noticed_and_one_without_checksums_is_read(copy):
    path = copy / "checkpoints" / "3" / "record" / "metadata"
    text = path.read_text()
    path.write_text(text.replace('"position": 7', '"position": 8'))
    assert path.read_text() != text
    refused(lambda: restore(copy), "record")
    old = json.loads(text)
    del old[checkpoints.SUMS], old[checkpoints.DIGEST]
    path.write_text(json.dumps(old))
    got, record = restore(copy)
    identical(got, state())
    assert record == RECORD


def test_a_store_that_does_not_answer_is_not_damage(saved, monkeypatch):
    def restore_fails(*args, **how):
        raise Exception("while reading an array") from ValueError("UNAVAILABLE: try again")

    with checkpoints.manager(str(saved)) as manager:
        monkeypatch.setattr(manager, "restore", restore_fails)
        with pytest.raises(UserError, match="UNAVAILABLE") as caught:
            checkpoints.restore_last(
                manager, step.abstract_state(tiny.CFG, TX, ONE, reference=True)
            )
    assert not isinstance(caught.value, checkpoints.Damaged)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool", "int32"])
def test_a_checksum_notices_any_element_and_no_mesh(dtype):
    x = np.random.default_rng(1).integers(0, 2, (4, 6)).astype(dtype)
    sharded = jax.device_put(x, NamedSharding(EIGHT(), PartitionSpec("fsdp", "tensor")))
    want = checksums.of({"x": x})
    assert checksums.of({"x": sharded}) == want
    changed = jnp.asarray(x).at[3, 5].set(np.logical_not(x[3, 5]).astype(dtype))
    assert checksums.differing({"x": changed}, want) == ["x"]
    assert checksums.of({"x": np.flip(x)}) != want


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool"])
def test_the_host_and_the_devices_sum_alike(dtype, monkeypatch):
    x = np.random.default_rng(1).integers(0, 2, (4, 6)).astype(dtype)
    sharded = jax.device_put(x, NamedSharding(EIGHT(), PartitionSpec("fsdp", None)))
    tree = {"whole": x, "sharded": sharded, "one": x[1, 2]}
    here = checksums.of(tree)
    monkeypatch.setattr(checksums, "SMALL", 0)
    assert checksums.of(tree) == here


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_parameters_that_are_not_finite_are_refused_by_name(tmp_path, bad):
    params = jax.tree.map(jnp.array, tiny.params())
    params["blocks"]["block"]["w_up"] = params["blocks"]["block"]["w_up"].at[1, 0, 0].set(bad)
    checkpoints.save_params(str(tmp_path), params, {"model": dataclasses.asdict(tiny.CFG)})
    with pytest.raises(UserError, match="parameter blocks/block/w_up has .* not finite"):
        loading.load_params(str(tmp_path), meshes.single())


@pytest.mark.parametrize("text", ['{"format": "x"}', '{"checksums": 3}', "null", "[]", '{"a"'])
def test_a_record_that_makes_no_sense_is_damage(text, copy):
    (copy / "checkpoints" / "3" / "record" / "metadata").write_text(text)
    with pytest.raises(checkpoints.Damaged, match="checkpoints/3 cannot be restored"):
        restore(copy)
