"""Reads, copies and writes tokenizer files, generation_config.json and the ids of config.json.

Files of a Hugging Face checkpoint are copied unchanged. Our own tokenizer is converted.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sip import processes
from sip.hf import configs, writing
from sip.structs import UserError
from sip.text.classes import SPACE
from sip.text.special import CONFIG, read_object, with_text_part
from sip.text.tokenizer import FOLDER as KEPT_FILES
from sip.text.tokenizer import USER_DEFINED, SentencePiece, Tokenizer, load
from sip.text.tokenizer_json import HuggingFace

UNIGRAM = 1  # TrainerSpec.ModelType.UNIGRAM in sentencepiece_model.proto
# Matches the start of byte-token names and <unk> in a text. Splitting there keeps the tokenizer
# from reading such a string as the token.
NAMED = "<(?=unk>|0x[0-9A-F]{2}>)"
FOLDER = "huggingface"  # in a run directory: tokenizer files of the checkpoint it started from
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
    """Reads the tokenizer files of a Hugging Face checkpoint and its generation_config.json.

    The fields of config.json that a tokenizer reads are in the result's "config.json". Without a
    generation_config.json it is made from their token ids; without config.json from the
    tokenizer's. Raises UserError if there is no tokenizer.
    """
    path = Path(directory)
    kind, file = kind_of(path)
    found = {name: (path / name).read_bytes() for name in FILES if (path / name).is_file()}
    if (path / CONFIG).is_file():
        raw = with_text_part(read_object(path / CONFIG))
        kept = {
            name: raw[name] for name in (*writing.KEPT, "model_type", "vocab_size") if name in raw
        }
        found[CONFIG] = writing.as_json(kept)
        ids = {name: raw[name] for name in writing.IDS if name in raw}
    else:
        ids = _ids(load(kind, file))
    return {writing.GENERATION: writing.as_json(ids), **found}


def _ids(tokenizer: Tokenizer) -> dict[str, int | list[int]]:
    """Returns the token ids of generation_config.json."""
    stops = tokenizer.stops
    ends = list(stops) if len(stops) > 1 else tokenizer.eos
    return dict(zip(writing.IDS, (tokenizer.bos, ends, tokenizer.pad), strict=True))


def check(directory: str | Path, vocab_size: int) -> None:
    """Raises UserError if a checkpoint's tokenizer cannot be read, or has too many tokens.

    A line on stderr names added tokens that are left out: the model has no embedding for them.
    """
    kind, path = kind_of(directory)
    tokenizer = load(kind, path)
    assert isinstance(tokenizer, SentencePiece | HuggingFace)
    found = tokenizer.vocab_size
    if tokenizer.left_out and processes.lead():
        listed = ", ".join(map(repr, tokenizer.left_out))
        print(f"{path}: left out, beyond the model's vocabulary: {listed}", file=sys.stderr)
    if found > vocab_size:
        raise UserError(
            f"{path}: has {found} tokens, more than the model's vocab_size {vocab_size}; "
            "this is the tokenizer of another model"
        )


def kind_of(directory: str | Path) -> tuple[str, str]:
    """Returns (kind, file) of a checkpoint's tokenizer, the arguments of tokenizer.load.

    As in transformers, tokenizer.json takes precedence over tokenizer.model (SentencePiece), which
    may lack added tokens. Raises UserError if there is neither.
    """
    for name, kind in (("tokenizer.json", "huggingface"), ("tokenizer.model", "sentencepiece")):
        if (Path(directory) / name).is_file():
            return kind, str(Path(directory) / name)
    raise UserError(f"{directory}: contains neither tokenizer.model nor tokenizer.json")


def home(directory: str | Path) -> Path | None:
    """Returns the directory of the Hugging Face tokenizer files of a checkpoint or a run.

    Returns None for a run that did not start from a Hugging Face checkpoint.
    """
    path, kept = Path(directory), Path(directory) / FOLDER
    return kept if kept.exists() else path if configs.exists(path) else None


def source(directory: str | Path) -> Path | None:
    """Returns the directory of the Hugging Face tokenizer files of a checkpoint or a run.

    Unlike `home`, it finds files that a run has kept of the tokenizer in its config. Returns None
    if the run's tokenizer was trained.
    """
    kept = Path(directory) / KEPT_FILES
    return home(directory) or (kept if kept.is_dir() else None)


def write(files: Mapping[str, bytes], run_dir: str | Path) -> None:
    """Writes a checkpoint's tokenizer files into the folder FOLDER of a run directory."""
    (Path(run_dir) / FOLDER).mkdir(parents=True)
    for name, data in files.items():
        (Path(run_dir) / FOLDER / name).write_bytes(data)


def files(tokenizer: Tokenizer, max_len: int) -> dict[str, bytes]:
    """Converts our tokenizer to Hugging Face files.

    The converted tokenizer returns the same ids, after BOS. Texts must not contain U+2581, which it
    reads as a space. Raises UserError for a tokenizer that is not a SentencePiece unigram model.
    """
    if not isinstance(tokenizer, SentencePiece):
        raise UserError("export: the tokenizer is not a SentencePiece unigram model")
    found = tokenizer_files(tokenizer, max_len)
    found[writing.GENERATION] = _ids(tokenizer)
    return {name: writing.as_json(value) for name, value in found.items()}


def tokenizer_files(tokenizer: SentencePiece, max_len: int) -> dict[str, Any]:
    """Returns the contents of tokenizer.json and tokenizer_config.json.

    Raises UserError for a SentencePiece model that is not a unigram model.
    """
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
    """Returns an added token of tokenizer.json.

    User-defined symbols are matched after the normaliser, which has replaced their spaces as in the
    model's vocabulary. Special tokens are matched before it.
    """
    places = {"single_word": False, "lstrip": False, "rstrip": False}
    return {"id": id, "content": text, **places, "normalized": not special, "special": special}
