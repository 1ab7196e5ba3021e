"""The local text generator: our own decoder answers prompts on a device mesh.

A prompt is a trunk, shared by several branches, followed by one branch. Trunk and branch are texts
or tuples of segments (sip/text/segments.py). A segment that occurs in many prompts (a candidate is
in 2 * (K - 1) ordered pairs) is tokenised once.
"""

import copy
import dataclasses
import functools
import math
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sip.loading import LoadedModel
from sip.mesh import constrain, full_rows, put_batch, sharding
from sip.models import decoder
from sip.models.config import ModelConfig
from sip.objectives.logprobs import option_logprobs
from sip.padding import branch_width, bucketed, trunk_width
from sip.processes import fetch
from sip.sampling import answering, encode
from sip.structs import Params, Tree, UserError
from sip.text.segments import Ids, Text, prompt_of, tokens_of
from sip.text.tokenizer import Cached, continuation
from sip.textgen import stems
from sip.textgen.protocol import Choose, Cut, Said, TextGenerator

# Key/value caches of trunk batches, by a batch's first row; None: did not fit in `keep_bytes`.
Kept = dict[int, decoder.Cache | None]


def addresses(tree: Tree) -> np.ndarray:
    """Returns noise_BC, uint32: a hash of each prompt's tokens; 0 for a padded branch.

    The sampler folds it into its key, so a prompt gets the same text in any batch.
    """
    noise_BC = np.zeros(tree.fork_BC.shape, np.uint32)
    for b, row_CR in enumerate(np.asarray(tree.mask_BCR)):
        trunk = zlib.crc32(tree.tokens_BT[b][tree.mask_BT[b]].tobytes())
        for c in np.flatnonzero(row_CR.any(-1)):
            # crc32 of trunk and branch joined: where the prompt is split does not matter.
            noise_BC[b, c] = zlib.crc32(tree.tokens_BCR[b, c][row_CR[c]].tobytes(), trunk)
    return noise_BC


@functools.cache
def program(cfg: ModelConfig):
    """Returns the jitted (params, tree, last_BC, options_O, cache) -> logp_BCO.

    last_BC is the index of each branch's last token; the log-probabilities of the option tokens
    options_O are read there. `cache` is the result of `encoding` for the same trunks, which are
    then not run again; if it is None, trunks and branches are run together.
    """

    @jax.jit
    def choose(params, tree, last_BC, options_O, cache=None):
        if cache is not None:
            cache = decoder.grow(cache, last_BC.shape[1], 0)  # R = 0: branches are not cached
        branch_BCRD = decoder.apply(params, cfg, tree, cache=cache, keep_cache=False).branch_BCRD
        # Select each branch's last position before unembedding: BCRD -> BCD.
        hidden_BCD = jnp.take_along_axis(branch_BCRD, last_BC[:, :, None, None], axis=2)[:, :, 0]
        return option_logprobs(
            hidden_BCD, decoder.unembed(params, cfg), options_O, chunk=cfg.logprob_chunk
        )

    return choose


@functools.cache
def program_of_stems(cfg: ModelConfig):
    """Returns the jitted (params, tree, leaf_BMCW, last_BMC, options_O) -> logp_BNO, N = M * C.

    The tree's C branches are stems with M leaves each (sip/textgen/stems.py); last_BMC is the place
    of each leaf's last token. The m-th leaves of all stems run together, on the keys and values of
    trunk and stems.
    """

    @jax.jit
    def choose(params, tree, leaf_BMCW, last_BMC, options_O):
        cache = decoder.apply(params, cfg, tree, keep_cache=True).cache

        def last(leaf):
            tokens_BCW, last_BC = leaf
            mask_BCW = jnp.arange(tokens_BCW.shape[-1])[None, None] <= last_BC[..., None]
            asked = dataclasses.replace(tree, tokens_BCR=tokens_BCW, mask_BCR=mask_BCW)
            out = decoder.apply(params, cfg, asked, cache=cache, keep_cache=False).branch_BCRD
            return jnp.take_along_axis(out, last_BC[:, :, None, None], axis=2)[:, :, 0]

        hidden_MBCD = jax.lax.map(last, (leaf_BMCW.swapaxes(0, 1), last_BMC.swapaxes(0, 1)))
        M, B, C, D = hidden_MBCD.shape
        hidden_BND = hidden_MBCD.swapaxes(0, 1).reshape(B, M * C, D)
        unembed = decoder.unembed(params, cfg)
        return option_logprobs(hidden_BND, unembed, options_O, chunk=cfg.logprob_chunk)

    return choose


@functools.cache
def encoding(cfg: ModelConfig):
    """Returns the jitted (params, tokens_BT) -> Cache of trunks without branches."""

    @jax.jit
    def keys_and_values(params, tokens_BT):
        cache: Any = encode(params, cfg, tokens_BT).cache
        k, v = (constrain(x, "LBGTH") for x in (cache.trunk_k_LBGTH, cache.trunk_v_LBGTH))
        return dataclasses.replace(cache, trunk_k_LBGTH=k, trunk_v_LBGTH=v)

    return keys_and_values


class Local:
    """A TextGenerator that runs our own decoder on its mesh; a trunk runs once for all branches.

    `batch` trunks run at a time, grouped by similar length. Sizes are bucketed, so that few shapes
    are compiled. A prompt longer than the model's `max_len` tokens is not answered: its result is
    NaN or None. `keep_bytes` limits the key/value caches that `keep` holds, in bytes per device. A
    trunk that is common to all rows is repeated in each row: it is short, and the mesh shards axis
    B.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        batch: int = 16,
        keep_bytes: int = 1 << 30,
    ):
        self._params, self._cfg, self._mesh = model.params, model.cfg, model.mesh
        self._tokenizer, self._batch = model.tokenizer, batch
        self._keep_bytes = keep_bytes
        self._cached = Cached(model.tokenizer, 1 << 14)
        self._spent = {"prompt_tokens": 0, "answer_tokens": 0}  # shared with copies (`of`)

    def stats(self) -> dict[str, tuple[float, float]]:
        """Returns the tokens read and written since the last call, as (total, 1); resets them.

        A trunk counts once for all its branches, a stem for all its leaves, and a trunk of `keep`
        once for all its calls.
        """
        found = {f"judge/{name}": (float(n), 1.0) for name, n in self._spent.items()}
        self._spent.update(dict.fromkeys(self._spent, 0))
        return found

    def of(self, params: Params) -> "Local":
        """Returns this generator with other parameters of the same shapes, without recompiling."""
        other = copy.copy(self)
        other._params = params
        return other

    def choose(self, trunks, branches, options, width: int = 0) -> np.ndarray:
        """Returns logp_BCO of the options' tokens; NaN if a prompt is too long.

        Rows are padded to `width` branches if none has more, so that calls with about as many
        branches share a program. Raises UserError if an option is not one token.
        """
        return self._choose(trunks, branches, options, width, None)

    def keep(self, trunks: Sequence[Text]) -> Choose:
        """Returns a `choose` bound to `trunks`, for several calls with different branches.

        It caches the trunks' keys and values until it is deleted, so that later calls run only the
        branches. The first batches of trunks are cached, as many as fit in `keep_bytes` per device;
        the other trunks run again with their branches in every call.
        """
        kept: Kept = {}
        return lambda branches, options, width=0: self._choose(
            trunks, branches, options, width, kept
        )

    def _choose(self, trunks, branches, options, width: int, kept: Kept | None):
        options_O = np.array([self._option(option) for option in options], np.int32)
        trunk_ids = self._trunks(trunks)
        if kept is None:
            rooms = [self._cfg.max_len - len(ids) for ids in trunk_ids]
            if found := stems.divided(branches, self._cached, width, rooms):
                return self._on_stems(trunk_ids, found, options_O)
        trunk_ids, branch_ids, fits = self._tokens(trunk_ids, branches, room=0)
        self._count(trunk_ids if not kept else [[]] * len(trunks), branch_ids)
        C = max(map(len, branches), default=0)
        out_BCO = np.full((len(trunks), C, len(options)), np.nan, np.float32)

        def ask(tree, rows):
            # An empty (padded) branch has no last token: index 0 is read and overwritten with NaN.
            last_BC = np.maximum(tree.mask_BCR.sum(-1, dtype=np.int32) - 1, 0)
            tree, last_BC = put_batch(self._mesh, (tree, last_BC))
            # Always the same batches (fixed=True below), so a batch is known by its first row.
            cache = None if kept is None else self._cache(kept, rows[0], tree)
            return program(self._cfg)(self._params, tree, last_BC, options_O, cache)

        how: Any = dict(fixed=kept is not None, width=width)
        for rows, logp in self._in_batches(trunk_ids, branch_ids, ask, **how):
            logp_BCO = fetch(logp)[: len(rows), :C]  # drops the bucketing's rows and branches
            out_BCO[rows, : logp_BCO.shape[1]] = logp_BCO
        out_BCO[[[not ok for ok in row] + [True] * (C - len(row)) for row in fits]] = np.nan
        return out_BCO

    def _on_stems(self, trunk_ids, found: stems.Stems, options_O) -> np.ndarray:
        """Returns logp_BCO of branches that are divided into stems and leaves."""
        self._count(trunk_ids, [found.parts(b) for b in range(len(trunk_ids))])
        K, _, W = found.sizes

        def ask(tree, rows):
            leaves = found.padded(rows, len(tree.fork_BC), self._tokenizer.pad)
            placed = put_batch(self._mesh, (tree, *leaves))
            return program_of_stems(self._cfg)(self._params, *placed, options_O)

        shape = len(trunk_ids), max(map(len, found.places)), len(options_O)
        out_BCO = np.full(shape, np.nan, np.float32)
        for rows, logp in self._in_batches(trunk_ids, found.stems, ask, width=K, longest=W):
            logp_BNO = fetch(logp)
            for at, b in enumerate(rows):
                asked = [c for c, place in enumerate(found.places[b]) if place]
                order = [m * K + k for k, m in filter(None, found.places[b])]
                out_BCO[b, asked] = logp_BNO[at, order]
        return out_BCO

    def _cache(self, kept: Kept, first: int, tree: Tree) -> decoder.Cache | None:
        """Returns the cache of a batch of trunks, computed at the first call; None: no room."""
        if first not in kept:
            held = sum(self._bytes(*c.trunk_k_LBGTH.shape[1:4:2]) for c in kept.values() if c)
            fits = held + self._bytes(*tree.tokens_BT.shape) <= self._keep_bytes
            kept[first] = encoding(self._cfg)(self._params, tree.tokens_BT) if fits else None
        return kept[first]

    def _bytes(self, B: int, T: int) -> int:
        """Returns the bytes per device of the keys and values of B trunks of T tokens."""
        c = self._cfg
        whole = (c.layers, B, c.kv_heads, T, c.head_dim)
        part = sharding(self._mesh, "LBGTH").shard_shape(whole)
        return 2 * math.prod(part) * jnp.dtype(c.compute_dtype).itemsize  # 2: keys and values

    def generate(self, trunks, branches, *, votes, max_tokens, sampling, seed):
        """Returns texts[b][c][j]; None if prompt and `max_tokens` exceed the model's `max_len`, or
        if the model's logits are not finite.

        A text without a stop token is a `Cut`.
        """
        trunk_ids, branch_ids, fits = self._tokens(self._trunks(trunks), branches, room=max_tokens)
        self._count(trunk_ids, branch_ids)
        run = answering(self._cfg, votes, max_tokens, sampling, self._tokenizer.stops)
        key = jax.random.key(seed)

        def ask(tree, rows):
            del rows
            return run(self._params, *put_batch(self._mesh, (tree, addresses(tree))), key)

        said: list[list[list[Said]]] = [[[None] * votes for _ in row] for row in branches]
        for rows, rollouts in self._in_batches(trunk_ids, branch_ids, ask):
            found = rollouts.tokens_BCR, rollouts.mask_BCR, rollouts.logp_BCR
            tokens_BCR, mask_BCR, logp_BCR = fetch(found)
            for at, b in enumerate(rows):
                for c, j in ((c, j) for c, ok in enumerate(fits[b]) if ok for j in range(votes)):
                    # Rollouts have C * J branches; vote j of branch c is branch c * J + j.
                    if not np.isfinite(logp_BCR[at, c * votes + j]).all():
                        continue  # logits that overflow: no answer
                    ids = tokens_BCR[at, c * votes + j][mask_BCR[at, c * votes + j]].tolist()
                    self._spent["answer_tokens"] += len(ids)
                    text = continuation(self._tokenizer, branch_ids[b][c], ids)
                    ended = ids[-1] in self._tokenizer.stops
                    said[b][c][j] = text if ended else Cut(text)
        return said

    def _in_batches(
        self, trunk_ids, branch_ids, ask, *, fixed: bool = False, width: int = 0, longest: int = 0
    ):
        """Returns (rows, result) per batch; results are dispatched, not waited for.

        Takes the rows with a non-empty branch, sorted by bucketed lengths, so that a long row does
        not pad short ones. `fixed` takes all rows and sorts by trunk length only, so that batches
        are the same in each call and a cache fits them; batches without a branch are not run.
        """
        asks = [any(row) for row in branch_ids]

        def lengths(b):
            T = trunk_width(len(trunk_ids[b]))
            R = branch_width(max(map(len, branch_ids[b]), default=0))
            return (T,) if fixed else (T, R, len(branch_ids[b]))

        # All batches are dispatched by the list below; only `fetch` in the caller waits.
        order = sorted((b for b, any_ in enumerate(asks) if fixed or any_), key=lengths)
        some = [order[i : i + self._batch] for i in range(0, len(order), self._batch)]
        return [
            (rows, self._run(rows, trunk_ids, branch_ids, ask, width, longest))
            for rows in some
            if any(asks[b] for b in rows)
        ]

    def _count(self, trunk_ids, branch_ids) -> None:
        """Counts the tokens of prompts; rows without a branch are not run."""
        asked = [row for row in zip(trunk_ids, branch_ids, strict=True) if any(row[1])]
        read = sum(len(trunk) + sum(map(len, branches)) for trunk, branches in asked)
        self._spent["prompt_tokens"] += read

    def _option(self, option: str) -> int:
        """Returns the token id of an option. Raises UserError if the option is not one token."""
        ids = self._cached.encode(option)
        if len(ids) != 1:
            raise UserError(
                f"textgen: option {option!r} is {len(ids)} tokens; an option must be one token"
            )
        return ids[0]

    def _trunks(self, trunks: Sequence[Text]) -> list[Ids]:
        """Returns the token ids of trunks, with BOS."""
        return [prompt_of(self._tokenizer, self._cached, trunk) for trunk in trunks]

    def _tokens(self, trunk_ids, branches, room: int = 0):
        """Returns (trunk token lists, branch token lists, fits[b][c]: the prompt is short enough).

        A prompt fits if it leaves `room` tokens of `max_len` and its branch is not empty. Branches
        that do not fit are emptied. Trunks too long for any branch become BOS alone.
        """
        bos, limit = self._tokenizer.bos, self._cfg.max_len - room
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

    def _run(self, rows, trunk_ids, branch_ids, ask, width: int, longest: int):
        """Calls ask(tree, rows); the tree is padded to bucketed sizes and on the host."""
        trunk_ids, branch_ids = ([ids[b] for b in rows] for ids in (trunk_ids, branch_ids))
        # B: next power of two, at most `batch`, rounded up to a multiple of the mesh's row shards.
        B = full_rows(self._mesh, min(1 << (len(rows) - 1).bit_length(), self._batch))
        tree = bucketed(
            trunk_ids, branch_ids, self._tokenizer, rows=B, width=width, longest=longest
        )
        with jax.set_mesh(self._mesh):
            return ask(tree, rows)


def about(textgen: TextGenerator, trunks: Sequence[Text], *, again: bool = False) -> Choose:
    """Returns `textgen.choose` bound to `trunks`.

    With `again` for several calls: the local generator then caches the trunks' keys and values
    between the calls (`Local.keep`). Other generators pad nothing and ignore the width.
    """
    if not isinstance(textgen, Local):
        return lambda branches, options, width=0: textgen.choose(trunks, branches, options)
    return textgen.keep(trunks) if again else functools.partial(textgen.choose, trunks)
