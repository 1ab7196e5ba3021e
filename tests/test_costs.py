"""Tests the costs of programs (FLOPs, bytes, collectives, seconds) against numbers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding, PartitionSpec

from sip.costs import chips, compiling, flops, hlo, roofline, traffic
from sip.models import decoder
from sip.structs import UserError

CHIP = chips.Chip("toy", flops=100.0, hbm=1000.0, hbm_bandwidth=10.0, ici=4.0, torus=2)


def counted(fn, *shapes, loops=1):
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return dict(flops.count(jax.jit(fn).trace(*args).jaxpr, loops))


def test_a_product_counts_two_operations_for_each_multiplication():
    assert counted(jnp.matmul, (3, 4), (4, 5)) == {"read": 2 * 3 * 4 * 5}
    batched = lambda a, b: jnp.einsum("BTGH,BSGH->BGTS", a, b)
    assert counted(batched, (2, 5, 3, 4), (2, 7, 3, 4)) == {"read": 2 * 2 * 3 * 5 * 7 * 4}


def test_a_scans_body_counts_as_often_as_it_runs_and_a_loops_as_it_is_said_to():
    step = lambda x, w: (x @ w, None)
    scanned = lambda x, w: jax.lax.scan(step, x, jnp.stack([w] * 6))[0]
    assert counted(scanned, (3, 4), (4, 4)) == {"read": 6 * 2 * 3 * 4 * 4}

    def written(x, w):
        x = x @ w
        return jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: scanned(x, w), x)

    one = 2 * 3 * 4 * 4
    assert counted(written, (3, 4), (4, 4), loops=5) == {"read": one, "decode": 5 * 6 * one}


def test_the_dearest_branch_counts_and_what_no_output_needs_does_not():
    def program(x, w):
        x @ w @ w @ w
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w @ w)

    assert counted(program, (3, 4), (4, 4)) == {"read": 2 * 2 * 3 * 4 * 4}


def test_a_rematerialised_product_counts_again():
    def loss(remat):
        layer = lambda x, w: jnp.sin(jnp.sin(x @ w) @ w)
        run = jax.checkpoint(layer) if remat else layer
        return jax.value_and_grad(lambda x, w: run(x, w).sum(), 1)

    one = 2 * 3 * 4 * 4
    # Forward 2, backward 3 (the first product's input needs no gradient); again: both.
    assert counted(loss(False), (3, 4), (4, 4)) == {"read": 5 * one}
    assert counted(loss(True), (3, 4), (4, 4)) == {"read": 7 * one}


def test_a_decoders_operations_are_those_of_its_matrices_and_its_attention():
    cfg, tree = tiny.CFG, tiny.trunk_only(np.zeros((2, 6), np.int32))
    params = jax.eval_shape(lambda: decoder.init(cfg, jax.random.key(0)))
    traced = jax.jit(lambda p, t: decoder.apply(p, cfg, t).trunk_BTD).trace(params, tree)
    D, G, Q, H, F = cfg.width, cfg.kv_heads, cfg.queries_per_kv, cfg.head_dim, cfg.hidden
    matrices = D * G * Q * H * 2 + D * G * H * 2 + 3 * D * F
    attention = 2 * 6 * G * Q * H  # scores and their weighted values, of 6 keys
    assert flops.count(traced.jaxpr)["read"] == 2 * 2 * 6 * cfg.layers * (matrices + attention)


TEXT = """HloModule toy

%sliced (param_0: f32[24,8], param_1: s32[]) -> f32[1,8] {
  %param_0 = f32[24,8]{1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:T(128)S(6)} parameter(1)
  %zero = s32[] constant(0)
  ROOT %ds = f32[1,8]{1,0} dynamic-slice(%param_0, %param_1, %zero), dynamic_slice_sizes={1,8}
}

%body (arg: (s32[], f32[24,8])) -> (s32[], f32[24,8]) {
  %arg = (s32[], f32[24,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %w = f32[24,8]{1,0} get-tuple-element(%arg), index=1
  %one = f32[1,8]{1,0} fusion(%w, %i), kind=kLoop, calls=%sliced
  %all = f32[8,8]{1,0} all-gather(%one), channel_id=1, replica_groups=[4,8]<=[32], dimensions={0}
  ROOT %next = (s32[], f32[24,8]{1,0}) tuple(%i, %w)
}

%condition (arg.1: (s32[], f32[24,8])) -> pred[] {
  %arg.1 = (s32[], f32[24,8]{1,0}) parameter(0)
  %limit = s32[]{:T(128)} constant(24)
  %j = s32[] get-tuple-element(%arg.1), index=0
  ROOT %lt = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (x: bf16[4,8], w.1: f32[24,8]) -> bf16[4,8] {
  %x = bf16[4,8]{1,0} parameter(0)
  %w.1 = f32[24,8]{1,0} parameter(1)
  %start = s32[] constant(0)
  %state = (s32[], f32[24,8]{1,0}) tuple(%start, %w.1)
  %loop = (s32[], f32[24,8]{1,0}) while(%state), condition=%condition, body=%body, WHERE
  %sum = (bf16[4,8]{1,0}, bf16[4,8]{1,0}) all-reduce-start(%x, %x), replica_groups={{0,1},{2,3}}
  %done = (bf16[4,8]{1,0}, bf16[4,8]{1,0}) all-reduce-done(%sum)
  %y = bf16[4,8]{1,0} get-tuple-element(%done), index=0
  ROOT %z = bf16[4,8]{1,0:S(1)} copy(%y)
}
"""


def test_loops_slices_and_collectives_of_a_text_are_counted_by_hand():
    found = traffic.count(TEXT.replace("WHERE", 'metadata={op_name="jit(f)/decode/while"}'), 32)
    gathered = traffic.Collective("decode", "all-gather", 8, 256.0, 24)
    summed = traffic.Collective("read", "all-reduce", 2, 128.0, 1)
    assert found.collectives == [gathered, summed]
    # Slice in and out and its index, then the gather; the sum of two, the copy to on-chip memory.
    assert found.bytes == {"decode": 24 * (64 + 4 + 32 + 256), "read": 2 * 128 + 64}
    assert set(traffic.count(TEXT, 32).bytes) == {"read"}, "no loop says that it decodes"


def test_a_slice_in_a_fusion_in_a_fusion_is_no_more_than_the_slice():
    outer = """%outer (param_0.1: f32[24,8], param_1.1: s32[]) -> f32[1,8] {
  %param_0.1 = f32[24,8]{1,0} parameter(0)
  %param_1.1 = s32[] parameter(1)
  ROOT %inner = f32[1,8]{1,0} fusion(%param_0.1, %param_1.1), kind=kLoop, calls=%sliced
}

%body (arg"""
    nested = TEXT.replace("calls=%sliced", "calls=%outer").replace("%body (arg", outer, 1)
    assert "calls=%outer" in nested and traffic.count(nested, 32) == traffic.count(TEXT, 32)


def test_a_loop_of_unknown_length_runs_as_often_as_it_is_said_to():
    module = hlo.parse(TEXT.replace("direction=LT", "direction=GT"))
    loop = module.computations["main"].instructions["loop"]
    assert hlo.trips(module, loop, 7) == 7
    assert hlo.trips(hlo.parse(TEXT), loop, 7) == 24
    said = TEXT.replace("WHERE", 'backend_config={"known_trip_count":{"n":"9"}}')
    loop = hlo.parse(said).computations["main"].instructions["loop"]
    assert hlo.trips(module, loop, 7) == 9


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("replica_groups={{0,1,2},{3,4,5}}, x", 3),
        ("replica_groups=[16,4]<=[8,8]T(1,0), x", 4),
        ("replica_groups=mesh['axis_0'=64] {'axis_0'}, x", 64),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=8,'axis_2'=4] {'axis_0','axis_2'}, x", 8),
        ("replica_groups=mesh['axis_0'=16] {'axis_0':(1)4}, x", 4),
        ("replica_groups={}, x", 64),
    ],
)
def test_groups_are_read_in_each_way_of_writing_them(text, size):
    assert traffic.group_size(text, 64) == size


def test_sizes_of_types():
    assert hlo.size("(bf16[2,3]{1,0:T(8,128)(2,1)}, pred[5]{0}, u4[6]{0}, f32[])") == 12 + 5 + 3 + 4
    assert hlo.size("f8e4m3fn[7]{0}") == 7 and hlo.size("token[]") == 0
    assert hlo.size("f32[9]{0:T(128)S(1)}") == 0 != hlo.size("f32[9]{0:S(1)}", everywhere=True)


def test_a_compiled_scan_over_eight_devices_has_the_bytes_and_collectives_of_its_layers():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    cut = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))

    def program(x, w_L):
        def layer(x, w):
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), cut("d")), None

        return jax.lax.scan(layer, x, w_L)[0]

    shape = lambda s, place: jax.ShapeDtypeStruct(s, jnp.float32, sharding=place)
    args = shape((64, 256), cut("d")), shape((5, 256, 256), cut(None, "d"))
    found = compiling.measure(jax.jit(program), args, mesh, 1)
    assert found.flops == {"read": 5 * 2 * 64 * 256 * 256}
    gathers = [c for c in found.traffic.collectives if c.kind == "all-gather"]
    assert [(c.devices, c.bytes, c.times) for c in gathers] == [(8, 256 * 256 * 4, 5)]
    assert found.argument_bytes == 4 * (64 * 256 + 5 * 256 * 256) / 8
    whole = 5 * 256 * 256 * 4  # each layer's matrix is written once gathered, then read
    assert 2 * whole < found.traffic.bytes["read"] < 8 * whole


def test_a_collective_takes_what_comes_in_over_the_links_it_has():
    gather = traffic.Collective("read", "all-gather", 16, 160.0, 3)
    assert gather.seconds(CHIP, 16) == pytest.approx(3 * 160 * 15 / 16 / 4)
    summed = traffic.Collective("read", "all-reduce", 4, 160.0, 1)
    assert summed.seconds(CHIP, 16) == pytest.approx(2 * 160 * 3 / 4 / 2), "half of the links"
    passed = traffic.Collective("read", "collective-permute", 2, 160.0, 1)
    assert passed.seconds(CHIP, 16) == pytest.approx(160 / 2)
    assert traffic.Collective("read", "all-gather", 1, 160.0, 1).seconds(CHIP, 16) == 0


def test_a_phase_takes_as_long_as_its_slowest_resource():
    moved = traffic.Traffic()
    moved.bytes.update(read=30, decode=500)
    moved.collectives.append(traffic.Collective("read", "all-gather", 4, 16.0, 1))
    found = roofline.bounds({"read": 1600, "decode": 80}, moved, CHIP, 4)
    assert found["read"] == roofline.Bound(4.0, 3.0, 3.0) and found["read"].by == "compute"
    assert found["decode"] == roofline.Bound(0.2, 50.0, 0.0) and found["decode"].by == "memory"
    assert [b.seconds for b in found.values()] == [4.0, 50.0]


def test_memory_that_is_lacking_is_read_from_the_compilers_error():
    class Exhausted(Exception):
        pass

    text = "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (65.50G) exceeds"
    assert compiling._needed(Exhausted(f"{text} available HBM (15.75G).")) == 65.5 * 2**30
    with pytest.raises(Exhausted, match="INTERNAL"):
        compiling._needed(Exhausted("INTERNAL: (65.50G) exceeds"))


@pytest.mark.parametrize("topology", ["v5e", "v9:8x8", "v5e:8xb", "v5e:", ""])
def test_a_topology_that_is_none_is_named(topology):
    assert chips.chip_of("v5p:4x4x4").hbm_bandwidth == 2765e9
    with pytest.raises(UserError, match=f"--topology={topology}: must be CHIP:SHAPE"):
        chips.chip_of(topology)
