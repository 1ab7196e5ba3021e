"""A decoder in Hugging Face's Llama format, for servers and libraries that read it."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from sip.models.config import ModelConfig
from sip.structs import Params, UserError
from sip.tokenizer import SPACE, USER_DEFINED, SentencePiece

UNIGRAM, CONTROL = 1, 3  # numbers of sentencepiece_model.proto
# Names of byte tokens and of the unknown one, which must not be read out of text.
NAMED = "<(?=unk>|0x[0-9A-F]{2}>)"


def save_llama(
    params: Params, cfg: ModelConfig, tokenizer: SentencePiece, directory: str | os.PathLike
) -> None:
    """Writes weights (safetensors, float32), configs and tokenizer into `directory`.

    The tokenizer gives our ids, BOS before them; text may not hold U+2581, which it reads as a
    space. Raises UserError for a tokenizer that is no SentencePiece unigram model.
    """
    try:
        from safetensors.numpy import save_file
    except ImportError:
        raise UserError("export needs safetensors: pip install 'sip-jax[hf]'") from None
    path = Path(directory)
    files = tokenizer_files(tokenizer, cfg.max_len)  # may be refused, before anything is written
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors(params, cfg), path / "model.safetensors", metadata={"format": "pt"})
    ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}
    ids["pad_token_id"] = tokenizer.pad
    files |= {"config.json": {**config(cfg), **ids}, "generation_config.json": ids}
    for name, value in files.items():
        (path / name).write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def config(cfg: ModelConfig) -> dict[str, Any]:
    """config.json, as versions 4 and 5 of transformers read it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.width,
        "intermediate_size": cfg.hidden,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.kv_heads * cfg.queries_per_kv,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": cfg.max_len,
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
        "tie_word_embeddings": cfg.tied,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
    }


def tensors(params: Params, cfg: ModelConfig) -> dict[str, np.ndarray]:
    """Weights by their names there: [out, in] matrices, one per layer."""
    block = params["blocks"]["block"]
    D, heads = cfg.width, cfg.kv_heads * cfg.queries_per_kv * cfg.head_dim
    flat = {  # ours -> (theirs, [in, out])
        "wq": ("self_attn.q_proj", (D, heads)),
        "wk": ("self_attn.k_proj", (D, -1)),
        "wv": ("self_attn.v_proj", (D, -1)),
        "wo": ("self_attn.o_proj", (heads, D)),
        "w_gate": ("mlp.gate_proj", (D, -1)),
        "w_up": ("mlp.up_proj", (D, -1)),
        "w_down": ("mlp.down_proj", (-1, D)),
    }
    found = {
        "model.embed_tokens.weight": params["embed"],
        "model.norm.weight": params["final_norm"],
    }
    if not cfg.tied:
        found["lm_head.weight"] = params["unembed"].T
    for layer in range(cfg.layers):
        at = f"model.layers.{layer}."
        for name, (theirs, shape) in flat.items():
            found[f"{at}{theirs}.weight"] = block[name][layer].reshape(shape).T
        found[f"{at}input_layernorm.weight"] = block["attention_norm"][layer]
        found[f"{at}post_attention_layernorm.weight"] = block["mlp_norm"][layer]
    return {name: np.ascontiguousarray(x, np.float32) for name, x in found.items()}


def tokenizer_files(tokenizer: SentencePiece, max_len: int) -> dict[str, Any]:
    """tokenizer.json and tokenizer_config.json."""
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2  # made at run time
    model = proto.ModelProto.FromString(tokenizer.serialized())
    if model.trainer_spec.model_type != UNIGRAM:
        raise UserError("export: the tokenizer is not a SentencePiece unigram model")
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    special = {i: p.piece for i, p in enumerate(model.pieces) if p.type == CONTROL}
    symbols = {i: p.piece for i, p in enumerate(model.pieces) if p.type == USER_DEFINED}
    bos = special[tokenizer.bos]
    space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    first = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [_added(i, text, True) for i, text in special.items()]
            + [_added(i, text, False) for i, text in symbols.items()],
            "normalizer": space,
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": NAMED},
                "behavior": "Isolated",
                "invert": False,
            },
            "post_processor": {
                "type": "TemplateProcessing",
                "single": first,
                "pair": [*first, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos], "tokens": [bos]}},
            },
            "decoder": {
                "type": "Sequence",
                "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}],
            },
            "model": {
                "type": "Unigram",
                "unk_id": model.trainer_spec.unk_id,
                "vocab": pieces,
                "byte_fallback": model.trainer_spec.byte_fallback,
            },
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos,
            "eos_token": special[tokenizer.eos],
            "pad_token": special[tokenizer.pad],
            "model_max_length": max_len,
            "clean_up_tokenization_spaces": False,
        },
    }


def _added(id: int, text: str, special: bool) -> dict[str, Any]:
    """Symbols are looked for behind the normaliser, where their spaces are as the model's."""
    places = {"single_word": False, "lstrip": False, "rstrip": False}
    return {"id": id, "content": text, **places, "normalized": not special, "special": special}
