"""Finds the language model inside a checkpoint of text and images (Gemma 3 from 4B on).

Its fields are in config.json's `text_config`, and its tensors have a prefix. The part for images is
not read. An export is the language model alone.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sip.hf import harmless
from sip.structs import UserError

KIND, TEXT, ARCHITECTURE = "gemma3", "gemma3_text", "Gemma3ForConditionalGeneration"
# Fields of the whole model that concern images alone.
IMAGES = (
    "vision_config mm_tokens_per_image boi_token_index eoi_token_index image_token_index "
    "boi_token_id eoi_token_id image_token_id"
).split()
# Defaults of transformers (Gemma3TextConfig); published files state only what differs.
DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
PREFIXES = {  # of tensors: in files: in a text model
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",  # transformers 5
}
# Tensors of the part for images.
UNREAD = re.compile(r"^(model\.)?(vision_tower|multi_modal_projector)\.")


def is_nested(raw: Mapping[str, Any]) -> bool:
    """Returns True for the config.json of a model of text and images."""
    return "model_type" in raw and raw["model_type"] == KIND


def language_model(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Returns config.json of the language model alone; any other file is returned as it is.

    Raises UserError if the two parts of the file contradict each other.
    """
    if not is_nested(raw):
        return dict(raw)
    if "text_config" not in raw or not isinstance(raw["text_config"], dict):
        raise UserError(f"text_config: {KIND} needs an object with the fields of its text model")
    part, whole = dict(raw["text_config"]), {"tie_word_embeddings": True, **raw}
    for key in ("text_config", "model_type", *IMAGES):
        whole.pop(key, None)
    if whole.pop("architectures", None) not in (None, [ARCHITECTURE]):
        raise UserError(f"architectures {raw['architectures']!r:.80}: must be [{ARCHITECTURE!r}]")
    part.pop("architectures", None)  # that of the whole counts
    if part.setdefault("model_type", TEXT) != TEXT:
        raise UserError(f"text_config.model_type is {part['model_type']!r:.80}; must be {TEXT!r}")
    for key in sorted(whole.keys() & part.keys()):
        harms = key not in ("dtype", "torch_dtype") and not harmless.is_harmless(key, part[key], 0)
        if harms and part[key] != whole[key]:
            raise UserError(f"{key} is {whole[key]!r:.80}, but {part[key]!r:.80} in text_config")
    if "final_logit_softcapping" in part and part["final_logit_softcapping"] is not None:
        raise UserError(f"final_logit_softcapping: {KIND} has none in transformers")
    return DEFAULTS | part | whole


def names(directory: Path, tensors: Iterable[str]) -> dict[str, str]:
    """Returns the name in a text model -> the name in the file, without the tensors for images.

    A tensor of unknown name keeps it. Raises UserError, naming `directory`, if a parameter is there
    under two names.
    """
    found: dict[str, str] = {}
    for stored in filter(lambda name: not UNREAD.match(name), tensors):
        prefix = next(filter(stored.startswith, PREFIXES), "")
        own = f"{PREFIXES[prefix] if prefix else ''}{stored.removeprefix(prefix)}"
        if own in found:
            raise UserError(f"{directory}: tensors {found[own]}, {stored} are the same parameter")
        found[own] = stored
    return found
