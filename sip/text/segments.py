"""Prompts as segments, and their token ids.

A text is a string or a tuple of segments. Segments are encoded separately, and the text's token ids
are their concatenation. By convention, segments at odd places of a tuple are text under judgement,
and segments at even places belong to a template. `Markup` is text that a chat template writes; only
in it are the strings of special tokens encoded as special tokens.
"""

from collections.abc import Callable

from sip.text.tokenizer import Encoder, Tokenizer

Text = str | tuple[str, ...]
Ids = list[int]


class Markup(str):
    """Text that a chat template writes, at an even place.

    A prompt that begins with Markup gets no BOS from us: the template writes its own, if any.
    """


def tokens_of(encoder: Encoder, text: Text) -> Ids:
    """Returns the token ids of a text: the concatenated ids of its segments.

    Segments at odd places are encoded without phrases (`Tokenizer.plain`).
    """
    pieces = (text,) if isinstance(text, str) else text
    ids: Ids = []  # extended by whole lists, which is much faster than token by token
    for i, piece in enumerate(pieces):
        ids += _how(encoder, i, piece)(piece)
    return ids


def prompt_of(tokenizer: Tokenizer, encoder: Encoder, text: Text) -> Ids:
    """Returns the token ids of a text at a prompt's beginning: BOS and the text's ids.

    BOS is left out if the text begins with non-empty Markup.
    """
    first = text[0] if isinstance(text, tuple) and text else text
    begun = isinstance(first, Markup) and first
    return [*([] if begun else [tokenizer.bos]), *tokens_of(encoder, text)]


def _how(encoder: Encoder, place: int, piece: str) -> Callable[[str], Ids]:
    """Returns the encoding function of the segment at `place`."""
    if place % 2:  # text under judgement
        return encoder.plain
    return encoder.encode_special if isinstance(piece, Markup) else encoder.encode
