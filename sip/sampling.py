"""Rollout engine: decodes K branches per prefix in parallel on one shared trunk cache."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from sip.mesh import constrain
from sip.models import decoder, gathering
from sip.models.config import ModelConfig
from sip.sections import above, at_least, check
from sip.structs import Params, Rollouts, Tree, soft_cap

COLDEST = 1e-5  # logits divided by less differ by more than float32 noise: greedy, as in vLLM


@dataclass(frozen=True)
class SamplingConfig:
    """The sampling distribution. The defaults sample from the model's own distribution."""

    temperature: float = 1.0  # divides the logits; below 1e-5: greedy decoding, stored as 0
    top_k: int = 0  # sample among the k most probable tokens; 0: all
    top_p: float = 1.0  # nucleus sampling, probability mass in (0, 1]; 1: all

    def __post_init__(self):
        check("sampling", self, temperature=at_least(0), top_k=at_least(0), top_p=above(0, most=1))
        if self.temperature < COLDEST:
            object.__setattr__(self, "temperature", 0.0)


def sampling_logits(logits, cfg: SamplingConfig):
    """Returns logits [.., V] of the sampling distribution: temperature, then top-k, then top-p.

    Removed tokens get -inf. top-p keeps the smallest set of most probable tokens whose probability
    reaches top_p (arXiv 1904.09751). Temperature 0 is left to `choose`.
    """
    if cfg.temperature:
        # The highest logit becomes 0: a large quotient keeps no digits of the differences.
        logits = (logits - logits.max(axis=-1, keepdims=True)) / cfg.temperature
    if cfg.top_k and cfg.top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, cfg.top_k)[0][..., -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)  # ties with the k-th stay
    if cfg.top_p < 1.0:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probs = jax.nn.softmax(ordered, axis=-1)
        # Mass before each token: the token that crosses top_p is still kept, so one always is.
        before = jnp.cumsum(probs, axis=-1) - probs
        # At least the first: a top_p below float32's smallest number is 0 here.
        last = jnp.maximum(jnp.sum(before < cfg.top_p, axis=-1, keepdims=True), 1) - 1
        logits = jnp.where(logits < jnp.take_along_axis(ordered, last, axis=-1), -jnp.inf, logits)
    return logits


def noise_keys(key, rows_B, branches: int):
    """Returns keys_BC, one key per (document, branch); `choose` folds in the position.

    Noise depends on document, branch and position only, never on batch shape, device or process.
    So a resumed run or another mesh samples the same tokens, up to rounding.
    """

    def row(r):
        return jax.vmap(lambda c: jax.random.fold_in(jax.random.fold_in(key, r), c))(
            jnp.arange(branches)
        )

    return jax.vmap(row)(rows_B)


def choose(logits_BCV, keys_BC, position, cfg: SamplingConfig):
    """Draws a token per branch -> (token_BC, logp_BC, sample_logp_BC), in nats, float32.

    `logp` is under the model at temperature 1, `sample_logp` under the sampling distribution (0
    for greedy decoding).
    """
    logits_BCV = logits_BCV.astype(jnp.float32)
    logp_BCV = jax.nn.log_softmax(logits_BCV, axis=-1)
    if cfg.temperature == 0:
        token_BC = _first_largest(logits_BCV)
        return token_BC, _pick(logp_BCV, token_BC), jnp.zeros_like(token_BC, jnp.float32)
    tempered = jax.nn.log_softmax(sampling_logits(logits_BCV, cfg), axis=-1)
    V = logits_BCV.shape[-1]
    gumbel = jax.vmap(jax.vmap(lambda k: jax.random.gumbel(jax.random.fold_in(k, position), (V,))))
    # Gumbel-max: the argmax of logits plus Gumbel noise is a sample of their softmax.
    token_BC = _first_largest(tempered + gumbel(keys_BC))
    return token_BC, _pick(logp_BCV, token_BC), _pick(tempered, token_BC)


def _first_largest(x_BCV):
    """Returns the first index of the largest value, as `jnp.argmax` does; V - 1 beside a NaN.

    XLA on CPU compiles argmax, and the noise that is fused into it, to scalar code: it took three
    times as long.
    """
    top_BC1, last = x_BCV.max(axis=-1, keepdims=True), x_BCV.shape[-1] - 1
    at_11V = jnp.arange(last + 1, dtype=jnp.int32)[None, None]
    return jnp.where(x_BCV == top_BC1, at_11V, last).min(axis=-1)


def _pick(x_BCV, token_BC):
    return jnp.take_along_axis(x_BCV, token_BC[..., None], axis=-1)[..., 0]


def _logits(params, cfg, hidden_BCD):
    unembed = decoder.unembed_DV(params, cfg).astype(cfg.compute_dtype)
    logits = jnp.einsum("BCD,DV->BCV", hidden_BCD, unembed, preferred_element_type=jnp.float32)
    return constrain(soft_cap(logits, cfg.final_cap) if cfg.final_cap else logits, "BCV")


def encode(params: Params, cfg: ModelConfig, tokens_BT) -> decoder.Output:
    """Runs the decoder on trunks without branches (C = 0) and keeps their cache."""
    none = jnp.zeros((len(tokens_BT), 0, 1), jnp.int32)  # [B, C=0, R=1]
    tree = Tree(tokens_BT, tokens_BT >= 0, none, none > 0, none[:, :, 0])
    return decoder.apply(params, cfg, tree, keep_cache=True)


def prefill(params: Params, cfg: ModelConfig, tokens_BT, fork_B, branches: int, steps: int):
    """Encodes each trunk once -> (hidden_BCD, cache).

    `hidden_BCD` predicts each branch's first token; the cache has room for `branches` branches of
    the first `span` of `steps` tokens.
    """
    B = tokens_BT.shape[0]
    out = encode(params, cfg, tokens_BT)
    last_B1D = jnp.take_along_axis(out.trunk_BTD, (fork_B - 1)[:, None, None], axis=1)
    hidden = jnp.broadcast_to(last_B1D, (B, branches, last_B1D.shape[-1]))
    cache: Any = out.cache
    return hidden, decoder.grow(cache, branches, span(cfg, steps))


def rollout(
    params: Params,
    cfg: ModelConfig,
    tokens_BT,
    fork_B,
    rows_B,
    key,
    *,
    branches: int,
    steps: int,
    sampling: SamplingConfig,
    stop: tuple[int, ...] = (),
) -> Rollouts:
    """Samples `branches` continuations of up to `steps` tokens of each trunk from its fork on.

    `rows_B` is an integer per document that selects its noise. A branch ends with its first `stop`
    token, which its mask includes. Decoding ends when all branches have ended. Shapes are static:
    tokens after the end are 0 and masked.
    """
    # Before the loop: an all-gather per decoding step would dominate its time.
    params = gathering.once(params, cfg)
    hidden, cache = prefill(params, cfg, tokens_BT, fork_B, branches, steps)
    fork_BC = jnp.broadcast_to(fork_B[:, None], (len(fork_B), branches))
    tree = _grown(tokens_BT, fork_BC, jnp.zeros((*fork_BC.shape, 1), jnp.int32))
    keys_BC = noise_keys(key, rows_B, branches)
    return decode(params, cfg, tree, hidden, cache, keys_BC, steps, sampling, stop)


def answer(
    params: Params,
    cfg: ModelConfig,
    tree: Tree,
    noise_BC,
    key,
    *,
    votes: int,
    steps: int,
    sampling: SamplingConfig,
    stop: tuple[int, ...] = (),
) -> Rollouts:
    """Samples `votes` continuations of each branch of a tree.

    C of the result is branches * votes; vote j of branch c is at c * votes + j. The trunk is
    encoded once for all branches, and a branch once for all its votes. `noise_BC` is an integer
    per branch that selects its noise.
    """
    params = gathering.once(params, cfg)
    out = decoder.apply(params, cfg, tree, keep_cache=True)
    # The last real token of each branch predicts the first sampled one. An empty branch has none
    # and reads position 0; its output is meaningless.
    last_BC = jnp.maximum(tree.mask_BCR.sum(-1) - 1, 0)
    hidden_BCD = jnp.take_along_axis(out.branch_BCRD, last_BC[:, :, None, None], axis=2)[:, :, 0]
    hidden_BCD = jnp.repeat(hidden_BCD, votes, axis=1)
    cache: Any = out.cache
    fork_BC = jnp.repeat(tree.fork_BC, votes, axis=1)
    keys_BC = jax.vmap(lambda noise_C: noise_keys(key, noise_C, votes))(noise_BC)
    keys_BC = keys_BC.reshape(fork_BC.shape)
    grown = _grown(tree.tokens_BT, fork_BC, jnp.zeros((*fork_BC.shape, 1), jnp.int32))
    cache = decoder.fan(cache, votes, span(cfg, steps))
    return decode(params, cfg, grown, hidden_BCD, cache, keys_BC, steps, sampling, stop)


def _grown(tokens_BT, fork_BC, tokens_BCR) -> Tree:
    """Returns a tree of branch tokens without padding, on a trunk that is in the cache."""
    return Tree(tokens_BT, tokens_BT >= 0, tokens_BCR, tokens_BCR >= 0, fork_BC)


def span(cfg: ModelConfig, steps: int) -> int:
    """Returns the number of tokens after which decoding grows the branches' caches.

    A decoding step reads a cache whole, also the places that are not written yet.
    """
    return max(1, -(-steps // cfg.decode_spans))


def decode(params, cfg, tree, hidden_BCD, cache, keys_BC, steps, sampling, stop) -> Rollouts:
    """Runs the decoding loop, once for each `span` of tokens.

    `hidden_BCD` are the states after the last token in `cache`, which has room for the first span.
    Of `tree` only the trunk and the forks are read.
    """
    B, C = tree.fork_BC.shape
    if cfg.decode_apart:
        params, cache = decoder.laid_apart(params, cache)
    empty = jnp.zeros((B, C, steps))
    out = Rollouts(empty.astype(jnp.int32), empty > 0, empty, empty)
    stops = jnp.asarray(stop, jnp.int32)

    def body(begin, carry):
        # Ended branches are computed on, since shapes are static; `live` masks what they draw.
        i, hidden, cache, live, out = carry
        step = begin + i
        token, logp, sample_logp = choose(_logits(params, cfg, hidden), keys_BC, step, sampling)
        at = lambda full, new: full.at[:, :, step].set(jnp.where(live, new, 0).astype(full.dtype))
        out = Rollouts(
            at(out.tokens_BCR, token),
            at(out.mask_BCR, live),
            at(out.logp_BCR, logp),
            at(out.sample_logp_BCR, sample_logp),
        )
        live = live & ~jnp.any(token[..., None] == stops[None, None, :], axis=-1)
        # R = 1: one new position per branch, whose hidden state predicts the next token.
        said = _grown(tree.tokens_BT, tree.fork_BC, out.tokens_BCR[:, :, step][..., None])
        new = decoder.apply(params, cfg, said, cache=cache)
        return i + 1, new.branch_BCRD[:, :, 0], new.cache, live, out

    # A while loop, not a scan: it ends early once every branch has ended. It has no gradient.
    # Each loop counts from 0: sip.costs reads from its condition how often it runs.
    hidden, live = hidden_BCD, jnp.ones((B, C), bool)
    for begin in range(0, steps, span(cfg, steps)):
        room = min(span(cfg, steps), steps - begin)
        cache = decoder.widened(cache, room) if begin else cache
        carry = jnp.int32(0), hidden, cache, live, out
        going = lambda c, room=room: (c[0] < room) & jnp.any(c[3])
        with jax.named_scope("decode"):  # sip.costs finds the loop by this name
            one = functools.partial(body, begin)
            _, hidden, cache, live, out = jax.lax.while_loop(going, one, carry)
    return out


@functools.cache
def program(
    cfg: ModelConfig,
    branches: int,
    steps: int,
    sampling: SamplingConfig,
    stop: tuple[int, ...] = (),
):
    """Returns the jitted `rollout`, (params, tokens_BT, fork_B, rows_B, key) -> Rollouts.

    Cached, so that equal arguments give the same function, which compiles once.
    """
    fixed = {"branches": branches, "steps": steps, "sampling": sampling, "stop": stop}
    return jax.jit(lambda params, *args: rollout(params, cfg, *args, **fixed))


@functools.cache
def answering(
    cfg: ModelConfig,
    votes: int,
    steps: int,
    sampling: SamplingConfig,
    stop: tuple[int, ...] = (),
):
    """Returns the jitted `answer`, (params, tree, noise_BC, key) -> Rollouts, cached too."""
    fixed = {"votes": votes, "steps": steps, "sampling": sampling, "stop": stop}
    return jax.jit(lambda params, *args: answer(params, cfg, *args, **fixed))
