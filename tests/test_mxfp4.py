"""Tests MXFP4: by hand, by slices, and in a checkpoint."""

import json
import shutil

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sip import mesh as meshes
from sip.hf import configs, mxfp4, reading, writing
from sip.mesh import MeshConfig
from sip.structs import UserError

RAW = families.config("gpt_oss") | {  # 32 numbers to a scale: of D and F
    "hidden_size": 64, "intermediate_size": 96, "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
}  # fmt: skip


def test_numbers_by_hand():
    # Low half first: 0x21 is 0.5, 1; 0xF7 is 6, -6; 0x89 is -0.5, -0. Scales: 2**0, 2**-2, 2**3.
    blocks = np.zeros((3, 16), np.uint8)
    blocks[:, 0], blocks[:, 1], blocks[:, 15] = 0x21, 0xF7, 0x89
    out = mxfp4.dequantise(blocks[None], np.uint8([[127, 125, 130]]))
    assert out.shape == (1, 96) and out.dtype == np.float32
    want = np.array([0.5, 1, 6, -6, *[0] * 26, -0.5, 0])
    np.testing.assert_array_equal(out[0], np.concatenate([want, want / 4, want * 8]))


def packed(E, I, O, seed):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (E, O, I // 32, 16), dtype=np.uint8)
    return blocks, rng.integers(120, 126, (E, O, I // 32), dtype=np.uint8)


class Sliced:
    """An array with the interface of a safetensors slice."""

    def __init__(self, x):
        self.x = x

    def __getitem__(self, index):
        return self.x[index]


def test_a_slice_is_that_of_the_whole():
    blocks, scales = packed(3, 128, 6, 0)
    tensor = mxfp4.Packed(Sliced(blocks), Sliced(scales), "there")
    whole = tensor[slice(0, 3), slice(0, 128), slice(0, 6)]
    np.testing.assert_array_equal(whole, mxfp4.dequantise(blocks, scales).transpose(0, 2, 1))
    for index in ((1, 3, 32, 64, 0, 6), (0, 2, 33, 35, 2, 3), (0, 1, 31, 97, 5, 6)):
        cut = tuple(slice(*pair) for pair in zip(index[::2], index[1::2], strict=True))
        np.testing.assert_array_equal(tensor[cut], whole[cut])


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """gpt-oss as published: experts in MXFP4, all other tensors in bfloat16."""
    path = families.write(RAW, tmp_path_factory.mktemp("published"), "bfloat16")
    found = load_file(path / "model.safetensors")
    for i, name in enumerate(sorted(found)):
        if name.endswith(("gate_up_proj", "down_proj")):
            E, I, O = found.pop(name).shape
            found[f"{name}_blocks"], found[f"{name}_scales"] = packed(E, I, O, i)
    save_file(found, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.mark.slow
def test_a_packed_checkpoint_is_read_by_slices_and_exported_dense(published, tmp_path):
    params, cfg = reading.load(published, meshes.single())
    held = load_file(published / "model.safetensors")
    name = "model.layers.1.mlp.experts.gate_up_proj"
    dense = mxfp4.dequantise(held[f"{name}_blocks"], held[f"{name}_scales"])  # [E, 2F, D]
    block = params["blocks"]["block"]
    for ours, first in (("w_gate", 0), ("w_up", 1)):
        np.testing.assert_array_equal(block[ours][1], dense[:, first::2].transpose(0, 2, 1))
    spread, _ = reading.load(published, meshes.build(MeshConfig(2, 2, 2)), jnp.bfloat16)
    jax.tree.map(np.testing.assert_array_equal, spread, params)  # all of it is exact in bfloat16
    ids = writing.as_json({})
    for dtype in ("bfloat16", "float32"):
        writing.save(params, cfg, tmp_path / dtype, {writing.GENERATION: ids}, dtype=dtype)
        again, same = reading.load(tmp_path / dtype, meshes.single())
        jax.tree.map(np.testing.assert_array_equal, again, params)
        assert same.window == cfg.window and same.experts == 4
    assert "quantization_config" not in json.loads((tmp_path / dtype / "config.json").read_text())
    assert configs.parse(RAW) == cfg


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda t, n: t.pop(f"{n}_scales"), ["_scales", "missing"]),
        (lambda t, n: t.update({f"{n}_scales": t[f"{n}_scales"][:, :, :1]}), ["_blocks", "fit"]),
        (lambda t, n: t.update({f"{n}_blocks": t[f"{n}_blocks"].view(np.int8)}), ["I8/U8"]),
        (lambda t, n: t.update({"model.layers.0.b_blocks": t[f"{n}_blocks"]}), ["b_blocks"]),
    ],
)
def test_what_is_damaged_is_named(damage, named, published, tmp_path):
    copy = shutil.copytree(published, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    damage(tensors, "model.layers.0.mlp.experts.down_proj")
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, copy / "model.safetensors")
    with pytest.raises(UserError) as caught:
        reading.load(copy, meshes.single())
    assert all(name in str(caught.value) for name in named), caught.value


@pytest.mark.slow
def test_numbers_are_those_of_transformers():
    torch = pytest.importorskip("torch", reason="needs torch")
    library = pytest.importorskip("transformers.integrations.mxfp4", reason="needs transformers")
    blocks, scales = packed(2, 64, 6, 1)
    theirs = library.convert_moe_packed_tensors(
        torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32
    )
    ours = mxfp4.dequantise(blocks, scales).transpose(0, 2, 1)
    np.testing.assert_array_equal(theirs.numpy(), ours)
