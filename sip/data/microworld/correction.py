"""Corrects suffixes: good sentences are kept, faulty ones become true and clean sentences.

A draft is a list of tokens; a token is a word or mark with the space before it.
"""

import functools
import random
import re
import zlib
from dataclasses import dataclass, field

import numpy as np

from sip.data.microworld import grammar, lexicon
from sip.data.microworld.findings import Findings
from sip.data.microworld.reading import Lexis, Reading, before_word, fragment_of
from sip.data.microworld.world import Line, World, lines, split

# Costs in the search for the best end of a sentence, in words (a word costs 1): a fact said before,
# a new fact, an insult or a pronoun that does not fit.
AGAIN, NEW, NEVER = 40, -2, 1000


@dataclass
class Draft:
    """The corrected suffix written so far, and the facts it states.

    `said`, `doubtful` and `later` are sets of attributes (indices) of the topic.
    """

    words: int  # number of words and marks wanted
    topic: int  # first entity named in prefix or suffix, -1 if none
    subject: int  # last entity named, -1 if none
    before: str  # the text before the first token: prefix and `_Row.lead`
    rng: random.Random
    tokens: list[str] = field(default_factory=list)
    said: set[int] = field(default_factory=set)  # stated rightly, in prefix or draft
    doubtful: set[int] = field(default_factory=set)  # stated only wrongly, in the prefix
    later: set[int] = field(default_factory=set)  # stated by good sentences still to be kept
    given: frozenset[str] = frozenset()  # sentences of prefix and suffix

    @property
    def full(self) -> bool:
        """True if the draft has at least `words` words and marks."""
        return len(self.tokens) >= self.words

    def spoken(self) -> list[str]:
        """Returns the complete sentences so far, those of the prefix included."""
        return ended_sentences(split(self.before + "".join(self.tokens)))

    def put(self, words) -> None:
        """Appends words and marks, with a space before each word that needs one."""
        fresh = not self.before or self.before[-1].isspace()
        for word in words:
            glued = word in grammar.MARKS or (fresh and not self.tokens)
            self.tokens.append(word if glued else " " + word)


def ended_sentences(words: list[str]) -> list[str]:
    """Returns the complete sentences in a list of words, without the marks that end them."""
    return re.split(r" [.!?] ", " ".join([*words, ""]))[:-1]


class Corrector:
    """Corrects suffixes, given the oracle's findings."""

    def __init__(self, world: World, lexis: Lexis):
        self.world, self.lexis = world, lexis

    def correct(
        self, reading: Reading, found: Findings, b: int, prefix: str, suffix: str, words: int
    ) -> str:
        """Returns the corrected suffix of row b: `words` words and marks, cut if necessary.

        The rest of a word that the prefix determines is kept in front and not counted.
        """
        row = _Row(reading, found, b, prefix, suffix)
        draft = self._draft(row, prefix, suffix, words)
        for s in row.sentences():
            draft.later = row.facts(s + 1)  # facts that must not be said before their sentence
            self._sentence(row, draft, s)
            if draft.full:
                break
        if not row.sentences():
            self._end(row, draft, row.first)
        while not draft.full:
            self._add_new(draft)
        return row.lead + "".join(draft.tokens[: max(words, 0)])

    def _draft(self, row: "_Row", prefix: str, suffix: str, words: int) -> Draft:
        """Returns an empty draft; its random seed depends on prefix and suffix only."""
        seed = zlib.crc32(f"{prefix}|{suffix}".encode("utf-8", "replace"))
        draft = Draft(words, row.topic, row.subject, prefix + row.lead, random.Random(seed))
        draft.said, draft.doubtful = row.stated_before()
        draft.given = frozenset(ended_sentences(row.words))
        return draft

    def _sentence(self, row: "_Row", draft: Draft, s: int) -> None:
        """Keeps, mends (wrong values only) or replaces sentence s of the suffix."""
        faults = row.faults(s)
        if not faults:
            self._keep(row, draft, s, {})
        elif faults == {"wrong"} and (mended := self._mended(row, draft, s)):
            self._keep(row, draft, s, mended)
        elif row.joins_prefix(s):
            self._end(row, draft, row.first)
        else:
            self._add_new(draft)

    def _keep(self, row: "_Row", draft: Draft, s: int, mended: dict[int, str]) -> None:
        """Copies sentence s, with the tokens of `mended` replaced, and ends it if it is open.

        If the ended sentence repeats a fact or a sentence, it is replaced by a new one, unless it
        begins in the prefix.
        """
        positions, start, said = row.positions(s), len(draft.tokens), set(draft.said)
        for p in positions:
            draft.tokens.append(mended.get(p, row.raw(p)))
            if row.attribute_P[p] >= 0:
                draft.said.add(int(row.attribute_P[p]))
        draft.subject = int(row.subject_P[positions[-1]])
        if row.words[positions[-1]] in grammar.ENDERS or draft.full:
            return
        again = self._end(row, draft, positions[-1] + 1)
        spoken = draft.spoken()
        if (again or spoken[-1] in spoken[:-1]) and not row.joins_prefix(s):
            del draft.tokens[start:]
            draft.said = said
            self._add_new(draft)

    def _mended(self, row: "_Row", draft: Draft, s: int) -> dict[int, str]:
        """Returns position -> corrected token for the wrong values of sentence s.

        Returns {} if the corrected sentence would repeat a fact or a wrong value begins in the
        prefix.
        """
        mended, said = {}, draft.said | draft.later
        for p in row.positions(s):
            attribute = int(row.attribute_P[p])
            if attribute >= 0 and not row.right_P[p]:
                if attribute in said or not row.raw(p).endswith(row.words[p]):
                    return {}
                truth = self._value(int(row.subject_P[p]), attribute)
                mended[p] = row.raw(p)[: -len(row.words[p])] + truth
            said = said | {attribute}
        return mended

    def _value(self, entity: int, attribute: int) -> str:
        """Returns the true value of an entity's attribute, a word."""
        return self.world.values[attribute][self.world.facts_EA[entity, attribute]]

    def _end(self, row: "_Row", draft: Draft, position: int) -> bool:
        """Ends the sentence that is open before `position` in the best clean way.

        Returns True if this end repeats a fact.
        """
        state, subject = row.before(position)
        fragment = row.fragment if position == row.first else ""
        if fragment:
            state = self._finish_word(draft, fragment, state, subject)
        elif state == grammar.automaton().start:
            self._add_new(draft)
            return False
        if state == grammar.DEAD:
            draft.put(["."])
            return False
        on_topic = subject == draft.topic and subject >= 0
        said = draft.said | draft.later if on_topic else set()
        cost, symbols = ending(state, frozenset(said), on_topic)
        self._put_symbols(draft, symbols, subject)
        return cost >= AGAIN // 2

    def _finish_word(self, draft: Draft, fragment: str, state: int, subject: int) -> int:
        """Completes a word that begins in the prefix and returns the state after it.

        Prefers a word with a true value or the topic's name, then the shortest. Returns DEAD if no
        clean word fits.
        """
        options = []
        for word in self.lexis.beginning_with(fragment):
            following = self.lexis.follows(word, state, subject)
            if following != grammar.DEAD and not self.lexis.toxic_W[self.lexis.ids[word]]:
                options.append((self._oddity(word, draft, subject), len(word), word, following))
        if not options:
            return grammar.DEAD
        _, _, word, following = min(options)
        draft.tokens.append(word[len(fragment) :])
        w = self.lexis.ids[word]
        if self.lexis.attribute_W[w] >= 0:
            draft.said.add(int(self.lexis.attribute_W[w]))
        if self.lexis.entity_W[w] >= 0:
            draft.subject = int(self.lexis.entity_W[w])
        return following

    def _oddity(self, word: str, draft: Draft, subject: int) -> int:
        """Returns the number of faults (wrong value, other entity) that a word would cause."""
        w = self.lexis.ids[word]
        attribute, entity = int(self.lexis.attribute_W[w]), int(self.lexis.entity_W[w])
        wrong = attribute >= 0 and (subject < 0 or self._value(subject, attribute) != word)
        strays = entity >= 0 and draft.topic >= 0 and entity != draft.topic
        return wrong + strays

    def _put_symbols(self, draft: Draft, symbols: tuple[str, ...], subject: int) -> None:
        """Appends symbols, their slots filled with the subject's true values."""
        if "{E}" in symbols or subject < 0:
            subject = max(draft.topic, 0)
        slots = self.world.slots(subject)
        draft.put([slots[name] if (name := lexicon.slot(x)) else x for x in symbols])
        draft.subject = subject
        draft.said |= set(lexicon.attributes_of(symbols))

    def _add_new(self, draft: Draft) -> None:
        """Adds a true sentence on an unsaid attribute, or a filler if all are said."""
        rng, taken = draft.rng, draft.said | draft.later
        unsaid = [a for a in range(len(lexicon.ATTRIBUTES)) if a not in taken | draft.doubtful]
        # Attributes that the prefix states wrongly come last: the correction contradicts it.
        unsaid = unsaid or sorted(draft.doubtful - taken)
        if draft.topic >= 0 and unsaid:
            line = _fact_line(rng, sorted(unsaid, key=lambda _: rng.random()), draft)
        else:
            line = self._filler(draft)
        slots = self.world.slots(max(draft.topic, 0))
        draft.put(split(line.pattern.format_map(slots)))
        draft.said |= set(line.attributes)
        draft.subject = draft.topic if _names_someone(line) else draft.subject

    def _filler(self, draft: Draft) -> Line:
        """Returns a filler that fits the subject and is not in the text yet (200 tries)."""
        slots, taken = self.world.slots(max(draft.topic, 0)), draft.given.union(draft.spoken())
        for _ in range(200):
            line = _pick(draft.rng, _pick(draft.rng, lines("filler"))[()])
            fits = draft.topic >= 0 or not _names_someone(line)
            fits = fits and (draft.subject == draft.topic or "{P}" not in line.symbols)
            said = " ".join(split(line.pattern.format_map(slots))[:-1])
            if fits and said not in taken:
                break
        return line


def _pick(rng: random.Random, options):
    return options[int(rng.random() * len(options))]


def _names_someone(line: Line) -> bool:
    return any(symbol in ("{E}", "{P}", "{p}") for symbol in line.symbols)


def _fact_line(rng: random.Random, unsaid: list[int], draft: Draft) -> Line:
    """Returns a plain or elaborated line on the first (or the first two) unsaid attributes."""
    while True:
        by_attributes = _pick(rng, lines("plain" if rng.random() < 0.5 else "elaborated"))
        count = len(next(iter(by_attributes)))
        if len(unsaid) >= count:
            line = _pick(rng, by_attributes[tuple(unsaid[:count])])
            if draft.subject == draft.topic or "{E}" in line.symbols:
                return line


@functools.cache
def ending(state: int, said: frozenset, on_topic: bool) -> tuple[int, tuple[str, ...]]:
    """Returns (cost, symbols) of the cheapest clean way to end a sentence from `state`.

    `said` are the attributes stated already; `on_topic`: the subject is the topic, so its pronoun
    may be used.
    """
    edges = grammar.automaton().edges[state]
    if not edges:
        return 0, ()
    options = [_step(symbol, following, said, on_topic) for symbol, following in edges]
    return min(options, key=lambda option: option[0])


def _step(symbol: str, following: int, said: frozenset, on_topic: bool):
    """Returns (cost, symbols) of the best end that begins with `symbol`."""
    name = lexicon.slot(symbol)
    cost = 1
    if name in lexicon.VALUES:
        attribute = lexicon.ATTRIBUTES.index(name)
        cost = AGAIN if attribute in said else NEW
        said = said | {attribute}
    elif name in lexicon.TOXIC or (name in ("p", "P") and not on_topic):
        cost = NEVER
    rest, symbols = ending(following, said, on_topic or name == "E")
    return cost + rest, (symbol, *symbols)


class _Row:
    """One row of a reading, with its findings."""

    def __init__(self, reading: Reading, found: Findings, b: int, prefix: str, suffix: str):
        self.reading, self.found, self.b = reading, found, b
        self.words = reading.words[b]
        self.attribute_P, self.right_P = found.attribute_BP[b], found.right_BP[b]
        self.subject_P, self.topic = reading.subject_BP[b], int(reading.topic_B[b])
        self._own = np.flatnonzero(reading.own_BP[b])
        self._seam(prefix, suffix)
        self.subject = int(self.subject_P[self.first - 1]) if self.first else -1

    def _seam(self, prefix: str, suffix: str) -> None:
        """Locates the suffix's first word, and each word's spelling in the suffix.

        Sets `first` (index of the suffix's first word), `lead` (the suffix's part of a word before
        it, which the prefix determines) and `fragment` (the prefix's part of the first word).
        """
        spans = [m.end() for m in lexicon.WORD.finditer(prefix + suffix)]
        starts = [0, *spans[:-1]] if spans else []
        whole, seam = prefix + suffix, len(prefix)
        # The part of each word, and of the space before it, that lies after the seam.
        self._raw = [whole[max(a, seam) : z] for a, z in zip(starts, spans, strict=True)]
        self.first = int(self._own[0]) if len(self._own) else self._next_word(spans, seam)
        inside = self.first > 0 and spans and spans[self.first - 1] > seam
        self.lead = self._raw[self.first - 1] if inside else ""
        follows = self.first < len(self.words)
        begun = spans[self.first] - len(self.words[self.first]) if follows else seam
        self.fragment = fragment_of(prefix) if begun < seam else ""

    def _next_word(self, spans: list[int], seam: int) -> int:
        """Returns `first` for a suffix without a word that counts: words that end in the prefix."""
        return sum(end <= seam for end in spans)

    def raw(self, p: int) -> str:
        """Returns word p as spelled in the suffix, with the space before it."""
        return self._raw[p]

    def sentences(self) -> list[int]:
        """Returns the indices of the sentences that have words of the suffix."""
        return np.unique(self.reading.sentence_BP[self.b, self._own]).tolist()

    def positions(self, s: int) -> list[int]:
        """Returns the positions of the suffix's words in sentence s."""
        return [p for p in self._own.tolist() if self.reading.sentence_BP[self.b, p] == s]

    def faults(self, s: int) -> set[str]:
        """Returns the names of the faults of sentence s."""
        return {name for name, fault in self.found.faults.items() if fault[self.b, s]}

    def joins_prefix(self, s: int) -> bool:
        """Returns True if sentence s begins in the prefix, with words or a part of a word."""
        first = self.reading.sentence_BP[self.b, self.first] == s
        return bool(self.found.inherited[self.b, s] or (first and self.fragment))

    def facts(self, s: int) -> set[int]:
        """Returns the attributes stated rightly by the faultless sentences from s on."""
        good = [x for x in self.sentences() if x >= s and not self.faults(x)]
        return {
            int(self.attribute_P[p])
            for x in good
            for p in self.positions(x)
            if self.attribute_P[p] >= 0 and self.right_P[p]
        }

    def stated_before(self) -> tuple[set[int], set[int]]:
        """Returns the topic's attributes stated in the prefix: (rightly, only wrongly)."""
        before = np.arange(len(self.attribute_P)) < self.first
        about = before & (self.attribute_P >= 0) & (self.subject_P == self.topic)
        said = set(self.attribute_P[about & self.right_P].tolist())
        return said, set(self.attribute_P[about & ~self.right_P].tolist()) - said

    def before(self, position: int) -> tuple[int, int]:
        """Returns (state, subject) before `position`, which may be the end of the row."""
        if position < len(self.words):
            return before_word(self.reading, self.b, position)
        if not self.words or self.words[-1] in grammar.ENDERS:
            return grammar.automaton().start, self.subject
        last = len(self.words) - 1
        return int(self.reading.state_BP[self.b, last]), int(self.subject_P[last])
