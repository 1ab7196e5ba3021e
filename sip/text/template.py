"""Prompt templates: text with {fields}.

A filled template is a tuple of segments: the template's text at even places, the field values at
odd places. Segments are encoded separately. So a value cannot merge with the template's tokens, and
braces in a value are not fields.
"""

import functools
import importlib.resources
import re
from collections.abc import Mapping

from etils import epath

from sip.structs import UserError
from sip.text.lines import read_text
from sip.workdir import place


def read(what: str, name: str, folder: str) -> str:
    """Reads a prompt file: a built-in prompt by name, or a file by its path (.txt).

    `what` names the kind of prompt in the error; built-in prompts are in sip/templates/`folder`.
    Raises UserError if there is no such file or it is not UTF-8.
    """
    built_in = importlib.resources.files("sip") / "templates" / folder / f"{name}.txt"
    path = epath.Path(place(name)) if name.endswith(".txt") else built_in
    if not path.is_file():
        raise UserError(
            f"{what} {name!r}: no such prompt file; give a built-in prompt's name or a .txt path"
        )
    return read_text(str(path), what)


@functools.lru_cache(maxsize=64)
def pieces(template: str) -> tuple[str, ...]:
    """Splits a template at its fields: literal, field, literal, ..., literal."""
    return tuple(re.split(r"\{(\w+)\}", template))


def fields(template: str) -> tuple[str, ...]:
    """Returns the names of a template's fields, in order, with repetitions."""
    return pieces(template)[1::2]


@functools.lru_cache(maxsize=1 << 14)
def quote(text: str) -> str:
    """Returns `text` on one line: runs of newlines, control and invisible characters become " "."""
    if text.isprintable():  # the common case, fast
        return text
    # Newlines and controls become \0 first, so that a run of them gives a single space.
    unseen = {ord(c): "\0" for c in set(text) if not c.isprintable()}
    return re.sub("\0+", " ", text.translate(unseen))


def fill(template: str, texts: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the filled template as segments: template text at even, quoted texts at odd places.

    `texts` maps each field name to its value; see `quote`.
    """
    found = list(pieces(template))
    found[1::2] = [quote(texts[name]) for name in found[1::2]]
    return tuple(found)
