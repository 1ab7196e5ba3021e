"""Converts config.json to ModelConfig and back.

A field of config.json that could change the model's outputs is either read or rejected with an
error. It is never ignored.
"""

from pathlib import Path
from typing import Any

from sip.hf import harmless, shards
from sip.models import rope
from sip.models.config import ModelConfig
from sip.structs import UserError
from sip.text.special import CONFIG, read_object

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
}
QWEN3 = ("qwen3", "qwen3_moe")
FIELDS = {  # our field: (config.json field, type)
    "vocab_size": ("vocab_size", int),
    "width": ("hidden_size", int),
    "layers": ("num_hidden_layers", int),
    "hidden": ("intermediate_size", int),
    "max_len": ("max_position_embeddings", int),
    "norm_eps": ("rms_norm_eps", float),
}
ROPE_FIELDS = {  # by scaling type: {our field: (config.json field, default)}; None means required
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
# Fields that change the outputs but not the parameters' shapes; `check_same` compares them.
SAME = ("norm_eps", "window", "rope_theta", "rope_gain", "rope_scaling", "rope_factor")
SAME += ("rope_original_len", "rope_low", "rope_high", "rope_slow", "rope_fast", "rope_truncate")
SAME += ("full_every", "active", "norm_topk", "swiglu_limit", "swiglu_alpha")
# Fields with only these values supported by our decoder.
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
MOST = {"num_hidden_layers": 1 << 12, "num_experts": 1 << 16, "num_local_experts": 1 << 16}


def exists(directory: str | Path) -> bool:
    """Returns True if the directory has a config.json with a `model_type` (Hugging Face format).

    Raises UserError if config.json is damaged, or missing beside safetensors files.
    """
    path = Path(directory) / CONFIG
    weights = any((Path(directory) / name).is_file() for name in (shards.SINGLE, shards.INDEX))
    if not path.is_file():
        if weights:
            raise UserError(f"{path}: is missing; the tensors beside it cannot be read without it")
        return False
    found = "model_type" in read_object(path)
    if weights and not found:
        raise UserError(f"{path}: model_type is missing")
    return found


def read(directory: str | Path) -> ModelConfig:
    """Reads `directory`/config.json; raises UserError naming the file and the field."""
    path = Path(directory) / "config.json"
    raw = read_object(path)
    for key, most in MOST.items():  # before anything is made for each layer or expert
        if key in raw and type(raw[key]) is int and raw[key] > most:
            raise UserError(f"{path}: {key} is {raw[key]}; at most {most} are supported")
    try:
        return parse(raw)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def parse(raw: dict[str, Any]) -> ModelConfig:
    """Converts the contents of config.json to a ModelConfig.

    Parameters are stored in float32 by default. A float16 model computes in float32, which can
    represent its values. Raises UserError naming a field that is missing or not supported.
    """
    # Fields are removed from `left` when they are read; `_refuse` checks the remaining ones.
    left = harmless.without_idle_rope(raw)
    family = left.pop("model_type", None)
    if family not in FAMILIES:
        raise UserError(f"model_type {family!r} is not supported; use one of {', '.join(FAMILIES)}")
    if left.pop("architectures", None) not in (None, [FAMILIES[family]]):
        raise UserError(f"architectures {raw['architectures']}: must be [{FAMILIES[family]!r}]")
    found: dict[str, Any] = {ours: _take(left, *theirs) for ours, theirs in FIELDS.items()}
    found |= _heads(left, family, found["width"])
    found["tied"] = _take(left, "tie_word_embeddings", bool, False)
    found |= _window(left, family, found["layers"])
    found["dtype"] = _dtype(left)
    found |= {"qwen3_moe": _qwen_experts, "gpt_oss": _gpt_oss}.get(family, lambda _: {})(left)
    found |= _rope(left)
    _refuse(left, found["layers"])
    return ModelConfig(**{"qkv_bias": family == "qwen2", **found}, qk_norm=family in QWEN3)


_NEEDED = object()


def _take(left, key: str, kind, default: Any = _NEEDED):
    """Removes a field from `left` and returns its value as `kind`.

    Raises UserError if it is missing without a default, or has another type.
    """
    value = left.pop(key, default)
    if value is _NEEDED:
        raise UserError(f"{key} is missing")
    numbers = (int, float) if kind is float else (kind,)  # bool is a subclass of int: checked below
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, numbers):
        raise UserError(f"{key} is {value!r}; must be of type {kind.__name__}")
    return kind(value)


def _heads(left, family, width) -> dict[str, int]:
    """Reads number and size of heads.

    num_key_value_heads is optional for Llama only. head_dim is required for Qwen 3 and gpt-oss;
    other families default to width / heads.
    """
    heads = _take(left, "num_attention_heads", int)
    if left.get("num_key_value_heads", 0 if family == "llama" else _NEEDED) in (None, 0):
        left["num_key_value_heads"] = heads
    groups = _take(left, "num_key_value_heads", int)
    if family not in ("qwen3", "gpt_oss") and left.get("head_dim") is None:
        left["head_dim"] = width // heads if heads > 0 and width % heads == 0 else None
    size = _take(left, "head_dim", int)
    if groups < 1 or heads < 1 or heads % groups:
        raise UserError(f"num_attention_heads {heads}: must be a multiple of kv heads {groups}")
    return dict(kv_heads=groups, queries_per_kv=heads // groups, head_dim=size)


NEAR, FULL = "sliding_attention", "full_attention"


def _window(left, family, layers) -> dict[str, int]:
    """Reads the sliding window (tokens) and the layers that have it."""
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
        raise UserError(
            "max_window_layers: qwen3_moe is supported only with a window in all layers"
        )
    return _some_layers(left, kinds or [(FULL, NEAR)[i >= first] for i in range(layers)], layers)


def _some_layers(left, kinds, layers) -> dict[str, int]:
    """Converts `layer_types` to window and full_every (every n-th layer has full attention).

    Raises UserError for any other pattern of layers.
    """
    size, every = (
        _take(left, "sliding_window", int, 0),
        kinds.index(FULL) + 1 if FULL in kinds else 0,
    )
    if every == 1 and set(kinds) == {FULL}:
        return {}
    rule = [FULL if every and (i + 1) % every == 0 else NEAR for i in range(layers)]
    if kinds != rule or every == 1:
        raise UserError(
            "layer_types, max_window_layers: only a window in all layers, or full attention in "
            "every n-th layer, is supported"
        )
    if size < 1:
        raise UserError("sliding_window is missing")
    return {"window": size, "full_every": every}


def _qwen_experts(left) -> dict[str, Any]:
    """Reads Qwen's experts: in every layer, with a softmax over all experts."""
    return {
        "hidden": _take(left, "moe_intermediate_size", int),
        "experts": _same(left, "num_experts", "num_local_experts"),
        "active": _take(left, "num_experts_per_tok", int),
        "norm_topk": _take(left, "norm_topk_prob", bool, False),
    }


def _gpt_oss(left) -> dict[str, Any]:
    """Reads gpt-oss's experts (softmax over the active ones), biases and attention sinks.

    MXFP4 needs no field here: the names of the tensors show it.
    """
    quantised = left.pop("quantization_config", None)
    method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
    if method not in (None, "mxfp4"):
        raise UserError(f"quantization_config of method {method!r} is not supported")
    said = left.get("rope_parameters") or left.get("rope_scaling")
    if not isinstance(said, dict) or "rope_theta" not in {**left, **said}:
        raise UserError("rope_theta, rope_scaling: missing; gpt_oss needs both")
    trained = said.get("original_max_position_embeddings")
    if left.pop("initial_context_length", trained) != trained:
        raise UserError("initial_context_length differs from rope_scaling's original length")
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
    """Reads a field that has two names; raises UserError if both are given and differ."""
    if key not in left and other in left:
        key, other = other, key
    value = _take(left, key, int)
    if _take(left, other, int, value) != value:
        raise UserError(f"{key} and {other} differ")
    return value


def _dtype(left) -> str:
    """Reads the dtype of matrix products from `dtype` or the older `torch_dtype`."""
    new, old = left.pop("dtype", None), left.pop("torch_dtype", None)
    known = {None: "float32", "float32": "float32", "float16": "float32", "bfloat16": "bfloat16"}
    if (new or old) not in known:
        raise UserError(f"torch_dtype {new or old!r} is not supported")
    return known[new or old]


def _rope(left) -> dict[str, Any]:
    """Reads rotary embeddings.

    transformers 4 writes rope_theta and rope_scaling, transformers 5 writes rope_parameters.
    """
    new, old = left.pop("rope_parameters", None), left.pop("rope_scaling", None)
    for given in (new, old):
        if not isinstance(given, dict | None):
            raise UserError(f"rope_scaling is {given!r}, not an object (or null)")
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


def _refuse(left, layers: int) -> None:
    for key, value in sorted(left.items()):
        if key in ONLY and value in ONLY[key]:
            continue
        if key in ONLY or not harmless.is_harmless(key, value, layers):
            raise UserError(
                f"{key} = {value!r} is not supported; remove it if it changes no outputs"
            )


def check_same(found: ModelConfig, cfg: ModelConfig, directory: str | Path) -> None:
    """Raises UserError if `cfg` differs from the checkpoint's config in a field of SAME.

    Such a model would load the checkpoint's parameters but compute other outputs.
    """
    for name in SAME:
        theirs, ours = getattr(found, name), getattr(cfg, name)
        if theirs != ours:
            raise UserError(f"model.{name} is {ours!r}, but {theirs!r} in {directory}/config.json")


def family(cfg: ModelConfig) -> str:
    """Returns the Hugging Face family (model_type) of our model; raises UserError if none fits."""
    kinds = (cfg.sinks, cfg.expert_bias, cfg.swiglu_limit > 0, cfg.experts > 0)
    if all(kinds) and cfg.qkv_bias == cfg.out_bias and cfg.norm_topk and not cfg.qk_norm:
        return "gpt_oss"
    for name in ("sinks", "expert_bias", "swiglu_limit", "out_bias", "full_every"):
        if getattr(cfg, name):
            raise UserError(f"export: model.{name} fits no Hugging Face family with this config")
    if cfg.experts:
        if cfg.qkv_bias or not cfg.qk_norm or cfg.swiglu_alpha != 1:
            raise UserError("export: a model with these experts fits no Hugging Face family")
        return "qwen3_moe"
    if cfg.qkv_bias and cfg.qk_norm:
        raise UserError("export: no Hugging Face family has both qkv_bias and qk_norm")
    if cfg.qkv_bias or cfg.qk_norm:
        return "qwen2" if cfg.qkv_bias else "qwen3"
    return "mistral" if cfg.window else "llama"


def to_json(cfg: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """Returns the contents of config.json, readable by transformers 4 and 5.

    Args:
        cfg: Config of our model.
        dtype: Dtype of the exported weights.

    Raises:
        UserError: No Hugging Face family computes what the model computes.
    """
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
        "sliding_window": cfg.window or cfg.max_len,  # transformers needs an int, even if unused
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
