"""The seam for post-trained models: how likely each of a few answers is after a prompt, and words.

A prompt is a trunk, shared by several branches, and a branch. Either is a text or a tuple of
segments (sip/segments.py); one that many prompts share (a candidate in 2 * (K - 1) ordered pairs)
is encoded once.
"""

import copy
import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sip.mesh import constrain, full_rows, put_batch, sharding
from sip.models import decoder
from sip.models.config import ModelConfig
from sip.objectives.logprobs import option_logprobs
from sip.processes import fetch
from sip.sampling import SamplingConfig, answering, encode
from sip.segments import Ids, Text, prompt_of, tokens_of
from sip.structs import Params, Tree, UserError
from sip.tokenizer import Cached, Tokenizer, continuation

Choose = Callable[[Sequence[Sequence[Text]], tuple[str, ...]], np.ndarray]  # of known trunks
Kept = dict[int, decoder.Cache | None]  # by a batch's first row; None: there was no room


class TextGenerator(Protocol):
    """A model that is asked in text."""

    def choose(
        self, trunks: Sequence[Text], branches: Sequence[Sequence[Text]], options: tuple[str, ...]
    ) -> np.ndarray:
        """logp_BCO, float32: log-probability that option o follows trunk b and its branch c.

        Over the whole vocabulary, so a row need not sum to 1. Rows of branches may be ragged; what
        is padding, or a prompt that cannot be answered, is NaN.
        """
        ...

    def generate(
        self,
        trunks: Sequence[Text],
        branches: Sequence[Sequence[Text]],
        *,
        votes: int,
        max_tokens: int,
        sampling: SamplingConfig,
        seed: int,
    ) -> list[list[list[str | None]]]:
        """texts[b][c][j]: J continuations of trunk b and its branch c; None where it failed.

        `votes` is J. A text has at most `max_tokens` tokens, drawn by `sampling`. Noise is
        addressed by seed, prompt and vote: a prompt gets the same texts whatever is asked beside
        it, as far as the model behind it keeps to seeds.
        """
        ...


@dataclass(frozen=True)
class Scripted:
    """Functions in a model's place.

    fn(trunk, branch, options) -> probabilities of the options
    words(trunk, branch, vote) -> a continuation, or None where it fails
    """

    fn: Callable[[str, str, tuple[str, ...]], Sequence[float]]
    words: Callable[[str, str, int], str | None] = lambda trunk, branch, vote: None

    def choose(self, trunks, branches, options) -> np.ndarray:
        """logp_BCO of the function's answers."""

        def answer(trunk, branch):
            return self.fn("".join(trunk), "".join(branch), options)

        return _each(answer, trunks, branches, options)

    def generate(self, trunks, branches, *, votes, max_tokens, sampling, seed):
        """What `words` says, whatever the sampling."""
        del max_tokens, sampling, seed
        rows = zip(map("".join, trunks), branches, strict=True)
        return [
            [[self.words(trunk, "".join(branch), j) for j in range(votes)] for branch in row]
            for trunk, row in rows
        ]


@dataclass(frozen=True)
class Ruled:
    """A rule in a model's place: `rule` values a text between 0 and 1, whatever is asked of it.

    Options are taken as ordered from best to worst. Of two texts the first is better with
    probability sigmoid(8 * (rule(first) - rule(second))).
    """

    rule: Callable[[str], float]

    def choose(self, trunks, branches, options) -> np.ndarray:
        """logp_BCO: all probability on the one or two options nearest to the rule's value."""
        rule = functools.cache(self.rule)

        def answer(_, branch):
            values = [rule(text) for text in branch[1::2]]
            value = values[0]
            if len(values) == 2:
                value = 1 / (1 + math.exp(-8 * (values[0] - values[1])))
            place = (1 - value) * (len(options) - 1)
            return [max(0.0, 1 - abs(place - o)) for o in range(len(options))]

        return _each(answer, trunks, branches, options)

    def generate(self, trunks, branches, *, votes, max_tokens, sampling, seed):
        """None throughout: a rule has no words."""
        del trunks, max_tokens, sampling, seed
        return [[[None] * votes for _ in row] for row in branches]


def distinct_words(text: str) -> float:
    """The share of distinct words; 0 for a text without words."""
    words = text.lower().split()
    return len(set(words)) / len(words) if words else 0.0


RULES: dict[str, Callable[[str], float]] = {"distinct_words": distinct_words}


def ruled(name: str) -> Ruled:
    """The rule of that name as a text generator."""
    if name not in RULES:
        raise UserError(f"textgen: no rule {name!r}; there are {sorted(RULES)}")
    return Ruled(RULES[name])


def _each(answer, trunks, branches, options):
    C = max(map(len, branches), default=0)
    p_BCO = np.full((len(trunks), C, len(options)), np.nan, np.float32)
    for b, row in enumerate(branches):
        for c, branch in enumerate(row):
            p_BCO[b, c] = answer(trunks[b], branch)
    with np.errstate(divide="ignore"):
        return np.log(p_BCO)


def bucket(n: int, multiple: int = 1) -> int:
    """`n` rounded up to one of a few sizes per octave, each a multiple of `multiple`.

    A function of n alone: with sizes that grow by history a resumed run would round differently.
    """
    step = max(multiple, 1 << max(n.bit_length() - 3, 0))
    return -(-max(n, 1) // step) * step


def pack(
    trunks: Sequence[Ids], branches: Sequence[Sequence[Ids]], pad: int, T: int, C: int, R: int
) -> Tree:
    """A tree of numpy arrays; each branch forks at its trunk's end, missing branches are masked."""
    tokens_BT, mask_BT = _padded(trunks, T, pad)
    none: Ids = []
    flat = chain.from_iterable([*row, *[none] * (C - len(row))] for row in branches)
    tokens_NR, mask_NR = _padded(list(flat), R, pad)
    fork_BC: Any = np.repeat(mask_BT.sum(1, dtype=np.int32)[:, None], C, axis=1)
    shape = (len(trunks), C, R)
    return Tree(tokens_BT, mask_BT, tokens_NR.reshape(shape), mask_NR.reshape(shape), fork_BC)


def bucketed(
    trunks: Sequence[Ids],
    branches: Sequence[Sequence[Ids]],
    tokenizer: Tokenizer,
    *,
    rows: int,
    multiples: tuple[int, int],
) -> Tree:
    """A tree of `rows` rows, the last ones empty, whose T, C and R are sizes of `bucket`: T and R
    are multiples of the two `multiples`."""
    T = bucket(max(map(len, trunks)), multiples[0])
    C = bucket(max(map(len, branches)))
    R = bucket(max(map(len, chain.from_iterable(branches)), default=1), multiples[1])
    extra = rows - len(trunks)
    trunks = [*trunks, *[[tokenizer.bos]] * extra]
    return pack(trunks, [*branches, *[[]] * extra], tokenizer.pad, T, C, R)


def _padded(rows: Sequence[Ids], width: int, pad: int) -> tuple[Any, Any]:
    """(tokens_NW, mask_NW), left aligned."""
    lengths_N = np.fromiter(map(len, rows), np.int32, len(rows))
    mask_NW = np.arange(width) < lengths_N[:, None]
    tokens_NW = np.full(mask_NW.shape, pad, np.int32)
    tokens_NW[mask_NW] = np.fromiter(chain.from_iterable(rows), np.int32, int(lengths_N.sum()))
    return tokens_NW, mask_NW


def addresses(tree: Tree) -> np.ndarray:
    """noise_BC: a number per prompt, a hash of its tokens; 0 where there is none."""
    noise_BC = np.zeros(tree.fork_BC.shape, np.uint32)
    for b, row_CR in enumerate(np.asarray(tree.mask_BCR)):
        trunk = zlib.crc32(tree.tokens_BT[b][tree.mask_BT[b]].tobytes())
        for c in np.flatnonzero(row_CR.any(-1)):
            noise_BC[b, c] = zlib.crc32(tree.tokens_BCR[b, c][row_CR[c]].tobytes(), trunk)
    return noise_BC


@functools.cache
def program(cfg: ModelConfig):
    """The jitted (params, tree, last_BC, options_O, cache) -> logp_BCO, read at each branch's end.

    `cache`: what `encoding` made of the trunks, which are then not run; None: they are.
    """

    @jax.jit
    def choose(params, tree, last_BC, options_O, cache=None):
        if cache is not None:
            cache = decoder.grow(cache, last_BC.shape[1], 0)
        branch_BCRD = decoder.apply(params, cfg, tree, cache=cache, keep_cache=False).branch_BCRD
        hidden_BCD = jnp.take_along_axis(branch_BCRD, last_BC[:, :, None, None], axis=2)[:, :, 0]
        return option_logprobs(
            hidden_BCD, decoder.unembed(params, cfg), options_O, chunk=cfg.logprob_chunk
        )

    return choose


@functools.cache
def encoding(cfg: ModelConfig):
    """The jitted (params, tokens_BT) -> Cache of trunks without branches."""

    @jax.jit
    def keys_and_values(params, tokens_BT):
        cache: Any = encode(params, cfg, tokens_BT).cache
        k, v = (constrain(x, "LBTGH") for x in (cache.trunk_k_LBTGH, cache.trunk_v_LBTGH))
        return dataclasses.replace(cache, trunk_k_LBTGH=k, trunk_v_LBTGH=v)

    return keys_and_values


class Local:
    """Our own decoder on its own mesh, a trunk encoded once for all its branches.

    `batch` trunks run at a time, those of like length together. Sizes are bucketed, T and R to
    multiples of `multiple`, so few shapes are compiled. A prompt longer than the model's `max_len`
    is not answered: its row is NaN. A trunk common to all prefixes is repeated: it is short, and B
    is what the mesh shards.
    """

    def __init__(
        self,
        params: Params,
        cfg: ModelConfig,
        tokenizer: Tokenizer,
        mesh: jax.sharding.Mesh,
        *,
        batch: int = 16,
        multiple: int = 16,
        keep_bytes: int = 1 << 30,
    ):
        self._params, self._cfg, self._mesh = params, cfg, mesh
        self._tokenizer, self._batch, self._multiple = tokenizer, batch, multiple
        self._keep_bytes = keep_bytes
        self._cached = Cached(tokenizer, 1 << 14)

    def of(self, params: Params) -> "Local":
        """The same with other parameters of the same shapes; nothing is compiled for them."""
        other = copy.copy(self)
        other._params = params
        return other

    def choose(self, trunks, branches, options) -> np.ndarray:
        """logp_BCO of the options' tokens; NaN where a prompt is too long."""
        return self._choose(trunks, branches, options, None)

    def keep(self, trunks: Sequence[Text]) -> Choose:
        """`choose` about `trunks`, several times: for as long as it lives it keeps their keys and
        values, so that later calls run branches alone.

        The first batches of trunks are kept, as many as fit in `keep_bytes` of each device; those
        beyond are encoded again with their branches in every call.
        """
        kept: Kept = {}
        return lambda branches, options: self._choose(trunks, branches, options, kept)

    def _choose(self, trunks, branches, options, kept: Kept | None):
        options_O = np.array([self._option(option) for option in options], np.int32)
        trunk_ids, branch_ids, fits = self._tokens(trunks, branches, room=0)
        C = max(map(len, branches), default=0)
        out_BCO = np.full((len(trunks), C, len(options)), np.nan, np.float32)

        def ask(tree, first):
            last_BC = np.maximum(tree.mask_BCR.sum(-1, dtype=np.int32) - 1, 0)
            tree, last_BC = put_batch(self._mesh, (tree, last_BC))
            cache = None if kept is None else self._cache(kept, first, tree)
            return program(self._cfg)(self._params, tree, last_BC, options_O, cache)

        for rows, logp in self._in_batches(trunk_ids, branch_ids, ask, fixed=kept is not None):
            logp_BCO = fetch(logp)[: len(rows), :C]
            out_BCO[rows, : logp_BCO.shape[1]] = logp_BCO
        out_BCO[[[not ok for ok in row] + [True] * (C - len(row)) for row in fits]] = np.nan
        return out_BCO

    def _cache(self, kept: Kept, first: int, tree: Tree) -> decoder.Cache | None:
        """Keys and values of a batch of trunks, encoded when first asked for."""
        if first not in kept:
            held = sum(self._bytes(*c.trunk_k_LBTGH.shape[1:3]) for c in kept.values() if c)
            fits = held + self._bytes(*tree.tokens_BT.shape) <= self._keep_bytes
            kept[first] = encoding(self._cfg)(self._params, tree.tokens_BT) if fits else None
        return kept[first]

    def _bytes(self, B: int, T: int) -> int:
        """What the keys and values of B trunks of T tokens take on a device."""
        c = self._cfg
        whole = (c.layers, B, T, c.kv_heads, c.head_dim)
        part = sharding(self._mesh, "LBTGH").shard_shape(whole)
        return 2 * math.prod(part) * jnp.dtype(c.compute_dtype).itemsize

    def generate(self, trunks, branches, *, votes, max_tokens, sampling, seed):
        """texts[b][c][j]; None where a prompt and its answer would be too long."""
        trunk_ids, branch_ids, fits = self._tokens(trunks, branches, room=max_tokens)
        run = answering(self._cfg, votes, max_tokens, sampling, self._tokenizer.stops)
        key = jax.random.key(seed)

        def ask(tree, _):
            return run(self._params, *put_batch(self._mesh, (tree, addresses(tree))), key)

        said: list[list[list[str | None]]] = [[[None] * votes for _ in row] for row in branches]
        for rows, rollouts in self._in_batches(trunk_ids, branch_ids, ask):
            tokens_BCR, mask_BCR = fetch((rollouts.tokens_BCR, rollouts.mask_BCR))
            for at, b in enumerate(rows):
                for c, j in ((c, j) for c, ok in enumerate(fits[b]) if ok for j in range(votes)):
                    ids = tokens_BCR[at, c * votes + j][mask_BCR[at, c * votes + j]].tolist()
                    said[b][c][j] = continuation(self._tokenizer, branch_ids[b][c], ids)
        return said

    def _in_batches(self, trunk_ids, branch_ids, ask, *, fixed: bool = False):
        """(rows, result) per batch; all are dispatched before the first is waited for.

        Rows that ask something, ordered by bucketed lengths, so that a long one does not pad all
        others. `fixed`: all rows, by their trunks alone, so that batches are the same in each call.
        """
        asks = [any(row) for row in branch_ids]

        def lengths(b):
            T = bucket(len(trunk_ids[b]), self._multiple)
            R = bucket(max(map(len, branch_ids[b]), default=0), self._multiple)
            return (T,) if fixed else (T, R, len(branch_ids[b]))

        order = sorted((b for b, any_ in enumerate(asks) if fixed or any_), key=lengths)
        some = [order[i : i + self._batch] for i in range(0, len(order), self._batch)]
        return [
            (rows, self._run(rows, trunk_ids, branch_ids, ask))
            for rows in some
            if any(asks[b] for b in rows)
        ]

    def _option(self, option: str) -> int:
        ids = self._cached.encode(option)
        if len(ids) != 1:
            raise UserError(f"textgen: option {option!r} is {len(ids)} tokens, not one")
        return ids[0]

    def _tokens(self, trunks, branches, room: int = 0):
        """Token lists of trunks and branches, and which prompts fit. Others are emptied, and so are
        trunks too long for any branch."""
        bos, limit = self._tokenizer.bos, self._cfg.max_len - room
        trunk_ids = [prompt_of(self._tokenizer, self._cached, trunk) for trunk in trunks]
        branch_ids = [[tokens_of(self._cached, branch) for branch in row] for row in branches]
        fits = [
            [0 < len(ids) <= limit - len(trunk) for ids in row]
            for trunk, row in zip(trunk_ids, branch_ids, strict=True)
        ]
        trunk_ids = [ids if len(ids) < limit else [bos] for ids in trunk_ids]
        branch_ids = [
            [ids if ok else [] for ids, ok in zip(row, oks, strict=True)]
            for row, oks in zip(branch_ids, fits, strict=True)
        ]
        return trunk_ids, branch_ids, fits

    def _run(self, rows, trunk_ids, branch_ids, ask):
        """ask(tree, first row), the tree padded to bucketed sizes and still on the host."""
        trunk_ids, branch_ids = ([ids[b] for b in rows] for ids in (trunk_ids, branch_ids))
        B = full_rows(self._mesh, min(1 << (len(rows) - 1).bit_length(), self._batch))
        multiples = (self._multiple, self._multiple)
        tree = bucketed(trunk_ids, branch_ids, self._tokenizer, rows=B, multiples=multiples)
        with jax.set_mesh(self._mesh):
            return ask(tree, rows[0])


def about(textgen: TextGenerator, trunks: Sequence[Text]) -> Choose:
    """`textgen.choose` about `trunks`, to be called more than once: ours keeps what it read."""
    if isinstance(textgen, Local):
        return textgen.keep(trunks)
    return functools.partial(textgen.choose, trunks)
