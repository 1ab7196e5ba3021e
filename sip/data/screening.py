"""A part of a corpus by what a judge says of its documents, such as an unsafe slice.

Questions for `python -m sip.judge` go out, one line per document, and its answers come back: the
documents of low score are kept. So any judge screens any corpus, and both files can be looked at.
"""

import json
from collections.abc import Iterable, Iterator, Sequence

from sip.structs import UserError


def question(text: str, characters: int) -> str:
    """The line that asks about a document: its first `characters`, as what follows nothing."""
    head = text[:characters]
    return json.dumps({"prefix": "", "candidates": [head], "reference": ""}, ensure_ascii=False)


def low(lines: Iterable[bytes], aspect: str, below: float) -> Iterator[bool]:
    """Whether the verdict on each document is valid and below `below`."""
    for number, line in enumerate(lines, start=1):
        try:
            found = json.loads(line)["aspects"][aspect]
            yield bool(found["valid"][0]) and float(found["scores"][0]) < below
        except (ValueError, KeyError, TypeError, IndexError):
            raise UserError(f"--scores, line {number}: no verdict on {aspect!r}") from None


def keep(texts: Sequence[str], lows: Sequence[bool]) -> list[str]:
    """The documents of low score as lines of a .jsonl corpus, in order. Raises UserError where
    there are not as many verdicts as documents."""
    if len(texts) != len(lows):
        raise UserError(f"--scores: {len(lows)} verdicts on {len(texts)} documents")
    return [
        json.dumps({"text": text}, ensure_ascii=False)
        for text, is_low in zip(texts, lows, strict=True)
        if is_low
    ]
