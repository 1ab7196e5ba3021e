"""Tests offline DPO and reward models against TRL's trainers: first loss and gradient norm."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from published import PAIRWISE

from sip.data import preferences
from sip.hf import tokens, writing
from sip.tasks.pairs import PairSet
from sip.tasks.ranked import RankSet, grouped
from sip.text import tokenizer as tokenizers
from sip.training import losses, step
from sip.training.losses import PairLossConfig

pytestmark = pytest.mark.slow
SIZE = 4  # pairs of a data set, one batch
LONGEST = 160  # characters of a text
WORDS = [
    ("What is two and two?", " It is four.", " Five, I think."),
    ("Name a colour.", " Green", " I cannot, sorry; ask me something else."),
    ("Say it twice: river", " river, river", " river"),
    ("Is the lamp of Mira green?", " Yes, it is.", " No."),
]
DATA = ("words", "mt_bench_human_200", "judgebench_gpt4o")
LOSSES = {  # ours: TRL's
    "sigmoid": (PairLossConfig(), dict(loss_type=["sigmoid"], beta=0.1)),
    "sigmoid_norm": (
        PairLossConfig(length_normalize=True, beta=2.0),
        dict(loss_type=["sigmoid_norm"], beta=2.0),
    ),
    "ipo": (
        PairLossConfig("ipo", length_normalize=True, beta=0.2),
        dict(loss_type=["ipo"], beta=0.2),
    ),
    "nll": (
        PairLossConfig(nll_weight=0.5),
        dict(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5], beta=0.1),
    ),
}


@pytest.fixture(scope="module")
def trl():
    """TRL, with torch on the CPU and without any network."""
    pytest.importorskip("torch", reason="needs torch")
    os.environ |= {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "1"}
    return pytest.importorskip("trl", reason="needs trl (pip install --no-deps trl)")


def rows(name):
    """Returns the pairs of a data set as texts that meet at a word boundary."""
    if name == "words":
        return [dict(prompt=p, chosen=a, rejected=b) for p, a, b in WORDS]
    path = PAIRWISE / f"{name}.jsonl"
    if not path.exists():
        pytest.skip("needs the published data in shared/data/pairwise")
    found, seen = [], preferences.read(str(path), max_skipped_fraction=0.1).pairs
    short = lambda text: " ".join(str(text)[:LONGEST].split())
    for pair in seen:
        prompt, *sides = (short(x) for x in (pair.prompt, pair.chosen, pair.rejected))
        if sides[0] != sides[1] and len(found) < SIZE:
            found.append(dict(prompt=prompt, chosen=f" {sides[0]}", rejected=f" {sides[1]}"))
    return found


@pytest.fixture(scope="module", params=DATA)
def given(request, tmp_path_factory):
    """(rows, tokenizer, directory with its files) of a data set."""
    found = rows(request.param)
    texts = [row[key] for row in found for key in row] * 12
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    tokenizer = tokenizers.train_sentencepiece(texts, path, vocab_size=360)
    return found, tokenizer, tmp_path_factory.mktemp("models")


def encoded(found, tokenizer, tmp_path, **margins):
    """Returns the pairs of the rows as token ids, read from a file."""
    path = tmp_path / "pairs.jsonl"
    lines = [dict(row, **{k: v[i] for k, v in margins.items()}) for i, row in enumerate(found)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    pairs = preferences.read(str(path), max_skipped_fraction=0.0).pairs
    encode = preferences.plain(tokenizer)
    return [encode(pair) for pair in pairs]


def saved(cfg, seed, tokenizer, directory):
    """Saves a tiny model for transformers; returns its parameters and path."""
    params, path = tiny.params(cfg, seed), directory / f"{cfg.scalar}-{seed}"
    if not path.exists():
        writing.save(params, cfg, path, tokens.files(tokenizer, cfg.max_len))
    return params, path


def ours(terms, params, reference, data, weights):
    """Returns (loss, gradient norm) of our step."""
    of = lambda params: step.gradient(terms, params, reference, data, weights, 1)
    grads, loss, _ = jax.jit(of)(params)
    return float(loss), float(optax.tree.norm(grads))


def theirs(trainer):
    """Returns (loss, gradient norm, non-padding tokens) of a trainer's first step."""
    import torch

    data = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, dict(data))
    loss.backward()
    squares = [(p.grad**2).sum() for p in trainer.model.parameters() if p.grad is not None]
    norm = torch.sqrt(torch.stack(squares).sum())
    return float(loss.detach()), float(norm), int(data["attention_mask"].sum())


def arguments(tmp_path, **more):
    common = dict(output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False, max_length=None)
    batches = dict(per_device_train_batch_size=SIZE, gradient_checkpointing=False)
    return {**common, **batches, **more}


@pytest.mark.parametrize("name", LOSSES)
def test_offline_dpo_has_the_loss_and_gradient_norm_of_trl(name, given, trl, tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found, tokenizer, directory = given
    cfg = tiny.model(vocab_size=384, max_len=512, tied=False)
    (reference, ref_path), (params, path) = (saved(cfg, s, tokenizer, directory) for s in (0, 1))
    wanted, args = LOSSES[name]
    load = AutoModelForCausalLM.from_pretrained
    trainer = trl.DPOTrainer(
        load(path),
        load(ref_path),
        trl.DPOConfig(**arguments(tmp_path, **args)),
        train_dataset=Dataset.from_list(found),
        processing_class=AutoTokenizer.from_pretrained(path),
    )
    loss, norm, count = theirs(trainer)
    pairs = encoded(found, tokenizer, tmp_path)
    data = PairSet({"learned": pairs}, tokenizer.pad).batch(0, SIZE, seed=0)
    tree = data.tree
    assert count == 2 * tree.mask_BT.sum() + tree.mask_BCR.sum(), "the same tokens"
    got = ours(losses.pair_terms(cfg, wanted), params, reference, data, wanted.weights)
    np.testing.assert_allclose(got, (loss, norm), rtol=1e-4)
    assert norm > 0.01


@pytest.mark.parametrize("kind", ["plain", "centred", "margins", "together"])
def test_a_reward_model_has_the_loss_and_gradient_norm_of_trl(kind, given, trl, tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    found, tokenizer, directory = given
    if kind == "together":  # one prompt, whose answers are one row of ours
        found = [{**row, "prompt": found[0]["prompt"]} for row in found]
    cfg = tiny.model(vocab_size=384, max_len=512, scalar=True)
    params, path = saved(cfg, 0, tokenizer, directory)
    centring = 0.3 if kind in ("centred", "together") else 0.0
    margins = dict(margin=[0.5 * (i + 1) for i in range(SIZE)]) if kind == "margins" else {}
    args = dict(center_rewards_coefficient=centring or None)
    table = [{**row, **{k: v[i] for k, v in margins.items()}} for i, row in enumerate(found)]
    trainer = trl.RewardTrainer(
        AutoModelForSequenceClassification.from_pretrained(path),
        trl.RewardConfig(**arguments(tmp_path, **args)),
        train_dataset=Dataset.from_list(table),
        processing_class=AutoTokenizer.from_pretrained(path),
    )
    loss, norm, count = theirs(trainer)
    pairs = encoded(found, tokenizer, tmp_path, **margins)
    assert count == sum(2 * len(x.prompt) + len(x.chosen) + len(x.rejected) for x in pairs)
    rows = grouped(pairs, 2 * SIZE if kind == "together" else 2)
    assert len(rows) == (1 if kind == "together" else SIZE)
    data = RankSet({"learned": rows}, tokenizer.pad).batch(0, len(rows), seed=0)
    terms = losses.reward_terms(cfg, margin_weight=1.0)
    got = ours(terms, params, None, data, {"reward": 1.0, "centring": centring})
    np.testing.assert_allclose(got, (loss, norm), rtol=1e-4)
    assert norm > 0.01 and jnp.isfinite(norm)
