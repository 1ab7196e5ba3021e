"""A disk cache of generated answers: an interrupted command generates only the missing ones.

The client of a server has a cache of its own (`sip/textgen/remote.py`). This one is for models
that run in this process.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from sip import workdir
from sip.structs import UserError
from sip.text.segments import Text
from sip.textgen import transport
from sip.textgen.protocol import Cut, Said, TextGenerator
from sip.training import checkpoints

PORTION = 64  # trunks per call of the model; the cache is written after each call


class CachedAnswers:
    """Wraps a text generator and caches the answers of `generate` in the directory `cache`.

    The key of an answer is `name`, the prompt (trunk and branches) and all arguments of `generate`.
    `name` identifies the model (see `name_of`): answers stored under another name are not read.
    """

    def __init__(self, textgen: TextGenerator, cache: str, name: str):
        self._textgen, self._cache, self._name = textgen, Path(cache), name

    def choose(self, trunks, branches, options) -> np.ndarray:
        """Returns the model's logp_BCO. Log-probabilities are not cached."""
        return self._textgen.choose(trunks, branches, options)

    def generate(self, trunks, branches, **how) -> list[list[list[Said]]]:
        """Returns texts[b][c][j], from the cache or from the model.

        Raises UserError if an answer cannot be written to the cache.
        """
        pairs = list(zip(trunks, branches, strict=True))
        keys = [self._key(*pair, how) for pair in pairs]
        # Equal prompts share a key, so each is generated once.
        asked = dict(zip(keys, pairs, strict=True))
        found = {key: transport.load(self._cache, key, _rows) for key in asked}
        missing = [key for key in asked if found[key] is None]
        for start in range(0, len(missing), PORTION):
            some = missing[start : start + PORTION]
            rows = self._textgen.generate(*zip(*(asked[key] for key in some), strict=True), **how)
            for key, row in zip(some, rows, strict=True):
                if problem := transport.store(self._cache, key, _plain(row)):
                    raise UserError(problem)
                found[key] = row
        return [found[key] for key in keys]

    def _key(self, trunk: Text, row: Sequence[Text], how: Mapping[str, Any]) -> str:
        said = dict(how, sampling=dataclasses.asdict(how["sampling"]))
        return transport.digest(self._name, dict(said, trunk=trunk, branches=row))


def _plain(row: Sequence[Sequence[Said]]) -> list[list[Any]]:
    """Returns one trunk's answers as JSON: null, or [text, whether it ended]."""

    def one(said: Said):
        if isinstance(said, Cut):
            return [said.text, False]
        return None if said is None else [said, True]

    return [[one(said) for said in texts] for texts in row]


def _rows(value: Any) -> list[list[Said]]:
    """Reads one trunk's cached answers, see `_plain`. Raises ValueError if they are malformed."""
    if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
        raise ValueError("not a list of answers per branch")
    return [[_said(one) for one in row] for row in value]


def _said(one: Any) -> Said:
    if one is None:
        return None
    text, ended = one
    if not isinstance(text, str) or not isinstance(ended, bool):
        raise ValueError("not an answer")
    return text if ended else Cut(text)


def name_of(directory: str) -> str:
    """Returns a cache name for a checkpoint: a digest of its parameters and tokenizer.

    Answers of a checkpoint that was overwritten are not reused; those of a copy are. Of a published
    checkpoint all files are digested, about 1 GB/s.
    """
    path = epath.Path(directory)
    if not checkpoints.exists(directory):
        return workdir.digest(file for file in path.iterdir() if file.is_file())
    beside = [path / name for name in ("tokenizer.json", "tokenizer.model")]
    tokenizer = workdir.digest(file for file in beside if file.exists())
    return f"{checkpoints.identity(directory)} {tokenizer}"
