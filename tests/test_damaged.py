"""Tests that a published checkpoint with any field of its JSON files damaged is read or refused.

Refused means one UserError of one line; no other exception may reach the user.
"""

import copy
import itertools
import json

import families
import pytest
from published import BYTE_LEVEL, SPACE, added, bpe, small, spec, write

from sip import mesh
from sip.hf import configs, reading, spelling, tokens, writing
from sip.structs import UserError
from sip.text import chat
from sip.text.tokenizer import MODEL, train_sentencepiece

pytest.importorskip("tokenizers", reason="needs tokenizers")

GONE = object()  # the field is deleted
VALUES = (None, [], {}, "x", -1, 0.5, 10**18, float("inf"), "\ud800", GONE)
EVERY = 61  # in the fast test, one of so many cases; it shares no factor with the number of values
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def llama(path):
    """Byte-level BPE, with tokens added in both files."""
    single = [{"SpecialToken": {"id": "<bos>", "type_id": 0}}]
    single += [{"Sequence": {"id": "A", "type_id": 0}}]
    known = {"<bos>": {"id": "<bos>", "ids": [98], "tokens": ["<bos>"]}}
    post = dict(type="TemplateProcessing", single=single, pair=single, special_tokens=known)
    settings = dict(
        tokenizer_class="PreTrainedTokenizerFast", add_bos_token=True, legacy=False,
        additional_special_tokens=["<|a|>"], chat_template="{{ messages[0].content }}",
        added_tokens_decoder={"100": dict(content="<|a|>", special=True)},
    )  # fmt: skip
    more = [("<|a|>",), ("<|b|>", False)]
    small(path, tokens=more, settings=settings, post_processor=post)
    return {**families.config("llama31"), "vocab_size": 128}


def qwen(path):
    """A class that takes only the vocabulary from the file."""
    split = dict(type="Split", pattern={"Regex": "a"}, behavior="Isolated", invert=False)
    steps = dict(type="Sequence", pretokenizers=[split, BYTE_LEVEL])
    settings = dict(tokenizer_class="Qwen2Tokenizer", bos_token=None)
    small(path, settings=settings, normalizer={"type": "NFC"}, pre_tokenizer=steps)
    return {**families.config("qwen25_odd"), "vocab_size": 128, "sliding_window": 5}


def gemma(path):
    """BPE with bytes and a sequence of decoders; a model of text and images."""
    first = ["<pad>", "<eos>", "<bos>", "<unk>"]
    texts = [*first, SPACE, "a", "b", f"{SPACE}a", "ab", *BYTES]
    vocab = {text: i for i, text in enumerate(texts)}
    model = bpe(vocab, [[SPACE, "a"], ["a", "b"]], byte_fallback=True, fuse_unk=True)
    space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    found = spec(
        {**model, "unk_token": "<unk>"}, tokens=[added(i, text) for i, text in enumerate(first)],
        normalizer=space,
        decoder=dict(type="Sequence", decoders=[back, {"type": "ByteFallback"}, {"type": "Fuse"}]),
    )  # fmt: skip
    write(
        path, found, tokenizer_class="GemmaTokenizer", bos_token="<bos>", pad_token="<pad>",
        eos_token={"content": "<eos>"}, extra_special_tokens={"image_token": "<pad>"},
    )  # fmt: skip
    part = {**families.config("gemma3"), "vocab_size": 300}
    return {"model_type": "gemma3", "text_config": part, "image_token_index": 299}


def unigram(path):
    """A Unigram vocabulary with bytes, and longrope."""
    first = ["<unk>", "<s>", "</s>"]
    vocab = [[text, -float(i)] for i, text in enumerate([*first, SPACE, "a", "b", *BYTES])]
    meta = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
    model = dict(type="Unigram", unk_id=0, vocab=vocab, byte_fallback=True)
    tokens = [added(i, text) for i, text in enumerate(first)]
    found = spec(model, tokens=tokens, pre_tokenizer=meta, decoder=meta)
    write(path, found, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    return {**families.config("phi3_odd"), "vocab_size": 300}


def pieces(path):
    """A tokenizer.model with tokens added beside it."""
    model = train_sentencepiece(["a river", "b light"] * 9, path / MODEL, vocab_size=290)
    V = model.vocab_size  # fewer than asked for, from so little text
    files = {"added_tokens": {"<|a|>": V, "<|b|>": V + 1}, "tokenizer_config": {"legacy": False}}
    files["special_tokens_map"] = {"eos_token": {"content": "<|a|>"}, "unk_token": "<unk>"}
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return {**families.config("mistral_odd"), "vocab_size": 300}


FAMILIES = (llama, qwen, gemma, unigram, pieces)


def places(value, at=()):
    """Yields the paths of all fields; of a long list or vocabulary those of the first entries."""
    yield at
    if isinstance(value, dict | list):
        for key in itertools.islice(value if isinstance(value, dict) else range(len(value)), 30):
            if isinstance(value, dict) or key < 3:
                yield from places(value[key], (*at, key))


def changed(value, at, new):
    """Returns `value` with the field at a path replaced or deleted."""
    if not at:
        return None if new is GONE else new
    found = copy.deepcopy(value)
    *above, last = at
    inner = found
    for key in above:
        inner = inner[key]
    if new is GONE:
        del inner[last]
    else:
        inner[last] = new
    return found


def read(path, weights: bool) -> None:
    """Does what commands do with a published checkpoint before they run it."""
    if not configs.exists(path):
        return
    tokens.published(path)
    cfg = configs.read(path)
    tokens.check(path, cfg.vocab_size)
    tok = tokens.load(*tokens.kind_of(path))
    tok.decode([*tok.encode(f"a b<eos> <0x41>{SPACE} c"), 0, 1, 10**6])
    tok.plain("the <|a|>")
    tok.encode_special("<bos>a<eos>")
    list(map(tok.starts, range(5)))
    spelling.published(tok, path).whole("<bos>a")
    spelling.prompt(tok, "a", as_published=True)
    chat.load("turns", tok)
    if weights:
        writing.as_json(configs.to_json(reading.load(path, mesh.single())[1]))


def damages(path):
    """Yields (file, its contents with one damage) of all JSON files of a checkpoint."""
    for file in sorted(path.glob("*.json")):
        whole = json.loads(file.read_text())
        for at, new in itertools.product(places(whole), VALUES):
            yield file, at, new, json.dumps(changed(whole, at, new))


def refused(path, cases) -> int:
    """Reads the checkpoint with each damage; returns how many are refused."""
    before = {file: file.read_text() for file in path.glob("*.json")}
    count = 0
    for file, at, new, text in cases:
        file.write_text(text)
        try:
            read(path, weights=file.name == "config.json")
        except UserError as error:
            count += 1
            assert "\n" not in str(error) and str(error).encode(), (file.name, at, new)
        except Exception as error:
            raise AssertionError(f"{file.name} {at} = {new!r}: {error!r}") from error
        finally:
            file.write_text(before[file])
    return count


def prepared(family, path):
    raw = {**family(path), "tokenizer_class": None, "eos_token_id": [1, 2], "pad_token_id": 0}
    families.write(raw, path)
    ids = dict(bos_token_id=1, eos_token_id=[1, 2], pad_token_id=0, temperature=0.5)
    (path / "generation_config.json").write_text(json.dumps(ids))
    read(path, weights=True)
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_a_damaged_field_is_one_line_or_harmless(family, tmp_path):
    path = prepared(family, tmp_path)
    cases = list(itertools.islice(damages(path), 0, None, EVERY))
    assert len(cases) / 3 < refused(path, cases) < len(cases)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_damaged_field_is_one_line_or_harmless(family, tmp_path):
    path = prepared(family, tmp_path)
    assert refused(path, damages(path)) > 300


@pytest.mark.slow
@pytest.mark.parametrize("name", families.CASES)
def test_every_damaged_field_of_a_config_is_one_line_or_harmless(name, tmp_path):
    raw = {**families.config(name), "torch_dtype": "bfloat16"}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(raw))
    for _, at, new, text in damages(tmp_path):
        file.write_text(text)
        try:
            if configs.exists(tmp_path):
                cfg = configs.read(tmp_path)
                writing.as_json(configs.to_json(cfg))
        except UserError as error:
            assert "\n" not in str(error) and str(error).encode(), (at, new)
