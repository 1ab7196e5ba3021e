"""Marks: what each sentence under judgement is worth, to be said where it ends.

A verdict on two whole texts teaches little of what it rests on. Marks are a second task on the same
prompts, at no further tokens: at the end of each sentence the judge should name its grade.
"""

import functools
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np

from sip.data.documents import Truth
from sip.judge.prompts import Aspect
from sip.judge.proofread import plain
from sip.structs import UserError
from sip.text.tokenizer import Tokenizer

Grade = tuple[int, int]  # (tokens of the text that it has seen, index of the option)
ENDS = (".", "!", "?")


def sentences(tokenizer: Tokenizer, text: str) -> list[tuple[int, str]]:
    """(tokens up to its end, its text) of each sentence; the last one may lack its end."""
    ids = tokenizer.plain(text)
    ends = [i + 1 for i, token in enumerate(ids) if _is_end(tokenizer, token)]
    ends += [len(ids)] if ids and (not ends or ends[-1] < len(ids)) else []
    return [
        (end, tokenizer.decode(ids[start:end]))
        for start, end in zip([0, *ends], ends, strict=False)
    ]


@functools.lru_cache(maxsize=1 << 16)
def _is_end(tokenizer: Tokenizer, token: int) -> bool:
    return tokenizer.decode([token]).endswith(ENDS)


def make(
    truth: Truth,
    tokenizer: Tokenizer,
    grades: Aspect,
    key: str,
    texts: Sequence[tuple[str, str]],
    mark: str = "",
) -> Callable[[str, str], list[Grade]]:
    """marks(prefix, text) for (prefix, text) in `texts`, by what the truth says of `key`.

    A sentence is scored as the continuation of all before it. One worth as much as silence is not
    marked: it is too short to tell, or has nothing to do with the aspect. A proofreader's `mark` in
    a text is not part of it.
    """
    if grades.kind != "pointwise":
        raise UserError(f"labels.grades: aspect {grades.name!r} is not pointwise")
    asked = list(dict.fromkeys(texts))
    parts = [
        [(end, plain(sentence, mark)) for end, sentence in sentences(tokenizer, text)]
        for _, text in asked
    ]
    contexts = [
        prefix + "".join(sentence for _, sentence in found[:i])
        for (prefix, _), found in zip(asked, parts, strict=True)
        for i in range(len(found))
    ]
    worth = truth.score(contexts, [sentence for found in parts for _, sentence in found])[key]
    telling = worth != truth.score([""], [""])[key]
    nearest = np.abs(np.subtract.outer(worth, np.array(grades.values))).argmin(-1)
    rows = iter(zip(chain.from_iterable(parts), telling, nearest, strict=True))
    known = {
        pair: [(end, int(o)) for (end, _), tells, o in (next(rows) for _ in found) if tells]
        for pair, found in zip(asked, parts, strict=True)
    }
    return lambda prefix, text: known[prefix, text]
