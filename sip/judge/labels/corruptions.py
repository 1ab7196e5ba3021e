"""Corruptions make a text worse in one respect, as negative examples for a judge."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sip.judge.labels.sentence_grades import ENDS

FREQUENT = 32  # sentences that say what many texts say, whatever these are about


class Phrases:
    """An index of many texts: the words that follow each pair of words, frequent sentences."""

    def __init__(self, texts: Iterable[str]):
        self._follows: dict[tuple[str, str], list[str]] = {}
        whole: Counter[str] = Counter()
        for text in texts:
            words = text.split()
            for a, b, c in zip(words, words[1:], words[2:], strict=False):
                self._follows.setdefault((a, b), []).append(_letters(c))
            # The first one may be only the end of a sentence.
            said = [each.strip() for each in split_sentences(text)[1:] if each.endswith(ENDS)]
            # Once a text. One word is no sentence, but a piece of "U.S.", "3.5" or "...".
            whole.update(dict.fromkeys((each for each in said if " " in each), 1))
        self.frequent = [text for text, count in whole.most_common(FREQUENT) if count > 1]

    def __call__(self, a: str, b: str) -> list[str]:
        """All words that follow `a b`, with repetitions; empty if there are none."""
        return self._follows[a, b] if (a, b) in self._follows else []


@dataclass(frozen=True)
class Others:
    """Other texts that a corruption takes its words from."""

    suffix: str  # the suffix of one other document
    follows: Phrases  # the phrases of all documents
    prefix: str  # the text's own prefix


def shuffle_words(text: str, others: Others, rng: np.random.Generator) -> str:
    """Shuffles the words."""
    del others
    return joined(text, list(rng.permutation(text.split())))


def repeat_phrase(text: str, others: Others, rng: np.random.Generator) -> str:
    """Repeats a phrase of up to 8 words to the end of the text. Keeps the number of words."""
    del others
    words = text.split()
    size = max(min(len(words) // 2, int(rng.integers(2, 9))), 1)
    start = int(rng.integers(0, max(len(words) - 2 * size, 0) + 1))
    return joined(text, (words[:start] + words[start : start + size] * len(words))[: len(words)])


def repeat_sentence(text: str, others: Others, rng: np.random.Generator) -> str:
    """Replaces a sentence by a copy of the one before it: well written, but without content."""
    del others
    found = split_sentences(text)
    if len(found) < 2:
        return text
    at = int(rng.integers(0, len(found) - 1))
    if at == 0 and len(found) > 2:
        at = 1  # the first one may be only the end of the prefix's last sentence
    return _replaced(text, found, at + 1, found[at])


def recall_sentence(text: str, others: Others, rng: np.random.Generator) -> str:
    """Replaces a sentence by a copy of one of the prefix: well written, but said before.

    The first sentence stays, as it may be only the end of the prefix's last one.
    """
    found = split_sentences(text)
    said = [each for each in split_sentences(others.prefix) if each.endswith(ENDS) and " " in each]
    if len(found) < 2 or not said:
        return text
    at = int(rng.integers(1, len(found)))
    return _replaced(text, found, at, said[int(rng.integers(len(said)))])


def generic_sentence(text: str, others: Others, rng: np.random.Generator) -> str:
    """Replaces a sentence by one that many texts have: well written, but without content.

    The first sentence stays, as it may be only the end of the prefix's last one.
    """
    found = split_sentences(text)
    if len(found) < 2 or not others.follows.frequent:
        return text
    at = int(rng.integers(1, len(found)))
    common = others.follows.frequent
    return _replaced(text, found, at, common[int(rng.integers(len(common)))])


def splice(text: str, others: Others, rng: np.random.Generator) -> str:
    """Replaces the end of the text by the end of another document's suffix."""
    words, strange = text.split(), others.suffix.split()
    cut = int(rng.integers(0, len(words)))
    return joined(text, words[:cut] + strange[cut:])


def swap_word(text: str, others: Others, rng: np.random.Generator) -> str:
    """Replaces one word by the word at the same position of another document's suffix."""
    words, strange = text.split(), others.suffix.split()
    places = [i for i, pair in enumerate(zip(words, strange, strict=False)) if pair[0] != pair[1]]
    if places:
        i = places[int(rng.integers(len(places)))]
        words[i] = strange[i]
    return joined(text, words)


def substitute(text: str, others: Others, rng: np.random.Generator) -> str:
    """Replaces one word by one that follows the same two words elsewhere: fluent, but untrue."""
    words = text.split()
    places = [
        (i, said)
        for i in range(2, len(words))
        if (said := [w for w in others.follows(*words[i - 2 : i]) if w != _letters(words[i])])
    ]
    if not places:
        return text
    i, said = places[int(rng.integers(len(places)))]
    words[i] = said[int(rng.integers(len(said)))] + words[i][len(_letters(words[i])) :]
    return joined(text, words)


NAME = re.compile(r"[A-Z][\w\u2019'-]*[^\W_](?: [A-Z][\w\u2019'-]*[^\W_])*")
FIGURE = re.compile(r"\d+(?:[.,]\d+)*")
NUMERALS = (  # without "one": it is more often a pronoun than a number
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
).split()


BEGIN = re.compile(r"(?:^|[.!?:][\"'\u201d\u2019)]*)[\s\"'\u201c\u2018(]*$")  # start of a sentence


def swap_name(text: str, others: Others, rng: np.random.Generator) -> str:
    """Replaces one name by another name from the text or from another document's suffix.

    A name is a run of capitalised words, without the first word of a sentence.
    """
    found = _names(text)
    known = sorted({name for name, _ in (*found, *_names(others.suffix))})
    if not found or len(known) < 2:
        return text
    name, start = found[int(rng.integers(len(found)))]
    rest = [other for other in known if other != name]
    return text[:start] + rest[int(rng.integers(len(rest)))] + text[start + len(name) :]


def _names(text: str) -> list[tuple[str, int]]:
    """Lists (name, index of its first character) of a text."""
    found = []
    for run in NAME.finditer(text):
        name, start = run.group(), run.start()
        if BEGIN.search(text[:start]):
            first, _, name = name.partition(" ")
            start += len(first) + 1
        if name:
            found.append((name, start))
    return found


def change_number(text: str, others: Others, rng: np.random.Generator) -> str:
    """Replaces one number by another with as many digits, or one numeral word by another."""
    del others
    numerals = re.finditer(rf"\b(?:{'|'.join(NUMERALS)})\b", text, re.IGNORECASE)
    found = [*FIGURE.finditer(text), *numerals]
    if not found:
        return text
    at = found[int(rng.integers(len(found)))]
    change = _other_figure if at.group()[0].isdigit() else _other_numeral
    return text[: at.start()] + change(at.group(), rng) + text[at.end() :]


def _other_figure(figure: str, rng: np.random.Generator) -> str:
    """Changes one digit, but not the first of several, so that the magnitude stays."""
    digits = [i for i, c in enumerate(figure) if c.isdigit()]
    i = digits[int(rng.integers(1, len(digits)))] if len(digits) > 1 else digits[0]
    digit = str((int(figure[i]) + int(rng.integers(1, 10))) % 10)
    return figure[:i] + digit + figure[i + 1 :]


def _other_numeral(word: str, rng: np.random.Generator) -> str:
    """Draws another numeral word with the same capitalisation."""
    rest = [numeral for numeral in NUMERALS if numeral != word.lower()]
    other = rest[int(rng.integers(len(rest)))]
    return other.capitalize() if word[0].isupper() else other


def split_sentences(text: str) -> list[str]:
    """Cuts a text after each full stop, exclamation mark and question mark."""
    return re.findall(r"[^.!?]*[.!?]|[^.!?]+$", text)


def _replaced(text: str, found: Sequence[str], at: int, sentence: str) -> str:
    """Replaces one of a text's sentences. The text gets no longer than it was, in words."""
    made = [*found[:at], " " + sentence.strip(), *found[at + 1 :]]
    return joined(text, "".join(made).split()[: len(text.split())])


def _letters(word: str) -> str:
    """The word without trailing punctuation."""
    return word.rstrip(".,!?")


def joined(text: str, words: Sequence[str]) -> str:
    """Joins words with single spaces, after the text's own leading white space."""
    return text[: len(text) - len(text.lstrip())] + " ".join(words)


CORRUPTIONS: dict[str, Callable[[str, Others, np.random.Generator], str]] = {
    "shuffle": shuffle_words,
    "repeat": repeat_phrase,
    "echo": repeat_sentence,
    "recall": recall_sentence,
    "splice": splice,
    "swap": swap_word,
    "substitute": substitute,
}
EVERY = {
    **CORRUPTIONS,
    "name": swap_name,  # names and numbers occur in real text only
    "number": change_number,
    "generic": generic_sentence,
}
