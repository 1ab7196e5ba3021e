"""Grades of single sentences, as extra training targets for a judge.

A verdict on two whole texts says little about its reasons. Grades are a second task on the same
prompts without further tokens: at the last token of each sentence under judgement the judge should
predict the sentence's grade.
"""

import functools
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from itertools import chain

import numpy as np

from sip.data.documents import Truth
from sip.judge.prompts import Aspect
from sip.judge.proofread import plain
from sip.structs import UserError
from sip.text.tokenizer import Tokenizer

Grade = tuple[int, int]  # (tokens of the text up to the sentence's end, index of the option)
ENDS = (".", "!", "?")


def sentences(tokenizer: Tokenizer, text: str, mark: str = "") -> list[tuple[int, str]]:
    """Lists (tokens up to its end, its text) of each sentence; the last may lack a full stop.

    A proofreader's `mark` counts as tokens, but is removed from the sentences.
    """
    ids = tokenizer.plain(text)
    ends = [i + 1 for i, token in enumerate(ids) if _is_end(tokenizer, token)]
    ends += [len(ids)] if ids and (not ends or ends[-1] < len(ids)) else []
    return [
        (end, plain(tokenizer.decode(ids[start:end]), mark))
        for start, end in zip([0, *ends], ends, strict=False)
    ]


@functools.lru_cache(maxsize=1 << 16)
def _is_end(tokenizer: Tokenizer, token: int) -> bool:
    """True if the token ends a sentence."""
    return tokenizer.decode([token]).endswith(ENDS)


def make(
    truth: Truth,
    tokenizer: Tokenizer,
    grades: Aspect,
    key: str,
    texts: Sequence[tuple[str, str]],
    mark: str = "",
) -> Callable[[str, str], list[Grade]]:
    """Returns grades(prefix, text) for the (prefix, text) in `texts`, by the truth's score `key`.

    A sentence is scored as the continuation of all text before it, and gets the option of `grades`
    whose value is nearest. A sentence with the same score as an empty text gets no grade: it is too
    short, or unrelated to the aspect. A proofreader's `mark` is removed before scoring. Raises
    UserError if `grades` is not pointwise.
    """
    if grades.kind != "pointwise":
        raise UserError(f"labels.grades: aspect {grades.name!r} must be pointwise")
    asked = list(dict.fromkeys(texts))
    parts = [sentences(tokenizer, text, mark) for _, text in asked]
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


def of_changes(
    tokenizer: Tokenizer,
    grades: Aspect,
    suffix: str,
    text: str,
    unwanted: Callable[[str], bool],
    mark: str = "",
) -> list[Grade]:
    """Grades the sentences of `text`, which is the suffix or was made from it, without a truth.

    A sentence gets the option of `grades` with the greatest value if it is one of the suffix's, in
    their order, and not `unwanted`; else the option with the least. A last sentence without a full
    stop may be the beginning of the suffix's: texts are cut to the suffix's length. White space and
    a proofreader's `mark` are no changes.
    """
    worst, best = (int(pick(grades.values)) for pick in (np.argmin, np.argmax))
    found = sentences(tokenizer, text, mark)
    own, ours = (
        [" ".join(sentence.split()) for _, sentence in row]
        for row in (sentences(tokenizer, suffix, mark), found)
    )
    blocks = SequenceMatcher(None, own, ours, autojunk=False).get_matching_blocks()
    kept = {block.b + n: block.a + n for block in blocks for n in range(block.size)}
    last = len(ours) - 1
    if last >= 0 and not ours[last].endswith(ENDS):
        after = kept[last - 1] + 1 if last - 1 in kept else last
        if after < len(own) and own[after].startswith(ours[last]):
            kept[last] = after
    return [
        (end, best if n in kept and not unwanted(sentence) else worst)
        for n, (end, sentence) in enumerate(found)
    ]
