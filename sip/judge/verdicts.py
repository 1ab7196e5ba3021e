"""Verdicts are read from the probabilities of the options or from the text of an answer.

Unreadable verdicts are masked. `parse` takes the judge's answer only, never the prompt with the
text under judgement.
"""

import functools
import re
from collections.abc import Sequence

import numpy as np

MARKUP = r"[\s*_`~\\]"  # emphasis, code, escapes
QUOTES = "\"'\u201c\u201d\u2018\u2019"
OPENING = rf"[\s*_`~\\{QUOTES}(\[]*"  # characters allowed before an option; also a < that is closed
GAP = rf"[\s*_`~\\{QUOTES}()\[\]>]*"  # allowed between an option and a sign after it
# After an option: not a longer word or number (safely, 1.5, YES-ish, B+), nor an alternative
# (YES/NO, safe or unsafe), nor a range (7-8, 7 to 8).
RANGE = r"[^\S\n]*(?:[-~\u2013\u2014]|\bto\b)[^\S\n]*\d"
END = (
    rf"(?!_*[^\W_]|[.,]\d|[-\u2019']\w|\+|-(?:\s|$)|{GAP}[/|]"
    rf"|[\s*_`~\\{QUOTES}]+or\b|{RANGE})"
)
# After an option that ends with a digit: no other number (7 and 8, 7 1/2, 7:30), no other unit.
DIGIT = r"[\d\u00bc-\u00be\u2150-\u215e]"
JOINED = r"(?:[,+\u00b1&]|and|plus|minus|point|through|versus|vs\.?)[^\S\n]*"
NUMBER_END = (
    rf"(?![ \t\u00a0*_`~\\]*(?:{JOINED})?{DIGIT}|:\d|[^\S\n]*(?:%|and a half\b)"
    rf"|{GAP}(?:out\s+)?of\s+\d)"
)


def direct(
    logp_BCO: np.ndarray, values_O: Sequence[float], *, min_mass: float, hard: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Reads direct verdicts from log-probabilities of O options. Returns (score_BC, valid_BC).

    A score is the mean of the options' values under their renormalised probabilities. A verdict is
    invalid, with score 0, if a log-probability is NaN or +inf, or if the options have less than
    `min_mass` in total: the judge was about to write something else. `hard`: use the value of the
    likeliest option instead, or the mean value of options that tie for it.
    """
    readable_BC = np.all(logp_BCO < np.inf, axis=-1)  # False for NaN too
    # Mask before exp: NaN and +inf must not reach the sums. float64: the mass is compared.
    p_BCO = np.exp(np.where(readable_BC[..., None], logp_BCO, -np.inf).astype(np.float64))
    mass_BC = p_BCO.sum(-1)
    valid_BC = readable_BC & (mass_BC >= min_mass) & (mass_BC > 0)
    return _mean(p_BCO, values_O, valid_BC, hard), valid_BC


def unread(logp_BCO: np.ndarray, valid_BC: np.ndarray) -> dict[str, np.ndarray]:
    """Marks the invalid direct verdicts by reason.

    failed: no answer; the request failed or the prompt is too long. unlisted: the server did not
    list an option among its log-probabilities. other_words: the options are unlikely.
    """
    known_BC = np.all(logp_BCO < np.inf, axis=-1)
    failed_BC = ~np.any(logp_BCO < np.inf, axis=-1)
    return {
        "failed": failed_BC,
        "unlisted": ~known_BC & ~failed_BC,
        "other_words": known_BC & ~valid_BC,
    }


def voted(
    count_BCO: np.ndarray, values_O: Sequence[float], *, hard: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Reads reasoned verdicts from counts of votes. Returns (score_BC, valid_BC).

    A score is the mean value of the votes. A verdict without a readable vote is invalid. `hard`:
    use the value of the option with the most votes, or the mean value of options that tie for it.
    """
    valid_BC = count_BCO.sum(-1) > 0
    return _mean(count_BCO, values_O, valid_BC, hard), valid_BC


def _mean(weight_BCO, values_O, valid_BC, hard: bool):
    """score_BC, the weighted mean of the options' values; 0 if not valid."""
    if hard:
        weight_BCO = weight_BCO == weight_BCO.max(-1, keepdims=True)
    total_BC = np.where(valid_BC, weight_BCO.sum(-1), 1)
    return np.where(valid_BC, weight_BCO @ np.asarray(values_O, np.float64) / total_BC, 0.0)


def parse(text: str, options: Sequence[str], *, phrase: str = "") -> int | None:
    """Returns the index of an answer's option, or None if the answer has no readable verdict.

    The option must follow the last `phrase` ("FINAL DECISION:", '"label":') immediately. Without a
    phrase it must begin the text. Case, white space, markup and the text after the option are
    ignored. If no option follows the last phrase, earlier phrases do not count.
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
    """Compiles (pattern of the phrase, pattern of any option with opening characters before it)."""
    # The longest option first: "10" must be tried before "1".
    order = sorted(range(len(options)), key=lambda o: -len(options[o].strip()))
    either = "|".join(f"(?P<option{o}>{_loosely(options[o])}){_end(options, o)}" for o in order)
    other = "|".join(_loosely(options[o]) for o in order)
    both = rf"(?!{GAP}(?:\band\b|&|\bvs\b\.?|\bversus\b)\s*[{QUOTES}]?(?:{other})(?![^\W_]))"
    begin = r"(?<![^\W_])" if re.match(r"[^\W_]", "".join(pieces(phrase))) else ""
    opened, closed = rf"{OPENING}(?:(?P<open><){OPENING})?", f"(?(open){GAP}?>)"
    return (
        re.compile(begin + _loosely(phrase), re.IGNORECASE),
        re.compile(f"{opened}(?:{either}){both}{END}{closed}", re.IGNORECASE),
    )


def _end(options: tuple[str, ...], o: int) -> str:
    """A pattern of what may follow an option that ends with a digit; "" for other options.

    After a number it may be the largest one: 8/10, 8 out of 10. Of two options 1/2 may name both.
    """
    if not options[o].rstrip()[-1:].isdigit():
        return ""
    numbers = [x.strip() for x in options if re.fullmatch(r"\d+(\.\d+)?", x.strip())]
    if options[o].strip() not in numbers:
        return NUMBER_END
    slash = "/|" if len(numbers) > 2 else ""
    most = re.escape(max(numbers, key=float))
    return rf"(?:{GAP}(?:{slash}(?:out\s+)?of\b){GAP}{most})?{NUMBER_END}"


def pieces(words: str) -> list[str]:
    """Returns the words and signs that an answer must have, without white space and markup."""
    return re.findall(r"[^\W_]+|[^\w\s*`~\\]", words)


def _loosely(words: str) -> str:
    """A pattern that matches `words` with any white space, markup and kind of quotation marks.

    Markup in `words` is no part of it: `**` between two MARKUP* would take cubic time on `****`.
    """
    pattern, before = "", ""
    for piece in pieces(words):
        if before:
            apart = before[0].isalnum() and piece[0].isalnum()
            pattern += MARKUP + ("+" if apart else "*")
        pattern += f"[{QUOTES}]" if piece in QUOTES else re.escape(piece)
        before = piece
    return pattern
