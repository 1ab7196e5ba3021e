"""Every family against transformers: committed logits here, the live library when slow.

`python tests/test_families.py` writes the goldens anew, with torch and transformers.
"""

import json
import sys

import families
import jax
import numpy as np
import pytest

from sip import mesh as meshes
from sip import sampling
from sip.hf import reading, writing

EAGER = dict(attn_implementation="eager", experts_implementation="eager")
SHOWN = 8  # logits of a position that a golden keeps
CASES = pytest.mark.parametrize("name", families.CASES)
# The odd variants of these families have all their settings; the usual ones are slow.
LATER = "mixtral olmo2 smollm3 granite phi3 gemma2 gemma3 olmo3".split()
FEWER = pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=[pytest.mark.slow] if x in LATER else []) for x in families.CASES],
)


def shown(logits_TV):
    """Returns the stored part of a golden: some logits of every fifth position."""
    V = logits_TV.shape[1]
    return np.asarray(logits_TV)[::5, :: V // SHOWN]


def golden(name):
    return json.loads((families.GOLDENS / f"{name}.json").read_text())


@FEWER
def test_logits_and_greedy_tokens_are_those_of_transformers(name, tmp_path):
    want, raw = golden(name), families.config(name)
    params, cfg = reading.load(families.write(raw, tmp_path), meshes.single())
    first, second = families.texts(cfg.vocab_size, want["greedy"])
    tree = families.tree(first, second)
    trunk_TV, branch_CRV = families.logits(params, cfg, tree)
    n, m = len(first), len(first) + len(second)
    np.testing.assert_allclose(shown(trunk_TV[:n]), want["first"], atol=1e-4)
    np.testing.assert_allclose(shown(trunk_TV[n:m]), want["second"], atol=1e-4)
    for branch_RV, fork in zip(branch_CRV, np.asarray(tree.fork_BC)[0], strict=True):
        np.testing.assert_allclose(branch_RV, trunk_TV[fork:][: len(branch_RV)], atol=1e-4)
    likeliest_T = trunk_TV[families.PROMPT - 1 : n - 1].argmax(-1)
    assert likeliest_T.tolist() == want["greedy"] and len(set(want["greedy"])) > 4


def test_goldens_are_small():
    found = list(families.GOLDENS.glob("*.json"))
    assert {p.stem for p in found} == set(families.CASES)
    assert sum(p.stat().st_size for p in found) < 130_000


# With torch and transformers.


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="needs torch")
    return pytest.importorskip("transformers", reason="needs transformers")


def load_theirs(transformers, directory):
    """Loads the transformers model; the file's keys and the model's keys must be the same."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        directory, output_loading_info=True, dtype="float32", **EAGER
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def their_logits(model, tokens_T):
    import torch

    with torch.no_grad():
        return model(torch.tensor(np.asarray(tokens_T)[None])).logits[0].numpy()


def their_greedy(model, tokens_T):
    """Decodes greedily, with a full forward pass for each token."""
    found = list(map(int, tokens_T))
    for _ in range(families.STEPS):
        found.append(int(their_logits(model, found)[-1].argmax()))
    return found[len(tokens_T) :]


def make_golden(transformers, name, directory):
    raw = families.config(name)
    model = load_theirs(transformers, families.write(raw, directory))
    first, second = families.texts(raw["vocab_size"], [])
    greedy = their_greedy(model, first)
    first, second = families.texts(raw["vocab_size"], greedy)
    few = lambda tokens: np.round(shown(their_logits(model, tokens)), 5).tolist()
    return {"greedy": greedy, "first": few(first), "second": few(second)}


@pytest.mark.slow
@CASES
def test_goldens_are_what_transformers_says(name, transformers, tmp_path):
    made, kept = make_golden(transformers, name, tmp_path), golden(name)
    assert made.keys() == kept.keys() and made["greedy"] == kept["greedy"]
    for text in ("first", "second"):  # torch's kernels, and so its rounding, depend on the CPU
        np.testing.assert_allclose(made[text], kept[text], rtol=0, atol=2e-5)


@pytest.fixture(scope="module", params=families.CASES)
def made(request, transformers, tmp_path_factory):
    """(directory, model): a random transformers model, saved by transformers in several shards."""
    import torch

    path = tmp_path_factory.mktemp(request.param)
    raw = {k: v for k, v in families.config(request.param).items() if k != "architectures"}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**raw), **EAGER
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(path, max_shard_size="6KB")
    assert len(list(path.glob("*.safetensors"))) > 1
    return path, model.eval()


@pytest.mark.slow
def test_every_logit_of_a_model_of_theirs(made):
    path, model = made
    params, cfg = reading.load(path, meshes.single())
    first, second = families.texts(cfg.vocab_size, their_greedy(model, families.texts(37, [])[0]))
    tree = families.tree(first, second)
    want = their_logits(model, first), their_logits(model, second)
    families.compared(families.logits(params, cfg, tree), tree, *want)


@pytest.mark.slow
def test_sampling_finds_the_same_greedy_tokens(made):
    path, model = made
    params, cfg = reading.load(path, meshes.single())
    first, second = families.texts(cfg.vocab_size, [])
    tokens_BT = np.zeros((2, families.SECOND), np.int32)
    tokens_BT[0, : families.PROMPT], tokens_BT[1] = first, second
    greedy = sampling.SamplingConfig(temperature=0.0)
    run = sampling.program(cfg, 1, families.STEPS, greedy, ())
    fork_B = np.array([families.PROMPT, families.SECOND], np.int32)
    found = run(params, tokens_BT, fork_B, np.arange(2), jax.random.key(0))
    want = [their_greedy(model, first), their_greedy(model, second)]
    assert np.asarray(found.tokens_BCR)[:, 0].tolist() == want


@pytest.mark.slow
def test_an_export_is_the_same_model_to_them(made, transformers, tmp_path):
    path, model = made
    params, cfg = reading.load(path, meshes.single())
    ids = writing.as_json({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    writing.save(params, cfg, tmp_path / "out", {writing.GENERATION: ids}, shard_bytes=6000)
    again = load_theirs(transformers, tmp_path / "out")
    tokens = families.texts(cfg.vocab_size, [])[1]
    np.testing.assert_array_equal(their_logits(again, tokens), their_logits(model, tokens))
    back, same = reading.load(tmp_path / "out", meshes.single())
    assert same == cfg
    jax.tree.map(np.testing.assert_array_equal, back, params)


if __name__ == "__main__":
    import tempfile
    from pathlib import Path

    import transformers as library

    families.GOLDENS.mkdir(exist_ok=True)
    for each in sys.argv[1:] or families.CASES:
        with tempfile.TemporaryDirectory() as folder:
            found = make_golden(library, each, Path(folder))
        (families.GOLDENS / f"{each}.json").write_text(json.dumps(found) + "\n")
