"""Tiny checkpoints of every Hugging Face family, with weights drawn from the tensors' names."""

import copy
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
LONGROPE = dict(
    type="longrope", short_factor=[1.0, 1.25, 1.5], long_factor=[1.0, 4.0, 9.0],
)  # fmt: skip
FULL, NEAR = "full_attention", "sliding_attention"
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
    "mixtral": dict(
        model_type="mixtral", num_local_experts=4, num_experts_per_tok=2, sliding_window=None,
        rope_theta=1e6, router_aux_loss_coef=0.02,
    ),
    "mixtral_odd": dict(
        model_type="mixtral", num_local_experts=5, num_experts_per_tok=3, sliding_window=6,
        head_dim=6, intermediate_size=7, **ODD,
    ),
    "olmo2": dict(model_type="olmo2", attention_bias=False, rope_theta=5e5),
    "olmo2_odd": dict(
        model_type="olmo2", attention_bias=True, head_dim=6, rope_scaling=YARN,
        intermediate_size=48, **{**ODD, "tie_word_embeddings": False},
    ),
    "smollm3": dict(
        model_type="smollm3", pad_token_id=0, num_hidden_layers=4, no_rope_layers=[1, 1, 1, 0],
        no_rope_layer_interval=4, layer_types=[FULL] * 4, use_sliding_window=False,
        sliding_window=None, pretraining_tp=2, max_window_layers=28,
    ),
    "smollm3_odd": dict(
        model_type="smollm3", pad_token_id=0, num_hidden_layers=3, no_rope_layers=[1, 0, 1],
        mlp_bias=True, attention_bias=True, head_dim=6, layer_types=[NEAR, NEAR, FULL],
        use_sliding_window=True, sliding_window=4, **ODD,
    ),
    "granite": dict(
        model_type="granite", embedding_multiplier=6.0, attention_multiplier=0.25,
        residual_multiplier=0.3, logits_scaling=2.0,
    ),
    "granite_odd": dict(
        model_type="granite", embedding_multiplier=1.5, attention_multiplier=0.7,
        residual_multiplier=1.4, logits_scaling=0.3, attention_bias=True, mlp_bias=True,
        rope_scaling=LLAMA3, **ODD,
    ),
    "phi3": dict(
        model_type="phi3", pad_token_id=0, sliding_window=7, original_max_position_embeddings=256,
        embd_pdrop=0.0, resid_pdrop=0.0, rope_scaling=None,
    ),
    "phi3_odd": dict(
        model_type="phi3", pad_token_id=0, partial_rotary_factor=0.75, hidden_size=32,
        rope_scaling=LONGROPE,
        original_max_position_embeddings=160, max_position_embeddings=640, sliding_window=None,
        **ODD,
    ),
    "gemma2": dict(
        model_type="gemma2", head_dim=8, num_hidden_layers=4, hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=8, sliding_window=6, attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0, tie_word_embeddings=True,
    ),
    "gemma2_odd": dict(
        model_type="gemma2", head_dim=6, num_hidden_layers=3, hidden_activation="silu",
        query_pre_attn_scalar=3, sliding_window=3, attn_logit_softcapping=1.5,
        final_logit_softcapping=2.0, layer_types=[NEAR, NEAR, FULL], attention_bias=True,
        **{**ODD, "tie_word_embeddings": False},
    ),
    "gemma3": dict(
        model_type="gemma3_text", head_dim=8, num_hidden_layers=6, query_pre_attn_scalar=8,
        num_attention_heads=2,
        hidden_activation="gelu_pytorch_tanh", sliding_window=6, sliding_window_pattern=6,
        rope_theta=1e6, rope_local_base_freq=10000.0, tie_word_embeddings=True,
        rope_scaling=dict(rope_type="linear", factor=8.0),
    ),
    "gemma3_odd": dict(
        model_type="gemma3_text", head_dim=6, num_hidden_layers=4, query_pre_attn_scalar=5,
        hidden_activation="gelu_pytorch_tanh", sliding_window=3, layer_types=[NEAR, FULL] * 2,
        final_logit_softcapping=1.5, rope_parameters={
            FULL: dict(rope_type="default", rope_theta=300.0),
            NEAR: dict(rope_type="default", rope_theta=20.0),
        }, **ODD,
    ),
    "olmo3": dict(
        model_type="olmo3", num_hidden_layers=4, sliding_window=5, rope_theta=5e5,
        rope_scaling={**YARN, "attention_factor": 1.2},
    ),
    "olmo3_odd": dict(
        model_type="olmo3", num_hidden_layers=2, sliding_window=4, head_dim=6,
        layer_types=[NEAR, FULL], rope_parameters={
            FULL: dict(rope_type="default", rope_theta=700.0),
            NEAR: dict(rope_type="default", rope_theta=50.0),
        }, **ODD,
    ),
}  # fmt: skip


def config(name: str) -> dict:
    """Returns the contents of config.json for a case."""
    said = copy.deepcopy({**BASE, **CASES[name]})  # transformers writes into what it is given
    if "rope_parameters" in said:
        said.pop("rope_theta")
    return {**said, "architectures": [configs.FAMILIES[said["model_type"]]]}


def weights(raw: dict) -> dict[str, np.ndarray]:
    """Returns random tensors by name.

    Values depend only on name and shape. Norm scales differ from one, so that tests notice them.
    """
    cfg = configs.parse(raw)
    shapes = jax.eval_shape(lambda: decoder.init(cfg, jax.random.key(0)))
    found = {}
    for name, place, _ in names.tensors(shapes, cfg):
        x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(place.their_shape)
        mean = 0 if cfg.norm_plus_one else 1
        found[name] = np.float32(mean + 0.3 * x if "norm" in name else 0.35 * x)
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
    unembed_DV = decoder.unembed_DV(params, cfg)
    return tuple(_capped(x @ unembed_DV, cfg) for x in (out.trunk_BTD[0], out.branch_BCRD[0]))


def _capped(logits, cfg):
    return cfg.final_cap * jnp.tanh(logits / cfg.final_cap) if cfg.final_cap else logits


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
