"""ModelConfig: the architecture of a decoder as a frozen dataclass."""

from dataclasses import dataclass

import jax.numpy as jnp

from sip.sections import above, at_least, check, one_of
from sip.structs import UserError

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
STORAGE_DTYPES = (*DTYPES, "int8")  # of parameters that are never trained
REMAT = ("none", "block", "dots")
ROPE_SCALINGS = ("none", "linear", "llama3", "yarn")
SIZES = (
    "vocab_size",
    "width",
    "layers",
    "kv_heads",
    "queries_per_kv",
    "head_dim",
    "hidden",
    "max_len",
)


def check_storage_dtype(dtype: str, key: str) -> None:
    """Raises UserError naming `key` if `dtype` is no storage dtype of parameters.

    Empty is allowed and means the dtype of the checkpoint.
    """
    if dtype not in ("", *STORAGE_DTYPES):
        raise UserError(f"{key} must be empty or one of {STORAGE_DTYPES}, not {dtype!r}")


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a Llama-style decoder: RMSNorm, rotary positions, grouped queries, SwiGLU.

    Model families differ only in these fields. Qwen 2.5 has `qkv_bias`, Qwen 3 has `qk_norm`,
    Mistral has a `window`, Llama 3.1 and later have `rope_scaling` (sip/models/rope.py explains
    its numbers) and Qwen 3 MoE has `experts` (sip/models/moe.py). gpt-oss combines all of these
    except `qk_norm` with `out_bias`, `sinks`, `full_every`, `expert_bias` and `swiglu_limit`.

    Matrix products run in `dtype`. Softmax, norms, log-probabilities and reductions run in float32.

    Matrices and embeddings are stored in `param_dtype`, norms and biases in float32. bfloat16
    halves the memory of frozen parameters: a judge, or the base of a LoRA run (sip/models/lora.py).
    The results are the same if `dtype` is bfloat16 too. Trained parameters should be float32:
    bfloat16 has 8 significant bits, so an update smaller than about 1/512 of a parameter is
    silently lost, and at common learning rates most updates are that small.
    """

    vocab_size: int  # V, including padding
    width: int  # D
    layers: int  # L
    kv_heads: int  # G
    queries_per_kv: int  # Q
    head_dim: int  # H, even
    hidden: int  # F, feed-forward width; with experts, the width of each expert
    max_len: int  # context length: tokens of a trunk and one of its branches together
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tied: bool = False  # the unembedding is the transposed embedding, no matrix of its own
    dtype: str = "float32"  # of matrix products: float32 | bfloat16
    param_dtype: str = "float32"  # of stored matrices and embeddings: float32 | bfloat16
    remat: str = "none"  # none | block (keep block inputs) | dots (keep matrix products)
    query_chunk: int = 512  # trunk queries per step of attention
    branch_chunk: int = 8  # branches per step of attention
    gather_gib: float = 4.0  # GiB per device; decoding gathers parameters once if they fit in it
    logprob_chunk: int = 512  # positions per block of logits
    qkv_bias: bool = False  # queries, keys and values have biases
    qk_norm: bool = False  # RMSNorm of queries and keys over H, before the rotation
    window: int = 0  # sliding window: positions a query sees, including its own; 0: no window
    rope_scaling: str = "none"  # none | linear | llama3 | yarn
    rope_factor: float = 1.0  # all scalings: context length / trained length, at least 1
    rope_original_len: int = 0  # llama3 and yarn: trained length in positions
    rope_low: float = 1.0  # llama3: up to this many turns a frequency is divided by rope_factor
    rope_high: float = 4.0  # llama3: from this many turns a frequency is unchanged
    rope_slow: float = 1.0  # yarn: like rope_low
    rope_fast: float = 32.0  # yarn: like rope_high
    rope_truncate: bool = True  # yarn: the ramp starts and ends at whole channels
    rope_gain: float = 1.0  # yarn: factor of cosine and sine; scores grow by its square
    out_bias: bool = False  # the output projection of attention has a bias
    sinks: bool = False  # each head's softmax has one learned score without a key (2309.17453)
    full_every: int = 0  # with a window: every n-th layer has full attention; 0: no layer has
    experts: int = 0  # E; 0: dense feed-forward layers
    active: int = 0  # A, experts per token
    norm_topk: bool = True  # weights of the A experts sum to one; else their softmax over all E
    expert_bias: bool = False  # router and experts have biases
    swiglu_limit: float = 0.0  # experts: clamp of gate (above) and up (both sides); 0: none
    swiglu_alpha: float = 1.0  # experts: gate * sigmoid(alpha * gate)
    router_aux: float = 0.0  # weight of the load-balancing loss in training

    def __post_init__(self):
        sizes = (*SIZES, "query_chunk", "branch_chunk", "logprob_chunk")
        check("model", self, **dict.fromkeys(sizes, at_least(1)))
        check(
            "model",
            self,
            dtype=one_of(sorted(DTYPES)),
            param_dtype=one_of(sorted(DTYPES)),
            remat=one_of(REMAT),
            norm_eps=above(0, most=1),
            gather_gib=at_least(0),
            window=at_least(0),
            full_every=at_least(0),
        )
        if self.head_dim % 2:
            raise UserError(
                f"model.head_dim must be even for rotary positions, not {self.head_dim}"
            )
        self._check_rope()
        self._check_experts()
        if self.full_every and (self.full_every < 2 or not self.window):
            raise UserError(
                f"model.full_every must be 0, or at least 2 with a model.window; is "
                f"{self.full_every} with window {self.window}"
            )

    def _check_experts(self):
        if not 0 <= self.active <= self.experts or (self.experts > 0) != (self.active > 0):
            raise UserError(
                f"model.active must be in 1..model.experts ({self.experts}), or 0 without experts; "
                f"is {self.active}"
            )
        check(
            "model",
            self,
            swiglu_limit=at_least(0),
            swiglu_alpha=above(0),
            router_aux=at_least(0),
        )
        defaults = dict(expert_bias=False, swiglu_limit=0.0, swiglu_alpha=1.0, router_aux=0.0)
        for name, value in defaults.items():
            if not self.experts and getattr(self, name) != value:
                raise UserError(f"model.{name} needs experts, but model.experts is 0")

    def _check_rope(self):
        check(
            "model",
            self,
            rope_scaling=one_of(ROPE_SCALINGS),
            rope_theta=above(1),
            rope_factor=at_least(1),
            rope_original_len=at_least(0),
            rope_gain=above(0),
            **dict.fromkeys(("rope_low", "rope_high", "rope_slow", "rope_fast"), above(0)),
        )
        if self.rope_scaling in ("llama3", "yarn") and self.rope_original_len < 1:
            raise UserError(f"model.rope_original_len is needed by {self.rope_scaling} scaling")
        for low, high in (("rope_low", "rope_high"), ("rope_slow", "rope_fast")):
            if getattr(self, low) >= getattr(self, high):
                raise UserError(f"model.{low} must be below model.{high}")

    @property
    def compute_dtype(self):
        """The dtype of matrix products."""
        return DTYPES[self.dtype]
