"""A proofreader marks the unlikely words of a text before a judge is shown the text.

A judge does not reliably compare a claim with what it knows. A language model of good text does so
in its likelihoods: at a grammatical slip, an insult or a false fact, another token is far likelier
than the actual one. A mark in the text makes that visible to the judge. Candidates of one prefix
are branches of one trunk, so the prefix is encoded once.
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
from sip.sections import above, at_least, check
from sip.structs import UserError
from sip.text.untrusted import encodable


@dataclass(frozen=True)
class ProofreadConfig:
    """The proofreader of a judge: its model and the threshold for marks. Raises UserError."""

    init_from: str = ""  # a run or a checkpoint directory; empty: no proofreading
    gap: float = 3.5  # nats; a token is marked if the likeliest token is more than this likelier
    most: int = 4  # most marked tokens per text; the first ones are marked
    mark: str = "¿"  # one visible character, inserted before a marked token
    batch: int = 16  # prefixes read at a time
    param_dtype: str = ""  # storage in float32 | bfloat16 | int8; empty: as saved

    def __post_init__(self):
        check_storage_dtype(self.param_dtype, "proofread.param_dtype")
        check("proofread", self, gap=above(0), most=at_least(1), batch=at_least(1))
        if len(self.mark) != 1 or self.mark.isspace() or not self.mark.isprintable():
            raise UserError(f"proofread.mark must be one visible character, not {self.mark!r}")


def plain(text: str, mark: str) -> str:
    """Removes all marks from a text."""
    return encodable(text).replace(mark, "") if mark else text


@functools.cache
def program(cfg: ModelConfig):
    """The jitted (params, tree) -> gap_BCR in nats: likeliest minus actual log-probability."""

    @jax.jit
    def gaps(params, tree):
        out = decoder.apply(params, cfg, tree)
        unembed = decoder.unembed(params, cfg)
        return branch_gaps(out.trunk_BTD, out.branch_BCRD, unembed, tree, chunk=cfg.logprob_chunk)

    return gaps


class Proofreader:
    """Marks unlikely tokens in texts, by a model on its own mesh."""

    def __init__(self, model: LoadedModel, config: ProofreadConfig):
        self._params, self._cfg, self._mesh = model.params, model.cfg, model.mesh
        self._tokenizer, self.config = model.tokenizer, config

    def read(
        self, prefixes: Sequence[str], texts: Sequence[Sequence[str]]
    ) -> list[list[str | None]]:
        """Returns texts [B][C] with marks. Marks already in a text are removed first.

        A text is None if it does not fit the model's `max_len` together with its prefix.
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
        # Dispatch every batch before fetching the first result: JAX runs them asynchronously.
        C = max(map(len, branches), default=0)  # of the whole call: its batches share a program
        runs = [self._run(asked[i : i + size], trunks, branches, C) for i in starts]
        gaps = dict(zip(asked, chain.from_iterable(run() for run in runs), strict=True))
        return [
            [
                None if ids is None else self._marked(text, ids, gaps[b][c]) if ids else text
                for c, (text, ids) in enumerate(zip(row, branches[b], strict=True))
            ]
            for b, row in enumerate(rows)
        ]

    def read_all(
        self, prefixes: Sequence[str], texts: Sequence[Sequence[str]], key: str
    ) -> list[list[str]]:
        """Returns texts [B][C] with marks, all of them. Raises UserError, which names the config
        section `key`, if one does not fit the model's `max_len`."""
        told = self.read(prefixes, texts)
        found = [[text for text in row if text is not None] for row in told]
        if list(map(len, found)) != list(map(len, told)):
            raise UserError(f"{key}: max_len of its model is too small for these texts")
        return found

    def _run(self, rows, trunks, branches, C: int):
        """Dispatches one batch of bucketed shape. Returns a function that fetches its gap_BCR."""
        trunks = [trunks[b] for b in rows]
        branches = [[ids or [] for ids in branches[b]] for b in rows]
        B, live = full_rows(self._mesh, self.config.batch), len(trunks)
        tree = bucketed(trunks, branches, self._tokenizer, rows=B, width=C)
        with jax.set_mesh(self._mesh):
            gap_BCR = program(self._cfg)(self._params, put_batch(self._mesh, tree))
        return lambda: fetch(gap_BCR)[:live]

    def _marked(self, text: str, ids: Sequence[int], gap_R: np.ndarray) -> str:
        """Inserts a mark before each of the first tokens with a large gap.

        If a token starts inside a multi-byte character, the mark is put before that character.
        """
        at = np.flatnonzero(gap_R[: len(ids)] > self.config.gap)[: self.config.most]
        # A prefix of ids that ends inside a character decodes to trailing replacement characters.
        heads = [self._tokenizer.decode(ids[:i]).rstrip("\ufffd") for i in at.tolist()]
        starts = sorted({len(head) for head in heads if text.startswith(head)})
        ends = zip([0, *starts], [*starts, len(text)], strict=True)
        return self.config.mark.join(text[a:b] for a, b in ends)
