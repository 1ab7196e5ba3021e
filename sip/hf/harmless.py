"""Fields of config.json that do not change logits."""

from typing import Any

_IDS = "bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id decoder_start_token_id"
_TRAINING = (
    "initializer_range attention_dropout hidden_dropout hidden_dropout_prob attn_pdrop embd_pdrop "
    "resid_pdrop embedding_dropout dropout layerdrop router_aux_loss_coef router_jitter_noise "
    "output_router_logits gradient_checkpointing use_cache"
)
_GENERATION = (
    "do_sample max_length max_new_tokens min_length min_new_tokens num_beams num_beam_groups "
    "num_return_sequences temperature top_k top_p typical_p min_p epsilon_cutoff eta_cutoff "
    "repetition_penalty length_penalty diversity_penalty early_stopping no_repeat_ngram_size "
    "encoder_no_repeat_ngram_size bad_words_ids forced_bos_token_id forced_eos_token_id "
    "begin_suppress_tokens suppress_tokens exponential_decay_length_penalty "
    "remove_invalid_values cache_implementation prefix"
)
_BOOKKEEPING = (
    "_name_or_path name_or_path model_name tokenizer_class auto_map id2label label2id "
    "problem_type task_specific_params finetuning_task is_decoder is_llama_config torchscript "
    "tf_legacy_loss return_dict return_dict_in_generate output_attentions output_hidden_states "
    "output_scores unsloth_fixed transformers.js_config vocab_size_padded "
    "_sliding_window_pattern"
)
_KERNELS = (
    "_attn_implementation_autoset _attn_implementation _attn_implementation_internal "
    "_experts_implementation _experts_implementation_internal attn_implementation use_flash_attn "
    "use_flash_attention flash_attn _flash_attn_2_enabled"
)
FIELDS = frozenset(f"{_IDS} {_TRAINING} {_GENERATION} {_BOOKKEEPING} {_KERNELS}".split())
# Fields of other families that change nothing with these values.
ONLY = {
    "rope_interleaved": (False,),
    "use_bfloat16": (False, True),  # of TPUs; dtype decides
    "tie_encoder_decoder": (False,),
    "use_sliding_window": (False,),
}


def is_harmless(key: str, value: Any, layers: int) -> bool:
    """Returns True if a field changes no logits of a model with `layers` layers.

    These are fields of training, generation and bookkeeping, versions of tools, and fields that
    are null, or say in a family without such a choice that all layers have full attention.
    """
    if key in FIELDS or value is None or (key.endswith("_version") and isinstance(value, str)):
        return True
    if key in ONLY:
        return any(value is each for each in ONLY[key])
    if key == "max_window_layers":  # read where there is a window
        return type(value) is int
    return key == "layer_types" and value == ["full_attention"] * layers


def without_idle_rope(raw: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json without the rope settings that transformers ignores.

    An original length of type "linear", a factor 1 of type "default", and equal `mscale`s of type
    "yarn", which mean an attention factor of 1. An original length of 64.0 becomes 64.
    """
    ropes = {key: raw[key] for key in ("rope_scaling", "rope_parameters") if key in raw}
    return raw | {key: _active(rope) for key, rope in ropes.items() if isinstance(rope, dict)}


def _active(rope: dict[str, Any]) -> dict[str, Any]:
    given = lambda key, other=None: rope[key] if key in rope else other
    kind, trained = given("rope_type", given("type", "default")), "original_max_position_embeddings"
    found = dict(rope)
    if kind == "linear" or (kind == "default" and given("factor", 1.0) == 1.0):
        found.pop(trained, None)
    if kind == "default" and given("factor") == 1.0:
        del found["factor"]
    if kind == "yarn" and given("mscale") and given("mscale") == given("mscale_all_dim"):
        del found["mscale"], found["mscale_all_dim"]
        found.setdefault("attention_factor", 1.0)
    length = found[trained] if trained in found else 0
    if isinstance(length, float) and length.is_integer():
        found[trained] = int(length)
    return found
