"""Tests config.json: fields that are read, fields that are rejected by name, and the way back."""

import copy
import dataclasses
import json

import families
import published_configs
import pytest
import tiny

from sip import mesh
from sip.hf import configs
from sip.models import decoder
from sip.models.config import ModelConfig
from sip.models.presets import PRESETS, preset
from sip.structs import UserError


def parsed(name, **changes):
    return configs.parse({**families.config(name), **changes})


def test_llama_32_by_hand():
    found = parsed("llama32_odd", torch_dtype="bfloat16")
    assert found == ModelConfig(
        vocab_size=37, width=16, layers=2, kv_heads=1, queries_per_kv=4, head_dim=6, hidden=24,
        max_len=256, norm_eps=1e-5, tied=True, dtype="bfloat16", rope_scaling="llama3",
        rope_factor=8.0, rope_original_len=32, rope_low=1.0, rope_high=4.0,
    )  # fmt: skip


def test_what_is_not_said_is_what_llama_takes_it_for():
    raw = families.config("llama2")
    for key in ("head_dim", "num_key_value_heads", "rope_theta", "tie_word_embeddings"):
        raw.pop(key)
    found = configs.parse(raw)
    assert (found.head_dim, found.kv_heads, found.queries_per_kv) == (4, 4, 1)
    assert (found.rope_theta, found.tied, found.window) == (10000.0, False, 0)


def test_yarn_by_hand():
    found = parsed("qwen25_odd")
    assert (found.rope_factor, found.rope_fast, found.rope_slow) == (4.0, 32.0, 1.0)
    assert found.rope_gain == pytest.approx(1.13862944)  # 0.1 ln 4 + 1
    said = {**families.YARN, "attention_factor": 1.5, "beta_fast": 16, "truncate": False}
    found = parsed("qwen25_odd", rope_scaling=said)
    assert (found.rope_gain, found.rope_fast, found.rope_truncate) == (1.5, 16.0, False)


@pytest.mark.parametrize(
    ("name", "changes", "window"),
    [
        ("mistral", {}, 7),
        ("mistral_odd", {}, 0),
        ("qwen25", {"sliding_window": 9}, 0),
        ("qwen3_odd", {}, 5),
        ("qwen3_odd", {"max_window_layers": 2}, 0),
        ("qwen3_odd", {"max_window_layers": 2, "layer_types": ["sliding_attention"] * 2}, 5),
        ("qwen3_odd", {"layer_types": ["full_attention"] * 2}, 0),
    ],
)
def test_windows(name, changes, window):
    assert parsed(name, **changes).window == window


def test_gpt_oss_by_hand():
    found = parsed("gpt_oss")
    assert found == ModelConfig(
        vocab_size=48, width=16, layers=2, kv_heads=2, queries_per_kv=2, head_dim=8, hidden=24,
        max_len=256, window=6, full_every=2, qkv_bias=True, out_bias=True, sinks=True, experts=4,
        active=2, expert_bias=True, swiglu_limit=7.0, swiglu_alpha=1.702, rope_scaling="yarn",
        rope_factor=4.0, rope_original_len=32, rope_truncate=False, rope_gain=found.rope_gain,
    )  # fmt: skip
    assert found.rope_gain == pytest.approx(1.13862944)


def test_qwen3_moe_by_hand():
    found = parsed("qwen3_moe_odd")
    assert (found.hidden, found.experts, found.active, found.norm_topk) == (7, 5, 3, False)
    assert (found.qk_norm, found.expert_bias, found.window, found.full_every) == (True, False, 5, 0)
    raw = families.config("qwen3_moe")
    raw["num_local_experts"] = raw.pop("num_experts")  # as version 5 writes it
    assert configs.parse(raw) == parsed("qwen3_moe")


@pytest.mark.parametrize(
    ("kinds", "layers", "rule"),
    [
        ("snf", 3, None),
        ("ssf", 3, (6, 3)),
        ("sfs", 3, (6, 2)),
        ("sss", 3, (6, 0)),
        ("fff", 3, (0, 0)),
        ("sff", 3, None),
        ("fsf", 3, None),
        (None, 3, (6, 2)),
    ],
)
def test_which_layers_have_a_window(kinds, layers, rule):
    names = {"s": "sliding_attention", "f": "full_attention", "n": "chunked_attention"}
    said = kinds and [names[k] for k in kinds]
    try:
        found = parsed("gpt_oss", layer_types=said, num_hidden_layers=layers)
        assert (found.window, found.full_every) == rule
    except UserError as error:
        assert rule is None and "layer_types" in str(error)


def test_version_5_says_rotary_positions_elsewhere():
    raw = families.config("llama31")
    old = configs.parse(raw)
    theta, said = raw.pop("rope_theta"), raw.pop("rope_scaling")
    assert configs.parse({**raw, "rope_parameters": {**said, "rope_theta": theta}}) == old


REFUSED = {
    "model_type": ("llama2", {"model_type": "gpt_neox"}),
    "architectures": ("llama2", {"architectures": ["LlamaForSequenceClassification"]}),
    "logit_scale": ("llama2", {"logit_scale": 0.5}),
    "quantization_config": ("llama2", {"quantization_config": {"bits": 4}}),
    "attention_bias": ("mistral", {"attention_bias": True}),
    "hidden_act": ("llama2", {"hidden_act": "gelu"}),
    "hidden_size": ("llama2", {"hidden_size": "16"}),
    "vocab_size": ("llama2", {"vocab_size": True}),
    "head_dim": ("llama2", {"hidden_size": 18}),
    "kv heads": ("llama2", {"num_key_value_heads": 3}),
    "num_key_value_heads": ("qwen3", {"num_key_value_heads": "2"}),
    "torch_dtype": ("llama2", {"torch_dtype": "float64"}),
    r"torch_dtype \['bfloat16'\]": ("llama2", {"torch_dtype": ["bfloat16"]}),
    "dtype {}": ("llama2", {"dtype": {}}),
    "rope_factor=0.0": ("qwen25_odd", {"rope_scaling": {**families.YARN, "factor": 0}}),
    "head_dim is 0": ("granite", {"head_dim": 0}),
    "sliding_window_size": ("gemma2", {"sliding_window_size": 7}),
    "layer_types": ("qwen3_odd", {"max_window_layers": 1}),
    "dynamic": ("llama31", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "original_max_position_embeddings": (
        "llama31", {"rope_scaling": {"type": "yarn", "factor": 2.0}},
    ),
    "rope_scaling.mscale": ("qwen25_odd", {"rope_scaling": {**families.YARN, "mscale": 1.0}}),
    "partial_rotary_factor": (
        "llama2", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    ),
    "differ": ("llama31", {"rope_parameters": {"rope_type": "default"}}),
    "rope_theta": ("llama2", {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}),
    "decoder_sparse_step": ("qwen3_moe", {"decoder_sparse_step": 2}),
    "mlp_only_layers": ("qwen3_moe", {"mlp_only_layers": [0]}),
    "max_window_layers": ("qwen3_moe_odd", {"max_window_layers": 2}),
    "num_experts and num_local_experts": ("qwen3_moe", {"num_local_experts": 9}),
    "moe_intermediate_size": ("qwen3_moe", {"moe_intermediate_size": None}),
    "model.active": ("qwen3_moe", {"num_experts_per_tok": 9}),
    "method 'fp8'": ("gpt_oss", {"quantization_config": {"quant_method": "fp8"}}),
    "experts_per_token": ("gpt_oss", {"experts_per_token": 3}),
    "initial_context_length": ("gpt_oss", {"initial_context_length": 33}),
    "rope_theta, rope_scaling": ("gpt_oss", {"rope_scaling": None}),
    "not an object": ("llama2", {"rope_scaling": "linear"}),
    "qwen3_5'.*linear attention": ("qwen3", {"model_type": "qwen3_5"}),
    "text_config: gemma3 needs": ("gemma3", {"model_type": "gemma3"}),
    "gemma3n": ("gemma3", {"model_type": "gemma3n"}),
    r"model_type \['llama'\]": ("llama2", {"model_type": ["llama"]}),
    "hidden_act = 'relu'": ("gemma2", {"hidden_activation": "relu"}),
    "use_bidirectional_attention": ("gemma3", {"use_bidirectional_attention": True}),
    "attn_logit_softcapping is 0": ("gemma2", {"attn_logit_softcapping": 0}),
    "attn_logit_softcapping: gemma3": ("gemma3", {"attn_logit_softcapping": 50.0}),
    "query_pre_attn_scalar": ("gemma2", {"query_pre_attn_scalar": 0}),
    "sliding_window is 0": ("gemma2", {"sliding_window": None}),
    "sliding_window_pattern": ("gemma3", {"sliding_window_pattern": 0}),
    "list with 6 entries": ("gemma3", {"layer_types": [families.FULL] * 5}),
    "rope_local_base_freq": ("gemma3_odd", {"rope_local_base_freq": 5.0}),
    "sliding_attention: a scaling": ("olmo3_odd", {"rope_parameters": {
        families.FULL: {"rope_theta": 7.0}, families.NEAR: {"rope_type": "linear", "factor": 2.0},
    }}),
    "rope_parameters is": ("gemma3", {"rope_parameters": {"rope_theta": 5.0}}),
    "in two ways": ("olmo3", {"rope_theta": 1e4}),
    "rope_local_base_freq = ": ("olmo3", {"rope_local_base_freq": 5.0}),
    "no_rope_layers: only": ("smollm3", {"no_rope_layers": [1, 0, 1, 1]}),
    "no_rope_layers is": ("smollm3", {"no_rope_layers": [1, [0], 1, 1]}),
    "no_rope_layer_interval": (
        "smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0},
    ),
    "use_sliding_window is false": ("smollm3_odd", {"use_sliding_window": False}),
    "only with layer_types": ("smollm3_odd", {"layer_types": None}),
    "layers with a window, but": ("qwen25", {"layer_types": [families.NEAR] * 2}),
    "layers with a window, but use": ("qwen3_moe", {"layer_types": [families.NEAR] * 2}),
    "list with 2 entries": ("qwen3", {"layer_types": [families.FULL] * 3}),
    "'full'; must be a list": ("qwen25_odd", {"layer_types": "full"}),
    "layer_types is \\[\\]": ("gemma2", {"layer_types": []}),
    "sliding_window is 0; layers": ("qwen3_odd", {
        "layer_types": [families.NEAR] * 2, "sliding_window": None,
    }),
    "mistral has sliding_attention in all": ("mistral", {"layer_types": [families.FULL] * 2}),
    "mixtral has full_attention in all": ("mixtral", {"layer_types": [families.NEAR] * 2}),
    "model.norm_eps=1e-60": ("llama2", {"rms_norm_eps": 1e-60}),
    "rope_theta=1e.308: must be finite in float32": ("llama2", {"rope_theta": 1e308}),
    "model.attention_cap=1e-310": ("gemma2", {"attn_logit_softcapping": 1e-310}),
    "model.logit_divisor=1e-320": ("granite", {"logits_scaling": 1e-320}),
    "attention_multiplier": ("granite", {"attention_multiplier": 0.0}),
    "logit_divisor": ("granite", {"logits_scaling": 0.0}),
    "mlp_bias": ("olmo2", {"mlp_bias": True}),
    "clip_qkv": ("olmo2", {"clip_qkv": 8.0}),
    "short_factor": (
        "phi3_odd", {"rope_scaling": {**families.LONGROPE, "short_factor": ["1"] * 3}},
    ),
    "rope_long": ("phi3_odd", {"rope_scaling": {**families.LONGROPE, "long_factor": [1.0]}}),
    "type 'linear'": ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "original_max_position_embeddings is": ("phi3_odd", {"original_max_position_embeddings": 1}),
    "rotates 0 channels": ("phi3", {"partial_rotary_factor": 0.2}),
    "partial_rotary_factor is": ("phi3", {"partial_rotary_factor": 0}),
    "lm_head_bias": ("phi3", {"lm_head_bias": True}),
    "window is 0.0; must be above 1": ("gemma3", {"rope_local_base_freq": 0}),
    "mixtral needs at least 1": ("mixtral", {"num_local_experts": 0, "num_experts_per_tok": 0}),
    "num_local_experts and num_experts": ("mixtral", {"num_experts": 9}),
}  # fmt: skip


@pytest.mark.parametrize("named", REFUSED)
def test_what_is_not_supported_is_named(named):
    name, changes = REFUSED[named]
    with pytest.raises(UserError, match=named):
        parsed(name, **changes)


def test_gemma_3_by_hand():
    found = parsed("gemma3")
    assert found == ModelConfig(
        vocab_size=48, width=16, layers=6, kv_heads=2, queries_per_kv=1, head_dim=8, hidden=24,
        max_len=256, tied=True, norms="both", norm_plus_one=True, qk_norm=True, window=6,
        full_every=6, activation="gelu_tanh", embed_scale=4.0, rope_theta=1e6,
        rope_local_theta=1e4, rope_scaling="linear", rope_factor=8.0,
    )  # fmt: skip
    near = parsed("gemma3", sliding_window_pattern=7)
    assert (near.window, near.full_every, near.rope_theta) == (6, 0, 1e4)
    far = parsed("gemma3", layer_types=[families.FULL] * 6)
    assert (far.window, far.rope_theta, far.rope_local_theta) == (0, 1e6, 0.0)


def test_phi_by_hand():
    found = parsed("phi3_odd")
    assert (found.max_len, found.rope_original_len, found.rope_factor) == (160, 160, 4.0)
    assert (found.rope_dims, found.rope_short) == (6, (1.0, 1.25, 1.5))
    assert found.rope_gain == pytest.approx((1 + 1.38629436 / 5.07517382) ** 0.5)
    assert configs.to_json(found)["max_position_embeddings"] == 640
    said = {**families.LONGROPE, "attention_factor": 1.5, "factor": 3.301}
    found = parsed("phi3_odd", rope_scaling=said)
    assert configs.to_json(found)["rope_scaling"] == said
    assert configs.parse(configs.to_json(found)) == found


def test_a_model_keeps_its_biases_and_its_activation():
    said = dict(attention_bias=True, mlp_bias=True, hidden_act="gelu_pytorch_tanh")
    found = parsed("llama2", **said)
    assert found.qkv_bias and found.out_bias and found.mlp_bias
    assert {**configs.to_json(found), **said} == configs.to_json(found)
    assert configs.parse(configs.to_json(found)) == found


@pytest.mark.parametrize("key", ["hidden_size", "rms_norm_eps", "max_position_embeddings"])
def test_what_is_missing_is_named(key):
    raw = families.config("llama2")
    del raw[key]
    with pytest.raises(UserError, match=f"{key} is missing"):
        configs.parse(raw)


@pytest.mark.parametrize("key", ["sliding_window", "num_key_value_heads"])
def test_defaults_of_other_families_are_not_guessed(key):
    raw = families.config("mistral")
    del raw[key]
    with pytest.raises(UserError, match=f"{key} is missing"):
        configs.parse(raw)


@pytest.mark.parametrize("cfg", [*PRESETS, *families.CASES])
def test_a_config_comes_back(cfg):
    cfg = preset(cfg) if cfg in PRESETS else parsed(cfg)
    cfg = dataclasses.replace(cfg, remat="none")  # ours alone
    raw = json.loads(json.dumps(configs.to_json(cfg, cfg.dtype)))
    assert configs.parse(raw) == cfg


def test_a_model_of_no_family_is_not_exported():
    with pytest.raises(UserError, match="qk_norm, qkv_bias"):
        configs.to_json(tiny.model(qkv_bias=True, qk_norm=True))
    others = dict(norms="post"), dict(final_cap=3.0), dict(rope_dims=2), dict(whole_qk_norm=True)
    for changes in (dict(sinks=True), dict(out_bias=True), dict(qkv_bias=True, window=4), *others):
        wanted = "".join(f".*{name}" for name in sorted(changes))
        with pytest.raises(UserError, match=f"no Hugging Face family has a model with{wanted}"):
            configs.to_json(tiny.model(nope_every=2, **changes))
    with pytest.raises(UserError, match="experts, norm_topk"):
        configs.to_json(tiny.model(experts=2, active=1, norm_topk=False))


def test_a_file_that_is_no_config_is_named(tmp_path):
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        for read in (configs.exists, configs.read):
            with pytest.raises(UserError, match="config.json: not a JSON"):
                read(tmp_path)


def test_a_config_that_is_cut_or_missing_beside_tensors_is_named(tmp_path):
    assert not configs.exists(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="config.json: is missing"):
        configs.exists(tmp_path)
    for text, said in (('{"vocab_size": 3}', "model_type is missing"), ("7", "not a JSON object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=f"config.json: {said}"):
            configs.exists(tmp_path)
    marked = b"\xef\xbb\xbf" + json.dumps(families.config("llama2")).encode()
    (tmp_path / "config.json").write_bytes(marked)
    assert configs.exists(tmp_path) and configs.read(tmp_path) == parsed("llama2")


@pytest.mark.parametrize(
    "key", "num_hidden_layers num_experts vocab_size hidden_size head_dim sliding_window".split()
)
def test_an_absurd_size_is_refused_at_once(key, tmp_path):
    raw = {**families.config("qwen3_moe"), key: 10**18}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=f"config.json: {key} is 1000000000000000000; at most"):
        configs.read(tmp_path)


def test_the_largest_sizes_have_parameters_of_less_than_2_to_63_numbers():
    known = configs.MOST.keys() - {"sliding_window", "original_max_position_embeddings"}
    cfg = parsed("qwen3_moe", **{key: configs.MOST[key] for key in known})
    assert decoder.abstract(cfg, mesh.single()) and decoder.count(cfg) < 1 << 63


@pytest.mark.parametrize("key", ["rope_theta", "max_position_embeddings", "hidden_size"])
def test_a_number_of_hundreds_of_digits_is_named(key, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**families.config("gemma2"), key: 10**400}))
    with pytest.raises(UserError, match=f"config.json: .*{key}.*inf"):
        configs.read(tmp_path)


HARMLESS = {
    "axolotl_version": "0.9", "is_llama_config": True, "rope_interleaved": False, "top_p": 0.9,
    "unknown": None, "use_flash_attention": True, "attn_pdrop": 0.1,
    "rope_scaling": {"rope_type": "default", "factor": 1.0, "original_max_position_embeddings": 8},
}  # fmt: skip


@pytest.mark.parametrize("key", HARMLESS)
def test_what_changes_no_logits_is_accepted(key):
    for name in ("llama2", "qwen3"):
        assert parsed(name, **{key: HARMLESS[key]}) == parsed(name)


@pytest.mark.parametrize(
    ("key", "value"), [("rope_interleaved", True), ("version", 2), ("layer_types", ["full"])]
)
def test_what_may_change_logits_is_not(key, value):
    with pytest.raises(UserError, match=f"{key} = .* remove it if"):
        parsed("llama2", **{key: value})


def test_equal_mscales_of_yarn_mean_a_gain_of_one():
    rope = dict(type="yarn", factor=4.0, original_max_position_embeddings=64.0)
    found = parsed("llama2", rope_scaling={**rope, "mscale": 0.7, "mscale_all_dim": 0.7})
    assert (found.rope_gain, found.rope_original_len) == (1.0, 64)
    assert parsed("llama2", rope_scaling=rope).rope_gain > 1.1


def test_a_checkpoint_is_not_taken_for_another_model():
    cfg = parsed("llama31")
    configs.check_same(cfg, dataclasses.replace(cfg, max_len=64, remat="block"), "there")
    for name, value in (
        ("rope_theta", 1e4), ("window", 4), ("norm_eps", 1e-6), ("active", 1), ("final_cap", 9.0),
        ("norm_plus_one", True), ("logit_divisor", 2.0), ("nope_every", 2),
    ):  # fmt: skip
        cfg = parsed("qwen3_moe" if name == "active" else "llama31")
        with pytest.raises(UserError, match=f"model.{name} is .* in there/config.json"):
            configs.check_same(cfg, dataclasses.replace(cfg, **{name: value}), "there")


@pytest.mark.parametrize("name", published_configs.CONFIGS)
def test_a_published_config_is_read_and_has_its_number_of_parameters(name):
    raw = published_configs.CONFIGS[name]
    found = configs.parse(raw)
    of_images = published_configs.images(found.width) if "text_config" in raw else 0
    assert decoder.count(found) + of_images == published_configs.PARAMETERS[name]
    again = configs.parse(configs.to_json(found, found.dtype))
    assert again == found


def test_gemma_3_of_text_and_images_by_hand():
    found = configs.parse(published_configs.CONFIGS["gemma-3-27b-it"])
    assert found == ModelConfig(
        vocab_size=262208, width=5376, layers=62, kv_heads=16, queries_per_kv=2, head_dim=128,
        hidden=21504, max_len=131072, norm_eps=1e-6, tied=True, dtype="bfloat16", norms="both",
        norm_plus_one=True, qk_norm=True, window=1024, full_every=6, activation="gelu_tanh",
        embed_scale=5376**0.5, attention_scale=168**-0.5, rope_theta=1e6, rope_local_theta=1e4,
        rope_scaling="linear", rope_factor=8.0,
    )  # fmt: skip
    small = configs.parse(published_configs.CONFIGS["gemma-3-4b-it"])
    assert (small.kv_heads, small.queries_per_kv, small.head_dim) == (4, 2, 256)  # not stated
    said = configs.to_json(found)
    assert (said["model_type"], said["architectures"]) == ("gemma3_text", ["Gemma3ForCausalLM"])


NESTED = {  # what is changed in gemma-3-4b-it: (of the whole, of text_config)
    "text_config: gemma3": ({"text_config": []}, {}),
    "architectures": ({"architectures": ["Gemma3ForSequenceClassification"]}, {}),
    "text_config.model_type": ({}, {"model_type": "gemma2"}),
    "tie_word_embeddings is True, but False": ({}, {"tie_word_embeddings": False}),
    "sliding_window is 5, but 1024": ({"sliding_window": 5}, {}),
    "quantization_config": ({"quantization_config": {"quant_method": "gptq"}}, {}),
    "audio_config": ({"audio_config": {}}, {}),
    "final_logit_softcapping: gemma3": ({}, {"final_logit_softcapping": 30.0}),
    "hidden_size is None": ({}, {"hidden_size": None}),
    "hidden_size is 1000000000": ({}, {"hidden_size": 10**9}),
}


@pytest.mark.parametrize("named", NESTED)
def test_a_contradiction_between_the_parts_of_a_config_is_named(named):
    whole, part = NESTED[named]
    raw = copy.deepcopy(published_configs.CONFIGS["gemma-3-4b-it"])
    raw["text_config"] |= part
    with pytest.raises(UserError, match=named):
        configs.parse({**raw, **whole})
