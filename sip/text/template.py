"""Prompt templates: texts with {fields}, filled piece by piece.

A filled template is a tuple of segments: the template's own words at even places, the texts it was
filled with at odd ones. Segments are encoded one by one, so a text can neither merge with the
template's tokens nor be read as a template.
"""

import functools
import importlib.resources
import pathlib
import re
from collections.abc import Mapping

from sip.structs import UserError


def read(what: str, name: str, package: str = "sip") -> str:
    """A prompt file's text: of a built-in one's name, or of the path of a user's own .txt file."""
    built_in = importlib.resources.files(package) / "templates" / f"{name}.txt"
    path = pathlib.Path(name) if name.endswith(".txt") else built_in
    if not path.is_file():
        raise UserError(f"{what} {name!r}: no such prompt file")
    return path.read_text(encoding="utf-8")


@functools.lru_cache(maxsize=64)
def pieces(template: str) -> tuple[str, ...]:
    """The template cut at its fields: literal, field, literal, ..., literal."""
    return tuple(re.split(r"\{(\w+)\}", template))


def fields(template: str) -> tuple[str, ...]:
    """The names of the fields, in order."""
    return pieces(template)[1::2]


@functools.lru_cache(maxsize=1 << 14)
def quote(text: str) -> str:
    """`text` on one line: each run of newlines, control and invisible characters is one space."""
    if text.isprintable():
        return text
    return re.sub("\0+", " ", "".join(c if c.isprintable() else "\0" for c in text))


def fill(template: str, texts: Mapping[str, str]) -> tuple[str, ...]:
    """Segments of the filled template: its own words at even places, quoted texts at odd ones."""
    return tuple(quote(texts[p]) if i % 2 else p for i, p in enumerate(pieces(template)))
