"""Tests export to the Hugging Face format: the same numbers from transformers and its server."""

import json
import re

import exports
import hostile
import jax.numpy as jnp
import numpy as np
import pytest
import serving
import tiny

from sip import sampling
from sip.hf import tokens, writing
from sip.judge import prompts
from sip.models import decoder
from sip.sampling import SamplingConfig
from sip.structs import UserError
from sip.text import tokenizer as tokenizers
from sip.text.classes import SPACE
from sip.textgen.protocol import Cut
from sip.textgen.remote import Remote, RemoteConfig

NAMES = ("quality", "safety", "factuality", "grade")
TEXTS = [
    "The lamp of Mira is green. He drinks cider every morning, she does not!\n",
    "A river carries light;  two spaces, \ttabs and caf\u00e9 \u4e16\u754c.",
    " one is better than two, none is safe.",
] * 12
CFGS = [tiny.model(vocab_size=512, max_len=128, tied=tied) for tied in (False, True)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    symbols = prompts.symbols([prompts.load(name) for name in NAMES])
    return tokenizers.train_sentencepiece(TEXTS, path, vocab_size=420, symbols=symbols)


@pytest.fixture(scope="module", params=CFGS, ids=["untied", "tied"])
def exported(request, tokenizer, tmp_path_factory):
    """(config, parameters, directory)."""
    path, params = (
        tmp_path_factory.mktemp("exported") / "model",
        exports.wordy(request.param, tokenizer),
    )
    writing.save(params, request.param, path, tokens.files(tokenizer, request.param.max_len))
    return request.param, params, path


def test_every_weight_is_written_once(exported):
    from safetensors.numpy import load_file

    cfg, params, path = exported
    found = load_file(path / "model.safetensors")
    assert sum(x.size for x in found.values()) == decoder.count(cfg)
    assert {x.dtype for x in found.values()} == {np.dtype("float32")}
    assert ("lm_head.weight" in found) != cfg.tied
    theirs = found["model.layers.1.self_attn.q_proj.weight"]
    ours = np.asarray(params["blocks"]["block"]["wq"])[1]
    G, Q, H = 1, 0, 3
    np.testing.assert_array_equal(theirs[(G * cfg.queries_per_kv + Q) * 4 + H], ours[:, G, Q, H])


def test_the_files_say_the_same_as_the_tokenizer(exported, tokenizer):
    path = exported[2]
    files = {p.name: json.loads(p.read_text()) for p in path.glob("*.json")}
    vocab = files["tokenizer.json"]["model"]["vocab"]
    assert len(vocab) == tokenizer.vocab_size <= files["config.json"]["vocab_size"]
    symbols = {t["content"] for t in files["tokenizer.json"]["added_tokens"] if not t["special"]}
    assert {SPACE + "one", "\nBetter:"} <= symbols
    assert files["generation_config.json"]["eos_token_id"] == tokenizer.eos


def test_another_kind_of_tokenizer_is_refused(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(tmp_path / "bpe"), model_type="bpe",
        vocab_size=90, minloglevel=2,
    )  # fmt: skip
    bpe = tokenizers.SentencePiece(tmp_path / "bpe.model")
    for other in (bpe, tokenizers.Byte()):
        with pytest.raises(UserError, match="unigram"):
            tokens.files(other, 128)


# With torch and transformers.


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="needs torch")
    return pytest.importorskip("transformers", reason="needs transformers")


@pytest.mark.slow
def test_transformers_tokenises_as_we_do(exported, tokenizer, transformers):
    theirs = transformers.AutoTokenizer.from_pretrained(exported[2])
    texts = [*TEXTS[:3], *hostile.TEXTS.values()]
    texts = [text.encode(errors="replace").decode() for text in texts if SPACE not in text]
    special = re.compile("|".join(map(re.escape, theirs.all_special_tokens)))
    texts = [special.sub("", text) for text in texts]
    assert len(texts) > 50 and [text for text in texts if tokens.NAMED[0] in text]
    for text in texts:
        assert theirs(text)["input_ids"] == [tokenizer.bos, *tokenizer.encode(text)]
    ids = tokenizer.encode(TEXTS[1])
    assert theirs.decode(ids) == tokenizer.decode(ids) == TEXTS[1]


@pytest.mark.slow
def test_logits_equal_those_of_transformers(exported, tokenizer, transformers):
    import torch

    cfg, params, path = exported
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path)
    rng = np.random.default_rng(0)
    tokens_BT = rng.integers(0, cfg.vocab_size, (3, 50)).astype(np.int64)
    with torch.no_grad():
        want = theirs(torch.from_numpy(tokens_BT)).logits.numpy()
    got = serving._logits(params, cfg, jnp.asarray(tokens_BT, jnp.int32))
    assert np.abs(want).max() > 0.5
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.fixture
def served(exported, transformers, tmp_path):
    with exports.behind_transformers(exported[2], tmp_path) as url:
        yield url


@pytest.mark.slow
def test_transformers_serve_continues_as_our_own_sampling_does(exported, tokenizer, served):
    cfg, params, path = exported
    prefixes = ["The lamp of Mira", " one is better", "A river carries light;"]
    ids = [[tokenizer.bos, *tokenizer.encode(text)] for text in prefixes]
    steps, greedy = 12, SamplingConfig(temperature=0.0)
    tokens_BT = np.array([row + [0] * (24 - len(row)) for row in ids], np.int32)
    fork_B = np.array(list(map(len, ids)), np.int32)
    program = sampling.program(cfg, 1, steps, greedy, (tokenizer.eos,))
    rollouts = program(params, tokens_BT, fork_B, np.arange(3), jnp.zeros(2, jnp.uint32))
    rows = zip(
        *(np.asarray(x)[:, 0] for x in (rollouts.tokens_BCR, rollouts.mask_BCR)), strict=True
    )
    want = []
    for row, mask in rows:
        text = tokenizer.decode(row[mask].tolist())
        want.append(text if row[mask][-1] == tokenizer.eos else Cut(text))
    config = RemoteConfig(url=served, model=str(path), logprobs=0, retries=0, concurrency=1)
    one = Remote(config)
    one.check()
    how = dict(max_tokens=steps, seed=0)
    found = one.generate(prefixes, [[""]] * 3, votes=2, sampling=greedy, **how)
    assert found == [[[text, text]] for text in want] and len(set(want)) == 3
    drawn = one.generate(prefixes, [[""]] * 3, votes=2, sampling=SamplingConfig(), **how)
    assert all(isinstance(vote, str | Cut) for row in drawn for votes in row for vote in votes)
    with pytest.raises(UserError, match="status 400"):
        Remote(RemoteConfig(url=served, model="another", logprobs=0, retries=0)).check()
    with pytest.raises(UserError, match="no log-probabilities"):
        Remote(RemoteConfig(url=served, model=str(path), retries=0)).check()
