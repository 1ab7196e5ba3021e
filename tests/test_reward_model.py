"""Tests reward models: where the reward is read, the loss, the checkpoint, Hugging Face files."""

import dataclasses
import functools
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_recipe
from workdirs import lines

from sip import loading
from sip.hf import configs, reading, writing
from sip.loading import LoadedModel
from sip.mesh import single
from sip.models import decoder
from sip.models.lora import LoraConfig
from sip.objectives import preference
from sip.padding import padded_tree
from sip.rewards import reward_model
from sip.run import Run
from sip.stages import supervised
from sip.structs import UserError
from sip.text.tokenizer import Byte
from sip.training import losses

pytest_plugins = ["tiny_fixtures"]
CFG = tiny.model(scalar=True)
EOS = 2
ANSWERS = [[[5, 6, EOS], [7, EOS]], [[8, EOS], [9, 3, 4, EOS]]]
TRUNKS = [[1, 4, 5], [1, 6]]


@functools.partial(jax.jit, static_argnums=1)
def score(params, cfg, tree):
    return decoder.scores(params, decoder.apply(params, cfg, tree).branch_BCRD, tree.mask_BCR)


@functools.cache
def alone():
    """Returns hidden states of the four whole sequences, and the index of each one's EOS."""
    rows = [TRUNKS[b] + ANSWERS[b][c] for b, c in np.ndindex(2, 2)]
    tree = tiny.trunk_only([row + [0] * (8 - len(row)) for row in rows])
    hidden = jax.jit(lambda params: decoder.apply(params, CFG, tree).trunk_BTD)(tiny.params(CFG))
    return hidden, [len(row) - 1 for row in rows]


@pytest.mark.parametrize("pad", [0, EOS])
def test_the_reward_is_read_at_eos_whatever_the_padding(pad):
    """As computed from each whole sequence alone, without any padding."""
    got = score(tiny.params(CFG), CFG, padded_tree(TRUNKS, ANSWERS, pad, 4, 2, 4))
    hidden_NTD, end_N = alone()
    want_N = hidden_NTD[np.arange(4), end_N] @ tiny.params(CFG)["score"][:, 0]
    np.testing.assert_allclose(np.ravel(got), want_N, atol=1e-5)
    assert np.std(got) > 0.01


def test_a_score_that_is_not_finite_is_no_reward():
    cfg = tiny.model(scalar=True, vocab_size=Byte.vocab_size)
    params = tiny.params(cfg)
    large = {**params, "final_norm": jnp.full_like(params["final_norm"], 3e38)}
    given = [[1, 2]], [[[3], [4, 5]]]
    for own, valid in ((params, True), (large, False)):
        judge = reward_model.RewardModel(LoadedModel(own, cfg, Byte(), single()), 1)
        reward_BK, valid_BK = judge.reward(*given)
        assert np.isfinite(reward_BK).all() and (valid_BK == valid).all()


def batch(margin=0.0):
    tree = padded_tree(TRUNKS, ANSWERS, EOS, 4, 2, 4)
    pair_BP2 = np.array([[[0, 1]], [[0, 1]]], np.int32)
    return losses.RankBatch(tree, pair_BP2, np.ones((2, 1), bool), np.full((2, 1), margin, "f4"))


def test_the_loss_is_bradley_terry_of_the_scores():
    params = tiny.params(CFG)
    reward_B2 = score(params, CFG, batch().tree)
    for weight, margin_B in ((0.0, None), (0.5, jnp.full(2, 1.5))):
        terms, metrics = jax.jit(losses.reward_terms(CFG, margin_weight=weight))(
            params, None, batch(3.0)
        )
        valid_B = jnp.ones(2, bool)
        want = preference.bradley_terry(reward_B2, valid_B, margin_B=margin_B)
        np.testing.assert_allclose(terms["reward"], want[:2], rtol=1e-5)
        np.testing.assert_allclose(metrics["margin"], want[2]["margin"], rtol=1e-4)
    np.testing.assert_allclose(
        terms["centring"], preference.centring(reward_B2, valid_B)[:2], rtol=1e-5
    )


def test_a_reward_model_has_a_head_and_no_unembedding():
    assert "unembed" not in tiny.params(CFG) and tiny.params(CFG)["score"].shape == (16, 1)
    with pytest.raises(UserError, match="is a reward model .* cannot write"):
        decoder.unembed(tiny.params(CFG), CFG)
    with pytest.raises(UserError, match="head would stay random"):
        LoraConfig(rank=2).check(CFG)


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_becomes_a_reward_model(tied):
    cfg = tiny.model(tied=tied)
    want = dataclasses.replace(cfg, scalar=True)
    made = decoder.with_score(tiny.params(cfg), want, jax.random.key(0))
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    abstract = decoder.abstract(want, single())
    assert shapes(made) == jax.tree.map(lambda x: (x.shape, x.dtype), abstract)
    assert made["embed"] is tiny.params(cfg)["embed"]


FILES = {"generation_config.json": json.dumps({"eos_token_id": EOS, "pad_token_id": 0}).encode()}


@pytest.mark.parametrize("cfg", [CFG, tiny.model(scalar=True, qkv_bias=True)], ids=["llama", "qw"])
def test_hugging_face_files_hold_the_head(cfg, tmp_path):
    writing.save(tiny.params(cfg), cfg, tmp_path / "out", FILES)
    said = json.loads((tmp_path / "out/config.json").read_text())
    assert said["architectures"][0].endswith("ForSequenceClassification")
    assert said["num_labels"] == 1 and said["pad_token_id"] == 0
    params, found = reading.load(tmp_path / "out", single())
    assert found == dataclasses.replace(cfg, dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, params, tiny.params(cfg))


def test_padding_that_equals_eos_is_not_exported_and_more_labels_are_refused(tmp_path):
    same = {"generation_config.json": json.dumps({"eos_token_id": [9, EOS], "pad_token_id": EOS})}
    writing.save(tiny.params(CFG), CFG, tmp_path / "out", {k: v.encode() for k, v in same.items()})
    said = json.loads((tmp_path / "out/config.json").read_text())
    assert "pad_token_id" not in said and said["eos_token_id"] == [9, EOS]
    for count in ({"num_labels": 2}, {"num_labels": 1}):
        labels = {"id2label": {"0": "a", "1": "b"}} | count
        if count["num_labels"] == 2:
            with pytest.raises(UserError, match="with 2 labels .* one label is supported"):
                configs.parse({**said, **labels})
    del said["num_labels"], said["id2label"]
    with pytest.raises(UserError, match="with an unknown number of labels"):
        configs.parse(said)
    granite = tiny.model(scalar=True, residual_scale=0.5)
    with pytest.raises(UserError, match="no reward models of the family granite"):
        configs.to_json(granite)


def pairs_file(path, count=60):
    """Writes two pairs of each prompt, a number. Chosen answers are "yes"."""
    both = [(f"is it {i}?", f" {no} {i}") for i in range(count) for no in ("no", "never")]
    rows = [dict(prompt=prompt, chosen=" yes", rejected=answer) for prompt, answer in both]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def of_files(name, start, tmp_path):
    """Returns the config NAME:CHECKPOINT,debug for a checkpoint and a file of pairs."""
    config = importlib.import_module(name).get_config(f"{start},debug")
    (run,) = config.runs.values()
    run.task.pairs.path = str(pairs_file(tmp_path / "pairs.jsonl"))
    run.log.update(every_steps=1, tensorboard=False, progress=False)
    run.evals.every_steps = 2
    return config


@pytest.mark.slow  # the fast suite trains on pairs in test_preferences.py
def test_a_checkpoint_and_a_file_of_pairs_make_a_reward_model(of_bytes, quick, tmp_path, capsys):
    config = of_files("reward_model", of_bytes("start"), tmp_path)
    config.runs.reward_model.task.together = 3
    figures = supervised.train(Run(config, "reward_model", str(tmp_path / "work")))
    assert figures["pairs"] > 0 and figures["pairs"] % 2 == 0 and 0 <= figures["accuracy"] <= 1
    (line,) = [x for x in capsys.readouterr().err.split("\n") if "reward_model: pairs: " in x]
    learned = int(line.split("pairs: ")[1].split()[0]) // 2
    assert line.endswith(f"; learned together: {learned} rows of {learned} prompts")
    params, cfg = loading.load_params(str(tmp_path / "work/runs/reward_model"), single())
    assert cfg.scalar and params["score"].shape == (cfg.width, 1)
    assert "eval/accuracy" in lines(tmp_path / "work", "reward_model")[-1]
    with pytest.raises(UserError, match="another model: scalar True there, False in the config"):
        other = importlib.import_module("dpo").get_config(f"{tmp_path}/start,debug")
        other.runs.dpo.task.pairs.path = config.runs.reward_model.task.pairs.path
        other.runs.dpo.init_from = str(tmp_path / "work/runs/reward_model")
        supervised.train(Run(other, "dpo", str(tmp_path / "other")))


def test_a_scalar_head_is_for_reward_models_alone(of_bytes, tmp_path):
    config = of_files("reward_model", of_bytes("start"), tmp_path)
    config.runs.reward_model.model.scalar = False
    with pytest.raises(UserError, match="model.scalar must be True for the task reward_model"):
        supervised.resolve(config, "reward_model")
    config = tiny_recipe.get_config()
    config.runs.base.model.scalar = True
    with pytest.raises(UserError, match="only the task reward_model trains a scalar head"):
        supervised.resolve(config, "base")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_scores_equal_those_of_transformers(kind, tmp_path):
    pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    import torch

    own = dict(llama={}, qwen2=dict(qkv_bias=True), qwen3=dict(qk_norm=True))[kind]
    cfg = tiny.model(scalar=True, **own)
    params = tiny.params(cfg)
    writing.save(params, cfg, tmp_path / "out", FILES)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert type(theirs).__name__.endswith("ForSequenceClassification")
    tree = padded_tree(TRUNKS, ANSWERS, 0, 4, 2, 4)
    rows = [TRUNKS[b] + ANSWERS[b][c] for b, c in np.ndindex(2, 2)]
    ids = torch.tensor([row + [0] * (8 - len(row)) for row in rows])
    with torch.no_grad():
        want = theirs(ids, attention_mask=(ids != 0)).logits[:, 0].numpy()
    np.testing.assert_allclose(np.asarray(score(params, cfg, tree)).ravel(), want, atol=1e-4)
