"""Answers in words that are kept on disk: what was stopped half way asks for the rest alone.

A server has a cache of its own (`sip/remote.py`); this one is for models that answer in this
process.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from sip.structs import UserError
from sip.text.segments import Text
from sip.textgen import transport
from sip.textgen.protocol import TextGenerator

PORTION = 64  # trunks that are answered before any of them is written


class CachedAnswers:
    """A text generator whose `generate` is asked once for a prompt, its sampling and seed.

    `name` stands for the model: what another name wrote is not read.
    """

    def __init__(self, textgen: TextGenerator, cache: str, name: str):
        self._textgen, self._cache, self._name = textgen, Path(cache), name

    def choose(self, trunks, branches, options) -> np.ndarray:
        """The model's logp_BCO; nothing of it is kept."""
        return self._textgen.choose(trunks, branches, options)

    def generate(self, trunks, branches, **how) -> list[list[list[str | None]]]:
        """The model's texts[b][c][j]. Raises UserError where an answer cannot be written."""
        pairs = list(zip(trunks, branches, strict=True))
        keys = [self._key(*pair, how) for pair in pairs]
        asked = dict(zip(keys, pairs, strict=True))
        found = {key: transport.load(self._cache, key, _rows) for key in asked}
        missing = [key for key in asked if found[key] is None]
        for start in range(0, len(missing), PORTION):
            some = missing[start : start + PORTION]
            rows = self._textgen.generate(*zip(*(asked[key] for key in some), strict=True), **how)
            for key, row in zip(some, rows, strict=True):
                if problem := transport.store(self._cache, key, row):
                    raise UserError(problem)
                found[key] = row
        return [found[key] for key in keys]

    def _key(self, trunk: Text, row: Sequence[Text], how: Mapping[str, Any]) -> str:
        said = dict(how, sampling=dataclasses.asdict(how["sampling"]))
        return transport.digest(self._name, dict(said, trunk=trunk, branches=row))


def _rows(value: Any) -> list[list[str | None]]:
    """A trunk's answers as they were written; raises ValueError where they are not."""
    whole = isinstance(value, list) and all(isinstance(row, list) for row in value)
    if not whole or not all(text is None or isinstance(text, str) for row in value for text in row):
        raise ValueError("no answers")
    return value


def name_of(directory: str) -> str:
    """The checkpoint in a directory by its path and the time of what is newest in it."""
    path = epath.Path(directory).resolve()
    return f"{path} {max((file.stat().mtime for file in path.iterdir()), default=0)}"
