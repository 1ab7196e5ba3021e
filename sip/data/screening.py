"""Selects documents by a judge's scores, for example the unsafe part of a corpus.

Writes one request for `python -m sip.judge` per document, reads its verdicts and keeps the
documents with a low score. So any judge can screen any corpus, and both files can be inspected.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence

from sip.structs import UserError
from sip.workdir import to_json


def question(text: str, characters: int) -> str:
    """Returns the JSON request that judges a document: its first `characters`, empty prefix."""
    head = text[:characters]  # limits the judge's prompt; characters, as no tokenizer is needed
    return to_json({"prefix": "", "candidates": [head], "reference": ""}, ensure_ascii=False)


def low(lines: Iterable[bytes], aspect: str, below: float) -> Iterator[bool]:
    """Yields True for each document whose verdict on `aspect` is valid and below `below`.

    `lines` are the JSON lines that sip.judge writes. Raises UserError, with the line number, for a
    line without a verdict on `aspect`.
    """
    for number, line in enumerate(lines, start=1):
        try:
            found = json.loads(line)["aspects"][aspect]
            valid, score = found["valid"][0], found["scores"][0]
            if type(valid) is not bool or (valid and not math.isfinite(score)):
                raise ValueError
            yield valid and score < below
        except (ValueError, KeyError, TypeError, IndexError, OverflowError):
            raise UserError(
                f"--scores, line {number}: no verdict on {aspect!r}; run sip.judge with this aspect"
            ) from None


def keep(texts: Sequence[str], lows: Sequence[bool]) -> list[str]:
    """Returns the documents of low score as JSON lines of a corpus, in order.

    Raises UserError if the numbers of verdicts and documents differ.
    """
    if len(texts) != len(lows):
        raise UserError(
            f"--scores: {len(lows)} verdicts on {len(texts)} documents; screen the same --split"
        )
    return [
        to_json({"text": text}, ensure_ascii=False)
        for text, is_low in zip(texts, lows, strict=True)
        if is_low
    ]
