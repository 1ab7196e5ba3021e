"""What a decoder is, as data."""

from dataclasses import dataclass

import jax.numpy as jnp

from sip.structs import UserError

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
STORAGE_DTYPES = (*DTYPES, "int8")  # what parameters that are only read may be held in
REMAT = ("none", "block", "dots")
ROPE_SCALINGS = ("none", "linear", "llama3", "yarn")


def check_storage_dtype(dtype: str, key: str) -> None:
    """Raises UserError naming `key` where it is no dtype to hold parameters in; empty: as saved."""
    if dtype not in ("", *STORAGE_DTYPES):
        raise UserError(f"{key} must be empty or one of {STORAGE_DTYPES}, not {dtype!r}")


@dataclass(frozen=True)
class ModelConfig:
    """A Llama-style decoder: RMSNorm, rotary positions, grouped queries, SwiGLU.

    Families differ in data alone: Qwen 2.5 has `qkv_bias`, Qwen 3 `qk_norm`, Mistral a `window`,
    Llama 3.1 and later `rope_scaling` (sip/models/rope.py has what its numbers mean), Qwen 3 MoE
    `experts` (sip/models/moe.py), gpt-oss these and `out_bias`, `sinks`, `full_every`,
    `expert_bias` and `swiglu_limit`.

    Matrix products run in `dtype`; softmax, norms, log-probabilities and reductions are float32.

    Matrices and embeddings are held in `param_dtype`, norms and biases in float32. bfloat16 halves
    the memory of what is frozen: a judge, or the base of low-rank factors (sip/models/lora.py),
    which computes the same where `dtype` is bfloat16 too. Parameters that are themselves trained
    should be float32: a bfloat16 keeps 8 bits, so an update of less than about 1/512 of a parameter
    is lost without a word, and at common learning rates most are.
    """

    vocab_size: int  # V, padding included
    width: int  # D
    layers: int  # L
    kv_heads: int  # G
    queries_per_kv: int  # Q
    head_dim: int  # H, even
    hidden: int  # F, of each expert where there are experts
    max_len: int  # longest position a branch may reach
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tied: bool = False  # unembedding = embedding
    dtype: str = "float32"
    param_dtype: str = "float32"  # of matrices and embeddings as they are held
    remat: str = "none"  # none | block (keep block inputs) | dots (keep matrix products)
    query_chunk: int = 512  # trunk queries attended at a time
    branch_chunk: int = 8  # branches attended at a time
    gather_gib: float = 4.0  # decoding gathers parameters once where a device holds them in it
    logprob_chunk: int = 512  # positions whose logits exist at a time
    qkv_bias: bool = False  # queries, keys and values have biases
    qk_norm: bool = False  # queries and keys are normalised over H, before they are rotated
    window: int = 0  # positions that a query sees, its own among them; 0: all before it
    rope_scaling: str = "none"  # none | linear | llama3 | yarn
    rope_factor: float = 1.0  # how many times longer than trained: of all scalings
    rope_original_len: int = 0  # positions it was trained on: of llama3 and yarn
    rope_low: float = 1.0  # llama3: turns within those up to which a frequency is divided
    rope_high: float = 4.0  # llama3: turns from which it is kept
    rope_slow: float = 1.0  # yarn: likewise, divided up to here
    rope_fast: float = 32.0  # yarn: likewise, kept from here
    rope_truncate: bool = True  # yarn: whole channels only
    rope_gain: float = 1.0  # yarn: scores are multiplied by its square
    out_bias: bool = False  # what attention writes has a bias
    sinks: bool = False  # each head has a score that no key has (arXiv 2309.17453)
    full_every: int = 0  # with a window: every so many layers one has none; 0: all have it
    experts: int = 0  # E; 0: one feed-forward layer for all tokens
    active: int = 0  # A, experts that a token goes to
    norm_topk: bool = True  # their weights sum to one; else to their share among all experts'
    expert_bias: bool = False  # router and experts have biases
    swiglu_limit: float = 0.0  # of experts: gates up to it, the rest between -it and it, plus one
    swiglu_alpha: float = 1.0  # of experts: gate * sigmoid(alpha * gate)
    router_aux: float = 0.0  # weight of the load-balancing loss in training

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
        if self.gather_gib < 0:
            raise UserError(f"model.gather_gib must not be negative, is {self.gather_gib}")
        if self.window < 0:
            raise UserError(f"model.window must not be negative, is {self.window}")
        dtypes = sorted(DTYPES)
        known = {
            "dtype": dtypes,
            "param_dtype": dtypes,
            "remat": REMAT,
            "rope_scaling": ROPE_SCALINGS,
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise UserError(
                    f"model.{name} must be one of {values}, not {getattr(self, name)!r}"
                )
        self._check_rope()
        self._check_experts()
        if self.full_every and (self.full_every < 2 or not self.window):
            raise UserError("model.full_every must be 0, or at least 2 beside a model.window")

    def _check_experts(self):
        if not 0 <= self.active <= self.experts or (self.experts > 0) != (self.active > 0):
            raise UserError(f"model.active must be in 1..experts, is {self.active}")
        if min(self.swiglu_limit, self.router_aux) < 0 or self.swiglu_alpha <= 0:
            raise UserError(
                "model.swiglu_limit, model.router_aux must not be negative, swiglu_alpha positive"
            )
        defaults = dict(expert_bias=False, swiglu_limit=0.0, swiglu_alpha=1.0, router_aux=0.0)
        for name, value in defaults.items():
            if not self.experts and getattr(self, name) != value:
                raise UserError(f"model.{name} belongs to experts, of which there are none")

    def _check_rope(self):
        if self.rope_theta <= 1:
            raise UserError(f"model.rope_theta must be above 1, is {self.rope_theta}")
        if self.rope_factor < 1 or self.rope_gain <= 0:
            raise UserError("model.rope_factor must be at least 1, model.rope_gain positive")
        if self.rope_scaling in ("llama3", "yarn") and self.rope_original_len < 1:
            raise UserError(f"model.rope_original_len is needed by {self.rope_scaling} scaling")
        for low, high in (("rope_low", "rope_high"), ("rope_slow", "rope_fast")):
            if not 0 < getattr(self, low) < getattr(self, high):
                raise UserError(f"model.{low} must be positive and below model.{high}")

    @property
    def compute_dtype(self):
        """The dtype of matrix products."""
        return DTYPES[self.dtype]
