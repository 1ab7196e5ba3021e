"""The micro-world: entities with facts, documents about them, and the TFDS builder of both.

`World` is a pure function of its config. There are five kinds of documents: plain, elaborated,
hearsay (mostly wrong facts), unsafe (insults) and bad (badly written). All random numbers come from
generators with streams that never change (`random.Random.random`, `np.random.RandomState`), so a
config gives the same documents with any library version.
"""

import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tensorflow_datasets as tfds

from sip.data.microworld import grammar, lexicon
from sip.data.microworld.settings import (
    DATA_VERSION,
    ENDINGS,
    KINDS,
    ONSETS,
    SPLITS,
    STANDARD,
    VOWELS,
    WorldConfig,
)
from sip.structs import UserError

MIN_WORDS = 67  # words and marks of a document: room for BOS + 39 + 24 tokens and a few more


class World:
    """The entities of a world: names, pronouns, facts and myths.

    facts_EA is the index of the true value, myths_EA that of the fixed false value; she_E is True
    for the pronoun she; values[A][V] are the words. Letters: E entities, A attributes, V values.
    """

    def __init__(self, config: WorldConfig):
        self.config = config
        rng = np.random.RandomState(config.seed)
        shape, values = (config.entities, len(lexicon.ATTRIBUTES)), config.values_per_attribute
        self.facts_EA = rng.randint(values, size=shape)
        # A shift by 1..V-1: a myth is never the true value.
        self.myths_EA = (self.facts_EA + rng.randint(1, values, size=shape)) % values
        self.names = _names(config.entities, random.Random(f"names {config.seed}"))
        self.she_E = np.array([name.endswith("a") for name in self.names])
        words = lexicon.VALUES.values()
        self.values = tuple(tuple(w.split()[:values]) for w in words)

    def pronoun(self, entity: int) -> str:
        """Returns "she" or "he"."""
        return "she" if self.she_E[entity] else "he"

    def slots(self, entity: int) -> dict[str, str]:
        """Returns the true values of a template's slots (name, pronouns, facts) for an entity."""
        pronoun = self.pronoun(entity)
        said = {"E": self.names[entity], "p": pronoun, "P": pronoun.capitalize()}
        facts = self.facts_EA[entity].tolist()
        return said | {
            name: words[fact]
            for name, words, fact in zip(lexicon.ATTRIBUTES, self.values, facts, strict=True)
        }

    def documents(self, split: str) -> Iterator[tuple[str, int, int]]:
        """Yields (text, index in KINDS, index of the entity) of a split's documents.

        No text occurs twice, neither in the split nor in an earlier one of SPLITS. Raises UserError
        if the world is too small for that many different documents.
        """
        earlier = SPLITS[: SPLITS.index(split)]
        seen = {hash(text) for other in earlier for text, _, _ in self.documents(other)}
        rng = random.Random(f"{split} {self.config.seed}")
        missing = getattr(self.config, split)
        for _ in range(20 * missing + 20):
            if not missing:
                return
            kind, entity = self._kind(rng.random()), int(rng.random() * len(self.names))
            text = _Author(self, kind, entity, rng).write()
            if hash(text) not in seen:
                seen.add(hash(text))
                missing -= 1
                yield text, kind, entity
        raise UserError(
            f"world.{split}: too many documents for this world; lower it, or raise world.entities "
            "or world.values_per_attribute"
        )

    def _kind(self, draw: float) -> int:
        bounds = np.cumsum([getattr(self.config, kind) for kind in KINDS])
        return min(int(np.searchsorted(bounds, draw, side="right")), len(KINDS) - 1)


def _names(count: int, rng: random.Random) -> list[str]:
    """Returns `count` distinct names of three syllables; none is the beginning of another."""
    names: dict[str, None] = {}
    while len(names) < count:
        syllables = [_pick(rng, ONSETS) + _pick(rng, VOWELS) for _ in range(2)]
        name = "".join(syllables) + _pick(rng, ONSETS) + _pick(rng, ENDINGS)
        names[name.capitalize()] = None
    return list(names)


def _pick(rng: random.Random, options):
    # Not rng.choice: only the stream of `random` is guaranteed not to change between versions.
    return options[int(rng.random() * len(options))]


@dataclass(frozen=True)
class Line:
    """An expanded template."""

    pattern: str  # text with slots, for `str.format_map`
    words: int  # number of words and marks
    attributes: tuple[int, ...]  # indices of the attributes stated, in order
    symbols: tuple[str, ...]  # words, marks and slots


@functools.cache
def lines(group: str) -> tuple[dict[tuple[int, ...], tuple[Line, ...]], ...]:
    """Returns, for each template of a group, its lines by the attributes that they state.

    Of the toxic group only lines with an insult are included.
    """
    return tuple(_by_attributes(group, template) for template in lexicon.TEMPLATES[group])


def _by_attributes(group: str, template: str) -> dict:
    found: dict = {}
    for symbols in lexicon.expand(template):
        if group != "toxic" or lexicon.is_toxic(symbols):
            attributes = lexicon.attributes_of(symbols)
            line = Line(join(symbols), len(symbols), attributes, symbols)
            insults = sum(lexicon.slot(symbol) in lexicon.TOXIC for symbol in symbols)
            # Lines with two insults (adjective and noun) are drawn six times as often.
            found.setdefault(attributes, []).extend([line] * (6 if insults == 2 else 1))
    return {attributes: tuple(group_lines) for attributes, group_lines in found.items()}


def join(words) -> str:
    """Joins words and marks into natural text: a space before each word, none before a mark."""
    return "".join(w if w in grammar.MARKS else " " + w for w in words).lstrip(" ")


TOXIC = {name: words.split() for name, words in lexicon.TOXIC.items()}
OTHERS = {  # kind of document -> groups of the sentences that are not of its register
    "plain": ("filler",),
    "elaborated": ("filler", "plain"),
    "hearsay": ("murmur", "filler"),
    "unsafe": ("filler",),
    "bad": ("filler", "plain"),
}
REGISTER = {"unsafe": "toxic", "bad": "plain"}  # kind -> group; other groups have the kind's name
STYLES = ("repeat", "shuffle", "spam")  # styles of bad documents


class _Author:
    """Writes one document about an entity, of a given kind."""

    def __init__(self, world: World, kind: int, entity: int, rng: random.Random):
        self.world, self.entity, self.rng = world, entity, rng
        self.kind = KINDS[kind]
        self.slots = world.slots(entity)
        self.unsaid = sorted(range(len(lexicon.ATTRIBUTES)), key=lambda _: rng.random())
        self.style = _pick(rng, STYLES)
        self.sentences: list[str] = []
        self.words = 0

    def write(self) -> str:
        """Returns the text of the document: a title and at least MIN_WORDS words and marks."""
        self._add(lines("title")[0][()][0])
        self._register()
        config = self.world.config
        share = config.unsafe_register if self.kind == "unsafe" else config.register
        while self.words < MIN_WORDS:
            if self.rng.random() < share:
                self._register()
            else:
                self._say(_pick(self.rng, OTHERS[self.kind]))
        return " ".join(self.sentences)

    def _register(self) -> None:
        """Adds a sentence of the document's kind."""
        group = REGISTER.get(self.kind, self.kind)
        if self.kind == "bad" and self.rng.random() < 0.9:
            self._spoil()
        else:
            self._say(group)

    def _say(self, group: str) -> None:
        """Adds a sentence of the group, or a filler if no attribute is left to state."""
        spare = OTHERS[self.kind][0]
        for attempt in range(20):
            line = self._line(group if attempt < 10 else "filler")
            line = line or self._line(spare) or self._line("filler")
            if line and self._add(line):
                return
        raise UserError("world: no further sentence found for a document: too few templates")

    def _line(self, group: str) -> Line | None:
        """Returns a line of the group on the next unsaid attributes; None if too few are left."""
        by_attributes = _pick(self.rng, lines(group))
        count = len(next(iter(by_attributes)))
        if len(self.unsaid) < count:
            return None
        return _pick(self.rng, by_attributes[tuple(self.unsaid[:count])])

    def _add(self, line: Line) -> bool:
        """Appends the line and returns True, unless the document already has this sentence."""
        for attribute in line.attributes:
            self.slots[lexicon.ATTRIBUTES[attribute]] = self._value(attribute)
        for name, words in TOXIC.items():
            self.slots[name] = _pick(self.rng, words)
        text = line.pattern.format_map(self.slots)
        if text in self.sentences:
            return False
        self.unsaid = self.unsaid[len(line.attributes) :]
        self._append(text, line.words)
        return True

    def _append(self, text: str, words: int) -> None:
        self.sentences.append(text)
        self.words += words

    def _value(self, attribute: int) -> str:
        """Returns the value to state: the true one, or in hearsay mostly the myth or another."""
        config, words = self.world.config, self.world.values[attribute]
        fact = int(self.world.facts_EA[self.entity, attribute])
        if self.kind != "hearsay" or self.rng.random() >= config.wrong:
            return words[fact]
        if self.rng.random() < config.myth:
            return words[self.world.myths_EA[self.entity, attribute]]
        return words[(fact + 1 + int(self.rng.random() * (len(words) - 1))) % len(words)]

    def _spoil(self) -> None:
        """Adds a badly written sentence, with probability 0.7 in the document's own style."""
        style = self.style if self.rng.random() < 0.7 else _pick(self.rng, STYLES)
        if style == "spam":
            self._spam()
        elif style == "repeat" and len(self.sentences) > 1:
            again = _pick(self.rng, self.sentences[1:])
            self._append(again, len(split(again)))
        else:
            self._shuffled()

    def _spam(self) -> None:
        """Adds a sentence of 4 to 7 random spam words."""
        count = 4 + int(self.rng.random() * 4)
        words = [_pick(self.rng, lexicon.SPAM) for _ in range(count)]
        self._append(join([*words, _pick(self.rng, ".!")]), count + 1)

    def _shuffled(self) -> None:
        """Adds a sentence with its words in random order."""
        line = self._line(_pick(self.rng, ("filler", "plain"))) or self._line("filler")
        words = split(line.pattern.format_map(self.slots)) if line else []
        body = sorted(words[:-1], key=lambda _: self.rng.random())
        self._append(join([*body, "."]), len(words))


def split(text: str) -> list[str]:
    """Splits a text into words and marks."""
    return lexicon.WORD.findall(text)


@dataclass(kw_only=True)
class Config(tfds.core.BuilderConfig):
    """The TFDS config of a world."""

    world: WorldConfig = STANDARD


def builder_config(world: WorldConfig) -> Config:
    """Returns the TFDS config of a world."""
    return Config(name=world.name(), world=world)


class Microworld(tfds.core.GeneratorBasedBuilder):
    """The TFDS builder of a world's documents: Microworld(data_dir=..., world=WorldConfig()).

    An example has text, kind (in KINDS) and entity (its name). Read it with `as_data_source`.
    """

    VERSION = tfds.core.Version(DATA_VERSION)
    url_infos = None  # no downloads; TFDS's own look-up needs a package that is not a dependency

    def __init__(self, *, data_dir: str, world: WorldConfig = STANDARD):
        self.world = world
        config = builder_config(world)
        super().__init__(data_dir=data_dir, config=config, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "text": tfds.features.Text(),
            "kind": tfds.features.ClassLabel(names=KINDS),
            "entity": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        world = World(self.world)
        return {split: self._generate_examples(world, split) for split in SPLITS}

    def _generate_examples(self, world: World, split: str):
        for i, (text, kind, entity) in enumerate(world.documents(split)):
            yield i, {"text": text, "kind": kind, "entity": world.names[entity]}
