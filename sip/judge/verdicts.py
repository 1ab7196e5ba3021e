"""Verdicts: from the probabilities of their tokens, or from a text; what cannot be read is masked.

A text is the judge's own answer alone, never the prompt or what was judged in it.
"""

import functools
import re
from collections.abc import Sequence

import numpy as np

MARKUP = r"[\s*_`~\\]"  # emphasis, code, escapes
QUOTES = "\"'\u201c\u201d\u2018\u2019"
OPENING = rf"[\s*_`~\\{QUOTES}(\[<]*"  # what may stand before a verdict
# Neither a longer word or number, nor one of several: safely, 1.5, YES-ish, YES/NO, safe or unsafe.
END = rf"(?!_*[^\W_]|[.,]\d|[-\u2019']\w|{MARKUP}*[/|]|[\s*_`~\\{QUOTES}]+or\b)"


def direct(
    logp_BCO: np.ndarray, values_O: Sequence[float], *, min_mass: float, hard: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(score_BC, valid_BC): the options' values averaged under their renormalised probabilities.

    A verdict is invalid where a log-probability is NaN or infinite upwards, or where the options
    together have less than `min_mass`: the judge was about to say something else. Its score is 0.
    `hard`: the value of the likeliest option alone, the mean of those that are as likely.
    """
    readable_BC = np.all(logp_BCO < np.inf, axis=-1)  # False for NaN too
    p_BCO = np.exp(np.where(readable_BC[..., None], logp_BCO, -np.inf).astype(np.float64))
    mass_BC = p_BCO.sum(-1)
    valid_BC = readable_BC & (mass_BC >= min_mass) & (mass_BC > 0)
    return _mean(p_BCO, values_O, valid_BC, hard), valid_BC


def voted(
    count_BCO: np.ndarray, values_O: Sequence[float], *, hard: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(score_BC, valid_BC): the mean value of the votes; without a valid vote a verdict is invalid.

    `hard`: the value of the majority alone, the mean of those that have as many votes.
    """
    valid_BC = count_BCO.sum(-1) > 0
    return _mean(count_BCO, values_O, valid_BC, hard), valid_BC


def _mean(weight_BCO, values_O, valid_BC, hard: bool):
    if hard:
        weight_BCO = weight_BCO == weight_BCO.max(-1, keepdims=True)
    total_BC = np.where(valid_BC, weight_BCO.sum(-1), 1)
    return np.where(valid_BC, weight_BCO @ np.asarray(values_O, np.float64) / total_BC, 0.0)


def parse(text: str, options: Sequence[str], *, phrase: str = "") -> int | None:
    """The index of the option that an answer ends in, or None where it cannot be told.

    The option stands right after the last `phrase` ("FINAL DECISION:", '"label":'), or where there
    is no phrase at the very beginning. Case, white space and markup do not matter, nor does what
    follows; a last phrase without an option is no verdict, whatever was said before it.
    """
    said, wanted = _patterns(tuple(options), phrase)
    start = 0
    if phrase:
        places = [found.end() for found in said.finditer(text)]
        if not places:
            return None
        start = places[-1]
    found = wanted.match(text, start)
    if found is None:
        return None
    return next(o for o in range(len(options)) if found[f"option{o}"] is not None)


@functools.lru_cache(maxsize=64)
def _patterns(options: tuple[str, ...], phrase: str) -> tuple[re.Pattern, re.Pattern]:
    """Of the phrase, and of an option behind opening marks: the longest first, "10" before "1"."""
    order = sorted(range(len(options)), key=lambda o: -len(options[o].strip()))
    either = "|".join(f"(?P<option{o}>{_loosely(options[o])})" for o in order)
    begin = r"(?<![^\W_])" if re.match(r"\s*\w", phrase) else ""
    return (
        re.compile(begin + _loosely(phrase), re.IGNORECASE),
        re.compile(f"{OPENING}(?:{either}){END}", re.IGNORECASE),
    )


def _loosely(words: str) -> str:
    """A pattern of `words` in any white space and markup, with quotation marks of any kind."""
    pattern, before = "", ""
    for piece in re.findall(r"\w+|[^\w\s]", words):
        if before:
            apart = re.match(r"\w", before) and re.match(r"\w", piece)
            pattern += MARKUP + ("+" if apart else "*")
        pattern += f"[{QUOTES}]" if piece in QUOTES else re.escape(piece)
        before = piece
    return pattern
