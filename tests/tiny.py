"""A tiny model and tiny trees, so that tests can run many of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from sip.models import decoder
from sip.models.config import ModelConfig
from sip.objectives import logprobs
from sip.structs import Tree

CFG = ModelConfig(
    vocab_size=16,
    width=16,
    layers=2,
    kv_heads=2,
    queries_per_kv=2,
    head_dim=4,
    hidden=24,
    max_len=64,
)


BYTES = dataclasses.replace(CFG, vocab_size=259, layers=1)  # a model of sip.text.tokenizer.Byte


def model(**changes) -> ModelConfig:
    """Returns the tiny model's config with some fields changed."""
    return dataclasses.replace(CFG, **changes)


@functools.cache
def params(cfg: ModelConfig = CFG, seed: int = 0):
    """Returns random parameters; norm scales differ from one, so that tests notice them.

    They are drawn with numpy, because jax.random takes seconds to compile.
    """
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(functools.partial(decoder.init, cfg), jax.random.key(0))

    def draw(path, x):
        scale, mean = (0.3, 1.0) if "norm" in jax.tree_util.keystr(path) else (0.25, 0.0)
        return jnp.asarray(mean + scale * rng.standard_normal(x.shape), jnp.float32)

    # The result is cached, so it must not contain tracers of the first caller.
    with jax.ensure_compile_time_eval():
        return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.partial(jax.jit, static_argnums=1)
def forward(params, cfg, tree):
    """Returns (trunk_BTD, branch_BCRD, log-probabilities of trunk and branches)."""
    out = decoder.apply(params, cfg, tree)
    unembed_DV = decoder.unembed(params, cfg)
    logp = logprobs.tree_logprobs(out.trunk_BTD, out.branch_BCRD, unembed_DV, tree, chunk=64)
    return out.trunk_BTD, out.branch_BCRD, *logp


def tree(seed=0, B=2, T=6, C=4, R=3, vocab=CFG.vocab_size) -> Tree:
    """Returns a random tree: forks in 1..T, branches of 1 to R tokens."""
    rng = np.random.default_rng(seed)
    length_BC = rng.integers(1, R + 1, (B, C, 1))
    return Tree(
        jnp.asarray(rng.integers(0, vocab, (B, T)), jnp.int32), jnp.ones((B, T), bool),
        jnp.asarray(rng.integers(0, vocab, (B, C, R)), jnp.int32),
        jnp.asarray(np.arange(R)[None, None] < length_BC),
        jnp.asarray(rng.permuted(np.resize(np.arange(1, T + 1), (B, C)), axis=1), jnp.int32),
    )  # fmt: skip


def trunk_only(tokens_BT, segment_BT=None) -> Tree:
    """Returns a tree without branches; negative tokens are padding."""
    tokens_BT = jnp.asarray(tokens_BT, jnp.int32)
    empty = jnp.zeros((len(tokens_BT), 0, 1), jnp.int32)
    fork_BC = jnp.ones((len(tokens_BT), 0), jnp.int32)
    return Tree(tokens_BT, tokens_BT >= 0, empty, empty > 0, fork_BC, segment_BT)


def sequences(tree: Tree) -> np.ndarray:
    """Returns tokens [B * C, T + R]: for each branch its prefix, its tokens, then zeros."""
    B, C, R = tree.tokens_BCR.shape
    out = np.zeros((B, C, tree.tokens_BT.shape[1] + R), np.int32)
    for b, c in np.ndindex(B, C):
        fork = int(tree.fork_BC[b, c])
        out[b, c, :fork] = tree.tokens_BT[b, :fork]
        out[b, c, fork : fork + R] = tree.tokens_BCR[b, c]
    return out.reshape(B * C, -1)


def at_forks(x, tree: Tree):
    """Gathers the branches' positions from values of `sequences`.

    x [B * C, T + R, ..] -> [B, C, R, ..].
    """
    B, C, R = tree.tokens_BCR.shape
    x = np.asarray(x).reshape(B, C, -1, *np.shape(x)[2:])
    where = lambda b, c: slice(int(tree.fork_BC[b, c]), int(tree.fork_BC[b, c]) + R)
    return np.stack([np.stack([x[b, c, where(b, c)] for c in range(C)]) for b in range(B)])
