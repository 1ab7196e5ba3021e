"""Tokenizer files and generation_config.json: ours written as theirs, theirs kept as they are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sip.hf import configs, writing
from sip.structs import UserError
from sip.text.tokenizer import USER_DEFINED, SentencePiece, Tokenizer, load
from sip.text.tokenizer_json import SPACE

UNIGRAM = 1  # a number of sentencepiece_model.proto
# Names of byte tokens and of the unknown one, which must not be read out of text.
NAMED = "<(?=unk>|0x[0-9A-F]{2}>)"
FOLDER = "huggingface"  # in a run's directory: the tokenizer of the checkpoint it was made from
FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    writing.GENERATION,
)


def published(directory: str | Path) -> dict[str, bytes]:
    """The tokenizer files of a checkpoint, and its ids: of config.json where it has no others.

    Raises UserError where there is no tokenizer, or nothing that names its ids.
    """
    path = Path(directory)
    kind_of(path)
    found = {name: (path / name).read_bytes() for name in FILES if (path / name).is_file()}
    if writing.GENERATION in found:
        return found
    if not configs.exists(path):
        raise UserError(f"{path}: neither {writing.GENERATION} nor config.json names its ids")
    raw = json.loads((path / "config.json").read_text())
    ids = {name: raw[name] for name in writing.IDS if name in raw}
    return {**found, writing.GENERATION: writing.as_json(ids)}


def check(directory: str | Path, vocab_size: int) -> None:
    """Raises UserError where a checkpoint's tokenizer cannot be read, or is another model's."""
    kind, path = kind_of(directory)
    found = load(kind, path).vocab_size
    if found > vocab_size:
        raise UserError(
            f"{path}: it has {found} tokens, the model a vocab_size of {vocab_size}: "
            "is this another model's tokenizer?"
        )


def kind_of(directory: str | Path) -> tuple[str, str]:
    """Kind and file of a checkpoint's tokenizer, for tokenizer.load; a SentencePiece model first.

    Raises UserError where there is neither.
    """
    for name, kind in (("tokenizer.model", "sentencepiece"), ("tokenizer.json", "huggingface")):
        if (Path(directory) / name).is_file():
            return kind, str(Path(directory) / name)
    raise UserError(f"{directory}: neither tokenizer.model nor tokenizer.json")


def home(directory: str | Path) -> Path | None:
    """Where the files lie of a checkpoint, or of a run that was made from one; None: of neither."""
    path, kept = Path(directory), Path(directory) / FOLDER
    return kept if kept.exists() else path if configs.exists(path) else None


def write(files: Mapping[str, bytes], run_dir: str | Path) -> None:
    """Keeps a checkpoint's own files in the directory of a run that is made from it."""
    (Path(run_dir) / FOLDER).mkdir(parents=True)
    for name, data in files.items():
        (Path(run_dir) / FOLDER / name).write_bytes(data)


def files(tokenizer: Tokenizer, max_len: int) -> dict[str, bytes]:
    """The files of a tokenizer of ours.

    It gives our ids, BOS before them; text may not hold U+2581, which it reads as a space. Raises
    UserError for a tokenizer that is no SentencePiece unigram model.
    """
    if not isinstance(tokenizer, SentencePiece):
        raise UserError("export: the tokenizer is not a SentencePiece unigram model")
    ids = (tokenizer.bos, tokenizer.eos, tokenizer.pad)
    found = tokenizer_files(tokenizer, max_len)
    found[writing.GENERATION] = dict(zip(writing.IDS, ids, strict=True))
    return {name: writing.as_json(value) for name, value in found.items()}


def tokenizer_files(tokenizer: SentencePiece, max_len: int) -> dict[str, Any]:
    """tokenizer.json and tokenizer_config.json."""
    model = tokenizer.proto()
    if model.trainer_spec.model_type != UNIGRAM:
        raise UserError("export: the tokenizer is not a SentencePiece unigram model")
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    special = {i: piece for piece, i in tokenizer.specials.items()}
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
