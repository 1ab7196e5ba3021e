"""Tests special tokens and ids: names, added tokens and stops from the files beside a tokenizer."""

import json
import shutil

import published
import pytest
import seams
from published import CHARS, small
from sentencepiece import sentencepiece_model_pb2

from sip.hf import spelling, tokens, writing
from sip.structs import UserError
from sip.text import chat, classes
from sip.text import tokenizer as tokenizers

pytest.importorskip("tokenizers", reason="needs tokenizers")

TEXTS = ["The lamp of Mira is green.", "A river carries light"] * 12
TEMPLATE = "{% for m in messages %}[U]{{ m.content }}{% endfor %}[A]"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A SentencePiece model of its own, as the base of a fine-tune."""
    path = tmp_path_factory.mktemp("base") / "base.model"
    return tokenizers.train_sentencepiece(TEXTS, path, vocab_size=300)


def beside(path, **files):
    """Writes files such as config={...} as config.json."""
    path.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


def tuned(model, path, **files):
    """Returns the directory of a fine-tune: tokenizer.model and files beside it."""
    beside(path, **files)
    shutil.copy(model.path, path / "tokenizer.model")
    return path


def opened(path):
    return tokenizers.load(*tokens.kind_of(path))


def test_tokens_added_to_a_sentencepiece_model_are_special_and_stop(model, tmp_path):
    V = model.vocab_size
    added = {"[U]": V, "[A]": V + 1, "<tool>": V + 3}
    said = dict(eos_token="[A]", additional_special_tokens=["[U]"], chat_template=TEMPLATE)
    ids = dict(eos_token_id=[V + 1, model.eos, V])
    path = tuned(
        model, tmp_path / "hf", added_tokens=added, tokenizer_config=said, generation_config=ids
    )
    tok = opened(path)
    assert (tok.bos, tok.eos, tok.pad) == (model.bos, V + 1, model.pad)
    assert tok.stops == (V + 1, model.eos, V) and tok.vocab_size == V + 4
    text = "A river[U] [A]</s>"
    assert tok.encode(text) == model.encode(text) and tok.decode(tok.encode(text)) == text
    assert tok.encode_special("[U]A[A]") == [V, *model.encode("A"), V + 1]
    # A token that is not special: part of a text, but of none under judgement.
    assert V + 3 in tok.encode("a<tool>b") and V + 3 not in tok.plain("a<tool>b")
    assert tok.decode([V, V + 3, V + 2, *tok.plain("<tool>"), V + 1]) == "<tool><tool>"
    assert tok.starts(V + 3) and not tok.starts(V), "text of its own, and none"
    assert seams.check(tok, ["A river<tool>b <tool>€", *TEXTS[:2]]) > 0.3
    template = chat.load(chat.OWN, tok)
    assert chat.render(template, [dict(content="x")], add_generation_prompt=True) == "[U]x[A]"


def test_a_run_keeps_the_files_beside_its_tokenizer_model(model, tmp_path):
    files = dict(added_tokens={"[E]": model.vocab_size}, tokenizer_config=dict(eos_token="[E]"))
    path, run = tuned(model, tmp_path / "hf", **files), tmp_path / "run"
    run.mkdir()
    tokenizers.keep("sentencepiece", str(path / "tokenizer.model"), run)
    kept = tokenizers.load("sentencepiece", tokenizers.kept("sentencepiece", run))
    assert kept.stops == opened(path).stops == (model.vocab_size,)
    assert tokens.published(tokens.source(run))["added_tokens.json"]
    tokenizers.keep("sentencepiece", str(model.path), tmp_path)  # one that was trained here
    assert tokenizers.kept("sentencepiece", tmp_path) == str(tmp_path / "tokenizer.model")


def test_a_published_piece_becomes_special_if_the_files_say_so(tmp_path):
    path = tmp_path / "hf" / "tokenizer.model"
    model = tokenizers.train_sentencepiece(TEXTS, path, vocab_size=300, symbols=["<turn>"])
    (turn,) = model.encode("<turn>")
    beside(path.parent, special_tokens_map={"eos_token": {"content": "<turn>"}})
    tok = opened(path.parent)
    assert tok.eos == turn and turn not in tok.encode("a<turn>") and tok.decode([turn]) == ""


BAD = {  # files, and what the error names
    "another's id": (dict(added_tokens={"[E]": 7}), "'\\[E\\]' has the id 7"),
    "two with one id": (dict(added_tokens={"[E]": 900, "[F]": 900}), "id 900"),
    "no such token": (dict(tokenizer_config={"pad_token": "[P]"}), "no token '\\[P\\]'"),
    "a piece's id": (
        dict(tokenizer_config={"added_tokens_decoder": {"300": {"content": "</s>"}}}), "</s>",
    ),
    "stop": (dict(generation_config={"eos_token_id": [2, 4000]}), "token id 4000"),
    "bool": (dict(config={"bos_token_id": True}), "config.json: bos_token_id is True"),
    "fraction": (dict(config={"pad_token_id": 2.5}), "config.json: pad_token_id is 2.5"),
    "number": (dict(special_tokens_map={"eos_token": 5}), "special_tokens_map.json: eos_token"),
    "no id": (dict(added_tokens={"[E]": None}), "added_tokens.json: \\[E\\]"),
    "list": (dict(tokenizer_config={"extra_special_tokens": 3}), "extra_special_tokens is 3"),
    "flag": (dict(tokenizer_config={"legacy": "yes"}), "legacy is 'yes'"),
    "class": (dict(tokenizer_config={"tokenizer_class": 5}), "tokenizer_class is 5"),
    "model_type": (dict(config={"model_type": ["llama"]}), "config.json: model_type is"),
    "huge id": (dict(config={"pad_token_id": 10**400}), "pad_token_id is inf"),
}  # fmt: skip


@pytest.mark.parametrize("files, said", BAD.values(), ids=BAD)
def test_contradictions_and_wrong_shapes_are_one_line(files, said, model, tmp_path):
    path = tuned(model, tmp_path / "hf", **files)
    with pytest.raises(UserError, match=said) as error:
        opened(path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


SHAPES = {
    "id": {"model": {"type": "BPE", "vocab": {"a": "0"}, "merges": []}},
    "pair": {"model": {"type": "Unigram", "vocab": [["a"]]}},
    "merges": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", 1]]}},
    "twice": {"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}},
    "empty": {"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []},
    "added": {"added_tokens": [{"id": -1, "content": "x"}]},
    "mark": {"added_tokens": [{"id": 1, "content": "x", "special": "yes"}]},
    "part": {"normalizer": "NFC"},
    "parts": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": 3}},
    "decoders": {"decoder": {"type": "Sequence"}},
    "decoder": {"decoder": {"type": "Sequence", "decoders": ["Fuse"]}},
    "charsmap": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
}


@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "Qwen2Tokenizer"])
@pytest.mark.parametrize("merges", [dict(merges=None), {}], ids=["null", "missing"])
def test_a_file_without_merges_is_one_line(merges, kind, tmp_path):
    path = small(tmp_path, settings=dict(tokenizer_class=kind))
    found = json.loads((path / "tokenizer.json").read_text())
    del found["model"]["merges"]
    found["model"] |= merges
    (path / "tokenizer.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match="tokenizer.json: model.merges is not a list"):
        opened(path)


@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES)
def test_a_tokenizer_json_of_another_shape_is_one_line(change, tmp_path):
    path = small(tmp_path)
    found = json.loads((path / "tokenizer.json").read_text())
    (path / "tokenizer.json").write_text(json.dumps({**found, **change}))
    with pytest.raises(UserError, match="tokenizer.json: ") as error:
        opened(path)
    assert "\n" not in str(error.value)


def test_a_gap_in_the_vocabulary_is_one_line_with_the_token_s_own_text(tmp_path):
    entry = dict(content="<end>", special=True)
    path = small(tmp_path, settings={"added_tokens_decoder": {str(len(CHARS) + 9): entry}})
    with pytest.raises(UserError, match="tokenizer.json: token '<end>' cannot have the id 105"):
        opened(path)


def test_an_id_in_a_gap_of_the_vocabulary_is_one_line(model, tmp_path):
    ids = {"eos_token_id": [2, 300]}
    path = tuned(model, tmp_path / "a", added_tokens={"[E]": 301}, generation_config=ids)
    with pytest.raises(UserError, match="tokenizer.model: token id 300 .* not among its 301"):
        opened(path)
    vocab = {char: i + (i > 9) for i, char in enumerate(CHARS)}
    found = published.spec(published.bpe(vocab, []), **published.LEVEL)
    path = published.write(tmp_path / "b", found, eos_token="!")
    beside(path, generation_config={"bos_token_id": 10})
    with pytest.raises(UserError, match="tokenizer.json: token id 10 .* not among its 96"):
        opened(path)


def with_images(model, tmp_path):
    """Returns (directory, number of tokens before the one for images) of both kinds."""
    said = dict(image_token="<image>")
    small(tmp_path / "json", tokens=[("<turn>",), ("<image>",)], settings=said)
    tuned(model, tmp_path / "model", added_tokens={"<turn>": 300, "<image>": 301})
    return ((tmp_path / "json", len(CHARS) + 5), (tmp_path / "model", 301))


def test_added_tokens_beyond_the_model_s_vocabulary_are_left_out(model, tmp_path, capsys):
    """Gemma 3 1B has a tokenizer with the token for images, and no embedding for it."""
    for path, size in with_images(model, tmp_path):
        beside(path, config=dict(vocab_size=size))
        tokens.check(path, size)
        assert capsys.readouterr().err.endswith("beyond the model's vocabulary: '<image>'\n")
        tok = opened(path)
        assert (tok.vocab_size, tok.left_out) == (size, ("<image>",))
        ids = tok.encode_special("<turn><image>")
        assert (ids[0], ids[1:]) == (size - 1, tok.encode("<image>")), "plain text"
        beside(path, config=dict(vocab_size=size + 1))
        tokens.check(path, size + 1)
        assert opened(path).encode_special("<image>") == [size]


def test_a_token_that_is_left_out_does_not_come_back_with_another_id(tmp_path):
    settings = dict(additional_special_tokens=["<image>", "<more>"])
    settings |= dict(added_tokens_decoder={"500": dict(content="<image>", special=True)})
    path = small(tmp_path, settings=settings)
    beside(path, config=dict(vocab_size=120))
    tok = opened(path)
    assert (tok.left_out, tok.specials["<more>"]) == (("<image>",), len(CHARS) + 4)
    assert tok.encode_special("<image>") == tok.encode("<image>")


def test_pieces_and_tokens_with_a_role_are_not_left_out(model, tmp_path):
    for path, size in with_images(model, tmp_path):
        said = json.loads((path / "tokenizer_config.json").read_text()) if size < 200 else {}
        for role in (dict(tokenizer_config={**said, "pad_token": "<image>"}),
                     dict(tokenizer_config=said, generation_config={"eos_token_id": [2, size]}),
                     dict(generation_config={}, config=dict(vocab_size=90))):  # fmt: skip
            beside(path, **{"config": dict(vocab_size=size), **role})
            with pytest.raises(UserError, match="but config.json beside it has a vocab_size of"):
                opened(path)


def test_half_of_a_surrogate_pair_is_one_line(tmp_path):
    path = small(tmp_path)
    beside(path, config=dict(tokenizer_class="\ud800", model_type="llama"))
    for read in (opened, tokens.published):
        with pytest.raises(
            UserError, match=r"config.json: has half of a surrogate pair, '\\ud800'"
        ):
            read(path)
    beside(path, config=dict(_name_or_path="\U0001f999", model_type="llama"))  # a pair
    assert opened(path).eos


def test_json_that_is_nested_too_deeply_is_one_line(tmp_path):
    path = small(tmp_path)
    for text in ("[" * 100_000, '{"normalizer": ' + '{"a":' * 900 + "1" + "}" * 901):
        (path / "tokenizer.json").write_text(text)
        with pytest.raises(UserError, match="tokenizer.json: "):
            opened(path)


def test_a_pad_or_stop_that_is_an_ordinary_token_stays_in_texts(tmp_path):
    path = small(tmp_path, settings=dict(pad_token="!"))
    newline = CHARS.index("Ċ")
    beside(path, generation_config={"eos_token_id": [newline]})
    tok = opened(path)
    assert tok.stops == (tok.eos, newline) and tok.pad == CHARS.index("!")
    assert tok.decode(tok.encode("Hi!\nyou")) == "Hi!\nyou"


def test_ids_of_both_configs_survive_import_and_export(tmp_path):
    path = small(
        tmp_path / "hf", tokens=[("<|a|>",), ("<|b|>", False)], settings={"bos_token": None}
    )
    a, b = (len(CHARS) + 4, len(CHARS) + 5)
    config = dict(model_type="llama", vocab_size=120, bos_token_id=a, eos_token_id=[a, b])
    beside(path, config=config, generation_config={"temperature": 0.5, "pad_token_id": b})
    files = tokens.published(path)
    tokens.write(files, tmp_path / "run")
    again = tokens.published(tokens.home(tmp_path / "run"))
    assert again == files and json.loads(again[writing.GENERATION]) == {
        "temperature": 0.5, "pad_token_id": b,
    }  # fmt: skip
    for place in (path, tokens.home(tmp_path / "run")):
        tok = opened(place)
        assert (tok.bos, tok.pad, tok.stops) == (a, b, (tok.eos, a, b))
        assert b not in tok.encode("<|b|>"), "a stop is not made by a text"


def begun(text, id):
    """Returns a post-processor that puts a token before a text."""
    single = [{"SpecialToken": {"id": text, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    marks = {text: {"id": text, "ids": [id], "tokens": [text]}}
    return dict(type="TemplateProcessing", pair=[], single=single, special_tokens=marks)


def test_prompts_of_published_checkpoints_begin_as_their_files_say(model, tmp_path):
    bos = len(CHARS) + 2
    ask = lambda tok, text: spelling.prompt(tok, text, as_published=True)
    plain = opened(small(tmp_path / "plain"))
    assert ask(plain, "the") == plain.encode("the") and ask(plain, "") == [bos]
    post = opened(small(tmp_path / "post", post_processor=begun("<bos>", bos)))
    assert ask(post, "the") == [bos, *post.encode("the")]
    assert spelling.prompt(plain, "the", as_published=False) == [bos, *plain.encode("the")]
    # The class LlamaTokenizer puts a space before a text, and in its older form also after </s>.
    llama = dict(tokenizer_class="LlamaTokenizer")
    for said, first, later in (
        ({}, " A", "B"), ({"legacy": True}, " A", " B"), ({"add_prefix_space": False}, "A", "B"),
    ):  # fmt: skip
        path = tuned(
            model, tmp_path / str(len(said) + len(str(said))), tokenizer_config=llama | said
        )
        want = [*model.encode(first), model.eos, *model.encode(later)]
        assert ask(opened(path), "A</s>B") == want
    begins = tuned(model, tmp_path / "begins", tokenizer_config=dict(add_bos_token=True))
    assert ask(opened(begins), "A") == [model.bos, *model.encode("A")]


@pytest.mark.parametrize(
    ("named", "model_type", "kind"),
    [
        (None, "llama", classes.AS_FILED), (None, "qwen3", classes.QWEN2),
        ("LlamaTokenizerFast", "llama", classes.LLAMA), ("GPT2Tokenizer", "llama", classes.GPT2),
        ("GPT2Tokenizer", "olmo2", classes.AS_FILED), ("LlamaTokenizer", None, classes.LLAMA),
        ("LlamaTokenizerFast", "qwen2", classes.QWEN2), ("GPT2Tokenizer", "qwen3", classes.GPT2),
        (None, "gemma3", classes.GEMMA), (None, "gemma3_text", classes.GEMMA),
    ],
)  # fmt: skip
def test_the_class_hangs_on_its_name_and_the_model_type(named, model_type, kind):
    assert classes.chosen(named, model_type) == kind


CLASSES = {  # settings, model_type, and what of the file the class replaces: its lower case
    "gpt2": (dict(tokenizer_class="GPT2Tokenizer", add_prefix_space=True), "smollm3", " Hi!"),
    "gpt2, as filed": (dict(tokenizer_class="GPT2Tokenizer"), "granite", "hi!"),
    "qwen": (dict(tokenizer_class="PreTrainedTokenizerFast"), "qwen2", "Hi!"),
    "neox": (dict(tokenizer_class="GPTNeoXTokenizerFast"), "llama", "Hi!"),
    "unknown": (dict(tokenizer_class="MyTokenizer"), "qwen3", "hi!"),
}


@pytest.mark.parametrize(("said", "model_type", "text"), CLASSES.values(), ids=CLASSES)
def test_some_classes_take_only_the_vocabulary_from_a_file(said, model_type, text, tmp_path):
    post = begun("<bos>", len(CHARS) + 2)
    lower = dict(normalizer={"type": "Lowercase"}, post_processor=post)
    path = beside(small(tmp_path, settings=said, **lower), config=dict(model_type=model_type))
    first = [] if "NeoX" in said["tokenizer_class"] else [len(CHARS) + 2]
    ids = [CHARS.index(one.replace(" ", "Ġ")) for one in text]
    assert opened(path).prompt("Hi!") == [*first, *ids]
    assert opened(path).encode("Hi!") == opened(small(tmp_path, **lower)).encode("Hi!")


def by_hand(path, **said):
    """Writes a tokenizer.model of a few pieces; its runs of spaces have low scores, as Llama's."""
    proto = sentencepiece_model_pb2.ModelProto()
    spaces = {"\u2581\u2581": -1e9, "\u2581": -1e9}
    special = {"<unk>": 2, "<s>": 3, "</s>": 3, "<tool>": 4}
    scores = dict.fromkeys(special, 0.0) | spaces | {"a": -9.0, "\u2581a": -1.0}
    for text, score in scores.items():
        kind = special[text] if text in special else 1
        proto.pieces.add(piece=text, score=score, type=kind)
    proto.trainer_spec.model_type = 2  # BPE
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    beside(path, tokenizer_config=said)
    (path / "tokenizer.model").write_bytes(proto.SerializeToString())
    return opened(path)


def test_the_class_of_llama_merges_by_id_and_code_llama_begins_with_bos(tmp_path):
    text, tool = "a  a<tool>a", 3
    plain = by_hand(tmp_path / "plain")
    assert plain.prompt(text) == [7, 5, 7, tool, 6]
    llama = by_hand(tmp_path / "llama", tokenizer_class="LlamaTokenizer")
    assert llama.prompt(text) == [7, 4, 6, tool, 6]  # two spaces are one piece: a lower id
    code = by_hand(tmp_path / "code", tokenizer_class="CodeLlamaTokenizer")
    assert code.prompt(text) == [1, *llama.prompt(text)] and code.prompt("a") == [1, 7]
    assert llama.encode(text) == plain.encode(text), "texts are encoded by the model itself"


def test_a_piece_takes_the_space_that_its_entry_says(model, tmp_path):
    entry = dict(content="</s>", special=True, rstrip=True)
    said = dict(added_tokens_decoder={str(model.eos): entry})
    path = tuned(model, tmp_path / "hf", tokenizer_config=said)
    assert opened(path).prompt("A</s>  B") == [*model.encode("A"), model.eos, *model.encode("B")]


def test_tokens_of_other_roles_are_special_if_the_model_has_room(tmp_path):
    first = len(CHARS) + 4
    said = dict(image_token="<image>", mask_token={"content": "<mask>"}, add_bos_token=True)
    path = beside(small(tmp_path, settings=said), config=dict(vocab_size=first + 2))
    assert opened(path).prompt("<image>!<mask>") == [first + 1, CHARS.index("!"), first]
    assert opened(path).decode([first, first + 1]) == ""


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "granite"])
@pytest.mark.parametrize("kind", [None, "Qwen2Tokenizer", "GPT2Tokenizer", "GPTNeoXTokenizer"])
def test_prompts_of_byte_level_files_are_those_of_transformers(kind, model_type, tmp_path):
    pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    spec, said = published.gpt2()
    spec |= dict(post_processor=begun("<|endoftext|>", 50256))
    path = published.write(tmp_path, spec, tokenizer_class=kind, **said)
    beside(path, config=dict(model_type=model_type, vocab_size=50304))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(path), opened(path)
    for text in ("A river", "cafe\u0301 \ufb01", "x\n\ny\t z", "don't  1234", "<|endoftext|> x"):
        assert ours.prompt(text) == theirs(text)["input_ids"], text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "llama legacy", "llama bare", "mistral", "fast"])
@pytest.mark.parametrize("file", ["tokenizer.model", "tokenizer.json"])
def test_prompts_are_those_of_transformers(kind, file, tmp_path):
    pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    spec, said = published.mistral("v1")
    said |= dict(tokenizer_class="PreTrainedTokenizerFast" if kind == "fast" else "LlamaTokenizer")
    said |= {"llama legacy": {"legacy": True}, "llama bare": {"add_prefix_space": False}}.get(
        kind, {}
    )
    path = published.write(tmp_path, spec, add_bos_token=True, **said)
    if file == "tokenizer.model":
        (path / "tokenizer.json").unlink()
        shutil.copy(published.shared("mistral/mistral_v1.model"), path / file)
    typed = dict(model_type="mistral" if kind == "mistral" else "llama", vocab_size=32064)
    beside(path, config=typed, added_tokens={"<|im_end|>": 32000})
    theirs, ours = transformers.AutoTokenizer.from_pretrained(path), opened(path)
    texts = " A  river", "A</s>B", "</s> B x", "x\n\ny", "<|im_end|> hi", "café 世"
    for text in ("A river", *texts):
        assert ours.prompt(text) == theirs(text)["input_ids"], text
