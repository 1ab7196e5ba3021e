"""Tests Hugging Face tokenizers: parts join, text stays text, ids are those of the library."""

import json

import hostile
import published
import pytest
import seams
from published import CHARS, bpe, small, spec

from sip.structs import UserError
from sip.text.tokenizer import Byte, SentencePiece, continuation, load
from sip.text.tokenizer_json import HuggingFace

tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers")

slow = lambda *names: [pytest.param(name, marks=pytest.mark.slow) for name in names]
LARGE = slow("gpt2", "mistral_v1")
LOSSLESS = ["qwen", *LARGE]
FAST = [*LOSSLESS, "test_model", "test_ja_model", "torchtitan_test"]
SLOW = slow("mistral_v3", "qwen_whole")
ODD = [
    "", " ", "\n", "  two  spaces ", "a\r\n\tb\n\n\n c", "\x00\x07", "日本語 é ﬁ", "😀 x\u200b",
    "\ufeffbom", "a\u2581b \u2581", "\ufffd", "<s></s><pad><unk><0x41><0xE2><0x96><0x81>",
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("published")


def opened(name, base):
    return load("huggingface", published.directory(name, base))


def story(file="text/tinystories/tiny_stories.txt", size=6000):
    return published.shared(f"../{file}").read_text(encoding="utf-8")[:size]


def never(tok):
    """Returns ids that no text may have; without byte tokens an unknown character may be <unk>."""
    every = {*tok.specials.values(), tok.bos, tok.eos, tok.pad, *tok.stops}
    return every - ({tok.specials["<unk>"]} if "<unk>" in tok.specials else set())


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_ids_of_plain_text_are_those_of_the_library(name, base):
    tok, path = opened(name, base), published.directory(name, base) / "tokenizer.json"
    theirs = tokenizers.Tokenizer.from_file(str(path))
    prefixed = theirs.encode("a", add_special_tokens=False).ids != tok.encode("a")
    assert prefixed == (name in ("mistral_v1", "mistral_v3", "test_model", "test_ja_model"))
    for text in [story(), story("text/sentencepiece/wagahaiwa_nekodearu.txt", 2000), "x  y\n\nz"]:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert tok.encode(" " * prefixed + text) == tok.plain(" " * prefixed + text) == ids


@pytest.mark.parametrize("name", [*slow("mistral_v1"), "test_model", "test_ja_model"])
def test_ids_are_those_of_the_sentencepiece_model_that_it_was_made_from(name, base):
    folder = "mistral" if "mistral" in name else "sentencepiece"
    theirs = SentencePiece(published.shared(f"{folder}/{name}.model"))
    tok = opened(name, base)
    for text in [story(), story("text/sentencepiece/wagahaiwa_nekodearu.txt", 2000)]:
        assert tok.encode(text) == theirs.encode(text)
    assert (tok.bos, tok.eos, tok.pad) == (theirs.bos, theirs.eos, theirs.pad)


@pytest.mark.parametrize("name", LOSSLESS)
def test_any_text_comes_back(name, base):
    tok = opened(name, base)
    for text in [*ODD, story(), *hostile.TEXTS.values()]:
        if name == "qwen" and text in hostile.TEXTS["combining marks"]:
            continue  # its normaliser composes them
        back = text.encode(errors="replace").decode()
        assert tok.decode(tok.encode(text)) == tok.decode(tok.plain(text)) == back


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_hostile_text_never_becomes_a_special_token(name, base):
    tok = opened(name, base)
    own = [f" a{text}b {text} {text[:-1]} {text[0]}{text}" for text in tok.specials]
    assert len(never(tok)) >= 1
    for text in [*hostile.TEXTS.values(), *hostile.SPECIALS, *own]:
        assert never(tok).isdisjoint(tok.encode(text)), text
        assert never(tok).isdisjoint(tok.plain(text)), text


@pytest.mark.parametrize("name", LARGE)
def test_the_library_itself_parses_special_tokens_out_of_text(name, base):
    """Shows the result of the test above without our protection."""
    path = published.directory(name, base) / "tokenizer.json"
    end = "</s>" if name == "mistral_v1" else "<|endoftext|>"
    ids = tokenizers.Tokenizer.from_file(str(path)).encode(end, add_special_tokens=False).ids
    assert opened(name, base).eos in ids


@pytest.mark.parametrize("name", ["qwen", "mistral_v1", *slow("gpt2")])
def test_decoded_parts_join_wherever_the_text_is_cut(name, base):
    tok, text = opened(name, base), " So she said:\n \n\"It's 5  o'clock <s>\", é€\u2581. "
    for i in range(len(text) + 1):
        assert tok.decode(tok.encode(text[:i]) + tok.encode(text[i:])) == text


SHARE = {"gpt2": 1.0, "qwen": 1.0, "mistral_v1": 1.0, "test_model": 0.98, "test_ja_model": 0.98}


@pytest.mark.parametrize("name", [*LOSSLESS, "test_model", "test_ja_model"])
def test_tokens_of_parts_are_tokens_of_the_whole_at_word_boundaries(name, base):
    tok, text = opened(name, base), story(size=3000)
    whole = tok.encode(text)
    cuts = [i for i in range(1, len(text) - 1) if text[i - 1].isalpha() and text[i] == " "][::7]
    same = [tok.encode(text[:i]) + tok.encode(text[i:]) == whole for i in cuts]
    assert len(cuts) > 30 and sum(same) >= SHARE[name] * len(same)


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_continuation_leaves_no_broken_character(name, base):
    tok, text = opened(name, base), "on €5 é 𓀀"
    ids = tok.encode(text)
    texts = [continuation(tok, ids[:i], ids[i:]) for i in range(len(ids) + 1)]
    assert all(text.endswith(each) and "\ufffd" not in each for each in texts)
    broken = [i for i in range(len(ids)) if "\ufffd" in tok.decode(ids[:i])]
    assert broken
    for i in broken:
        assert tok.decode(ids[:i]).rstrip("\ufffd") + texts[i] == text


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_a_continuation_needs_only_the_last_tokens_of_its_prefix(name, base):
    tok = opened(name, base)
    assert seams.check(tok, [story(size=300), *filter(tok.encode, ODD)], rounds=100) > 0.3


@pytest.mark.parametrize("decoder", [None, dict(type="WordPiece", prefix="##", cleanup=True)])
def test_a_decoder_that_joins_tokens_by_their_places_decodes_the_whole_prefix(decoder, tmp_path):
    tok = HuggingFace(small(tmp_path, words=("ab",), decoder=decoder))
    a, b = tok.encode("ab"), tok.encode("a")
    assert tok.decode([*a, *b]) != tok.decode(a) + tok.decode(b)
    assert not any(map(tok.starts, range(tok.vocab_size)))


# Small ones written here.


def test_a_special_token_that_the_vocabulary_can_spell_is_not_found_in_text(tmp_path):
    settings = dict(additional_special_tokens=["end"])
    path = small(tmp_path, words=("en", "end"), settings=settings)
    theirs = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json")).encode("end").ids
    tok = HuggingFace(path)
    assert theirs == tok.encode_special("end") == [len(CHARS) + 1] == [tok.specials["end"]]
    assert tok.encode("end") == tok.plain("end") == [len(CHARS), CHARS.index("d")]


def test_phrases_come_out_of_encode_and_not_of_plain(tmp_path):
    tokens = [("<think>", False), ("  ", False), ("word", False), ("<|x|>", True)]
    tok = HuggingFace(small(tmp_path, tokens=tokens))
    think, spaces, word, x = (tok.vocab_size - 4 + i for i in range(4))
    text = "<think>  word<|x|>"
    assert {think, spaces, word} <= set(tok.encode(text)) and x not in tok.encode(text)
    assert {spaces, word} <= set(tok.plain(text)) and {think, x}.isdisjoint(tok.plain(text))
    assert tok.encode_special(text) == [think, spaces, word, x]
    assert tok.decode(tok.plain(text)) == tok.decode(tok.encode(text)) == text


@pytest.mark.slow
def test_the_strings_of_a_template_become_special_tokens_and_its_other_words_do_not(base):
    for tok in (opened("mistral_v1", base), Byte()):
        ids = tok.encode_special("</s>a<s>b")
        assert ids[0] == tok.eos and tok.bos in ids and tok.decode(ids).replace(" ", "") == "ab"
    tok = opened("mistral_v1", base)
    theirs = tokenizers.Tokenizer.from_file(str(tok.path))
    text = "<s>[INST] Hello, you [/INST] there</s>[INST] so"
    assert tok.encode_special(text) == theirs.encode(text, add_special_tokens=False).ids
    assert tok.encode_special(" [/INST]") == tok.encode(" [/INST]"), "it goes on: no space more"


def test_a_template_of_a_sentencepiece_model_has_its_control_tokens():
    tok = SentencePiece(published.shared("mistral/mistral_v3.model"))
    ids = tok.encode_special("<s>[INST] Hi[/INST]")
    assert ids == [tok.bos, 3, *tok.encode(" Hi"), 4] and 3 not in tok.encode("[INST]")


@pytest.mark.parametrize(
    ("settings", "config", "want"),
    [
        ({}, {}, (0, 1, 1, (1,))),
        ({"bos_token": None}, {}, (1, 1, 1, (1,))),  # documents follow the end of others
        ({"bos_token": None}, {"bos_token_id": 5 - 95}, (5 - 95, 1, 1, (1,))),
        ({"pad_token": "<bos>"}, {}, (0, 1, 0, (1,))),
        ({"eos_token": {"content": "<eos>"}}, {"eos_token_id": [0, 1]}, (0, 1, 1, (1, 0))),
        ({"eos_token": None}, {"eos_token_id": 0}, (0, 0, 0, (0,))),
    ],
)
def test_bos_eos_pad_and_stops_come_from_the_files_beside_it(settings, config, want, tmp_path):
    path, first = small(tmp_path, settings=settings), len(CHARS) + 2
    moved = lambda x: [i + first for i in x] if isinstance(x, list) else x + first
    values = {key: moved(x) for key, x in config.items()}
    (path / "generation_config.json").write_text(json.dumps(values))
    tok = load("huggingface", path / "tokenizer.json")
    bos, eos, pad, stops = want
    assert (tok.bos, tok.eos, tok.pad) == (bos + first, eos + first, pad + first)
    assert tok.stops == tuple(i + first for i in stops) and tok.vocab_size == first + 2


def test_gpt2_and_qwen_begin_documents_with_what_ends_them(base):
    gpt2, qwen = (opened(name, base) for name in ("gpt2", "qwen"))
    assert gpt2.bos == gpt2.eos == 50256 and gpt2.vocab_size == 50257
    assert (qwen.bos, qwen.pad) == (qwen.eos, qwen.specials["<|endoftext|>"])


SETTINGS = "tokenizer_config.json"
MOVED = {"eos_token": "<eos>", "added_tokens_decoder": {"3": {"content": "<bos>"}}}
BAD = {  # what is wrong: the file it is in, and what stands there
    "half": ("tokenizer.json", '{"model": {"vocab"'),
    "no model": ("tokenizer.json", '{"kind": "byte"}'),
    "merge": ("tokenizer.json", json.dumps(spec(bpe({"a": 0}, [["qq", "q"]])))),
    "settings": (SETTINGS, "[]"),
    "no eos": (SETTINGS, "{}"),
    "another's": (SETTINGS, '{"eos_token": "<|end|>"}'),
    "number": (SETTINGS, json.dumps(MOVED)),
    "ids": ("generation_config.json", '{"eos_token_id": [1, 128009]}'),
    "small": ("config.json", '{"vocab_size": 90}'),
}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("missing", "neither a tokenizer.json nor"),
        ("half", "tokenizer.json: not a JSON file"),
        ("no model", "tokenizer.json: not a tokenizer.json"),
        ("merge", "tokenizer.json: not a tokenizer that can be read"),
        ("settings", "tokenizer_config.json: not a JSON object"),
        ("no eos", "names no eos_token"),
        ("another's", "no token '<\\|end\\|>'"),
        ("number", "token '<bos>' is 98, and 3"),
        ("ids", "token id 128009 .* not among its 100"),
        ("small", "100 tokens, .*vocab_size of 90"),
    ],
)
def test_a_bad_file_is_named_in_one_line(damage, said, tmp_path):
    path = small(tmp_path)
    (path / "tokenizer.json").unlink() if damage == "missing" else None
    if damage in BAD:
        file, text = BAD[damage]
        (path / file).write_text(text)
    if damage == "merge":
        (path / SETTINGS).write_text('{"eos_token": "a"}')
    with pytest.raises(UserError, match=said) as error:
        load("huggingface", path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
