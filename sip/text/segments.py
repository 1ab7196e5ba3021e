"""Prompts as segments, and their tokens.

A text is a string or a tuple of segments that are encoded one by one: their token lists joined are
the authority. By convention text under judgement stands at a tuple's odd places, words of a
template at the even ones. `Markup` is what a chat template writes; in it alone the strings of
special tokens are special tokens.
"""

from collections.abc import Callable
from itertools import chain

from sip.text.tokenizer import Encoder, Tokenizer

Text = str | tuple[str, ...]
Ids = list[int]


class Markup(str):
    """A chat template's own text, at an even place. A prompt that begins with it has its BOS, if it
    is to have one, from the template."""


def tokens_of(encoder: Encoder, text: Text) -> Ids:
    """The token list of a text: its segments', joined; those at odd places hold no phrase."""
    pieces = (text,) if isinstance(text, str) else text
    return list(chain.from_iterable(_how(encoder, i, p)(p) for i, p in enumerate(pieces)))


def prompt_of(tokenizer: Tokenizer, encoder: Encoder, text: Text) -> Ids:
    """The token list of a prompt's beginning: BOS and the text's, or those of a chat template."""
    first = text[0] if isinstance(text, tuple) and text else text
    begun = isinstance(first, Markup) and first
    return [*([] if begun else [tokenizer.bos]), *tokens_of(encoder, text)]


def _how(encoder: Encoder, place: int, piece: str) -> Callable[[str], Ids]:
    if place % 2:
        return encoder.plain
    return encoder.encode_special if isinstance(piece, Markup) else encoder.encode
