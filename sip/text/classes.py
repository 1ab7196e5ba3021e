"""Tokenizer classes of transformers 5: some take the vocabulary from a file and replace the rest.

Prompts of published checkpoints are encoded as transformers encodes them, so such a class counts
more than its file. Checked against transformers 5.24: `AutoTokenizer.from_pretrained` and the
classes' own files.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

SPACE = "\u2581"  # the character that stands for a space inside tokens
LLAMA, CODE_LLAMA, GEMMA = "LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer"
QWEN2, GPT2, NEOX = "Qwen2Tokenizer", "GPT2Tokenizer", "GPTNeoXTokenizer"
AS_FILED = "TokenizersBackend"
# Model types whose class does not come from the checkpoint alone.
REGISTERED = dict.fromkeys(("mistral", "mixtral", "olmo2", "olmo3", "phi3", "granite"), AS_FILED)
REGISTERED |= dict.fromkeys(("gemma2", "gemma3", "gemma3_text"), GEMMA)
REGISTERED |= dict.fromkeys(("qwen2", "qwen3", "qwen3_moe"), QWEN2)
MISNAMED = ("qwen2",)  # many of their checkpoints name a wrong class, which is ignored
WORDS = (  # pattern of Qwen2Tokenizer
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NFC = {"type": "NFC"}


def chosen(named: str | None, model_type: Any) -> str:
    """Returns the class that transformers uses for a checkpoint that names the class `named`."""
    own = REGISTERED[model_type] if model_type in REGISTERED else ""
    if not named:
        return own or AS_FILED
    named = named.removesuffix("Fast")
    return own if own == AS_FILED or model_type in MISNAMED else named


def rebuilt(spec: Mapping[str, Any], kind: str, space: bool | None, legacy: bool) -> dict[str, Any]:
    """Returns a tokenizer.json as the class `kind` changes it; its post-processor stays.

    A Unigram or WordPiece model is kept, and so is a byte-level file with the class LlamaTokenizer.

    Args:
        spec: Contents of the file.
        kind: Name of the class.
        space: add_prefix_space of the settings; None: not stated.
        legacy: A space is also put before a text after a special token.
    """
    model = spec["model"]
    if kind not in PARTS or model["type"] != "BPE" or (kind == LLAMA and _byte_level(spec)):
        return dict(spec)
    parts = PARTS[kind](space, legacy)
    fallback = kind in (LLAMA, CODE_LLAMA, GEMMA)
    own = {"type": "BPE", "vocab": model["vocab"], "merges": model["merges"]}
    own |= dict(fuse_unk=fallback, byte_fallback=fallback, unk_token=None)
    if kind in (CODE_LLAMA, GEMMA) and "<unk>" in model["vocab"]:
        own["unk_token"] = "<unk>"
    return {**spec, "normalizer": None, **parts, "model": own}


def post_processor(filed: Any, kind: str, bos: tuple[str, int]) -> Any:
    """Returns the post-processor: the file's, except of classes that have their own.

    `bos` is text and id of BOS.
    """
    if kind == NEOX:
        return None
    if kind != CODE_LLAMA:
        return filed
    text, id = bos
    single = [{"SpecialToken": {"id": text, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
    known = {text: {"id": text, "ids": [id], "tokens": [text]}}
    return dict(type="TemplateProcessing", single=single, pair=pair, special_tokens=known)


def merges(vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Returns the merges of LlamaTokenizer for a SentencePiece vocabulary: by id, not by score."""
    found = [
        (vocab[text], at, text)
        for text in vocab
        for at in range(1, len(text))
        if text[:at] in vocab and text[at:] in vocab
    ]
    return [(text[:at], text[at:]) for _, at, text in sorted(found)]


def _byte_level(spec: Mapping[str, Any]) -> bool:
    parts = [spec[key] if key in spec else None for key in ("pre_tokenizer", "decoder")]
    return '"ByteLevel"' in json.dumps(parts)


def _metaspace(space: bool | None, scheme: str) -> dict[str, Any]:
    scheme = "never" if space is False else scheme
    meta = dict(type="Metaspace", replacement=SPACE, prepend_scheme=scheme, split=False)
    return {"pre_tokenizer": meta}


def _bytes(space: bool | None, pattern: bool = True) -> dict[str, Any]:
    return dict(
        type="ByteLevel", add_prefix_space=space is True, trim_offsets=True, use_regex=pattern
    )


def _qwen2(space: bool | None, legacy: bool) -> dict[str, Any]:
    del legacy
    split = dict(type="Split", pattern={"Regex": WORDS}, behavior="Isolated", invert=False)
    steps = dict(type="Sequence", pretokenizers=[split, _bytes(space, pattern=False)])
    return {"normalizer": NFC, "pre_tokenizer": steps}


def _gemma(space: bool | None, legacy: bool) -> dict[str, Any]:
    del space, legacy  # no space is put before a text
    return {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": None,  # it has one that splits at spaces, but none is left
    }


PARTS: Mapping[str, Callable[[bool | None, bool], dict[str, Any]]] = {
    LLAMA: lambda space, legacy: _metaspace(space, "always" if legacy else "first"),
    CODE_LLAMA: lambda space, _: _metaspace(space, "first"),
    GEMMA: _gemma,
    QWEN2: _qwen2,
    GPT2: lambda space, _: {"pre_tokenizer": _bytes(space)},
    NEOX: lambda space, _: {"normalizer": NFC, "pre_tokenizer": _bytes(space)},
}
