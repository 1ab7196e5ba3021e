"""Tests the language model inside a checkpoint of text and images: Gemma 3 from 4B on."""

import json

import families
import jax
import numpy as np
import published
import pytest
from safetensors.numpy import load_file, save_file
from workdirs import call

from sip import convert, loading
from sip import mesh as meshes
from sip.hf import configs, reading, shards, writing
from sip.structs import UserError

WHOLE = dict(
    architectures=["Gemma3ForConditionalGeneration"], model_type="gemma3", eos_token_id=[99, 1],
    boi_token_index=40, eoi_token_index=41, image_token_index=42, mm_tokens_per_image=4,
    vision_config=dict(model_type="siglip_vision_model", hidden_size=8, num_hidden_layers=1,
                       num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8,
                       vision_use_head=False),
)  # fmt: skip
IMAGES = ("vision_tower.vision_model.post_layernorm.weight",
          "multi_modal_projector.mm_input_projection_weight")  # fmt: skip


def text_config(**changes):
    raw = {**families.config("gemma3"), "vocab_size": 128, **changes}
    return {key: x for key, x in raw.items() if key != "architectures"}


def stored(name, prefix):
    """Returns the name of a tensor in a file of text and images."""
    inside = "language_model.model." if prefix == "" else "model.language_model."
    return name.replace("model.", inside, 1)


def write(path, prefix="", more=()):
    """Writes a checkpoint of text and images; returns the tensors of its language model."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({**WHOLE, "text_config": text_config()}))
    tensors = families.weights(text_config())
    found = {stored(name, prefix): x for name, x in tensors.items()}
    found |= {f"{prefix}{name}": np.ones(3, np.float32) for name in IMAGES} | dict(more)
    save_file(found, path / shards.SINGLE)
    return tensors


@pytest.mark.parametrize("prefix", ["", "model."])
def test_the_language_model_is_read_and_what_is_for_images_is_said(prefix, tmp_path, capsys):
    write(tmp_path, prefix)
    found, cfg = reading.load(tmp_path, meshes.single())
    want, same = reading.load(
        families.write(text_config(), tmp_path / "text"), meshes.single()
    )  # the file of a language model alone
    assert cfg == same and cfg.rope_scaling == "linear"
    jax.tree.map(np.testing.assert_array_equal, found, want)
    assert capsys.readouterr().err == f"{tmp_path}: 2 tensors for images are not read\n"


def test_a_tensor_of_no_part_or_of_two_names_is_named(tmp_path):
    wrong = {"language_model.model.layers.0.odd.weight": np.ones(3, np.float32)}
    write(tmp_path, "", wrong)
    with pytest.raises(UserError, match="tensor language_model.model.layers.0.odd.weight is not"):
        reading.load(tmp_path, meshes.single())
    write(tmp_path, "", {"model.norm.weight": np.ones(16, np.float32)})
    with pytest.raises(UserError, match=f"{tmp_path}: tensors .*model.norm.weight are the same"):
        reading.load(tmp_path, meshes.single())


def test_an_import_and_its_export_are_the_language_model(tmp_path):
    source, run, out = tmp_path / "hf", tmp_path / "run", tmp_path / "out"
    published.small(source)
    tensors = write(source)
    assert call(convert, "--to=orbax", f"--src={source}", f"--dst={run}") == 0
    tokenizer = loading.kept_tokenizer(str(run))
    assert tokenizer.stops == (99, 1)  # of the whole model; the vocabulary is that of its text part
    assert json.loads((run / "huggingface" / "config.json").read_text())["vocab_size"] == 128
    assert call(convert, "--to=hf", f"--src={run}", f"--dst={out}") == 0
    said = json.loads((out / "config.json").read_text())
    assert (said["model_type"], said["eos_token_id"]) == ("gemma3_text", [99, 1])
    assert configs.read(out) == configs.read(source)
    written = load_file(out / shards.SINGLE)
    assert written.keys() == tensors.keys()
    for name, x in tensors.items():
        np.testing.assert_array_equal(written[name], x)


# With torch and transformers.


@pytest.mark.slow
def test_logits_are_those_of_transformers_and_of_an_export(tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch.manual_seed(0)
    # As published: most fields are not stated.
    part = dict(model_type="gemma3_text", hidden_size=32, intermediate_size=24, vocab_size=64,
                num_hidden_layers=7, num_attention_heads=4, num_key_value_heads=2,
                rope_scaling=dict(factor=8.0, rope_type="linear"), sliding_window=6)  # fmt: skip
    model = transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(**{**WHOLE, "text_config": part, "eos_token_id": 1})
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "config.json").write_text(json.dumps({**WHOLE, "text_config": part}))
    params, cfg = reading.load(tmp_path / "whole", meshes.single())
    assert (cfg.head_dim, cfg.rope_local_theta, cfg.tied) == (256, 1e4, True)
    first, second = families.texts(cfg.vocab_size, list(range(20)))
    tree = families.tree(first, second)

    def logits(theirs, tokens_T):
        with torch.no_grad():
            return theirs(torch.tensor(tokens_T[None])).logits[0].numpy()

    want = logits(model, first), logits(model, second)
    families.compared(families.logits(params, cfg, tree), tree, *want)
    ids = writing.as_json({"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0})
    writing.save(params, cfg, tmp_path / "out", {writing.GENERATION: ids})
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype="float32", output_loading_info=True
    )
    assert type(again).__name__ == "Gemma3ForCausalLM" and not info["missing_keys"]
    np.testing.assert_allclose(logits(again, first), want[0], atol=1e-5)
