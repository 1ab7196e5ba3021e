"""Converts published tokenizers from their original formats to tokenizer.json files."""

import base64
import functools
import json
from pathlib import Path

import pytest
from sentencepiece import sentencepiece_model_pb2

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "tokenizers"
PAIRWISE = DATA.parent / "pairwise"
SPACE = "\u2581"
UNIGRAM, CONTROL = 1, 3
QWEN = (  # pattern published by Qwen's authors
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = {
    "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True,
}  # fmt: skip


def shared(path):
    """Returns the path of a file in the shared data directory; skips the test without it."""
    if not (DATA / path).exists():
        pytest.skip(f"no tokenizers/{path} in the data directory beside the repository")
    return DATA / path


def added(id, content, special=True, **more):
    places = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
    return {"id": id, "content": content, **places, "special": special, **more}


def spec(model, *, tokens=(), **parts):
    """Returns the contents of a tokenizer.json."""
    empty = dict(truncation=None, padding=None, normalizer=None, pre_tokenizer=None)
    return {
        "version": "1.0", **empty, "post_processor": None, "decoder": None,
        "added_tokens": list(tokens), **parts, "model": model,
    }  # fmt: skip


def write(directory, found, **settings):
    """Writes tokenizer.json and tokenizer_config.json to a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(found))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def bpe(vocab, merges, **more):
    return {"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": None, **more}


def gpt2():
    vocab = json.loads(shared("gpt2/encoder.json").read_text(encoding="utf-8"))
    lines = shared("gpt2/vocab.bpe").read_text(encoding="utf-8").splitlines()
    end = "<|endoftext|>"
    found = spec(
        bpe(vocab, [line.split(" ") for line in lines[1:] if line]),
        tokens=[added(vocab[end], end)], pre_tokenizer=BYTE_LEVEL, decoder=BYTE_LEVEL,
    )  # fmt: skip
    return found, dict(bos_token=end, eos_token=end, unk_token=end)


@functools.cache
def letters():
    """Returns the character of each byte in byte-level vocabularies."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return {byte: chr(byte if byte in kept else next(others)) for byte in range(256)}


def _parts(piece, ranks):
    """Returns the two tokens that a token was merged from, found by merging in order of rank."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in zip(parts, parts[1:], strict=False)]
        at = min(range(len(pairs)), key=pairs.__getitem__)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def qwen(size=6_000):
    """Converts Qwen's tokenizer: its first `size` tokens (a valid BPE), and special tokens."""
    lines = shared("qwen/qwen.tiktoken").read_text().splitlines()[:size]
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines}
    name = lambda piece: "".join(letters()[byte] for byte in piece)
    vocab = {name(piece): rank for piece, rank in ranks.items()}
    merges = [list(map(name, _parts(piece, ranks))) for piece in ranks if len(piece) > 1]
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [added(len(vocab) + i, text) for i, text in enumerate(marks)]
    more = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
    tokens += [added(len(vocab) + 3 + i, text, special=False) for i, text in enumerate(more)]
    split = dict(type="Split", pattern={"Regex": QWEN}, behavior="Isolated", invert=False)
    steps = [split, BYTE_LEVEL | {"use_regex": False}]
    found = spec(
        bpe(vocab, merges), tokens=tokens, normalizer={"type": "NFC"}, decoder=BYTE_LEVEL,
        pre_tokenizer=dict(type="Sequence", pretokenizers=steps),
    )  # fmt: skip
    return found, dict(eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token=None)


def _model(path):
    return sentencepiece_model_pb2.ModelProto.FromString(shared(path).read_bytes())


def mistral(version):
    """Converts Mistral's SentencePiece BPE model.

    Merges are all splits of a piece into two pieces, sorted by the rank of the result.
    """
    pieces = _model(f"mistral/mistral_{version}.model").pieces
    vocab = {p.piece: i for i, p in enumerate(pieces)}
    splits = [
        (vocab[p.piece], p.piece[:i], p.piece[i:])
        for p in pieces if p.type == 1 for i in range(1, len(p.piece))
        if p.piece[:i] in vocab and p.piece[i:] in vocab
    ]  # fmt: skip
    merges = [[a, b] for _, a, b in sorted(splits, key=lambda s: (s[0], vocab[s[1]], vocab[s[2]]))]
    tokens = [added(i, p.piece) for i, p in enumerate(pieces) if p.type in (2, CONTROL)]
    prepend = {"type": "Prepend", "prepend": SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    fallback, fuse = {"type": "ByteFallback"}, {"type": "Fuse"}
    found = spec(
        bpe(vocab, merges, byte_fallback=True, fuse_unk=True) | {"unk_token": "<unk>"},
        tokens=tokens,
        normalizer=dict(type="Sequence", normalizers=[prepend, replace]),
        decoder=dict(type="Sequence", decoders=[back, fallback, fuse, strip]),
    )  # fmt: skip
    return found, dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram(name):
    """Converts a SentencePiece unigram model with its own normaliser."""
    model = _model(f"sentencepiece/{name}.model")
    chars = base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()
    steps = [{"type": "Precompiled", "precompiled_charsmap": chars}]
    meta = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
    vocab = [[p.piece, p.score] for p in model.pieces]
    tokens = [added(i, p.piece) for i, p in enumerate(model.pieces) if p.type in (2, CONTROL)]
    found = spec(
        dict(type="Unigram", unk_id=0, vocab=vocab, byte_fallback=False), tokens=tokens,
        normalizer=dict(type="Sequence", normalizers=steps), pre_tokenizer=meta, decoder=meta,
    )  # fmt: skip
    return found, dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")


MADE = {
    "gpt2": gpt2,
    "qwen": qwen,
    "qwen_whole": lambda: qwen(151_643),
    "mistral_v1": lambda: mistral("v1"),
    "mistral_v3": lambda: mistral("v3"),
    "test_model": lambda: unigram("test_model"),
    "test_ja_model": lambda: unigram("test_ja_model"),
}


@functools.cache
def directory(name, base):
    """Returns a directory in `base` with the files of the named tokenizer."""
    if name == "torchtitan_test":
        return shared("torchtitan_test/tokenizer.json").parent
    found, settings = MADE[name]()
    return write(base / name, found, **settings)


# A small tokenizer for tests.

CHARS = [*map(chr, range(33, 127)), "Ġ", "Ċ"]
LEVEL = dict(pre_tokenizer=BYTE_LEVEL, decoder=BYTE_LEVEL)


def small(path, *, words=("th", "the"), tokens=(), settings=(), **parts):
    """Writes a byte-level tokenizer of printable ASCII, with a few words and special tokens."""
    vocab = {text: i for i, text in enumerate([*CHARS, *words])}
    merges = [[word[:-1], word[-1]] for word in words]
    begin, end = added(len(vocab), "<bos>"), added(len(vocab) + 1, "<eos>")
    more = [added(len(vocab) + 2 + i, *token) for i, token in enumerate(tokens)]
    found = spec(bpe(vocab, merges), tokens=[begin, end, *more], **{**LEVEL, **parts})
    return write(path, found, **dict(dict(bos_token="<bos>", eos_token="<eos>"), **dict(settings)))
