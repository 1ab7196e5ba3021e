"""Tiny checkpoints of every Hugging Face family, with weights drawn from the tensors' names."""

import functools
import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sip.hf import configs, names
from sip.models import decoder
from sip.structs import Tree

GOLDENS = Path(__file__).parent / "goldens"
# Tokens: the first text's prompt, its greedy continuation, and the second text.
PROMPT, STEPS, SECOND = 12, 64, 20
BASE = dict(
    vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5,
    hidden_act="silu", tie_word_embeddings=False, rope_theta=10000.0,
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
)  # fmt: skip
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
ODD = dict(vocab_size=37, tie_word_embeddings=True, num_key_value_heads=1)
CASES = {  # fields of config.json, in addition to BASE
    "llama2": dict(model_type="llama", num_key_value_heads=4, head_dim=None),
    "llama31": dict(model_type="llama", rope_scaling=LLAMA3, rope_theta=500.0),
    "llama32_odd": dict(model_type="llama", head_dim=6, rope_scaling=LLAMA3, **ODD),
    "llama_linear": dict(model_type="llama", rope_scaling=dict(type="linear", factor=4.0)),
    "mistral": dict(model_type="mistral", sliding_window=7),
    "mistral_odd": dict(model_type="mistral", sliding_window=None, head_dim=10, **ODD),
    "qwen25": dict(model_type="qwen2", use_sliding_window=False, max_window_layers=2),
    "qwen25_odd": dict(model_type="qwen2", rope_scaling=YARN, **ODD),
    "qwen3": dict(model_type="qwen3", head_dim=8),
    "qwen3_odd": dict(
        model_type="qwen3", head_dim=6, use_sliding_window=True, sliding_window=5,
        max_window_layers=0, **ODD,
    ),
    "qwen3_moe": dict(
        model_type="qwen3_moe", head_dim=8, moe_intermediate_size=10, num_experts=8,
        num_experts_per_tok=2, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[],
    ),
    "qwen3_moe_odd": dict(
        model_type="qwen3_moe", head_dim=6, moe_intermediate_size=7, num_experts=5,
        num_experts_per_tok=3, norm_topk_prob=False, use_sliding_window=True, sliding_window=5,
        **ODD,
    ),
    "gpt_oss": dict(
        model_type="gpt_oss", head_dim=8, num_local_experts=4, num_experts_per_tok=2,
        rope_scaling={**YARN, "truncate": False, "beta_fast": 32.0, "beta_slow": 1.0},
        sliding_window=6, attention_bias=True, swiglu_limit=7.0,
    ),
    "gpt_oss_odd": dict(
        model_type="gpt_oss", head_dim=6, num_hidden_layers=3, num_local_experts=5,
        num_experts_per_tok=4, rope_scaling={**YARN, "truncate": True}, sliding_window=3,
        layer_types=["sliding_attention"] * 2 + ["full_attention"], swiglu_limit=0.5,
        swiglu_alpha=1.2, **ODD,
    ),
}  # fmt: skip


def config(name: str) -> dict:
    """Returns the contents of config.json for a case."""
    said = {**BASE, **CASES[name]}
    return {**said, "architectures": [configs.FAMILIES[said["model_type"]]]}


def weights(raw: dict) -> dict[str, np.ndarray]:
    """Returns random tensors by name.

    Values depend only on name and shape. Norm scales differ from one, so that tests notice them.
    """
    cfg = configs.parse(raw)
    shapes = jax.eval_shape(lambda: decoder.init(cfg, jax.random.key(0)))
    found = {}
    for name, place, _ in names.tensors(shapes):
        x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(place.their_shape)
        found[name] = np.float32(1 + 0.3 * x if "norm" in name else 0.35 * x)
    return found


def write(raw: dict, directory: Path, dtype="float32") -> Path:
    """Writes a single-file checkpoint without a tokenizer."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(raw))
    cast = {k: v.astype(jnp.dtype(dtype)) for k, v in weights(raw).items()}
    save_file(cast, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def texts(vocab: int, greedy) -> tuple[np.ndarray, np.ndarray]:
    """Returns (prompt with its greedy continuation, another text)."""
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, vocab, PROMPT), rng.integers(0, vocab, SECOND)
    return np.concatenate([first, np.array(greedy, int)]), second


def tree(first, second) -> Tree:
    """Packs the two texts into one padded row, with later parts of both as branches."""
    ends = len(first), len(first) + len(second)
    row = np.concatenate([first, second, [0] * 4])
    segment = np.repeat([1, 2, 0], [len(first), len(second), 4])
    forks, R = (PROMPT - 3, ends[0] + 5), 10
    branches = np.stack([row[fork : fork + R] for fork in forks])
    one = lambda x: jnp.asarray(x)[None]
    return Tree(
        one(row), one(np.arange(len(row)) < ends[1]), one(branches), one(branches >= 0),
        one(np.array(forks)), one(segment),
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=1)
def _logits(params, cfg, tree):
    out = decoder.apply(params, cfg, tree)
    unembed_DV = decoder.unembed(params, cfg)
    return out.trunk_BTD[0] @ unembed_DV, out.branch_BCRD[0] @ unembed_DV


def logits(params, cfg, tree):
    """Returns (trunk logits_TV, branch logits_CRV)."""
    return jax.device_get(_logits(params, cfg, tree))


def compared(got, tree, first_TV, second_TV, tolerance=1e-4):
    """Asserts that the logits of the packed row equal those of each text run by itself."""
    trunk_TV, branch_CRV = got
    n, m = len(first_TV), len(first_TV) + len(second_TV)
    want_TV = np.concatenate([first_TV, second_TV])
    np.testing.assert_allclose(trunk_TV[:m], want_TV, atol=tolerance)
    for branch_RV, fork in zip(branch_CRV, np.asarray(tree.fork_BC)[0], strict=True):
        np.testing.assert_allclose(branch_RV, want_TV[fork:][: len(branch_RV)], atol=tolerance)
    assert n > PROMPT and np.abs(want_TV).max() > 0.5
