"""The Hugging Face families: which settings of the decoder each of them has."""

import dataclasses

from sip.models.config import ModelConfig
from sip.structs import UserError

FAMILIES = {  # model_type: architecture; of several that fit a model, the first is exported
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
UNSCORED = ("granite",)  # families without a class of reward models in transformers
QWEN3 = ("qwen3", "qwen3_moe")
OLMO = ("olmo2", "olmo3")
GEMMA = ("gemma2", "gemma3_text")
# Families with the field attention_bias (of queries, keys, values and output), and with mlp_bias.
ATTENTION_BIAS = ("llama", *QWEN3, *OLMO, "smollm3", "granite", *GEMMA)
MLP_BIAS = ("llama", "smollm3", "granite")
_GEMMA = dict(norms="both", norm_plus_one=True)
FIXED = {  # settings that every model of the family has
    "llama": {},
    "mistral": {},
    "qwen2": dict(qkv_bias=True),
    "qwen3": dict(qk_norm=True),
    "qwen3_moe": dict(qk_norm=True),
    "mixtral": {},
    "gpt_oss": dict(sinks=True, expert_bias=True),
    "olmo2": dict(norms="post", whole_qk_norm=True),
    "olmo3": dict(norms="post", whole_qk_norm=True),
    "smollm3": {},
    "granite": {},
    "phi3": dict(fused=True),
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA | dict(qk_norm=True),
}
_LAYERS = ("window", "full_every")
_EXPERTS = ("experts", "active")
_GRANITE = ("embed_scale", "attention_scale", "residual_scale", "logit_divisor")
FREE = {  # settings that differ between models of the family
    "llama": ("activation",),
    "mistral": ("activation", "window"),
    "qwen2": ("activation", *_LAYERS),
    "qwen3": ("activation", *_LAYERS),
    "qwen3_moe": ("window", "norm_topk", *_EXPERTS),
    "mixtral": ("window", *_EXPERTS),
    "gpt_oss": (*_LAYERS, *_EXPERTS, "qkv_bias", "out_bias", "swiglu_limit", "swiglu_alpha"),
    "olmo2": ("activation",),
    "olmo3": ("activation", "rope_local_theta", *_LAYERS),
    "smollm3": ("activation", "nope_every", *_LAYERS),
    "granite": ("activation", *_GRANITE),
    "phi3": ("activation", "window", "rope_dims", "rope_short", "rope_long"),
    "gemma2": ("activation", "embed_scale", "attention_scale", "attention_cap", "final_cap",
               *_LAYERS),
    "gemma3_text": ("activation", "embed_scale", "attention_scale", "final_cap",
                    "rope_local_theta", *_LAYERS),
}  # fmt: skip
# Settings that not every family has. All other fields of ModelConfig are free.
SETTINGS = {name for kinds in (FIXED, FREE) for own in kinds.values() for name in own}
SETTINGS |= {"mlp_bias"}
DEFAULTS = {f.name: f.default for f in dataclasses.fields(ModelConfig) if f.name in SETTINGS}
WHY = {  # model_types that need more than settings of the decoder
    "qwen3_5": "its layers of linear attention and its gated attention are not supported",
    "qwen3_5_text": "its layers of linear attention and its gated attention are not supported",
    "qwen3_next": "its layers of linear attention and its gated attention are not supported",
    "granitemoehybrid": "its state-space layers are not supported",
}


def check(model_type) -> None:
    """Raises UserError, with the reason if there is one, for a model_type without support."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        why = f" ({WHY[model_type]})" if isinstance(model_type, str) and model_type in WHY else ""
        raise UserError(
            f"model_type {model_type!r} is not supported{why}; use one of {', '.join(FAMILIES)}"
        )


def architecture(kind: str, scalar: bool) -> str:
    """Returns the class in transformers: of language models, or of reward models (`scalar`).

    Raises UserError if the family has no reward models.
    """
    if not scalar:
        return FAMILIES[kind]
    if kind in UNSCORED:
        raise UserError(f"transformers has no reward models of the family {kind}")
    name = "Gemma3TextForCausalLM" if kind == "gemma3_text" else FAMILIES[kind]
    return name.replace("ForCausalLM", "ForSequenceClassification")


def of(cfg: ModelConfig) -> str:
    """Returns the Hugging Face family (model_type) of our model; raises UserError if none fits."""
    for name in FAMILIES:
        if _fits(cfg, name):
            return name
    own = sorted(name for name, usual in DEFAULTS.items() if getattr(cfg, name) != usual)
    raise UserError(f"export: no Hugging Face family has a model with {', '.join(own)}")


def _fits(cfg: ModelConfig, name: str) -> bool:
    free = set(FREE[name])
    free |= {"qkv_bias", "out_bias"} if name in ATTENTION_BIAS else set()
    free |= {"mlp_bias"} if name in MLP_BIAS else set()
    wanted = {key: x for key, x in {**DEFAULTS, **FIXED[name]}.items() if key not in free}
    return all(getattr(cfg, key) == x for key, x in wanted.items()) and _agrees(cfg, name)


def _agrees(cfg: ModelConfig, name: str) -> bool:
    """Returns False if config.json of the family cannot hold the values of the free settings."""
    if name != "qwen2" and cfg.qkv_bias != cfg.out_bias:
        return False
    if name in GEMMA and (cfg.embed_scale != cfg.width**0.5 or not query_scalar(cfg)):
        return False
    if name == "phi3" and cfg.rope_scaling not in ("none", "longrope"):
        return False
    return name != "gpt_oss" or cfg.swiglu_limit > 0


def query_scalar(cfg: ModelConfig) -> int:
    """Returns Gemma's query_pre_attn_scalar, the integer n of the factor 1/sqrt(n); 0: none."""
    if not cfg.attention_scale:
        return cfg.head_dim
    n = round(cfg.attention_scale**-2)
    return n if n > 0 and n**-0.5 == cfg.attention_scale else 0
