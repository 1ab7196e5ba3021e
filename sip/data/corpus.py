"""A corpus: the documents of one split, loaded, tokenised and cut into prefix and suffix."""

import dataclasses
import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sip import processes
from sip.data import chunks, documents
from sip.data.documents import Truth
from sip.sections import at_least, check, plain, section
from sip.structs import UserError
from sip.text.tokenizer import Tokenizer
from sip.workdir import shared_dir


@dataclass(frozen=True)
class CutConfig:
    """Lengths of prefixes and suffixes, in tokens.

    A prefix has prefix_min to prefix_max tokens, BOS included at a document's beginning; a suffix
    has exactly `suffix` tokens.
    """

    prefix_min: int  # tokens before a document's first suffix
    prefix_max: int  # longer prefixes keep their last prefix_max tokens
    suffix: int  # tokens of each suffix

    def __post_init__(self):
        check("data.cut", self, prefix_min=at_least(1), suffix=at_least(1))
        check("data.cut", self, prefix_max=at_least(self.prefix_min))


@dataclass(frozen=True, eq=False)  # hashed by identity
class Corpus:
    """The documents of a split and their chunks; a chunk is a prefix and a suffix."""

    documents: documents.Documents
    chunks: chunks.Chunks
    cut: CutConfig

    @property
    def left_out(self) -> dict[str, int]:
        """Documents that are not used, by reason: of the whole file, and too short ones."""
        short = f"shorter than prefix_min + suffix = {self.cut.prefix_min + self.cut.suffix} tokens"
        own = {short: self.chunks.skipped} if self.chunks.skipped else {}
        return {**self.documents.left_out, **own}

    def ground_truth(self, key: str) -> Truth:
        """Returns the corpus's ground truth.

        Raises UserError, naming the config key `key` that needs it, if the corpus has none.
        """
        if self.documents.truth is None:
            raise UserError(f"{key}: this corpus has no ground truth; use data.source microworld")
        return self.documents.truth


def cut_config(data: Mapping) -> CutConfig:
    """Returns the `data.cut` section as a dataclass. Raises UserError if it is missing."""
    if "cut" not in data:
        raise UserError("config data.cut: missing; set prefix_min, prefix_max and suffix")
    return section(CutConfig, data["cut"], "data.cut")


def data_config(data, split: str) -> documents.DataConfig:
    """Returns the `data` section as a dataclass, for one split."""
    values = {k: v for k, v in plain(data).items() if k != "cut"}
    if "split" in values:
        raise UserError("config data.split: unknown key; each run has its own split")
    return section(documents.DataConfig, {**values, "split": split}, "data")


def sizes(data: documents.DataConfig, workdir: str) -> list[dict[str, int]]:
    """Returns `documents.sizes` of each source of a corpus."""
    return [documents.sizes(one, _data_dir(workdir)) for one in documents.sources(data)]


def is_built(data: documents.DataConfig, workdir: str) -> bool:
    """Returns False if a data set of the corpus is not in the workdir and would have to be built:
    no run has read it, or it was deleted."""
    return documents.is_built(data, _data_dir(workdir))


def filled(data) -> dict[str, Any]:
    """Returns the `data` section with the defaults of all keys that it leaves out."""
    cfg = data_config(data, "train")
    values = {k: v for k, v in dataclasses.asdict(cfg).items() if k != "split"}
    world = dict(cfg.world)
    if cfg.source in documents.WORLDS:
        world = dataclasses.asdict(section(documents.WORLDS[cfg.source], world, "data.world"))
    return {**values, "world": world, "cut": dataclasses.asdict(cut_config(data))}


def load(
    data, split: str, workdir: str, tokenizer: Tokenizer, *, any_length: bool = False
) -> Corpus:
    """Loads, tokenises and cuts the documents of a split, once per process.

    `data` is the config's `data` section. A data set that must be built is stored in the workdir.
    With `any_length` most documents may be too short for a chunk, else data.max_skipped_fraction is
    the limit.
    """
    cut = cut_config(data)
    return _cut(data_config(data, split), cut, _data_dir(workdir), tokenizer, any_length)


def load_documents(data, split: str, workdir: str) -> documents.Documents:
    """Loads the documents of a split, once per process, without tokenising them."""
    return _documents(data_config(data, split), _data_dir(workdir))


def summary(corpus: Corpus, split: str, rows: int) -> str:
    """Returns one line about a split: documents, tokens, median length, shares left out and why,
    and the epochs that a run makes which trains on `rows` chunks of it."""
    docs, found = corpus.documents, corpus.chunks
    parts = [
        f"{split}: {found.documents:,} documents, {len(found.tokens_N):,} tokens, "
        f"median {np.median(found.length_D):,.0f} tokens"
    ]
    if found.skipped:
        need = corpus.cut.prefix_min + corpus.cut.suffix
        share = found.skipped / found.documents
        parts.append(f"{share:.1%} too short (fewer than {need} tokens)")
    if docs.skipped:
        share, why = docs.skipped / docs.read, documents.listed(docs.left_out)
        parts.append(f"{share:.1%} of all splits left out ({why})")
    if docs.duplicates and documents.DUPLICATE not in " ".join(docs.left_out):
        parts.append(f"{docs.duplicates:,} of all splits are copies of others, kept")
    return "; ".join([*parts, _epochs(found, rows)])


def _epochs(found: chunks.Chunks, rows: int) -> str:
    """Returns how often `rows` chunks of training go through a split, each source of a mixture."""
    if found.source_B is None:
        return f"{rows / len(found):.3g} epochs of {len(found):,} chunks"
    whole = sum(weight for _, weight in found.weights)
    sizes = np.bincount(found.source_B, minlength=len(found.weights))
    each = zip(found.weights, sizes, strict=True)
    return ", ".join(
        f"{rows * weight / whole / max(size, 1):.3g} epochs of {size:,} chunks of {name}"
        for (name, weight), size in each
    )


def _data_dir(workdir: str) -> str:
    return str(shared_dir(workdir) / "data")


@functools.lru_cache(maxsize=8)
def _documents(data: documents.DataConfig, data_dir: str) -> documents.Documents:
    """Loads documents: process 0 first, which builds the data set if needed, then the others."""
    found: list[documents.Documents] = []
    processes.on_lead(lambda: found.append(documents.load(data, data_dir)))
    docs = found[0] if found else documents.load(data, data_dir)
    for line in documents.ignored(data) if found else ():
        say(line)
    if docs.skipped:
        _say(f"{data.name}: {docs.skipped:,} of {docs.read:,} documents", docs.left_out)
    for overlap in docs.overlaps:
        say(f"{data.name}, {data.split}: {overlap}")
    return docs


@functools.lru_cache(maxsize=8)
def _cut(
    data: documents.DataConfig, cut: CutConfig, data_dir: str, tokenizer, any_length: bool
) -> Corpus:
    # The cache needs hashable arguments; a tokenizer is hashed by identity (see load_tokenizer).
    docs = _documents(data, data_dir)
    found = chunks.cut(
        docs.texts,
        tokenizer,
        **dataclasses.asdict(cut),
        max_skipped_fraction=1.0 if any_length else data.max_skipped_fraction,
    )
    corpus = Corpus(docs, chunks.mixed(found, docs.source_D, docs.weights), cut)
    if found.skipped:
        short = {k: n for k, n in corpus.left_out.items() if k not in docs.left_out}
        which = f"{data.name}, {data.split}"
        _say(f"{which}: {found.skipped:,} of {found.documents:,} documents", short)
    return corpus


def _say(which: str, left_out: Mapping[str, int]) -> None:
    """Prints which documents are left out and why, to stderr, once."""
    say(f"{which} are left out: {documents.listed(left_out)}")


def say(line: str) -> None:
    """Prints a line about a corpus to stderr, once, on process 0."""
    if processes.lead():
        _print(line)


@functools.cache  # every split of a file has the same line
def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
