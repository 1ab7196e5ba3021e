"""Global batches of chunks by random access: the state of the input pipeline is the step number.

The order is a grain `MapDataset`, reshuffled in every epoch and repeated forever. The sources of a
mixture have epochs of their own and are mixed by weight, evenly in any part of the order. Batch
`step` holds positions step * batch to (step + 1) * batch - 1, for any number of processes. So a run
can resume on another number of processes.
"""

import functools
from typing import Any

import grain
import numpy as np

from sip.data import chunks as chunking
from sip.data.chunks import Batch, Chunks
from sip.structs import UserError


class Batches:
    """An endless sequence of batches: batches[step] -> {tokens_BT, mask_BT, fork_B, doc_B}.

    `batch` is the global batch size B, `seed` that of the shuffle. Raises UserError if batch < 1.
    """

    def __init__(self, chunks: Chunks, *, batch: int, seed: int, shuffle: bool = True):
        if batch < 1:
            raise UserError(f"batch={batch}: must be at least 1")
        self.batch = batch
        of = lambda source: _endless(source, seed, shuffle)
        if not chunks.weights:
            self._order = of(chunks)
            return
        sources = [_Source(chunks, i) for i in range(len(chunks.weights))]
        for (name, _), source in zip(chunks.weights, sources, strict=True):
            if not len(source):
                raise UserError(
                    f"data.mix.{name}: no document of the run's split is long enough for data.cut; "
                    "use a larger split, or lower data.cut"
                )
        weights = [weight for _, weight in chunks.weights]
        self._order = grain.MapDataset.mix(list(map(of, sources)), weights)

    def __getitem__(self, step: int) -> Batch:
        return self.rows(step, 0, 1)

    def rows(self, step: int, process_index: int, process_count: int) -> Batch:
        """Returns the rows of global batch `step` that belong to one process.

        Raises UserError if the batch is not a multiple of `process_count`.
        """
        share, rest = divmod(self.batch, process_count)
        if rest:
            raise UserError(
                f"batch={self.batch} does not divide among {process_count} processes; use a "
                "multiple"
            )
        first = step * self.batch + process_index * share  # rows of a process are contiguous
        return chunking.batch(self._order[position] for position in range(first, first + share))


class _Source:
    """The chunks of one source of a mixture."""

    def __init__(self, chunks: Chunks, source: int):
        self._chunks, self._at = chunks, np.flatnonzero(chunks.source_B == source)

    def __len__(self) -> int:
        return len(self._at)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._chunks[self._at[index]]


def _endless(chunks: Any, seed: int, shuffle: bool) -> grain.MapDataset:
    order = grain.MapDataset.source(chunks).seed(seed)
    # shuffle before repeat: each epoch has its own permutation of all chunks.
    return (order.shuffle() if shuffle else order).repeat()


def epochs(n: int, step: int, size: int, *, seed: int) -> np.ndarray:
    """Returns the indices of the `size` examples in batch `step`, out of n examples.

    Each epoch is a permutation of the n examples; a batch may span two epochs.
    """
    at = np.arange(step * size, (step + 1) * size)
    places = zip(*divmod(at, n), strict=True)  # (epoch, position in the epoch)
    return np.array([order(n, seed, int(epoch))[i] for epoch, i in places])


@functools.lru_cache(maxsize=8)
def mixed(sizes: tuple[int, ...], weights: tuple[float, ...], seed: int) -> Any:
    """Returns the endless order of rows of a mixture whose sources follow each other.

    `sizes` are their numbers of rows. Each source is a permutation in each of its own epochs.
    """
    ends = np.cumsum(sizes)
    rows = [range(int(end) - size, int(end)) for size, end in zip(sizes, ends, strict=True)]
    return grain.MapDataset.mix([_endless(some, seed, True) for some in rows], list(weights))


@functools.lru_cache(maxsize=8)
def order(n: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the permutation of n examples in an epoch."""
    return np.random.default_rng((seed, epoch)).permutation(n)
