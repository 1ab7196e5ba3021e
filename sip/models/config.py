"""ModelConfig: the architecture of a decoder as a frozen dataclass."""

import math
from dataclasses import dataclass

import jax.numpy as jnp

from sip.sections import above, at_least, check, one_of
from sip.structs import UserError

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
STORAGE_DTYPES = (*DTYPES, "int8")  # of parameters that are never trained
REMAT = ("none", "block", "dots")
ATTENTION = ("xla", "splash", "cudnn")
ROPE_SCALINGS = ("none", "linear", "llama3", "yarn", "longrope")
NORMS = ("pre", "post", "both")
ACTIVATIONS = ("silu", "gelu_tanh")
SMALLEST = 2.0**-126  # of float32; a smaller positive number may be 0 in it, and divided by
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
    its numbers), Qwen 3 MoE and Mixtral have `experts` (sip/models/moe.py). gpt-oss combines all of
    these except `qk_norm` with `out_bias`, `sinks`, `full_every`, `expert_bias` and `swiglu_limit`.
    OLMo 2 has `norms` after the sublayers and `whole_qk_norm`, SmolLM3 has `nope_every`, Granite
    has four factors (`embed_scale`, `attention_scale`, `residual_scale`, `logit_divisor`), Phi has
    `rope_dims` and longrope. Gemma 2 has `norms` on both sides, `norm_plus_one`, `activation` and
    soft caps; Gemma 3 has `qk_norm` instead of the caps, and `rope_local_theta`.

    Matrix products run in `dtype`. Softmax, norms, log-probabilities and reductions run in float32.

    Matrices and embeddings are stored in `param_dtype`, norms and biases in float32. bfloat16
    halves the memory of frozen parameters: a judge, or the base of a LoRA run (sip/models/lora.py).
    The results are the same if `dtype` is bfloat16 too. Trained parameters should be float32:
    bfloat16 has 8 significant bits, so an update smaller than about 1/512 of a parameter is
    silently lost, and at common learning rates most updates are that small.
    """

    vocab_size: int  # V, including padding
    width: int  # D, numbers per position
    layers: int  # L, attention and feed-forward each
    kv_heads: int  # G, heads of keys and values
    queries_per_kv: int  # Q, query heads per key/value head
    head_dim: int  # H, channels per head, even
    hidden: int  # F, feed-forward width; with experts, the width of each expert
    max_len: int  # context length: tokens of a trunk and one of its branches together
    rope_theta: float = 10000.0  # base of the rotary frequencies
    norm_eps: float = 1e-5  # added to the mean square in RMSNorm
    tied: bool = False  # the unembedding is the transposed embedding, no matrix of its own
    dtype: str = "float32"  # dtype of matrix products: float32 | bfloat16
    param_dtype: str = "float32"  # dtype of stored matrices and embeddings: float32 | bfloat16
    remat: str = "none"  # none | block (keep block inputs) | dots (keep products and attention)
    attention: str = "xla"  # within trunks: xla | splash (TPU) | cudnn (GPU)
    query_chunk: int = 512  # trunk queries per step of attention by xla
    branch_chunk: int = 8  # branches per step of attention; short ones: query_chunk / R if more
    decode_apart: bool = False  # decoding reads a copy of each layer, not the stack: faster on CPU
    decode_spans: int = 1  # parts of decoding; the branches' caches grow from part to part
    gather_gib: float = 4.0  # GiB per device; decoding gathers parameters once if they fit in it
    logprob_chunk: int = 512  # positions per block of logits
    qkv_bias: bool = False  # queries, keys and values have biases
    qk_norm: bool = False  # RMSNorm of queries and keys over H, before the rotation
    window: int = 0  # sliding window: positions a query sees, including its own; 0: no window
    rope_scaling: str = "none"  # none | linear | llama3 | yarn | longrope
    rope_factor: float = 1.0  # all scalings: context length / trained length, at least 1
    rope_original_len: int = 0  # llama3, yarn and longrope: trained length in positions
    rope_low: float = 1.0  # llama3: up to this many turns a frequency is divided by rope_factor
    rope_high: float = 4.0  # llama3: from this many turns a frequency is unchanged
    rope_slow: float = 1.0  # yarn: like rope_low
    rope_fast: float = 32.0  # yarn: like rope_high
    rope_truncate: bool = True  # yarn: the ramp starts and ends at whole channels
    rope_gain: float = 1.0  # yarn, longrope: factor of cosine and sine; scores grow by its square
    rope_short: tuple[float, ...] = ()  # longrope, max_len up to rope_original_len: divisors
    rope_long: tuple[float, ...] = ()  # longrope, a larger max_len: divisors of the frequencies
    rope_dims: int = 0  # first channels of a head that rotate, even; 0: all
    rope_local_theta: float = 0.0  # base in layers with a window, unscaled; 0: as in the others
    nope_every: int = 0  # every n-th layer has no rotary positions; 0: all layers have them
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
    norms: str = "pre"  # RMSNorm of a sublayer's input (pre), of its output (post), or both
    norm_plus_one: bool = False  # RMSNorm multiplies by 1 + scale
    whole_qk_norm: bool = False  # RMSNorm of queries and keys over all heads, before the rotation
    activation: str = "silu"  # of the gate of dense layers: silu | gelu_tanh
    mlp_bias: bool = False  # the three projections of dense feed-forward layers have biases
    attention_scale: float = 0.0  # factor of scores; 0: 1 / sqrt(head_dim)
    attention_cap: float = 0.0  # soft cap of scores, cap * tanh(score / cap); 0: none
    final_cap: float = 0.0  # soft cap of logits; 0: none
    embed_scale: float = 1.0  # factor of embeddings, not of the unembedding
    residual_scale: float = 1.0  # factor of what a sublayer adds
    logit_divisor: float = 1.0  # logits are divided by it, before the soft cap
    scalar: bool = False  # a reward model: a scalar head in place of the unembedding
    fused: bool = False  # Hugging Face files hold q, k, v in one matrix, gate and up in another

    def __post_init__(self):
        sizes = (*SIZES, "query_chunk", "branch_chunk", "logprob_chunk", "decode_spans")
        check("model", self, **dict.fromkeys(sizes, at_least(1)))
        check(
            "model",
            self,
            dtype=one_of(sorted(DTYPES)),
            param_dtype=one_of(sorted(DTYPES)),
            remat=one_of(REMAT),
            attention=one_of(ATTENTION),
            norms=one_of(NORMS),
            activation=one_of(ACTIVATIONS),
            norm_eps=at_least(SMALLEST, most=1),
            gather_gib=at_least(0),
            window=at_least(0),
            full_every=at_least(0),
        )
        if self.head_dim % 2:
            raise UserError(
                f"model.head_dim must be even for rotary positions, not {self.head_dim}"
            )
        self._check_kernel()
        self._check_rope()
        self._check_layers()
        self._check_experts()
        if self.full_every and (self.full_every < 2 or not self.window):
            raise UserError(
                f"model.full_every must be 0, or at least 2 with a model.window; is "
                f"{self.full_every} with window {self.window}"
            )

    def _check_kernel(self):
        if self.attention != "cudnn":
            return
        if self.sinks or self.attention_cap:
            raise UserError(
                "model.attention 'cudnn' knows no model.sinks and no model.attention_cap; use 'xla'"
            )
        if self.dtype != "bfloat16":
            raise UserError(
                f"model.attention 'cudnn' needs model.dtype 'bfloat16', not {self.dtype!r}"
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
        if self.experts and (self.activation != "silu" or self.mlp_bias or self.fused):
            raise UserError(
                "model.activation, model.mlp_bias and model.fused are for dense layers; with "
                "model.experts they must keep their defaults"
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
        if self.rope_scaling in ("llama3", "yarn", "longrope") and self.rope_original_len < 1:
            raise UserError(f"model.rope_original_len is needed by {self.rope_scaling} scaling")
        for low, high in (("rope_low", "rope_high"), ("rope_slow", "rope_fast")):
            if getattr(self, low) >= getattr(self, high):
                raise UserError(f"model.{low} must be below model.{high}")

        check("model", self, rope_dims=at_least(0, most=self.head_dim))
        if self.rope_dims % 2:
            raise UserError(f"model.rope_dims must be even, not {self.rope_dims}")
        for name in ("rope_short", "rope_long"):
            found = getattr(self, name)
            wanted = self.rotated // 2 if self.rope_scaling == "longrope" else 0
            if len(found) != wanted or not all(0 < x < math.inf for x in found):
                raise UserError(
                    f"model.{name} must be {wanted} positive numbers with rope_scaling "
                    f"{self.rope_scaling!r} (one per frequency of longrope), not {found}"
                )

    def _check_layers(self):
        zeros = ("nope_every", "rope_local_theta", "attention_scale", "attention_cap", "final_cap")
        check("model", self, **dict.fromkeys(zeros, at_least(0)))
        factors = ("embed_scale", "residual_scale", "logit_divisor")
        check("model", self, **dict.fromkeys(factors, at_least(SMALLEST)))
        for cap in filter(lambda name: getattr(self, name), ("attention_cap", "final_cap")):
            check("model", self, **{cap: at_least(SMALLEST)})
        if self.rope_local_theta and (self.rope_local_theta <= 1 or not self.full_every):
            raise UserError(
                f"model.rope_local_theta must be 0, or above 1 with model.full_every; is "
                f"{self.rope_local_theta} with full_every {self.full_every}"
            )
        if self.whole_qk_norm and self.qk_norm:
            raise UserError("model.whole_qk_norm and model.qk_norm exclude each other")

    @property
    def rotated(self) -> int:
        """The number of channels of a head that rotate."""
        return self.rope_dims or self.head_dim

    @property
    def compute_dtype(self):
        """The dtype of matrix products."""
        return DTYPES[self.dtype]
