"""Published model sizes. Tests check their parameter counts against the published ones."""

import functools

from sip.models import rope
from sip.models.config import ModelConfig
from sip.structs import UserError

LLAMA3_1 = dict(rope_scaling="llama3", rope_factor=8.0, rope_original_len=8192)
LLAMA3_2 = LLAMA3_1 | dict(rope_factor=32.0)


def _dense(layers, width, hidden, heads, kv_heads, head_dim, **rest) -> ModelConfig:
    return ModelConfig(
        layers=layers,
        width=width,
        hidden=hidden,
        kv_heads=kv_heads,
        queries_per_kv=heads // kv_heads,
        head_dim=head_dim,
        dtype="bfloat16",
        remat="block",
        **rest,
    )


_llama3 = functools.partial(_dense, vocab_size=128256, rope_theta=5e5)
_qwen25 = functools.partial(_dense, rope_theta=1e6, norm_eps=1e-6, qkv_bias=True, max_len=32768)
_qwen3 = functools.partial(
    _dense, head_dim=128, rope_theta=1e6, norm_eps=1e-6, qk_norm=True, max_len=40960,
    vocab_size=151936,
)  # fmt: skip

_qwen3_moe = functools.partial(_qwen3, experts=128, active=8)
_gpt_oss = functools.partial(
    _dense, width=2880, hidden=2880, heads=64, kv_heads=8, head_dim=64, vocab_size=201088,
    max_len=131072, active=4, window=128, full_every=2, qkv_bias=True, out_bias=True, sinks=True,
    expert_bias=True, swiglu_limit=7.0, swiglu_alpha=1.702, rope_theta=150000.0,
    rope_scaling="yarn", rope_factor=32.0, rope_original_len=4096, rope_truncate=False,
    rope_gain=rope.yarn_gain(32.0),
)  # fmt: skip

_olmo = functools.partial(
    _dense, norms="post", whole_qk_norm=True, norm_eps=1e-6, rope_theta=5e5, vocab_size=100352,
)  # fmt: skip
_granite = functools.partial(
    _dense, embed_scale=12.0, residual_scale=0.22, max_len=131072, rope_theta=1e7, tied=True,
)  # fmt: skip
_gemma2 = functools.partial(
    _dense, norms="both", norm_plus_one=True, activation="gelu_tanh", norm_eps=1e-6, tied=True,
    vocab_size=256000, max_len=8192, window=4096, full_every=2, attention_cap=50.0, final_cap=30.0,
)  # fmt: skip
_gemma3 = functools.partial(
    _dense, norms="both", norm_plus_one=True, activation="gelu_tanh", norm_eps=1e-6, tied=True,
    qk_norm=True, vocab_size=262144, max_len=32768, window=512, full_every=6, rope_theta=1e6,
    rope_local_theta=1e4,
)  # fmt: skip

PRESETS = {
    # Arguments: layers, D, F, query heads, kv heads, H (128 for qwen3).
    "llama_1b4": lambda: _dense(24, 2048, 5632, 16, 16, 128, vocab_size=32000, max_len=2304),
    "llama2_7b": lambda: _dense(32, 4096, 11008, 32, 32, 128, vocab_size=32000, max_len=4096),
    "llama3_8b": lambda: _llama3(32, 4096, 14336, 32, 8, 128, max_len=8192),
    "llama31_8b": lambda: _llama3(32, 4096, 14336, 32, 8, 128, max_len=131072, **LLAMA3_1),
    "llama32_1b": lambda: _llama3(16, 2048, 8192, 32, 8, 64, max_len=131072, tied=True, **LLAMA3_2),
    "llama32_3b": lambda: _llama3(
        28, 3072, 8192, 24, 8, 128, max_len=131072, tied=True, **LLAMA3_2
    ),
    "mistral_7b": lambda: _dense(
        32, 4096, 14336, 32, 8, 128, vocab_size=32000, max_len=32768, window=4096
    ),
    "qwen25_0b5": lambda: _qwen25(24, 896, 4864, 14, 2, 64, vocab_size=151936, tied=True),
    "qwen25_1b5": lambda: _qwen25(28, 1536, 8960, 12, 2, 128, vocab_size=151936, tied=True),
    "qwen25_7b": lambda: _qwen25(28, 3584, 18944, 28, 4, 128, vocab_size=152064),
    "qwen3_0b6": lambda: _qwen3(28, 1024, 3072, 16, 8, tied=True),
    "qwen3_1b7": lambda: _qwen3(28, 2048, 6144, 16, 8, tied=True),
    "qwen3_4b": lambda: _qwen3(36, 2560, 9728, 32, 8, tied=True),
    "qwen3_8b": lambda: _qwen3(36, 4096, 12288, 32, 8),
    "qwen3_30b_a3b": lambda: _qwen3_moe(48, 2048, 768, 32, 4),
    "qwen3_235b_a22b": lambda: _qwen3_moe(94, 4096, 1536, 64, 4),
    "mixtral_8x7b": lambda: _dense(
        32,
        4096,
        14336,
        32,
        8,
        128,
        vocab_size=32000,
        max_len=32768,
        rope_theta=1e6,
        experts=8,
        active=2,
    ),
    "olmo2_1b": lambda: _olmo(16, 2048, 8192, 16, 16, 128, max_len=4096),
    "olmo2_7b": lambda: _olmo(32, 4096, 11008, 32, 32, 128, max_len=4096),
    "olmo3_7b": lambda: _olmo(
        32,
        4096,
        11008,
        32,
        32,
        128,
        vocab_size=100278,
        max_len=65536,
        window=4096,
        full_every=4,
        rope_local_theta=5e5,
        rope_scaling="yarn",
        rope_factor=8.0,
        rope_original_len=8192,
        rope_gain=rope.yarn_gain(8.0),
    ),
    "smollm3_3b": lambda: _dense(
        36,
        2048,
        11008,
        16,
        4,
        128,
        vocab_size=128256,
        max_len=65536,
        rope_theta=5e6,
        norm_eps=1e-6,
        tied=True,
        nope_every=4,
    ),
    "granite33_2b": lambda: _granite(
        40, 2048, 8192, 32, 8, 64, vocab_size=49159, attention_scale=1 / 64, logit_divisor=8.0
    ),
    "granite33_8b": lambda: _granite(
        40, 4096, 12800, 32, 8, 128, vocab_size=49159, attention_scale=1 / 128, logit_divisor=16.0
    ),
    "phi3_mini": lambda: _dense(
        32, 3072, 8192, 32, 32, 96, vocab_size=32064, max_len=4096, window=2047, fused=True
    ),
    "phi4": lambda: _dense(
        40,
        5120,
        17920,
        40,
        10,
        128,
        vocab_size=100352,
        max_len=16384,
        rope_theta=250000.0,
        fused=True,
    ),
    "gemma2_2b": lambda: _gemma2(26, 2304, 9216, 8, 4, 256, embed_scale=2304**0.5),
    "gemma2_9b": lambda: _gemma2(42, 3584, 14336, 16, 8, 256, embed_scale=3584**0.5),
    "gemma2_27b": lambda: _gemma2(
        46, 4608, 36864, 32, 16, 128, embed_scale=4608**0.5, attention_scale=144**-0.5
    ),
    "gemma3_1b": lambda: _gemma3(26, 1152, 6912, 4, 1, 256, embed_scale=1152**0.5),
    "gpt_oss_20b": lambda: _gpt_oss(24, experts=32),
    "gpt_oss_120b": lambda: _gpt_oss(36, experts=128),
}


def preset(name: str) -> ModelConfig:
    """Returns the ModelConfig of a published model, in bfloat16 with rematerialised blocks.

    `llama_1b4` has the size of the policy in arXiv 2601.21343, 1.36e9 parameters. Raises UserError
    if there is no preset `name`.
    """
    if name not in PRESETS:
        raise UserError(f"no model preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()
