"""Log-likelihoods of continuations after contexts, and generation; token ids in and out.

Continuations of one context (the choices of a question) are branches of one trunk, so the context
is encoded once. Attention over branches is dense, so a long continuation is scored as a plain
sequence instead. Shapes are padded to powers of two and batches are full, so that few programs are
compiled.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sip.mesh import full_rows, put_batch
from sip.models import decoder
from sip.models.config import ModelConfig
from sip.objectives.logprobs import tree_choices
from sip.padding import padded_tree, trunk_only
from sip.processes import fetch
from sip.sampling import SamplingConfig, program
from sip.structs import Params, Tree, UserError
from sip.text.segments import Ids

LEAST, MOST = 16, 16  # least padded size; most branches of a trunk
Pair = tuple[Ids, Ids]  # (context of at least one token, continuation)
Score = tuple[float, bool]  # (log-probability in nats, True if every token is the likeliest)


@dataclass(frozen=True, eq=False)
class Model:
    """A decoder on its mesh, with its batch sizes."""

    params: Params
    cfg: ModelConfig
    mesh: jax.sharding.Mesh
    batch: int = 16  # contexts per batch
    wide: int = 256  # continuations of more tokens are scored as plain sequences

    @property
    def rows(self) -> int:
        """Rows of every batch: `batch`, rounded up to fill the mesh."""
        return full_rows(self.mesh, self.batch)


def size(n: int) -> int:
    """Rounds `n` up to a power of two, at least LEAST."""
    return max(LEAST, 1 << (n - 1).bit_length())


def fitted(context: Ids, continuation: Ids, max_len: int) -> Pair:
    """Cuts the context from the left so that the pair fits a model of `max_len` positions.

    The pair may have max_len + 1 tokens: the model does not read the last one. Raises UserError if
    the continuation alone is empty or too long.
    """
    if not 0 < len(continuation) <= max_len:
        raise UserError(
            f"a continuation has {len(continuation)} tokens; it needs 1 to {max_len} (max_len)"
        )
    return context[-(max_len + 1 - len(continuation)) :], continuation


def score(model: Model, pairs: Sequence[Pair]) -> list[Score]:
    """Scores each continuation after its context, in the order given; long pairs are `fitted`."""
    pairs = [fitted(*pair, model.cfg.max_len) for pair in pairs]
    alone = [i for i, (_, after) in enumerate(pairs) if len(after) > model.wide]
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, (before, after) in enumerate(pairs):
        if len(after) <= model.wide:
            groups.setdefault(tuple(before), []).append(i)
    found: dict[int, Score] = {}
    batches = [*_batches(model, _sequences(pairs, alone)), *_batches(model, _trees(pairs, groups))]
    with jax.set_mesh(model.mesh):
        for rows, make in tqdm(batches, desc="likelihoods", disable=None):
            found |= make(model, pairs, rows)
    _check_finite([score for score, _ in found.values()])
    return [found[i] for i in range(len(pairs))]


def _check_finite(logp) -> None:
    """Raises UserError if a log-probability is not finite: the likeliest token would be noise."""
    if not np.isfinite(logp).all():
        raise UserError("the model's logits are not finite: its numbers overflow")


def _batches(model: Model, items) -> Iterator:
    """Yields (rows, scoring function), items of similar shapes together."""
    some, make = items
    some = sorted(some, key=lambda item: item[0])
    for i in range(0, len(some), model.rows):
        yield [rows for _, rows in some[i : i + model.rows]], make


def _sequences(pairs, alone):
    """(items, scoring function) of pairs scored as plain sequences; an item is (shape, pair)."""
    return [((len(pairs[i][0]) + len(pairs[i][1]),), i) for i in alone], _score_sequences


def _trees(pairs, groups):
    """(items, scoring function) of the pairs scored as trees; an item is (shape, pairs)."""

    def shape(context, rows):
        return size(len(context)), size(max(len(pairs[i][1]) for i in rows)), len(rows)

    some = [
        (context, rows[i : i + MOST])
        for context, rows in groups.items()
        for i in range(0, len(rows), MOST)
    ]
    return [(shape(*each), each[1]) for each in some], _score_trees


def _score_sequences(model: Model, pairs, rows: list[int]) -> dict[int, Score]:
    """Scores pairs as plain sequences in one batch, padded with empty rows."""
    whole = [[*pairs[i][0], *pairs[i][1]] for i in rows]
    T = size(max(map(len, whole)))
    tokens_BT, at_BT = np.zeros((model.rows, T), np.int32), np.arange(T)[None]
    length_B, start_B = np.zeros((2, model.rows, 1), np.int32)
    for b, (i, ids) in enumerate(zip(rows, whole, strict=True)):
        tokens_BT[b, : len(ids)] = ids
        length_B[b], start_B[b] = len(ids), len(pairs[i][0])
    tree, asked_BT = trunk_only(tokens_BT, at_BT < length_B), at_BT >= start_B
    args = put_batch(model.mesh, (tree, asked_BT))
    scores_B2 = fetch(sequences_program(model.cfg)(model.params, *args))
    return {i: _said(scores_B2[b]) for b, i in enumerate(rows)}


def _score_trees(model: Model, pairs, rows: list[list[int]]) -> dict[int, Score]:
    """Scores groups of pairs with one context each as trees in one batch."""
    trunks = [pairs[some[0]][0] for some in rows]
    branches = [[pairs[i][1] for i in some] for some in rows]
    T, R = size(max(map(len, trunks))), size(max(len(ids) for row in branches for ids in row))
    C, extra = 1 << (max(map(len, rows)) - 1).bit_length(), model.rows - len(rows)
    tree = padded_tree([*trunks, *[[0]] * extra], [*branches, *[[]] * extra], 0, T, C, R)
    tree = put_batch(model.mesh, tree)
    scores_BC2 = fetch(branches_program(model.cfg)(model.params, tree))
    return {i: _said(scores_BC2[b, c]) for b, some in enumerate(rows) for c, i in enumerate(some)}


def _said(score_2) -> Score:
    """A score from (sum of log-probabilities, largest gap to the likeliest token)."""
    return float(score_2[0]), bool(score_2[1] <= 0)


@functools.cache
def branches_program(cfg: ModelConfig):
    """The jitted (params, tree) -> scores_BC2 of branches.

    The two are the sum of log-probabilities and the largest gap to the likeliest token, in nats.
    """

    @jax.jit
    def run(params, tree: Tree):
        return _summed(_choices(params, cfg, tree)[1], tree.mask_BCR)

    return run


@functools.cache
def sequences_program(cfg: ModelConfig):
    """The jitted (params, tree, asked_BT) -> scores_B2 of the trunk tokens marked by `asked_BT`."""

    @jax.jit
    def run(params, tree: Tree, asked_BT):
        return _summed(_choices(params, cfg, tree)[0], asked_BT & tree.mask_BT)

    return run


def _choices(params, cfg, tree):
    """(trunk_BT2, branch_BCR2): log-probability of each token and its gap to the likeliest."""
    out = decoder.apply(params, cfg, tree)
    unembed = decoder.unembed(params, cfg)
    return tree_choices(out.trunk_BTD, out.branch_BCRD, unembed, tree, chunk=cfg.logprob_chunk)


def _summed(both, mask):
    """Reduces the last token axis: sum of log-probabilities and maximum of gaps."""
    # The gap of a masked token becomes 0: gaps are at least 0, so the maximum is not changed.
    both = jnp.where(mask[..., None], both, 0.0)
    return jnp.stack([both[..., 0].sum(-1), both[..., 1].max(-1)], axis=-1)


def windows(ids: Ids, prefix: int, max_len: int) -> list[Pair]:
    """Splits a document into pairs that score each of its tokens exactly once.

    The first pair has the context `prefix`, a token. Later ones have as much context as fits.
    """
    ids = [prefix, *ids]
    pairs, done = [], 1
    while done < len(ids):
        end = min(done + max_len, len(ids))
        pairs.append((ids[max(0, end - max_len - 1) : done], ids[done:end]))
        done = end
    return pairs


def generate(
    model: Model,
    prompts: Sequence[Ids],
    *,
    steps: int,
    sampling: SamplingConfig,
    stop: tuple[int, ...],
    seed: int = 0,
) -> list[Ids]:
    """Samples an answer to each prompt: up to `steps` tokens, ending with the first of `stop`.

    The stop token is kept. Prompts are cut from the left to leave room for the answer. Random
    numbers depend on `seed` and a prompt's index. Raises UserError if no room for a prompt is left.
    """
    room = model.cfg.max_len - steps
    if room < 1:
        raise UserError(
            f"{steps} new tokens leave no room for a prompt in max_len {model.cfg.max_len}"
        )
    prompts = [ids[-room:] for ids in prompts]
    # By length, so that the prompts of a batch have similar shapes.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    run, key = program(model.cfg, 1, steps, sampling, stop), jax.random.key(seed)
    found: dict[int, Ids] = {}
    with jax.set_mesh(model.mesh):
        for first in tqdm(range(0, len(order), model.rows), desc="answers", disable=None):
            rows = order[first : first + model.rows]
            out = run(model.params, *_prompts(model, prompts, rows), key)
            tokens_BR, mask_BR, logp_BR = (
                x[:, 0] for x in fetch((out.tokens_BCR, out.mask_BCR, out.logp_BCR))
            )
            _check_finite(logp_BR)
            found |= {i: tokens_BR[b][mask_BR[b]].tolist() for b, i in enumerate(rows)}
    return [found[i] for i in range(len(prompts))]


def _prompts(model: Model, prompts, rows):
    """(tokens_BT, fork_B, rows_B) on the mesh.

    The batch is padded by repeating its first row with its index, so that the padding stops when
    that row does.
    """
    tokens_BT = np.zeros((model.rows, size(max(len(prompts[i]) for i in rows))), np.int32)
    fork_B, rows_B = np.zeros((2, model.rows), np.int32)
    for b, i in enumerate([*rows, *rows[:1] * (model.rows - len(rows))]):
        tokens_BT[b, : len(prompts[i])] = prompts[i]
        fork_B[b], rows_B[b] = len(prompts[i]), i
    return put_batch(model.mesh, (tokens_BT, fork_B, rows_B))
