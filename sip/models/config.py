"""What a decoder is, as data."""

from dataclasses import dataclass

import jax.numpy as jnp

from sip.structs import UserError

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
REMAT = ("none", "block", "dots")


@dataclass(frozen=True)
class ModelConfig:
    """A Llama-style decoder: RMSNorm, rotary positions, grouped queries, SwiGLU.

    Parameters are float32; matrix products run in `dtype`; softmax, norms, log-probabilities and
    reductions are float32.
    """

    vocab_size: int  # V, padding included
    width: int  # D
    layers: int  # L
    kv_heads: int  # G
    queries_per_kv: int  # Q
    head_dim: int  # H, even
    hidden: int  # F
    max_len: int  # longest position a branch may reach
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tied: bool = False  # unembedding = embedding
    dtype: str = "float32"
    remat: str = "none"  # none | block (keep block inputs) | dots (keep matrix products)
    query_chunk: int = 512  # trunk queries attended at a time
    branch_chunk: int = 8  # branches attended at a time
    logprob_chunk: int = 512  # positions whose logits exist at a time

    def __post_init__(self):
        for name in (
            "vocab_size",
            "width",
            "layers",
            "kv_heads",
            "queries_per_kv",
            "head_dim",
            "hidden",
            "max_len",
            "query_chunk",
            "branch_chunk",
            "logprob_chunk",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} must be at least 1, not {getattr(self, name)}")
        if self.head_dim % 2:
            raise UserError(
                f"model.head_dim must be even for rotary positions, not {self.head_dim}"
            )
        if self.dtype not in DTYPES:
            raise UserError(f"model.dtype must be one of {sorted(DTYPES)}, not {self.dtype!r}")
        if self.remat not in REMAT:
            raise UserError(f"model.remat must be one of {REMAT}, not {self.remat!r}")

    @property
    def compute_dtype(self):
        """The dtype of matrix products."""
        return DTYPES[self.dtype]


def llama_1b4(vocab_size: int = 32000, max_len: int = 2304) -> ModelConfig:
    """A 1.4 B Llama-2-style policy, the size of arXiv 2601.21343: 1.36e9 parameters, untied."""
    return ModelConfig(
        vocab_size=vocab_size,
        width=2048,
        layers=24,
        kv_heads=16,
        queries_per_kv=1,
        head_dim=128,
        hidden=5632,
        max_len=max_len,
        dtype="bfloat16",
        remat="block",
    )


def llama31_8b(max_len: int = 8192) -> ModelConfig:
    """Llama-3.1-8B's shapes (8.03e9 parameters); its rope scaling comes with checkpoint import."""
    return ModelConfig(
        vocab_size=128256,
        width=4096,
        layers=32,
        kv_heads=8,
        queries_per_kv=4,
        head_dim=128,
        hidden=14336,
        max_len=max_len,
        rope_theta=500000.0,
        dtype="bfloat16",
        remat="block",
    )
