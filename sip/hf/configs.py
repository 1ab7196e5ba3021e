"""config.json <-> ModelConfig. What could change the numbers is read or refused, never ignored."""

import json
from pathlib import Path
from typing import Any

from sip.models import rope
from sip.models.config import ModelConfig
from sip.structs import UserError

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
}
QWEN3 = ("qwen3", "qwen3_moe")
FIELDS = {  # ours -> theirs, and the type
    "vocab_size": ("vocab_size", int),
    "width": ("hidden_size", int),
    "layers": ("num_hidden_layers", int),
    "hidden": ("intermediate_size", int),
    "max_len": ("max_position_embeddings", int),
    "norm_eps": ("rms_norm_eps", float),
}
ROPE_FIELDS = {  # by kind of scaling: ours -> theirs, and the default; None: needed
    "default": {},
    "linear": {"rope_factor": ("factor", None)},
    "llama3": {
        "rope_factor": ("factor", None),
        "rope_original_len": ("original_max_position_embeddings", None),
        "rope_low": ("low_freq_factor", None),
        "rope_high": ("high_freq_factor", None),
    },
    "yarn": {
        "rope_factor": ("factor", None),
        "rope_original_len": ("original_max_position_embeddings", None),
        "rope_fast": ("beta_fast", 32.0),
        "rope_slow": ("beta_slow", 1.0),
        "rope_truncate": ("truncate", True),
    },
}
# What parameters do not show, and their numbers hang on.
SAME = ("norm_eps", "window", "rope_theta", "rope_gain", "rope_scaling", "rope_factor")
SAME += ("rope_original_len", "rope_low", "rope_high", "rope_slow", "rope_fast", "rope_truncate")
SAME += ("full_every", "active", "norm_topk", "swiglu_limit", "swiglu_alpha")
# Fields of which only these values are what our decoder does.
ONLY = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "pretraining_tp": (1, None),
    "partial_rotary_factor": (1.0,),
    "sliding_window": (None,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "use_mrope": (False,),
    "decoder_sparse_step": (1,),
    "mlp_only_layers": ([], None),
}
# Fields that change no logit: ids, training, bookkeeping, what a call returns.
HARMLESS = frozenset(
    "bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id decoder_start_token_id "
    "initializer_range attention_dropout use_cache transformers_version _name_or_path "
    "_attn_implementation_autoset return_dict return_dict_in_generate output_attentions "
    "output_hidden_states output_scores id2label label2id problem_type task_specific_params "
    "finetuning_task is_decoder gradient_checkpointing torchscript prefix "
    "router_aux_loss_coef output_router_logits".split()
)


def exists(directory: str | Path) -> bool:
    """Whether a directory holds one of their checkpoints: a config.json with a `model_type`."""
    try:
        return "model_type" in json.loads((Path(directory) / "config.json").read_text())
    except (OSError, ValueError):
        return False


def read(directory: str | Path) -> ModelConfig:
    """The model of `directory`/config.json. Raises UserError naming the file and the field."""
    path = Path(directory) / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: is not an object")
    try:
        return parse(raw)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def parse(raw: dict[str, Any]) -> ModelConfig:
    """The model that a config.json describes; parameters are float32 until told otherwise.

    float16 is computed in float32, which holds it. Raises UserError naming what is not supported.
    """
    left = dict(raw)
    family = left.pop("model_type", None)
    if family not in FAMILIES:
        raise UserError(f"model_type {family!r} is not supported: only {', '.join(FAMILIES)}")
    if left.pop("architectures", None) not in (None, [FAMILIES[family]]):
        raise UserError(f"architectures {raw['architectures']} is not [{FAMILIES[family]!r}]")
    found: dict[str, Any] = {ours: _take(left, *theirs) for ours, theirs in FIELDS.items()}
    found |= _heads(left, family, found["width"])
    found["tied"] = _take(left, "tie_word_embeddings", bool, False)
    found |= _window(left, family, found["layers"])
    found["dtype"] = _dtype(left)
    found |= {"qwen3_moe": _qwen_experts, "gpt_oss": _gpt_oss}.get(family, lambda _: {})(left)
    found |= _rope(left)
    _refuse(left)
    return ModelConfig(**{"qkv_bias": family == "qwen2", **found}, qk_norm=family in QWEN3)


_NEEDED = object()


def _take(left, key: str, kind, default: Any = _NEEDED):
    """The value of a field, which is then taken care of."""
    value = left.pop(key, default)
    if value is _NEEDED:
        raise UserError(f"{key} is missing")
    numbers = (int, float) if kind is float else (kind,)
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, numbers):
        raise UserError(f"{key} is {value!r}, not of type {kind.__name__}")
    return kind(value)


def _heads(left, family, width) -> dict[str, int]:
    """Head counts and size; Llama alone may say nothing of kv heads, and Qwen 3 and gpt-oss must
    give the size."""
    heads = _take(left, "num_attention_heads", int)
    if left.get("num_key_value_heads", 0 if family == "llama" else _NEEDED) in (None, 0):
        left["num_key_value_heads"] = heads
    groups = _take(left, "num_key_value_heads", int)
    if family not in ("qwen3", "gpt_oss") and left.get("head_dim") is None:
        left["head_dim"] = width // heads if heads > 0 and width % heads == 0 else None
    size = _take(left, "head_dim", int)
    if groups < 1 or heads < 1 or heads % groups:
        raise UserError(f"num_attention_heads {heads}: not a multiple of kv heads {groups}")
    return dict(kv_heads=groups, queries_per_kv=heads // groups, head_dim=size)


NEAR, FULL = "sliding_attention", "full_attention"


def _window(left, family, layers) -> dict[str, int]:
    """The window, and which layers have it."""
    if family == "llama":
        return {}
    if family == "mistral":
        if left.get("sliding_window", _NEEDED) is None:
            left["sliding_window"] = 0
        return {"window": _take(left, "sliding_window", int)}
    kinds = left.pop("layer_types", None)
    if family == "gpt_oss":
        return _some_layers(left, kinds or [(NEAR, FULL)[i % 2] for i in range(layers)], layers)
    used = _take(left, "use_sliding_window", bool, False)
    first = _take(left, "max_window_layers", int, 28 if family != "qwen3_moe" else 0)
    if not used or left.get("sliding_window") is None:
        left.pop("sliding_window", None)
        return {}
    if family == "qwen3_moe" and first:
        raise UserError("max_window_layers: of qwen3_moe a window is supported in all layers only")
    return _some_layers(left, kinds or [(FULL, NEAR)[i >= first] for i in range(layers)], layers)


def _some_layers(left, kinds, layers) -> dict[str, int]:
    """Of `layer_types`; a window in some layers only, other than gpt-oss's kind, is refused."""
    size, every = (
        _take(left, "sliding_window", int, 0),
        kinds.index(FULL) + 1 if FULL in kinds else 0,
    )
    if every == 1 and set(kinds) == {FULL}:
        return {}
    rule = [FULL if every and (i + 1) % every == 0 else NEAR for i in range(layers)]
    if kinds != rule or every == 1:
        raise UserError("layer_types, max_window_layers: windows in some layers, by no rule")
    if size < 1:
        raise UserError("sliding_window is missing")
    return {"window": size, "full_every": every}


def _qwen_experts(left) -> dict[str, Any]:
    """Experts in every layer, softmax over all of them."""
    return {
        "hidden": _take(left, "moe_intermediate_size", int),
        "experts": _same(left, "num_experts", "num_local_experts"),
        "active": _take(left, "num_experts_per_tok", int),
        "norm_topk": _take(left, "norm_topk_prob", bool, False),
    }


def _gpt_oss(left) -> dict[str, Any]:
    """Experts, softmax over the chosen; biases and sinks everywhere; MXFP4 shows in its tensors."""
    quantised = left.pop("quantization_config", None)
    method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
    if method not in (None, "mxfp4"):
        raise UserError(f"quantization_config of method {method!r} is not supported")
    said = left.get("rope_parameters") or left.get("rope_scaling")
    if not isinstance(said, dict) or "rope_theta" not in {**left, **said}:
        raise UserError("rope_theta, rope_scaling: missing, and not guessed for gpt_oss")
    trained = said.get("original_max_position_embeddings")
    if left.pop("initial_context_length", trained) != trained:
        raise UserError("initial_context_length is not that of rope_scaling")
    bias = _take(left, "attention_bias", bool, True)
    return {
        "qkv_bias": bias,
        "out_bias": bias,
        "sinks": True,
        "experts": _take(left, "num_local_experts", int),
        "active": _same(left, "num_experts_per_tok", "experts_per_token"),
        "expert_bias": True,
        "swiglu_limit": _take(left, "swiglu_limit", float, 7.0),
        "swiglu_alpha": _take(left, "swiglu_alpha", float, 1.702),
    }


def _same(left, key, other) -> int:
    """A field that has two names."""
    if key not in left and other in left:
        key, other = other, key
    value = _take(left, key, int)
    if _take(left, other, int, value) != value:
        raise UserError(f"{key} and {other} differ")
    return value


def _dtype(left) -> str:
    """What matrix products run in."""
    new, old = left.pop("dtype", None), left.pop("torch_dtype", None)
    known = {None: "float32", "float32": "float32", "float16": "float32", "bfloat16": "bfloat16"}
    if (new or old) not in known:
        raise UserError(f"torch_dtype {new or old!r} is not supported")
    return known[new or old]


def _rope(left) -> dict[str, Any]:
    """Rotary positions, as versions 4 (rope_theta, rope_scaling) and 5 (rope_parameters) say it."""
    new, old = left.pop("rope_parameters", None), left.pop("rope_scaling", None)
    for given in (new, old):
        if not isinstance(given, dict | None):
            raise UserError(f"rope_scaling is {given!r}, not an object")
    said = dict(new or old or {})
    if new and old and {**new, "rope_theta": None} != {**old, "rope_theta": None}:
        raise UserError("rope_parameters and rope_scaling differ")
    theta = _take(left, "rope_theta", float, said.get("rope_theta", 10000.0))
    if said.pop("rope_theta", theta) != theta:
        raise UserError("rope_theta differs from that of rope_parameters")
    kind = said.pop("rope_type", said.pop("type", "default"))
    if kind not in ROPE_FIELDS:
        raise UserError(f"rope_scaling of type {kind!r} is not supported")
    return {"rope_theta": theta} | _scaling(said, kind)


def _scaling(said, kind) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if said.pop("partial_rotary_factor", 1.0) != 1.0:
        raise UserError("rope_scaling.partial_rotary_factor is not supported")
    for ours, (theirs, default) in ROPE_FIELDS[kind].items():
        needed = {"rope_original_len": int, "rope_truncate": bool}
        given = _NEEDED if default is None else default
        found[ours] = _take(said, theirs, needed[ours] if ours in needed else float, given)
    if kind == "yarn":
        if said.get("attention_factor", 0) is None:
            del said["attention_factor"]
        usual = rope.yarn_gain(found["rope_factor"])
        found["rope_gain"] = _take(said, "attention_factor", float, usual)
    if said:
        raise UserError(f"rope_scaling.{min(said)} is not supported by type {kind!r}")
    return found if kind == "default" else {"rope_scaling": kind, **found}


def _refuse(left) -> None:
    for key, value in sorted(left.items()):
        if key not in HARMLESS and not (key in ONLY and value in ONLY[key]):
            raise UserError(f"{key} = {value!r} is not supported")


def check_same(found: ModelConfig, cfg: ModelConfig, directory: str | Path) -> None:
    """Raises UserError where `cfg` would compute something else with a checkpoint's parameters."""
    for name in SAME:
        theirs, ours = getattr(found, name), getattr(cfg, name)
        if theirs != ours:
            raise UserError(f"model.{name} is {ours!r}, but {theirs!r} in {directory}/config.json")


def family(cfg: ModelConfig) -> str:
    """Their family that computes what our model does. Raises UserError where there is none."""
    kinds = (cfg.sinks, cfg.expert_bias, cfg.swiglu_limit > 0, cfg.experts > 0)
    if all(kinds) and cfg.qkv_bias == cfg.out_bias and cfg.norm_topk and not cfg.qk_norm:
        return "gpt_oss"
    for name in ("sinks", "expert_bias", "swiglu_limit", "out_bias", "full_every"):
        if getattr(cfg, name):
            raise UserError(f"export: no family has {name} and is otherwise as this model")
    if cfg.experts:
        if cfg.qkv_bias or not cfg.qk_norm or cfg.swiglu_alpha != 1:
            raise UserError("export: no family has experts and is otherwise as this model")
        return "qwen3_moe"
    if cfg.qkv_bias and cfg.qk_norm:
        raise UserError("export: no family has both qkv_bias and qk_norm")
    if cfg.qkv_bias or cfg.qk_norm:
        return "qwen2" if cfg.qkv_bias else "qwen3"
    return "mistral" if cfg.window else "llama"


def to_json(cfg: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """config.json, as versions 4 and 5 of transformers read it. `dtype`: of the weights' file."""
    kind = family(cfg)
    found = {theirs: getattr(cfg, ours) for ours, (theirs, _) in FIELDS.items()}
    found |= {
        "architectures": [FAMILIES[kind]],
        "model_type": kind,
        "num_attention_heads": cfg.kv_heads * cfg.queries_per_kv,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_dim,
        "hidden_act": "silu",
        "tie_word_embeddings": cfg.tied,
        "torch_dtype": dtype,
    }
    if kind in ("llama", *QWEN3):
        found["attention_bias"] = False
    if kind == "llama":
        found["mlp_bias"] = False
    if kind == "mistral":
        found["sliding_window"] = cfg.window
    if kind in ("qwen2", *QWEN3):
        found |= {"use_sliding_window": cfg.window > 0, "sliding_window": cfg.window or None}
        found["max_window_layers"] = 0 if cfg.window else cfg.layers
    return found | _experts_json(cfg, kind) | _rope_json(cfg)


def _experts_json(cfg, kind) -> dict[str, Any]:
    if kind == "qwen3_moe":
        return {
            "moe_intermediate_size": cfg.hidden,
            "num_experts": cfg.experts,
            "num_experts_per_tok": cfg.active,
            "norm_topk_prob": cfg.norm_topk,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    if kind != "gpt_oss":
        return {}
    full = lambda i: not cfg.window or (cfg.full_every and (i + 1) % cfg.full_every == 0)
    return {
        "attention_bias": cfg.qkv_bias,
        "num_local_experts": cfg.experts,
        "num_experts_per_tok": cfg.active,
        "swiglu_limit": cfg.swiglu_limit,
        "swiglu_alpha": cfg.swiglu_alpha,
        "layer_types": [FULL if full(i) else NEAR for i in range(cfg.layers)],
        "sliding_window": cfg.window or cfg.max_len,  # without a layer that has it, for its type
    }


def _rope_json(cfg) -> dict[str, Any]:
    kind = "default" if cfg.rope_scaling == "none" else cfg.rope_scaling
    said = {theirs: getattr(cfg, ours) for ours, (theirs, _) in ROPE_FIELDS[kind].items()}
    if kind == "yarn":
        said["attention_factor"] = cfg.rope_gain
    said = {"rope_type": kind, **said}
    found = {"rope_theta": cfg.rope_theta}
    found["rope_parameters"] = {**said, "rope_theta": cfg.rope_theta}
    return found if kind == "default" else found | {"rope_scaling": said}
