"""Cuts documents into (prefix, suffix) chunks.

A document is BOS and its tokens. It forks after prefix_min tokens, and then every `suffix` tokens
as long as a whole suffix follows the fork. So suffixes never overlap. The prefix is the text before
the fork, cut to its last prefix_max tokens.
Letters: D documents, B chunks, N tokens of all documents, T = prefix_max + suffix.
"""

import dataclasses
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sip.processes import divided
from sip.structs import UserError
from sip.text.tokenizer import Tokenizer, continuation

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Chunks:
    """The tokens of all documents, concatenated, and the position of each chunk in them.

    Chunks overlap in their prefixes, so they are stored as positions and copied on access.
    """

    tokens_N: np.ndarray  # int32
    start_B: np.ndarray  # index in tokens_N of the prefix's first token
    fork_B: np.ndarray  # length of the prefix, tokens
    doc_B: np.ndarray  # index of the document in the texts given to `cut`
    suffix: int  # length of each suffix, tokens
    width: int  # T, the padded length of a chunk
    pad: int  # token id at padded positions
    documents: int  # number of documents, skipped ones included
    skipped: int  # number of documents too short for a single chunk
    length_D: np.ndarray  # tokens of each document, BOS included
    # Of a mixture: the index of each chunk's source, and the name and weight of each source.
    source_B: np.ndarray | None = None
    weights: tuple[tuple[str, float], ...] = ()

    def __len__(self) -> int:
        return len(self.start_B)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
        """Returns {tokens_T (right padded), length, fork, doc} of one chunk.

        `length` is prefix and suffix in tokens, `fork` the prefix in tokens, `doc` the document's
        index.
        """
        fork = int(self.fork_B[index])
        start, length = int(self.start_B[index]), fork + self.suffix
        tokens_T = np.full(self.width, self.pad, np.int32)
        tokens_T[:length] = self.tokens_N[start : start + length]
        return dict(tokens_T=tokens_T, length=length, fork=fork, doc=int(self.doc_B[index]))


def cut(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    *,
    prefix_min: int,
    prefix_max: int,
    suffix: int,
    max_skipped_fraction: float = 1.0,
) -> Chunks:
    """Tokenises documents and cuts them into chunks, in order.

    `prefix_min`, `prefix_max` and `suffix` are lengths in tokens. Raises UserError for impossible
    lengths, if no document is long enough, or if more than `max_skipped_fraction` of the documents
    are too short.
    """
    _check(prefix_min, prefix_max, suffix)
    tokens_N, end_D = _tokenise(texts, tokenizer)
    begin_D = np.concatenate([[0], end_D])[:-1]
    forks_D = np.maximum(0, (end_D - begin_D - prefix_min) // suffix)  # chunks of each document
    # Vectorised over all chunks; nth_B counts the chunks of a document from 0.
    doc_B = np.repeat(np.arange(len(end_D)), forks_D)
    nth_B = np.arange(len(doc_B)) - (np.cumsum(forks_D) - forks_D)[doc_B]
    fork_B = prefix_min + nth_B * suffix
    chunks = Chunks(
        tokens_N=tokens_N,
        start_B=begin_D[doc_B] + np.maximum(0, fork_B - prefix_max),
        fork_B=np.minimum(fork_B, prefix_max),
        doc_B=doc_B,
        suffix=suffix,
        width=prefix_max + suffix,
        pad=tokenizer.pad,
        documents=len(end_D),
        skipped=int((forks_D == 0).sum()),
        length_D=end_D - begin_D,
    )
    _check_skipped(chunks, prefix_min, max_skipped_fraction)
    return chunks


def mixed(
    chunks: Chunks, source_D: np.ndarray | None, weights: tuple[tuple[str, float], ...]
) -> Chunks:
    """Returns the chunks with their sources, given the source of each document.

    Without `weights` the chunks are those of one source, unchanged.
    """
    if source_D is None:
        return chunks
    return dataclasses.replace(chunks, source_B=source_D[chunks.doc_B], weights=weights)


def select(chunks: Chunks, keep_B: np.ndarray) -> Chunks:
    """Returns the chunks where `keep_B` is True, in order; tokens and documents stay."""
    kept = lambda x_B: x_B[keep_B]
    return dataclasses.replace(
        chunks,
        start_B=kept(chunks.start_B),
        fork_B=kept(chunks.fork_B),
        doc_B=kept(chunks.doc_B),
        source_B=None if chunks.source_B is None else kept(chunks.source_B),
    )


def batch(chunks: Iterable[Any]) -> Batch:
    """Stacks chunks into {tokens_BT, mask_BT, fork_B, doc_B}.

    mask_BT is True at the tokens of prefix and suffix.
    """
    rows = list(chunks)
    tokens_BT = np.stack([row["tokens_T"] for row in rows])
    length_B1 = np.array([[row["length"]] for row in rows])
    return dict(
        tokens_BT=tokens_BT,
        mask_BT=np.arange(tokens_BT.shape[1]) < length_B1,
        fork_B=np.array([row["fork"] for row in rows], np.int32),
        doc_B=np.array([row["doc"] for row in rows], np.int32),
    )


def _tokenise(texts: Iterable[str], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens_N, end_D): the tokens of all documents, and the index after each document."""
    tokens, ends = array("i"), array("q")  # int32, int64: far smaller than lists of int
    for text in texts:
        tokens.append(tokenizer.bos)
        tokens.extend(tokenizer.encode(text))
        ends.append(len(tokens))
    return np.array(tokens, np.int32), np.array(ends, np.int64)


def _check(prefix_min: int, prefix_max: int, suffix: int) -> None:
    if suffix < 1:
        raise UserError(f"suffix={suffix}: must be at least 1 token")
    if prefix_min < 1:
        raise UserError(f"prefix_min={prefix_min}: must be at least 1 token")
    if prefix_min > prefix_max:
        raise UserError(f"prefix_min={prefix_min} is above prefix_max={prefix_max}; lower it")


def _check_skipped(chunks: Chunks, prefix_min: int, max_skipped_fraction: float) -> None:
    need = f"prefix_min + suffix = {prefix_min + chunks.suffix} tokens"
    lower = f"lower data.cut.prefix_min ({prefix_min}) or data.cut.suffix ({chunks.suffix})"
    if not len(chunks):
        raise UserError(f"none of {chunks.documents} documents has {need}; {lower}")
    if chunks.skipped > max_skipped_fraction * chunks.documents:
        raise UserError(
            f"{chunks.skipped} of {chunks.documents} documents have fewer than {need}, more than "
            f"max_skipped_fraction={max_skipped_fraction} allows; {lower}, or raise "
            "data.max_skipped_fraction"
        )


def texts_of(tokenizer: Tokenizer, rows, suffix: int):
    """Returns (prefixes, suffixes, prefix token lists) of a batch of chunks.

    `rows` has tokens_BT and fork_B; `suffix` is the length of the suffixes in tokens. Suffix texts
    are decoded as continuations of their prefixes (see `continuation`).
    """
    whole = [
        (row[:f].tolist(), row[f : f + suffix].tolist())
        for row, f in zip(rows["tokens_BT"], rows["fork_B"], strict=True)
    ]
    both = divided(whole, lambda two: (tokenizer.decode(two[0]), continuation(tokenizer, *two)))
    prefixes, suffixes = ([texts[i] for texts in both] for i in range(2))
    return prefixes, suffixes, [ids for ids, _ in whole]
