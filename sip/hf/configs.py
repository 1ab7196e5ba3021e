"""Converts config.json to ModelConfig and back.

A field of config.json that could change the model's outputs is either read or rejected with an
error. It is never ignored.
"""

from pathlib import Path
from typing import Any

from sip.hf import family, harmless, nested, rotary, shards
from sip.hf.family import ATTENTION_BIAS, FAMILIES, GEMMA, MLP_BIAS, OLMO, QWEN3
from sip.hf.fields import NEEDED, cap, same, take
from sip.hf.rotary import FULL, NEAR
from sip.models.config import ModelConfig
from sip.structs import UserError
from sip.text.special import CONFIG, MOST_ID, read_object

FIELDS = {  # our field: (config.json field, type)
    "vocab_size": ("vocab_size", int),
    "width": ("hidden_size", int),
    "layers": ("num_hidden_layers", int),
    "hidden": ("intermediate_size", int),
    "max_len": ("max_position_embeddings", int),
    "norm_eps": ("rms_norm_eps", float),
}
# Families in which the embeddings are tied, all heads have their own keys, or layers with a window
# have other rotary positions, if config.json does not say otherwise.
TIED = ("smollm3", *GEMMA)
MANY_HEADS = ("llama", *OLMO, "granite", "phi3")
TWO_ROPES = ("olmo3", "gemma3_text")
FULL_EVERY = {"gpt_oss": 2, "olmo3": 4, "gemma2": 2, "gemma3_text": 6}  # layers without a window
# Fields that change the outputs but not the parameters' shapes; `check_same` compares them.
SAME = ("norm_eps", "window", "rope_theta", "rope_gain", "rope_scaling", "rope_factor")
SAME += ("rope_original_len", "rope_low", "rope_high", "rope_slow", "rope_fast", "rope_truncate")
SAME += ("rope_short", "rope_long", "rope_dims", "rope_local_theta", "nope_every")
SAME += ("full_every", "active", "norm_topk", "swiglu_limit", "swiglu_alpha")
SAME += ("norms", "norm_plus_one", "activation", "attention_scale", "attention_cap", "final_cap")
SAME += ("embed_scale", "residual_scale", "logit_divisor")
# Fields with only these values supported by our decoder.
ONLY = {
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
    "use_bidirectional_attention": (False, None),
    "lm_head_bias": (False,),
    "full_attn_mod": (1,),
    "interpolate_factor": (1,),
}
# Largest sizes, several times those of any published model. Products of them, the numbers in a
# parameter, are below 2^63.
MOST = {
    "num_hidden_layers": 1 << 12,
    "num_experts": 1 << 12,
    "num_local_experts": 1 << 12,
    "vocab_size": MOST_ID,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 19,
    "moe_intermediate_size": 1 << 19,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 12,
    "max_position_embeddings": 1 << 30,
    "original_max_position_embeddings": 1 << 30,
    "sliding_window": 1 << 30,
}
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}  # theirs: ours


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


def is_nested(directory: str | Path) -> bool:
    """Returns True if `directory`/config.json is that of a model of text and images."""
    return nested.is_nested(read_object(Path(directory) / CONFIG))


def read(directory: str | Path) -> ModelConfig:
    """Reads `directory`/config.json; raises UserError naming the file and the field."""
    path = Path(directory) / CONFIG
    raw = read_object(path)
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
    left = harmless.without_idle_rope(nested.language_model(raw))
    for key, most in MOST.items():  # before anything is made for each layer or expert
        if key in left and type(left[key]) is int and left[key] > most:
            raise UserError(f"{key} is {left[key]}; at most {most} are supported")
    kind = left.pop("model_type", None)
    family.check(kind)
    scalar = _scalar(left, kind)
    found: dict[str, Any] = {ours: take(left, *theirs) for ours, theirs in FIELDS.items()}
    found["scalar"] = scalar
    found |= _heads(left, kind, found["width"])
    found["tied"] = take(left, "tie_word_embeddings", bool, kind in TIED)
    window = _window(left, kind, found["layers"])
    found |= {"dtype": _dtype(left), "activation": _activation(left, kind), **window}
    found |= _biases(left, kind) | _own(left, kind, found) | family.FIXED[kind]
    if "experts" in family.FREE[kind] and found["experts"] < 1:
        raise UserError(f"num_local_experts is {found['experts']}; {kind} needs at least 1")
    found |= _rope(left, kind, found, window)
    _refuse(left, found["layers"])
    return ModelConfig(**found)


def _scalar(left, kind: str) -> bool:
    """Reads the architecture: a language model, or a reward model with one label."""
    said, known = left.pop("architectures", None), [FAMILIES[kind]]
    if kind not in family.UNSCORED:
        known.append(family.architecture(kind, True))
    if said is None or said == known[:1]:
        return False
    if said not in ([name] for name in known):
        raise UserError(f"architectures {said}: must be [{known[0]!r}]")
    labels = left["id2label"] if "id2label" in left else {}
    count = take(left, "num_labels", int, len(labels) if isinstance(labels, dict) else 0)
    if count != 1:
        raise UserError(
            f"architectures {said} with {count or 'an unknown number of'} labels (id2label): only "
            "a reward model with one label is supported"
        )
    return True


def _own(left, kind: str, found) -> dict[str, Any]:
    """Reads the fields that only this family has."""
    if kind in GEMMA:
        return _gemma(left, kind, found)
    if kind == "granite":
        return _granite(left, found["head_dim"])
    if kind == "smollm3":
        return _nope(left, found["layers"])
    readers = {"qwen3_moe": _qwen_experts, "mixtral": _mixtral, "gpt_oss": _gpt_oss}
    return readers[kind](left) if kind in readers else {}


def _rope(left, kind: str, found, window) -> dict[str, Any]:
    if kind == "phi3":
        return rotary.read_phi(left, found)
    if kind in TWO_ROPES:
        return rotary.read_two(left, kind, window)
    return rotary.read(left, kind)


def _biases(left, kind: str) -> dict[str, bool]:
    """Reads the biases of families that may have them."""
    found = {}
    if kind in ATTENTION_BIAS:
        bias = take(left, "attention_bias", bool, False)
        found |= {"qkv_bias": bias, "out_bias": bias}
    if kind in MLP_BIAS:
        found["mlp_bias"] = take(left, "mlp_bias", bool, False)
    return found


def _activation(left, kind: str) -> str:
    """Reads the activation of the gate. Gemma has its own field and ignores the usual one."""
    if kind in GEMMA:
        left.pop("hidden_act", None)
        left["hidden_act"] = left.pop("hidden_activation", "gelu_pytorch_tanh")
    name = take(left, "hidden_act", str, "silu")
    if name not in ACTIVATIONS:
        raise UserError(f"hidden_act = {name!r} is not supported; only {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _heads(left, kind, width) -> dict[str, int]:
    """Reads number and size of heads.

    num_key_value_heads is optional in MANY_HEADS only. head_dim is required for Qwen 3, gpt-oss and
    Gemma; other families default to width / heads.
    """
    heads = take(left, "num_attention_heads", int)
    if left.get("num_key_value_heads", 0 if kind in MANY_HEADS else NEEDED) in (None, 0):
        left["num_key_value_heads"] = heads
    groups = take(left, "num_key_value_heads", int)
    if kind not in ("qwen3", "gpt_oss", *GEMMA) and left.get("head_dim") is None:
        left["head_dim"] = width // heads if heads > 0 and width % heads == 0 else None
    size = take(left, "head_dim", int)
    if groups < 1 or heads < 1 or heads % groups:
        raise UserError(f"num_attention_heads {heads}: must be a multiple of kv heads {groups}")
    if size < 1:
        raise UserError(f"head_dim is {size}; must be at least 1")
    return dict(kv_heads=groups, queries_per_kv=heads // groups, head_dim=size)


def _window(left, kind, layers) -> dict[str, int]:
    """Reads the sliding window (tokens) and the layers that have it."""
    if left.get("sliding_window_size") == left.get("sliding_window"):
        left.pop("sliding_window_size", None)  # published with Gemma 2, not read by transformers
    if kind in ("llama", "olmo2", "granite"):
        return {}
    if kind in ("mistral", "mixtral", "phi3"):
        return _same_window(left, kind, layers)
    kinds = left.pop("layer_types", None)
    if kind in FULL_EVERY:
        every = FULL_EVERY[kind]
        if kind == "gemma3_text":
            every = take(left, "sliding_window_pattern", int, every)
            if every < 1:
                raise UserError(f"sliding_window_pattern is {every}; must be at least 1")
        pattern = [(NEAR, FULL)[(i + 1) % every == 0] for i in range(layers)]
        return _some_layers(left, pattern if kinds is None else kinds, layers)
    used = take(left, "use_sliding_window", bool, False)
    _check_unused(kinds, used, layers)
    if kind == "smollm3":
        left.pop("max_window_layers", None)  # published, but not read by transformers
        return _smollm_window(left, kinds, used, layers)
    first = take(left, "max_window_layers", int, 28 if kind != "qwen3_moe" else 0)
    if not used or (kinds is None and left.get("sliding_window") is None):
        left.pop("sliding_window", None)
        return {}
    if kind == "qwen3_moe" and first:
        raise UserError(
            "max_window_layers: qwen3_moe is supported only with a window in all layers"
        )
    pattern = [(FULL, NEAR)[i >= first] for i in range(layers)]
    return _some_layers(left, pattern if kinds is None else kinds, layers)


def _same_window(left, kind, layers) -> dict[str, int]:
    """Reads the window of a family in which all layers have it, or none."""
    if left.get("sliding_window", NEEDED if kind == "mistral" else None) is None:
        left["sliding_window"] = 0
    size = take(left, "sliding_window", int)
    kinds, wanted = left.pop("layer_types", None), NEAR if size else FULL
    if kinds not in (None, [wanted] * layers):
        raise UserError(
            f"layer_types is {kinds!r:.80}; with sliding_window {size or None}, {kind} has {wanted}"
            " in all layers"
        )
    return {"window": size, "full_every": 0} if size else {}


def _check_unused(kinds, used: bool, layers: int) -> None:
    """Raises UserError if layers are listed that need `use_sliding_window`, or no layers at all."""
    if used or kinds in (None, [FULL] * layers):
        return
    if isinstance(kinds, list) and len(kinds) == layers and NEAR in kinds:
        raise UserError("layer_types has layers with a window, but use_sliding_window is false")
    raise UserError(f"layer_types is {kinds!r:.80}; must be a list with {layers} entries")


def _smollm_window(left, kinds, used: bool, layers: int) -> dict[str, int]:
    """Reads SmolLM3's window. If the kinds of layers are not listed, it is in those without rotary
    positions, which is no pattern of ours."""
    near = kinds is not None and kinds != [FULL] * layers
    if used and kinds is None and left.get("sliding_window") is not None:
        raise UserError("use_sliding_window is supported only with layer_types")
    if not near:
        left.pop("sliding_window", None)
        return {}
    return _some_layers(left, kinds, layers)


def _some_layers(left, kinds, layers) -> dict[str, int]:
    """Converts `layer_types` to window and full_every (every n-th layer has full attention).

    Raises UserError for any other pattern of layers.
    """
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise UserError(f"layer_types is {kinds!r:.80}; must be a list with {layers} entries")
    every = kinds.index(FULL) + 1 if FULL in kinds else 0
    if kinds == [FULL] * layers:
        left.pop("sliding_window", None)
        return {}
    if left.setdefault("sliding_window", 0) is None:
        left["sliding_window"] = 0
    size = take(left, "sliding_window", int)
    rule = [FULL if every and (i + 1) % every == 0 else NEAR for i in range(layers)]
    if kinds != rule or every == 1:
        raise UserError(
            "layer_types, max_window_layers: only a window in all layers, or full attention in "
            "every n-th layer, is supported"
        )
    if size < 1:
        raise UserError(f"sliding_window is {size}; layers with a window need at least 1")
    return {"window": size, "full_every": every}


def _qwen_experts(left) -> dict[str, Any]:
    """Reads Qwen's experts: in every layer, with a softmax over all experts."""
    return {
        "hidden": take(left, "moe_intermediate_size", int),
        "experts": same(left, "num_experts", "num_local_experts"),
        "active": take(left, "num_experts_per_tok", int),
        "norm_topk": take(left, "norm_topk_prob", bool, False),
    }


def _mixtral(left) -> dict[str, int]:
    """Reads Mixtral's experts: in every layer, with a softmax over the active ones."""
    return {
        "experts": same(left, "num_local_experts", "num_experts"),
        "active": take(left, "num_experts_per_tok", int),
    }


def _granite(left, head_dim: int) -> dict[str, float]:
    """Reads Granite's four factors."""
    scale = take(left, "attention_multiplier", float, 1.0)
    if scale <= 0:
        raise UserError(f"attention_multiplier is {scale}; must be positive")
    return {
        "embed_scale": take(left, "embedding_multiplier", float, 1.0),
        "attention_scale": 0.0 if scale == head_dim**-0.5 else scale,
        "residual_scale": take(left, "residual_multiplier", float, 1.0),
        "logit_divisor": take(left, "logits_scaling", float, 1.0),
    }


def _gemma(left, kind: str, found) -> dict[str, float]:
    """Reads Gemma's scales and soft caps."""
    scalar = take(left, "query_pre_attn_scalar", int)
    if scalar < 1:
        raise UserError(f"query_pre_attn_scalar is {scalar}; must be at least 1")
    scores, logits = (50.0, 30.0) if kind == "gemma2" else (None, None)
    usual = scalar == found["head_dim"]
    ours = {
        "embed_scale": found["width"] ** 0.5,
        "attention_scale": 0.0 if usual else scalar**-0.5,
        "attention_cap": cap(left, "attn_logit_softcapping", scores),
        "final_cap": cap(left, "final_logit_softcapping", logits),
    }
    if kind == "gemma3_text" and ours["attention_cap"]:
        raise UserError("attn_logit_softcapping: gemma3_text has none in transformers")
    return ours


def _nope(left, layers: int) -> dict[str, int]:
    """Reads SmolLM3's layers without rotary positions: every n-th."""
    left.pop("pretraining_tp", None)  # published as 2, but not read by transformers
    every = take(left, "no_rope_layer_interval", int, 4)
    said = left.pop("no_rope_layers", None)
    if said is None:
        if every < 1:
            raise UserError(f"no_rope_layer_interval is {every}; must be at least 1")
        return {"nope_every": every if every <= layers else 0}
    if not isinstance(said, list) or len(said) < layers or not all(x in (0, 1) for x in said):
        raise UserError(f"no_rope_layers is {said!r}; must be a list of {layers} zeros and ones")
    turned = said[:layers]
    every = turned.index(0) + 1 if 0 in turned else 0
    if turned != [int(not every or (i + 1) % every != 0) for i in range(layers)]:
        raise UserError(
            "no_rope_layers: only every n-th layer without rotary positions is supported"
        )
    return {"nope_every": every}


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
    bias = take(left, "attention_bias", bool, True)
    return {
        "qkv_bias": bias,
        "out_bias": bias,
        "experts": take(left, "num_local_experts", int),
        "active": same(left, "num_experts_per_tok", "experts_per_token"),
        "swiglu_limit": take(left, "swiglu_limit", float, 7.0),
        "swiglu_alpha": take(left, "swiglu_alpha", float, 1.702),
    }


def _dtype(left) -> str:
    """Reads the dtype of matrix products from `dtype` or the older `torch_dtype`."""
    known = {"float32": "float32", "float16": "float32", "bfloat16": "bfloat16"}
    said = {key: left.pop(key, None) for key in ("dtype", "torch_dtype")}
    for key, value in said.items():
        if value is not None and (not isinstance(value, str) or value not in known):
            raise UserError(f"{key} {value!r:.80} is not supported; use one of {', '.join(known)}")
    return known[said["dtype"] or said["torch_dtype"] or "float32"]


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


def to_json(cfg: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """Returns the contents of config.json, readable by transformers 4 and 5.

    Args:
        cfg: Config of our model.
        dtype: Dtype of the exported weights.

    Raises:
        UserError: No Hugging Face family computes what the model computes.
    """
    kind = family.of(cfg)
    found = {theirs: getattr(cfg, ours) for ours, (theirs, _) in FIELDS.items()}
    act = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == cfg.activation)
    found |= {
        "architectures": [family.architecture(kind, cfg.scalar)],
        "model_type": kind,
        "num_attention_heads": cfg.kv_heads * cfg.queries_per_kv,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_dim,
        "hidden_activation" if kind in GEMMA else "hidden_act": act,
        "tie_word_embeddings": cfg.tied,
        "torch_dtype": dtype,
    }
    if cfg.scalar:  # transformers reads the number of labels from id2label
        found |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "num_labels": 1}
    if kind in ATTENTION_BIAS:
        found["attention_bias"] = cfg.qkv_bias
    if kind in MLP_BIAS:
        found["mlp_bias"] = cfg.mlp_bias
    return found | _window_json(cfg, kind) | _own_json(cfg, kind) | _rope_json(cfg, kind)


def _window_json(cfg, kind) -> dict[str, Any]:
    if kind in ("mistral", "mixtral", "phi3"):
        return {"sliding_window": cfg.window or (0 if kind == "mistral" else None)}
    full = lambda i: not cfg.window or (cfg.full_every and (i + 1) % cfg.full_every == 0)
    kinds = {"layer_types": [FULL if full(i) else NEAR for i in range(cfg.layers)]}
    if kind in FULL_EVERY:
        # transformers needs an int, even if unused.
        found = {"sliding_window": cfg.window or cfg.max_len, **kinds}
        return found | ({"sliding_window_pattern": _pattern(cfg)} if kind == "gemma3_text" else {})
    if kind not in ("qwen2", *QWEN3, "smollm3"):
        return {}
    found = {"use_sliding_window": cfg.window > 0, "sliding_window": cfg.window or None}
    if kind != "smollm3":
        found["max_window_layers"] = 0 if cfg.window else cfg.layers
    return found | (kinds if cfg.full_every or kind == "smollm3" else {})


def _pattern(cfg) -> int:
    return cfg.full_every or (cfg.layers + 1 if cfg.window else 1)


def _own_json(cfg, kind) -> dict[str, Any]:
    """Returns the fields that only this family has."""
    if kind == "qwen3_moe":
        return {
            "moe_intermediate_size": cfg.hidden,
            "num_experts": cfg.experts,
            "num_experts_per_tok": cfg.active,
            "norm_topk_prob": cfg.norm_topk,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    if kind == "mixtral":
        return {"num_local_experts": cfg.experts, "num_experts_per_tok": cfg.active}
    if kind == "gpt_oss":
        return {
            "attention_bias": cfg.qkv_bias,
            "num_local_experts": cfg.experts,
            "num_experts_per_tok": cfg.active,
            "swiglu_limit": cfg.swiglu_limit,
            "swiglu_alpha": cfg.swiglu_alpha,
        }
    if kind == "granite":
        return {
            "embedding_multiplier": cfg.embed_scale,
            "attention_multiplier": cfg.attention_scale or cfg.head_dim**-0.5,
            "residual_multiplier": cfg.residual_scale,
            "logits_scaling": cfg.logit_divisor,
        }
    if kind == "smollm3":
        still = lambda i: cfg.nope_every and (i + 1) % cfg.nope_every == 0
        return {"no_rope_layers": [int(not still(i)) for i in range(cfg.layers)]}
    if kind in GEMMA:
        return {
            "query_pre_attn_scalar": family.query_scalar(cfg),
            "attn_logit_softcapping": cfg.attention_cap or None,
            "final_logit_softcapping": cfg.final_cap or None,
        }
    return {}


def _rope_json(cfg, kind) -> dict[str, Any]:
    if kind == "phi3":
        return rotary.phi_to_json(cfg)
    return rotary.two_to_json(cfg, kind) if kind in TWO_ROPES else rotary.to_json(cfg)
