"""Continuations of held-out prefixes, and the negative log-likelihood of held-out suffixes."""

import dataclasses
import functools
from dataclasses import dataclass

import jax
import numpy as np

from sip.data import control
from sip.data.chunks import Chunks
from sip.loading import LoadedModel
from sip.mesh import put_batch
from sip.models.config import ModelConfig
from sip.padding import trunk_only
from sip.processes import fetch
from sip.sampling import SamplingConfig, program
from sip.structs import UserError
from sip.text.tokenizer import Tokenizer, continuation
from sip.training import losses

GREEDY = SamplingConfig(temperature=0.0)
# Key of the figures of an evaluation that is no number: a list of (prompt, text) to read.
SAMPLES = "samples"


@dataclass(frozen=True)
class Prompts:
    """E held-out chunks as tokens and as text."""

    tokens_ET: np.ndarray  # prefix and suffix, padded to T
    mask_ET: np.ndarray  # tokens that are not padding
    fork_E: np.ndarray  # number of prefix tokens
    prefixes: list[str]
    suffixes: list[str]

    def __len__(self):
        return len(self.fork_E)

    def where(self, keep_E: np.ndarray) -> "Prompts":
        """The prompts marked by `keep_E`, in order."""
        at = np.flatnonzero(keep_E)
        return Prompts(
            self.tokens_ET[at],
            self.mask_ET[at],
            self.fork_E[at],
            [self.prefixes[i] for i in at],
            [self.suffixes[i] for i in at],
        )


def prompts(chunks: Chunks, rows: range, tokenizer: Tokenizer) -> Prompts:
    """Reads the chunks with index in `rows`. Raises UserError if there is none."""
    found = [chunks[i] for i in rows if i < len(chunks)]
    if not found:
        raise UserError(f"evals: no chunk in {rows}; the split has {len(chunks)}")
    tokens_ET = np.stack([c["tokens_T"] for c in found])
    length_E = np.array([c["length"] for c in found])
    fork_E = np.array([c["fork"] for c in found], np.int32)
    mask_ET = np.arange(tokens_ET.shape[1]) < length_E[:, None]
    ids = [row[:n].tolist() for row, n in zip(tokens_ET, length_E, strict=True)]
    prefixes = [tokenizer.decode(row[:f]) for row, f in zip(ids, fork_E, strict=True)]
    suffixes = [
        continuation(tokenizer, row[:f], row[f:]) for row, f in zip(ids, fork_E, strict=True)
    ]
    return Prompts(tokens_ET, mask_ET, fork_E, prefixes, suffixes)


def controlled(asked: Prompts, token: int, pad: int) -> Prompts:
    """Returns the prompts with a control token after each prefix; the texts stay as they are."""
    rows = dict(tokens_BT=asked.tokens_ET, mask_BT=asked.mask_ET, fork_B=asked.fork_E)
    put = control.insert(rows, np.full(len(asked), token, np.int32), pad)
    return dataclasses.replace(
        asked, tokens_ET=put["tokens_BT"], mask_ET=put["mask_BT"], fork_E=put["fork_B"]
    )


def batches(n: int, size: int):
    """Yields (indices of `size` rows, number of real rows).

    The last batch is padded by repeating row 0, so that only one shape is compiled.
    """
    for start in range(0, n, size):
        at = np.arange(start, start + size)
        yield np.where(at < n, at, 0), min(size, n - start)


def sample(
    model: LoadedModel,
    asked: Prompts,
    *,
    branches: int,
    steps: int,
    sampling: SamplingConfig,
    seed: int,
    batch: int,
) -> list[list[str]]:
    """Samples `branches` continuations of each prefix as text, of `steps` tokens each.

    Continuations depend on the seed and on a prompt's index, not on `batch`.
    """
    if not len(asked):
        return []
    P = asked.tokens_ET.shape[1] - steps  # prefixes leave room for `steps` tokens
    run = program(model.cfg, branches, steps, sampling)
    found = []
    with jax.set_mesh(model.mesh):
        for at, live in batches(len(asked), batch):
            rows = asked.tokens_ET[at, :P], asked.fork_E[at], at.astype(np.int32)
            args = put_batch(model.mesh, rows)
            found.append(fetch(run(model.params, *args, jax.random.key(seed)).tokens_BCR)[:live])
    return [
        [continuation(model.tokenizer, row[:f].tolist(), new.tolist()) for new in many]
        for row, f, many in zip(asked.tokens_ET, asked.fork_E, np.concatenate(found), strict=True)
    ]


def greedy(
    model: LoadedModel,
    asked: Prompts,
    *,
    steps: int,
    batch: int,
) -> list[str]:
    """Decodes the greedy continuation of each prefix as text, of `steps` tokens."""
    rows = sample(
        model,
        asked,
        branches=1,
        steps=steps,
        sampling=GREEDY,
        seed=0,
        batch=batch,
    )
    return [row[0] for row in rows]


@functools.cache
def nll_program(cfg: ModelConfig):
    """The jitted (params, (tree, counted_BT)) -> (total, denom) of the cross-entropy in nats."""
    terms = losses.tokens_terms(cfg)
    return jax.jit(lambda params, batch: terms(params, None, batch)[0]["ce"])


def suffix_nll(model: LoadedModel, asked: Prompts, *, batch: int) -> float:
    """Mean negative log-likelihood per suffix token, in nats. Needs at least one prompt."""
    total, denom = 0.0, 0.0
    with jax.set_mesh(model.mesh):
        for at, live in batches(len(asked), batch):
            suffix = np.arange(asked.tokens_ET.shape[1]) >= asked.fork_E[at, None]
            counted = asked.mask_ET[at] & suffix & (np.arange(len(at)) < live)[:, None]
            tree = trunk_only(asked.tokens_ET[at], asked.mask_ET[at])
            pair = nll_program(model.cfg)(model.params, put_batch(model.mesh, (tree, counted)))
            total, denom = total + float(pair[0]), denom + float(pair[1])
    return total / denom
