"""Setup of the speed benchmarks: the model and its weights, sizes, the peer, the ceilings.

The default is a model of 32 M parameters on prefixes of 896 and suffixes of 128 tokens.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import numpy as np

from sip import mesh as meshes
from sip.bench import flags
from sip.bench.turns import Ceilings, PeerProcess, ceilings
from sip.hf import configs, names
from sip.models import decoder, kernels
from sip.models.config import ModelConfig
from sip.models.presets import preset
from sip.structs import Params, UserError

MODEL = ModelConfig(
    vocab_size=8192,
    width=512,
    layers=8,
    kv_heads=4,
    queries_per_kv=2,
    head_dim=64,
    hidden=1408,
    max_len=4096,
    remat="dots",  # this and the next two: the fastest on CPU
    decode_apart=True,
    decode_spans=4,
)
TINY = dataclasses.replace(
    MODEL, vocab_size=264, width=32, layers=2, kv_heads=2, head_dim=8, hidden=48
)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the work."""

    prefix: int  # tokens
    suffix: int  # tokens
    candidates: int  # of a judge
    rollouts: tuple[int, ...]  # per prefix, of whole steps
    sample: int  # plain prompts of a judge that are run
    turns: int
    matrix: int  # rows and columns of the ceiling's matrices
    megabytes: int  # of the ceiling's copies


@dataclass(frozen=True)
class Setup:
    """A benchmark's model, work and peer."""

    cfg: ModelConfig
    params: Params
    mesh: jax.sharding.Mesh
    sizes: Sizes
    seed: int
    ceilings: Ceilings
    other: PeerProcess | None  # the peer; None: only our own plain sequences

    def tokens(self, *shape: int) -> np.ndarray:
        """Returns random tokens, the same in every call."""
        rng = np.random.default_rng((self.seed, *shape))
        return rng.integers(0, self.cfg.vocab_size, shape).astype(np.int32)


def sizes() -> Sizes:
    """Returns the sizes that the flags ask for."""
    if flags.TINY.value:
        return Sizes(24, 6, 3, (2,), 2, 2, 64, 1)
    counts = []
    for text in flags.ROLLOUTS.value:
        if not text.isdigit() or not int(text):
            raise UserError(
                f"--rollout_counts {text!r}: must be numbers from 1, separated by commas"
            )
        counts.append(int(text))
    return Sizes(
        flags.PREFIX_TOKENS.value,
        flags.SUFFIX_TOKENS.value,
        flags.CANDIDATES.value,
        tuple(counts),
        flags.SAMPLE.value,
        flags.TURNS.value,
        matrix=2048,
        megabytes=256,
    )


@contextlib.contextmanager
def opened() -> Iterator[Setup]:
    """Builds the model of the flags and starts the peer with the same weights, until the end."""
    cfg = preset(flags.PRESET.value) if flags.PRESET.value else MODEL
    if flags.TINY.value:
        cfg = TINY
    dtype, seed, wanted = flags.DTYPE.value, flags.SEED.value, sizes()
    cfg = dataclasses.replace(cfg, dtype=dtype, param_dtype=dtype, attention=flags.ATTENTION.value)
    kernels.check(cfg.attention, jax.default_backend())
    params = decoder.init(cfg, jax.random.key(seed))
    with contextlib.ExitStack() as stack:
        other = None
        if flags.AGAINST.value:
            other = PeerProcess(flags.PEER_PYTHON.value)
            stack.callback(other.close)
            other.ask(
                "load", config=configs.to_json(cfg, dtype), **_weights(params, cfg), dtype=dtype
            )
        best = ceilings(wanted.matrix, wanted.megabytes, dtype, other)
        yield Setup(cfg, params, meshes.single(), wanted, seed, best, other)


def _weights(params: Params, cfg: ModelConfig) -> dict[str, dict[str, np.ndarray]]:
    made = names.tensors(params, cfg)
    return {"tensors": {name: np.asarray(make(), np.float32) for name, _, make in made}}


def operations(cfg: ModelConfig, T: int, C: int = 0, R: int = 0, scored: int = 0) -> float:
    """Returns the FLOPs that a forward pass over a trunk with C branches needs.

    Positions attend to what they see and no more. `scored` positions get logits.
    """
    heads = cfg.kv_heads * cfg.queries_per_kv
    projections = cfg.width * cfg.head_dim * (2 * heads + 2 * cfg.kv_heads)
    per_token = projections + 3 * cfg.width * cfg.hidden
    seen = T * (T + 1) / 2 + C * (R * T + R * (R + 1) / 2)
    layer = 2 * per_token * (T + C * R) + 4 * heads * cfg.head_dim * seen
    return cfg.layers * layer + 2 * cfg.width * cfg.vocab_size * scored
