"""Parses texts with the automaton, all rows at once: the only loop is over positions.

Letters: B rows (prefix + text), P positions (words and marks), W word ids, E entities.
"""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sip.data.microworld import grammar, lexicon
from sip.data.microworld.world import World, split

GENDERS = {"he": 1, "He": 1, "she": 2, "She": 2}  # 0: not a pronoun


class Lexis:
    """The properties of every word of a world, as arrays over word ids W.

    class_W is the automaton's class (0: none), attribute_W and value_W the stated fact, entity_W
    the entity named (-1: none each), toxic_W an insult, gender_W a pronoun, ender_W a mark that
    ends a sentence. The last two ids are `shouted` (an insult in other letter case) and `unknown`.
    """

    def __init__(self, world: World):
        self.she_E, self.facts_EA = world.she_E, world.facts_EA
        entries = list(_entries(world))
        self.ids = {word: w for w, (word, *_) in enumerate(entries)}
        rows = [row for _, *row in entries] + [[0, -1, -1, -1, 1], [0, -1, -1, -1, 0]]
        columns = np.array(rows, np.int32).T
        self.class_W, self.attribute_W, self.value_W, self.entity_W, toxic_W = columns
        self.toxic_W = toxic_W.astype(bool)
        self.gender_W = np.zeros(len(rows), np.int8)
        self.ender_W = np.zeros(len(rows), bool)
        self.gender_W[[self.ids[word] for word in GENDERS]] = list(GENDERS.values())
        self.ender_W[[self.ids[mark] for mark in grammar.ENDERS]] = True
        self.shouted, self.unknown = len(rows) - 2, len(rows) - 1
        self.sorted_words = sorted(self.ids)

    def numbers(self, words: list[str], strangers: dict[str, int]) -> list[int]:
        """Returns word ids; each distinct unknown word gets its own id, counting from `unknown`.

        `strangers` maps the unknown words seen so far to their numbers; it is extended.
        """
        known = [self.ids.get(word, -1) for word in words]
        if -1 not in known:
            return known
        return [
            w if w >= 0 else self._stranger(x, strangers) for w, x in zip(known, words, strict=True)
        ]

    def _stranger(self, word: str, strangers: dict[str, int]) -> int:
        # An insult with other capitals is toxic although it is not in the grammar.
        if self.toxic_W[self.ids.get(word.casefold(), self.unknown)]:
            return self.shouted
        return strangers.setdefault(word, self.unknown + len(strangers))

    def beginning_with(self, fragment: str) -> Iterator[str]:
        """Returns the words that begin with `fragment`, sorted."""
        first = bisect.bisect_left(self.sorted_words, fragment)
        following = (self.sorted_words[w] for w in range(first, len(self.sorted_words)))
        return itertools.takewhile(lambda word: word.startswith(fragment), following)

    def follows(self, word: str, state: int, subject: int) -> int:
        """Returns the state after a known word; dead if a pronoun disagrees with the subject."""
        w = self.ids[word]
        gender = self.gender_W[w]
        if gender and (subject < 0 or gender != 1 + self.she_E[subject]):
            return grammar.DEAD
        return int(grammar.automaton().table_SC[state, self.class_W[w]])


def _entries(world: World) -> Iterator[tuple[str, int, int, int, int, int]]:
    """Yields (word, class, attribute, value, entity, toxic) of every word of the world."""
    classes = grammar.automaton().classes
    literals = [symbol for symbol in classes if lexicon.slot(symbol) is None]
    for word in dict.fromkeys((*literals, *lexicon.SPAM, *grammar.ENDERS)):
        yield word, classes.get(word, 0), -1, -1, -1, 0
    for word in GENDERS:
        yield word, classes["{P}" if word[0].isupper() else "{p}"], -1, -1, -1, 0
    for a, words in enumerate(world.values):
        for v, word in enumerate(words):
            yield word, classes[f"{{{lexicon.ATTRIBUTES[a]}}}"], a, v, -1, 0
    for e, name in enumerate(world.names):
        yield name, classes["{E}"], -1, -1, e, 0
    for name, line in lexicon.TOXIC.items():
        yield from ((word, classes[f"{{{name}}}"], -1, -1, -1, 1) for word in line.split())


@dataclass(frozen=True)
class Reading:
    """Prefix and text as words, with the automaton's state at each word."""

    words: list[list[str]]  # the words and marks of each row
    ids_BP: np.ndarray  # word ids; -1: padding; equal unknown words have equal ids
    known_BP: np.ndarray  # ids for the arrays of `Lexis`: all unknown words share one id
    real_BP: np.ndarray  # bool: a word that counts, neither padding nor cut off
    own_BP: np.ndarray  # bool: a word that counts and belongs to the text, not to the prefix
    state_BP: np.ndarray  # state after the word; dead if the sentence is broken
    subject_BP: np.ndarray  # last entity named so far, -1 before any
    sentence_BP: np.ndarray  # index of the sentence within the row
    topic_B: np.ndarray  # first entity named in the row, -1 if none


def read(lexis: Lexis, prefixes: Sequence[str], texts: Sequence[str]) -> Reading:
    """Splits each prefix + text into words and runs the automaton over them.

    A last word that is cut off by the end of the text, but begins a legal word, does not count.
    """
    pairs = [words_of(lexis, p, t) for p, t in zip(prefixes, texts, strict=True)]
    words = [row for row, _ in pairs]
    ids_BP = _padded(lexis, words)
    known_BP = np.minimum(ids_BP, lexis.unknown)  # -1 indexes the last row, `unknown`, as well
    position_P = np.arange(ids_BP.shape[1])
    real_BP = ids_BP >= 0
    own_BP = real_BP & (position_P >= np.array([first for _, first in pairs])[:, None])
    subject_BP, topic_B = _subjects(lexis.entity_W[known_BP])
    ender_BP = lexis.ender_W[known_BP]
    state_BP = _walk(_classes(lexis, known_BP, subject_BP), ender_BP)
    sentence_BP = np.cumsum(ender_BP, axis=1) - ender_BP  # a mark belongs to the sentence it ends
    reading = Reading(
        words, ids_BP, known_BP, real_BP, own_BP, state_BP, subject_BP, sentence_BP, topic_B
    )
    _uncount_cut_words(lexis, reading, texts)
    return reading


def fragment_of(prefix: str) -> str:
    """Returns the word characters at the end of the prefix: a word that may continue."""
    start = len(prefix)
    while start and _in_word(prefix[start - 1]):
        start -= 1
    return prefix[start:]


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def words_of(lexis: Lexis, prefix: str, text: str) -> tuple[list[str], int]:
    """Returns (all words of prefix + text, index of the text's first word).

    A word across the seam belongs to the text, unless the prefix determines it: no other known word
    begins with its first letters.
    """
    fragment = fragment_of(prefix) if text and _in_word(text[0]) else ""
    head = split(prefix[: len(prefix) - len(fragment)])
    tail = split(fragment + text)
    if not fragment:
        return head + tail, len(head)
    possible = list(itertools.islice(lexis.beginning_with(fragment), 2))
    settled = not possible or possible == [tail[0]]
    return head + tail, len(head) + settled


def _padded(lexis: Lexis, words: list[list[str]]) -> np.ndarray:
    """Returns ids_BP, padded with -1."""
    strangers: dict[str, int] = {}
    ids_BP = np.full((len(words), max(map(len, words), default=0)), -1, np.int32)
    for b, row in enumerate(words):
        ids_BP[b, : len(row)] = lexis.numbers(row, strangers)
    return ids_BP


def _subjects(entity_BP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (subject_BP: last entity named so far, topic_B: first entity named); -1 if none."""
    named_BP = entity_BP >= 0
    position_P = np.arange(entity_BP.shape[1])
    # Running maximum of the positions of names = position of the last name.
    last_BP = np.maximum.accumulate(np.where(named_BP, position_P, -1), axis=1)
    subject_BP = np.take_along_axis(entity_BP, np.maximum(last_BP, 0), axis=1)
    subject_BP = np.where(last_BP >= 0, subject_BP, -1)
    if not entity_BP.shape[1]:
        return subject_BP, np.full(len(entity_BP), -1)
    first_B = named_BP.argmax(1)
    return subject_BP, entity_BP[np.arange(len(entity_BP)), first_B]


def _classes(lexis: Lexis, known_BP: np.ndarray, subject_BP: np.ndarray) -> np.ndarray:
    """Returns word classes [B, P]; 0 (no word) for a pronoun that disagrees with the subject."""
    gender_BP = lexis.gender_W[known_BP]
    agrees_BP = (subject_BP >= 0) & (gender_BP == 1 + lexis.she_E[subject_BP])
    return np.where((gender_BP > 0) & ~agrees_BP, 0, lexis.class_W[known_BP])


def _walk(class_BP: np.ndarray, ender_BP: np.ndarray) -> np.ndarray:
    """Returns the state after each word, int16 [B, P]; restarts after each sentence's end mark."""
    machine = grammar.automaton()
    # Position-major (PB), so that each step of the loop reads contiguous memory.
    state_PB = np.zeros(class_BP.T.shape, np.int16)
    current_B = np.full(len(class_BP), machine.start, np.int16)
    columns = zip(np.ascontiguousarray(class_BP.T), np.ascontiguousarray(ender_BP.T), strict=True)
    for p, (class_B, ender_B) in enumerate(columns):
        state_PB[p] = machine.table_SC[current_B, class_B]
        current_B = np.where(ender_B, machine.start, state_PB[p])
    return state_PB.T


def _uncount_cut_words(lexis: Lexis, reading: Reading, texts: Sequence[str]) -> None:
    """Clears real_BP and own_BP of a last word that is cut off but begins a legal word."""
    for b, text in enumerate(texts):
        last = len(reading.words[b]) - 1
        if not text or not _in_word(text[-1]) or reading.state_BP[b, last] != grammar.DEAD:
            continue
        before, subject = before_word(reading, b, last)
        word = reading.words[b][last]
        if any(lexis.follows(w, before, subject) for w in lexis.beginning_with(word)):
            reading.real_BP[b, last] = reading.own_BP[b, last] = False


def before_word(reading: Reading, b: int, p: int) -> tuple[int, int]:
    """Returns (state, subject) before position p of row b."""
    if p == 0:
        return grammar.automaton().start, -1
    same = reading.sentence_BP[b, p] == reading.sentence_BP[b, p - 1]
    state = int(reading.state_BP[b, p - 1]) if same else grammar.automaton().start
    return state, int(reading.subject_BP[b, p - 1])
