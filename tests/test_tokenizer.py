"""Tests that parts join, texts round-trip, and texts never become special tokens."""

import os
import signal
from pathlib import Path

import pytest
import seams
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from sip.structs import UserError
from sip.text import tokenizer as tokenizers

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
WORDS = "the cat sat on a mat and 12 dogs ran far away because it was late in town".split()
STORY = [f"{' '.join(WORDS[i % 9 : i % 9 + 7])}, {WORDS[i % 17]}!\n\nThe  End" for i in range(300)]
ODD = [
    "", " ", "\n", "  two  spaces ", "a\r\n\tb\n\n\n c", "\x00\x07", "日本語 é e\u0301 ﬁ",
    "😀 x\u200b", "\ufeffbom", "a\u2581b \u2581", "\ufffd", "<s></s><pad><unk><0x41>",
]  # fmt: skip


def shared(path):
    if not (DATA / path).exists():
        pytest.skip(f"no {path} in the data directory beside the repository")
    return DATA / path


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "deep" / "story.model"
    return tokenizers.train_sentencepiece(STORY, path, vocab_size=300, symbols=("[A]", "Yes, no"))


@pytest.fixture(
    params=[
        "ours", "byte", "tinystories", "mistral",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("botchan", "wikitext-2")),
    ]
)  # fmt: skip
def lossless(request, tmp_path_factory):
    """Tokenizers without a normaliser: ours, and a published one with a dummy prefix."""
    name = request.param
    if name in ("ours", "byte"):
        return tokenizers.Byte() if name == "byte" else request.getfixturevalue("ours")
    if name == "mistral":
        return tokenizers.SentencePiece(shared("tokenizers/mistral/mistral_v1.model"))
    path = tmp_path_factory.getbasetemp() / f"{name}.model"
    if path.exists():
        return tokenizers.SentencePiece(path)
    return tokenizers.train_sentencepiece(real_text(name).split("\n"), path, vocab_size=800)


def real_text(name):
    files = {
        "tinystories": "text/tinystories/tiny_stories.txt",
        "botchan": "text/sentencepiece/botchan.txt",
        "wikitext-2": "text/wikitext-2/valid.txt",
        "japanese": "text/sentencepiece/wagahaiwa_nekodearu.txt",
    }
    return shared(files[name]).read_text(encoding="utf-8")[:200_000]


@pytest.mark.parametrize("text", ODD)
def test_any_text_comes_back(lossless, text):
    assert lossless.decode(lossless.encode(text)) == text


@pytest.mark.parametrize("name", ["tinystories", "botchan", "wikitext-2", "japanese"])
def test_real_text_comes_back(lossless, name):
    text = real_text(name)[:50_000]
    assert lossless.decode(lossless.encode(text)) == text


@pytest.mark.parametrize("name", ["tinystories", "botchan", "wikitext-2"])
def test_tokens_of_parts_are_tokens_of_the_whole_at_word_boundaries(lossless, name):
    text = real_text(name)[:3000]
    whole = lossless.encode(text)
    cuts = [i for i in range(1, len(text) - 1) if text[i - 1].isalpha() and text[i] == " "][::7]
    assert len(cuts) > 30
    for i in cuts:
        assert lossless.encode(text[:i]) + lossless.encode(text[i:]) == whole, text[i - 9 : i + 9]


def test_decoded_parts_join_wherever_the_text_is_cut(lossless):
    text = " So she said:\n \n\"It's 5  o'clock <s>\", é\u2581. "
    for i in range(len(text) + 1):
        ids = lossless.encode(text[:i]) + lossless.encode(text[i:])
        assert lossless.decode(ids) == text


def test_a_shipped_model_would_lose_the_space_between_parts():
    """Shows the result of the tests above with the dummy prefix left on."""
    path = shared("tokenizers/mistral/mistral_v1.model")
    shipped = sentencepiece.SentencePieceProcessor(model_file=str(path))
    adapted = tokenizers.SentencePiece(path)
    assert shipped.decode(shipped.encode("a") + shipped.encode("b")) == "a b"
    assert adapted.decode(adapted.encode("a") + adapted.encode("b")) == "ab"
    assert adapted.encode(" word") == shipped.encode("word") != adapted.encode("word")


@pytest.mark.parametrize("name", ["mistral/mistral_v3", "sentencepiece/test_model"])
def test_the_switch_equals_editing_the_model(name):
    path = shared(f"tokenizers/{name}.model")
    proto = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    edited = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    ours = tokenizers.SentencePiece(path)
    for text in ["a  b", " x", "ﬁne café ", real_text("botchan")[:5000]]:
        assert ours.encode(text) == edited.encode(text)
    assert proto.normalizer_spec.precompiled_charsmap or name.startswith("mistral")


def test_special_tokens_never_come_from_text(lossless):
    special = {lossless.bos, lossless.eos, lossless.pad}
    ids = lossless.encode("<s></s> <pad><unk><0x41>\n<s> [A]" + "".join(ODD))
    assert not special & set(ids)
    assert all(0 <= i < lossless.vocab_size for i in [*ids, *special])


def test_special_and_unknown_ids_have_no_text(lossless):
    a, b = lossless.encode("it was"), lossless.encode(" late ")
    ids = [lossless.bos, *a, lossless.pad, 10**6, -1, *b, lossless.eos, lossless.pad]
    assert lossless.decode(ids) == "it was late "


def test_newlines_and_symbols_are_single_tokens(ours):
    for symbol in ("\n", "[A]", "Yes, no"):
        (token,) = ours.encode(symbol)
        assert ours.encode(f"cat{symbol}{symbol}") == ours.encode("cat") + 2 * [token]


def test_phrases_are_spelled_out_in_plain_text_and_words_are_not(tmp_path):
    symbols = ("Yes, no", "no, Yes", "[A]", "A?", " cat", "dog")
    tok = tokenizers.train_sentencepiece(STORY, tmp_path / "m", vocab_size=300, symbols=symbols)
    phrases = {tok.encode(symbol)[0] for symbol in symbols[:4]}
    word, dog = tok.encode(" cat")[0], tok.encode("dog")[0]
    for text in ["Yes, no", "Yes, no, Yes, no", "a[A][A]", "[[A]", "A?", "A\ud800", "Yes,\u2581no"]:
        assert phrases.isdisjoint(tok.plain(text))
        assert tok.decode(tok.plain(text)) == text.replace("\ud800", "?")
        assert "\u2581" in text or not phrases.isdisjoint(tok.encode(text)), "as it would be"
    assert tok.plain(" cat dog cat") == tok.encode(" cat dog cat") and word in tok.plain(" cat")
    assert dog in tok.plain("dog") and tok.plain("") == []


@pytest.mark.parametrize("text", ODD)
def test_plain_text_comes_back_and_without_phrases_is_encoded_as_ever(lossless, text):
    assert lossless.decode(lossless.plain(text)) == text
    assert lossless.plain(text) == lossless.encode(text)


def test_training_is_deterministic(ours, tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    tokenizers.train_sentencepiece(STORY, a, vocab_size=300)
    tokenizers.train_sentencepiece(iter(STORY), b, vocab_size=300)
    tokenizers.train_sentencepiece(STORY[:150], c, vocab_size=300)
    assert a.read_bytes() == b.read_bytes() != c.read_bytes()
    assert sorted(tmp_path.iterdir()) == [a, b, c]


def test_long_lines_are_trained_on(tmp_path):
    line = " ".join(f"{a}=>{b}" for a in WORDS for b in WORDS)
    assert len(line) > 2000
    models = [
        tokenizers.train_sentencepiece(texts, tmp_path / "m", vocab_size=300)
        for texts in ([line * 5], [line] * 5)
    ]
    assert [len(model.encode("=>")) for model in models] == [1, 1]


@pytest.mark.parametrize(
    "line", ["stone river " * 900, "ab" * 3000, "x " + "y" * 1024 + " z", " " * 5000 + "x"]
)
def test_long_lines_are_trained_on_in_bounded_parts(line):
    given = list(tokenizers._sentences([line], vocab_size=300))
    assert any("".join(given[:i]) == line for i in range(len(given) + 1))
    assert max(map(len, given)) <= tokenizers.LONGEST


def test_long_lines_are_cut_before_a_space():
    assert all(part.startswith(" river") for part in list(tokenizers._parts(" river" * 999))[1:])


def test_blank_texts_train_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"m\.model: .*all texts are blank"):
        tokenizers.train_sentencepiece(["\n \n", ""], tmp_path / "m.model", vocab_size=300)


def test_a_small_corpus_gives_a_smaller_vocabulary_than_asked_for(tmp_path):
    model = tokenizers.train_sentencepiece(["to be or not"], tmp_path / "m", vocab_size=5000)
    assert 256 < model.vocab_size < 300


@pytest.mark.parametrize("name", ["byte", "ours"])
def test_a_continuation_owns_a_character_that_the_seam_splits(name, ours):
    tok = ours if name == "ours" else tokenizers.Byte()
    ids = tok.encode("on €5 é")
    texts = [tokenizers.continuation(tok, ids[:i], ids[i:]) for i in range(len(ids) + 1)]
    assert all("on €5 é".endswith(text) and "\ufffd" not in text for text in texts)
    at = next(i for i, text in enumerate(texts) if text == "€5 é")
    assert texts[at + 1] == texts[at + 2] == "€5 é" and texts[at + 3] == "5 é"


def test_a_continuation_needs_only_the_last_tokens_of_its_prefix(lossless):
    share = seams.check(lossless, [*STORY[:3], *filter(None, ODD)])
    assert share > 0.3, "many tokens are no bytes"


def test_a_continuation_decodes_few_tokens_of_a_long_prefix(ours, monkeypatch):
    decode, seen = ours.decode, []
    monkeypatch.setattr(ours, "decode", lambda ids: seen.append(len(ids)) or decode(ids))
    prefix = ours.encode(STORY[0]) * 50
    assert tokenizers.continuation(ours, prefix, ours.encode(" sat")) == " sat"
    assert len(prefix) > 500 and max(seen) < 10


def test_a_continuation_keeps_its_leading_space(ours):
    prefix, suffix = [ours.bos, *ours.encode("the cat")], ours.encode(" sat\n on")
    assert tokenizers.continuation(ours, prefix, [*suffix, ours.eos]) == " sat\n on"


def test_a_lone_surrogate_is_replaced(lossless):
    assert lossless.decode(lossless.encode("a\ud800b")) == "a?b"


@pytest.mark.parametrize("damage", ["garbage", "empty", "half", "missing", "directory"])
def test_a_bad_model_file_is_named(damage, ours, tmp_path):
    path, good = tmp_path / "bad.model", tmp_path / "good.model"
    tokenizers.train_sentencepiece(STORY, good, vocab_size=300)
    half = good.read_bytes()[: good.stat().st_size // 2]
    if damage == "directory":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"garbage": b"not a model\n" * 9, "empty": b"", "half": half}[damage])
    with pytest.raises(UserError, match="bad.model"):
        tokenizers.load("sentencepiece", path)


def test_load_knows_its_kinds(ours, tmp_path):
    assert tokenizers.load("byte").vocab_size == 259
    with pytest.raises(UserError, match="'bpe'"):
        tokenizers.load("bpe", "x.model")
    with pytest.raises(UserError, match="path"):
        tokenizers.load("sentencepiece")
    with pytest.raises(UserError, match="cannot train a tokenizer of 10"):
        tokenizers.train_sentencepiece(STORY, tmp_path / "m", vocab_size=10)
    with pytest.raises(UserError, match="cannot train"):
        tokenizers.train_sentencepiece([], tmp_path / "m", vocab_size=300)
    assert not list(tmp_path.iterdir())


def test_a_signal_interrupts_the_training(tmp_path, monkeypatch):
    sentences = tokenizers._sentences

    def interrupted(*args):
        for i, sentence in enumerate(sentences(*args)):
            if i == 7:
                os.kill(os.getpid(), signal.SIGINT)
            yield sentence

    monkeypatch.setattr(tokenizers, "_sentences", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
    path = tmp_path / "x.model"
    with pytest.raises(KeyboardInterrupt):
        tokenizers.train_sentencepiece([f"Line {i}." for i in range(4000)], path, vocab_size=300)
    signal.signal(signal.SIGINT, before)
    assert not path.exists()
