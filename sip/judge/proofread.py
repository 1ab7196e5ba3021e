"""Proofreading: a judge is shown texts with a mark before each word that a good writer would not
have put there.

A judge that reads a claim does not compare it with what it knows, but a model of good text does so
in its likelihoods: where it knows better, another word would have been far likelier (grammatical
slips, insults and false facts alike). Its marks put that into the words that a verdict rests on.
Candidates that are all read beside each other are branches: the prefix is encoded once.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import jax
import numpy as np

from sip.loading import LoadedModel
from sip.mesh import full_rows, put_batch
from sip.models import decoder
from sip.models.config import ModelConfig, check_storage_dtype
from sip.objectives.logprobs import branch_gaps
from sip.padding import bucketed
from sip.processes import fetch
from sip.structs import UserError
from sip.text.untrusted import encodable


@dataclass(frozen=True)
class ProofreadConfig:
    """Who proofreads, and what is marked."""

    init_from: str = ""  # a run or a directory with a checkpoint; empty: nothing is marked
    gap: float = 3.5  # nats by which the likeliest token must be likelier than a marked one
    most: int = 4  # tokens marked in a text: the first ones
    mark: str = "¿"
    batch: int = 16  # prefixes read at a time
    param_dtype: str = ""  # held in float32 | bfloat16 | int8; empty: as saved

    def __post_init__(self):
        check_storage_dtype(self.param_dtype, "proofread.param_dtype")
        if self.gap <= 0:
            raise UserError(f"proofread.gap must be positive, not {self.gap}")
        if self.most < 1 or self.batch < 1:
            raise UserError("proofread.most and proofread.batch must be at least 1")
        if len(self.mark) != 1 or self.mark.isspace() or not self.mark.isprintable():
            raise UserError(f"proofread.mark must be one character to be seen, not {self.mark!r}")


def plain(text: str, mark: str) -> str:
    """The text without marks."""
    return encodable(text).replace(mark, "") if mark else text


@functools.cache
def program(cfg: ModelConfig):
    """The jitted (params, tree) -> gap_BCR."""

    @jax.jit
    def gaps(params, tree):
        out = decoder.apply(params, cfg, tree)
        unembed_DV = decoder.unembed(params, cfg)
        return branch_gaps(
            out.trunk_BTD, out.branch_BCRD, unembed_DV, tree, chunk=cfg.logprob_chunk
        )

    return gaps


class Proofreader:
    """A model of good text on its own mesh."""

    def __init__(self, model: LoadedModel, config: ProofreadConfig):
        self._params, self._cfg, self._mesh = model.params, model.cfg, model.mesh
        self._tokenizer, self.config = model.tokenizer, config

    def read(
        self, prefixes: Sequence[str], texts: Sequence[Sequence[str]]
    ) -> list[list[str | None]]:
        """The texts with marks, in the shape they came; marks that stood in them before are gone.

        None where prefix and text do not fit the model's `max_len`.
        """
        encode, clean = self._tokenizer.encode, functools.partial(plain, mark=self.config.mark)
        trunks = [[self._tokenizer.bos, *encode(prefix)] for prefix in prefixes]
        rows = [[clean(text) for text in row] for row in texts]
        room = [self._cfg.max_len - len(trunk) for trunk in trunks]
        branches = [
            [ids if len(ids) <= free else None for ids in map(encode, row)]
            for row, free in zip(rows, room, strict=True)
        ]
        asked = [b for b, row in enumerate(branches) if any(row)]
        size = self.config.batch
        starts = range(0, len(asked), size)
        # All batches are dispatched before the first result is waited for.
        runs = [self._run(asked[i : i + size], trunks, branches) for i in starts]
        gaps = dict(zip(asked, chain.from_iterable(run() for run in runs), strict=True))
        return [
            [
                None if ids is None else self._marked(text, ids, gaps[b][c]) if ids else text
                for c, (text, ids) in enumerate(zip(row, branches[b], strict=True))
            ]
            for b, row in enumerate(rows)
        ]

    def _run(self, rows, trunks, branches):
        """What gives the gap_CR of each of the rows, dispatched; sizes are bucketed."""
        trunks = [trunks[b] for b in rows]
        branches = [[ids or [] for ids in branches[b]] for b in rows]
        B, live = full_rows(self._mesh, self.config.batch), len(trunks)
        tree = bucketed(trunks, branches, self._tokenizer, rows=B, multiples=(16, 8))
        with jax.set_mesh(self._mesh):
            gap_BCR = program(self._cfg)(self._params, put_batch(self._mesh, tree))
        return lambda: fetch(gap_BCR)[:live]

    def _marked(self, text: str, ids: Sequence[int], gap_R: np.ndarray) -> str:
        """The text with a mark before each token of a large gap. Where tokens end inside a
        character it stands before the character."""
        at = np.flatnonzero(gap_R[: len(ids)] > self.config.gap)[: self.config.most]
        heads = [self._tokenizer.decode(ids[:i]).rstrip("\ufffd") for i in at.tolist()]
        starts = sorted({len(head) for head in heads if text.startswith(head)})
        ends = zip([0, *starts], [*starts, len(text)], strict=True)
        return self.config.mark.join(text[a:b] for a, b in ends)
