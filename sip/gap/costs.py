"""FLOPs of writing answers and of verifying them, by models of our own decoder."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sip import mesh as meshes
from sip import sampling
from sip.costs import flops
from sip.models import decoder
from sip.models.config import ModelConfig
from sip.sampling import SamplingConfig
from sip.text.segments import Text, tokens_of
from sip.text.tokenizer import Cached, Tokenizer
from sip.textgen import stems
from sip.textgen.protocol import Cut, TextGenerator


@functools.cache
def writing(cfg: ModelConfig, prompt: int, answers: int, steps: int) -> float:
    """FLOPs of `answers` answers of `steps` tokens each to one prompt of `prompt` tokens."""
    run = functools.partial(
        sampling.rollout, branches=answers, steps=steps, sampling=SamplingConfig()
    )
    # Only traced, so the values of tokens, fork and noise do not matter.
    tokens_BT, one_B = jnp.zeros((1, max(prompt, 1)), jnp.int32), jnp.ones(1, jnp.int32)
    with jax.set_mesh(meshes.single()):
        traced = jax.make_jaxpr(lambda p, k: run(p, cfg, tokens_BT, one_B, one_B, k))(
            _shapes(cfg), jax.eval_shape(lambda: jax.random.key(0))
        )
    return float(flops.count(traced, steps).total())


def reading(cfg: ModelConfig, length: int) -> float:
    """FLOPs per token of a model that reads a text of `length` tokens, without unembedding."""
    length = max(length, 1)
    return _reading(cfg, min(1 << (length - 1).bit_length(), cfg.max_len))


@functools.cache
def _reading(cfg: ModelConfig, length: int) -> float:
    tokens_BT = jnp.zeros((1, length), jnp.int32)
    with jax.set_mesh(meshes.single()):
        traced = jax.make_jaxpr(lambda p: sampling.encode(p, cfg, tokens_BT).trunk_BTD)(
            _shapes(cfg)
        )
    return float(flops.count(traced).total()) / length


def _shapes(cfg: ModelConfig):
    return jax.eval_shape(functools.partial(decoder.init, cfg), jax.random.key(0))


class Metered:
    """A TextGenerator that counts the tokens it reads and writes; what prompts of a call share
    counts once."""

    def __init__(self, textgen: TextGenerator, tokenizer: Tokenizer):
        self._textgen, self._cached = textgen, Cached(tokenizer, 1 << 14)
        self.read, self.written, self.longest = 0, 0, 0

    def choose(self, trunks, branches, options) -> np.ndarray:
        """Returns logp_BCO of the generator inside."""
        self._count(trunks, branches, chosen=True)
        return self._textgen.choose(trunks, branches, options)

    def generate(self, trunks, branches, *, votes, max_tokens, sampling, seed):
        """Returns the texts [B][C][J] of the generator inside."""
        self._count(trunks, branches, chosen=False)
        how = dict(votes=votes, max_tokens=max_tokens, sampling=sampling, seed=seed)
        said = self._textgen.generate(trunks, branches, **how)
        texts = (
            text.text if isinstance(text, Cut) else text for b in said for c in b for text in c
        )
        self.written += sum(len(self._cached.encode(text)) for text in texts if text)
        return said

    def flops(self, cfg: ModelConfig) -> float:
        """FLOPs of everything read and written since the start, by a model of `cfg`."""
        written = self.written * (reading(cfg, self.longest) + 2 * cfg.width * cfg.vocab_size)
        return self.read * reading(cfg, self.longest) + written

    def _count(self, trunks: Sequence[Text], branches, *, chosen: bool) -> None:
        ids = [[tokens_of(self._cached, branch) for branch in row] for row in branches]
        found = stems.divided(branches, self._cached, 0) if chosen else None
        for b, (trunk, row) in enumerate(zip(trunks, ids, strict=True)):
            if not row:
                continue
            own = len(tokens_of(self._cached, trunk))
            self.read += own + sum(map(len, found.parts(b) if found else row))
            self.longest = max(self.longest, own + max(map(len, row)))
