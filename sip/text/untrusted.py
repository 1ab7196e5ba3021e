"""Text under judgement, made harmless for a tokenizer that parses special tokens out of text.

Servers encode a prompt as one text, with its special tokens parsed wherever they stand: a candidate
that says `<|eot_id|>` would end its own turn. Each special string in text under judgement is broken
by a space after its first character. A space, not an invisible character: normalisers that drop
invisible characters would put the string together again, and a reader should see it.
"""

import functools
import unicodedata
from collections.abc import Sequence

from sip.structs import UserError

BREAK = " "
SPECIALS = (  # what special tokens begin with, or are, in the tokenizers of open models
    "<|",  # Llama 3, Qwen and others with ChatML, gpt-oss (harmony), Phi, DeepSeek
    "|>",
    "<s>",  # Llama 2, Mistral
    "</s>",
    "<unk>",
    "<pad>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<</SYS>>",
    "[SYSTEM_PROMPT]",  # Mistral, later
    "[/SYSTEM_PROMPT]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_",
    "[/TOOL_",
    "[IMG",
    "[THINK]",
    "[/THINK]",
    "<bos>",  # Gemma
    "<eos>",
    "<start_of_",
    "<end_of_",
    "<unused",
    "<think>",  # Qwen 3
    "</think>",
    "<tool_",
    "</tool_",
)


def check(specials: Sequence[str]) -> None:
    """Raises UserError unless each of `specials` can be broken, once for all, by a space."""
    for special in specials:
        if len(_folded(special)) < 2 or any(map(str.isspace, _folded(special))):
            raise UserError(f"specials: {special!r} must be two or more characters without a space")


def encodable(text: str) -> str:
    """The text with lone surrogates, which no encoding has, as question marks."""
    return text.encode(errors="replace").decode()


def join(segments: Sequence[str], specials: Sequence[str]) -> str:
    """The text of a prompt's segments, those at odd places (under judgement) without specials.

    A special string is also broken where only a part of it is under judgement, and where it is one
    only after Unicode's compatibility folding or without its invisible characters. As no special
    holds a space, the result has none that touches text under judgement.
    """
    segments = [encodable(segment) for segment in segments]
    text = "".join(segments)
    folded = _folded(text)
    found = [(i, len(one)) for one in map(_folded, specials) for i in _places(folded, one)]
    if not found:
        return text
    judged = [i % 2 == 1 for i, segment in enumerate(segments) for _ in segment]
    # An index of the folded text -> the index of the character it came from.
    origin = [i for i, character in enumerate(text) for _ in _fold(character)]
    spans = [(origin[i], origin[i + size - 1]) for i, size in found]
    breaks = sorted({first + 1 for first, last in spans if any(judged[first : last + 1])})
    return BREAK.join(text[i:j] for i, j in zip([0, *breaks], [*breaks, len(text)], strict=True))


def _places(text: str, part: str):
    """Where `part` occurs, overlaps included."""
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + 1)


@functools.lru_cache(maxsize=1 << 16)
def _fold(character: str) -> str:
    """What a normaliser might make of it; control and invisible characters vanish."""
    if unicodedata.category(character) in ("Cc", "Cf"):
        return ""
    return unicodedata.normalize("NFKC", character)


def _folded(text: str) -> str:
    return text.translate(_ASCII) if text.isascii() else "".join(map(_fold, text))


_ASCII = {code: _fold(chr(code)) for code in range(128)}
