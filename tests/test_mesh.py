import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from sip import mesh as meshes
from sip.mesh import ACT_RULES, PARAM_RULES, MeshConfig
from sip.models import decoder
from sip.structs import UserError

BATCH = ("replica", "fsdp")


@functools.cache
def eight():
    return meshes.build(MeshConfig(2, 2, 2))


@pytest.mark.parametrize(
    ("letters", "rules", "want"),
    [
        ("BTD", ACT_RULES, P(BATCH, None, None)),
        ("BNGQH", ACT_RULES, P(BATCH, None, ("tensor",), None, None)),
        ("BNF", ACT_RULES, P(BATCH, None, ("tensor",))),
        ("T", ACT_RULES, P(None)),
        ("", ACT_RULES, P()),
        ("VD", PARAM_RULES, P(("tensor",), ("fsdp",))),
        ("DV", PARAM_RULES, P(("fsdp",), ("tensor",))),
        ("LDGQH", PARAM_RULES, P(None, ("fsdp",), ("tensor",), None, None)),
        # fsdp goes to the experts, who claim it first; the width, left without, stays whole.
        ("EDF", PARAM_RULES, P(("fsdp",), None, ("tensor",))),
    ],
)
def test_letters_name_the_partition(letters, rules, want):
    assert meshes.spec(letters, rules) == want


def test_an_axis_goes_to_the_rule_that_comes_first_whatever_the_order_of_letters():
    rules = {"X": ("tensor",), "Y": ("fsdp", "tensor"), "Z": ("fsdp", "replica")}
    assert meshes.spec("ZYX", rules) == P(("replica",), ("fsdp",), ("tensor",))
    assert meshes.spec("ZY", rules) == P(("replica",), ("fsdp", "tensor"))


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        ((1, -1, 1), (1, 8, 1)),
        ((2, 2, 2), (2, 2, 2)),
        ((-1, 2, 2), (2, 2, 2)),
        ((8, 1, -1), (8, 1, 1)),
    ],
)
def test_a_mesh_takes_the_devices_that_are_left(config, shape):
    mesh = meshes.build(MeshConfig(*config))
    assert mesh.axis_names == ("replica", "fsdp", "tensor") and mesh.devices.shape == shape
    assert [d.id for d in mesh.devices.ravel()] == [d.id for d in jax.devices()]


@pytest.mark.parametrize(
    "config", [(2, 2, 3), (3, -1, 1), (1, 1, 1), (16, 1, 1), (16, -1, 1), (-1, -1, 1), (0, -1, 1),
               (1, -2, 1)],
)  # fmt: skip
def test_a_mesh_that_does_not_fit_is_refused(config):
    with pytest.raises(UserError, match="^mesh: "):
        meshes.build(MeshConfig(*config))


def test_only_one_axis_takes_what_is_left_even_of_one_device():
    with pytest.raises(UserError, match="at most one -1"):
        meshes.build(MeshConfig(-1, -1, 1), jax.devices()[:1])


def test_the_single_mesh_is_one_device():
    assert dict(meshes.single().shape) == {"replica": 1, "fsdp": 1, "tensor": 1}


def test_constrain_without_a_mesh_or_on_one_device_is_the_array_itself():
    x = jnp.ones((4, 3))
    assert meshes.constrain(x, "BD") is x
    with jax.set_mesh(meshes.single()):
        assert meshes.constrain(x, "BD") is x


def test_constrain_shards_what_divides_and_leaves_the_rest_whole():
    even, odd = jnp.arange(24.0).reshape(4, 6), jnp.arange(18.0).reshape(3, 6)
    both = lambda *xs: [meshes.constrain(x, "BF") for x in xs]
    with jax.set_mesh(eight()):
        asked = [e.params["sharding"].spec for e in jax.make_jaxpr(both)(even, odd).eqns]
        got = jax.jit(both)(even, odd)
    assert asked == [P(BATCH, ("tensor",)), P(None, ("tensor",))]
    assert [x.sharding.shard_shape(x.shape) for x in got] == [(1, 3), (3, 3)]
    jax.tree.map(np.testing.assert_array_equal, got, [even, odd])


def test_constrain_wants_a_letter_for_every_axis():
    with jax.set_mesh(eight()), pytest.raises(ValueError):
        meshes.constrain(jnp.ones((4, 3)), "BTD")


def test_ways_by_hand():
    assert [meshes.ways(eight(), p) for p in (None, (), "fsdp", BATCH, meshes.AXES)] == [
        1,
        1,
        2,
        4,
        8,
    ]


def test_a_parameter_that_does_not_divide_is_named():
    place = meshes.param_sharding(eight(), "DF", (16, 24), "w_up")
    assert place.shard_shape((16, 24)) == (8, 12)
    with pytest.raises(UserError, match=r"^mesh: w_up has F=25, .*tensor"):
        meshes.param_sharding(eight(), "DF", (16, 25), "w_up")
    with pytest.raises(UserError, match=r"embed has V=15"):
        decoder.abstract(tiny.model(vocab_size=15), eight())


def test_parameters_are_described_without_being_made():
    abstract = decoder.abstract(tiny.CFG, eight())
    assert jax.tree.map(jnp.shape, abstract) == jax.tree.map(jnp.shape, tiny.params())
    block = abstract["blocks"]["block"]
    assert block["wo"].sharding.shard_shape(block["wo"].shape) == (2, 1, 2, 4, 8)
    assert abstract["embed"].sharding.spec == P(("tensor",), ("fsdp",))
    assert block["mlp_norm"].sharding.shard_shape((2, 16)) == (2, 8)


def test_a_batch_goes_to_the_mesh_by_its_rows():
    batch = {"even": np.arange(8.0).reshape(4, 2), "odd": np.arange(3), "one": np.float32(5)}
    placed = meshes.put_batch(eight(), batch)
    shard = {k: x.sharding.shard_shape(x.shape) for k, x in placed.items()}
    assert shard == {"even": (1, 2), "odd": (3,), "one": ()}
    jax.tree.map(np.testing.assert_array_equal, placed, batch)
