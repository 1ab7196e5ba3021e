"""Problems of the micro-world: questions of several hops, and running sums.

    What is the home of the friend of Fihefo?    The friend of Fihefo is Bado. Bado lives in Oxmoor.
    Fihefo has 7 coins. Fihefo gets 5. ..        7 + 5 = 12. ..

The documents state single facts, and sums step by step. With `riddles` some paragraphs are problems
with their answers and without the steps, which the rule `StepThinker` thinks of; else no document
has a question. The oracle knows each answer, and if a thought supports it. The entities and facts
are those of a `World`.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sip.data.microworld.settings import (
    ANSWERED,
    RELATIONS,
    TWO_HOP,
    ProblemWorldConfig,
    WorldConfig,
)
from sip.data.microworld.world import World
from sip.structs import UserError

# Statements of each attribute: the first one is that of thoughts.
STATED = {
    "home": ("{E} lives in {v}.", "The home of {E} is {v}."),
    "trade": ("{E} works as a {v}.", "The trade of {E} is {v}."),
    "drink": ("{E} likes to drink {v}.", "The drink of {E} is {v}."),
    "instrument": ("{E} plays the {v}.", "The instrument of {E} is {v}."),
    "pet": ("{E} keeps a {v}.", "The pet of {E} is {v}."),
    "colour": ("{E} always wears {v}.", "The colour of {E} is {v}."),
}
ATTRIBUTES = tuple(STATED)
RELATED = "The {r} of {E} is {F}."
GAINS, LOSSES = ("gets", "finds"), ("loses", "spends")
WORDS = 48  # least words of a document
TRIES = 10_000  # to find a problem of a part, which may have one in twenty
SENTENCE = re.compile(r"[^.?]+[.?]")
HOPS = re.compile(rf"What is the (\w+)((?: of the (?:{'|'.join(RELATIONS)}))+) of (\w+)\?")
HELD = re.compile(r"(\w+) has (\d+) coins\.")
CHANGE = re.compile(rf"(\w+) ({'|'.join(GAINS + LOSSES)}) (\d+)\.")
SUM = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)\.")
RIDDLE = re.compile(
    rf"(?:{HOPS.pattern}|{HELD.pattern}(?: {CHANGE.pattern})+ How many coins does \w+ have\?)"
    rf"(?= {ANSWERED.format('')[:-2]})"
)


@dataclass(frozen=True)
class Asked:
    """A problem with the steps of its solution."""

    text: str
    steps: tuple[str, ...]
    answer: str

    @property
    def thought(self) -> str:
        """The steps as one line."""
        return " ".join(self.steps)


class ProblemWorld:
    """The relations between the entities of a world, its problems and documents, and the oracle."""

    def __init__(self, cfg: ProblemWorldConfig):
        self.cfg = cfg
        own = dict(entities=cfg.entities, values_per_attribute=cfg.values_per_attribute)
        self.world = World(WorldConfig(seed=cfg.seed, **own))
        rng = np.random.RandomState(cfg.seed + 1)
        # A shift along a random order: nobody is related to themselves.
        self.related = {}
        for relation in RELATIONS:
            order_E = rng.permutation(cfg.entities)
            self.related[relation] = dict(zip(order_E, np.roll(order_E, 1), strict=True))
        self._index = {name: i for i, name in enumerate(self.world.names)}
        self._facts = self._stated()

    def _stated(self) -> dict[str, bool]:
        """Returns every statement about the entities and if it is true."""
        facts, names = {}, self.world.names
        for e, name in enumerate(names):
            for a, forms in enumerate(STATED.values()):
                for v, value in enumerate(self.world.values[a]):
                    for form in forms:
                        true = v == self.world.facts_EA[e, a]
                        facts[form.format(E=name, v=value)] = bool(true)
            for relation in RELATIONS:
                for f, other in enumerate(names):
                    true = f == self.related[relation][e]
                    facts[RELATED.format(r=relation, E=name, F=other)] = bool(true)
        return facts

    def problems(self, kind: str, level: int, count: int) -> list[Asked]:
        """Returns up to `count` different problems: of `level` relations, or `level` + 1 changes.

        Equal arguments give equal problems. There are entities * 6 * 2^level questions of hops.
        """
        rng = random.Random(f"problems {kind} {level} {self.cfg.seed}")
        write = self._hops if kind == TWO_HOP else self._sum
        found: dict[str, Asked] = {}
        for _ in range(20 * count):
            if len(found) == count:
                break
            text = write(level, rng)
            found[text] = self.solve(text)
        return list(found.values())

    def _hops(self, level: int, rng: random.Random) -> str:
        chain = "".join(f" of the {_pick(rng, RELATIONS)}" for _ in range(level))
        return f"What is the {_pick(rng, ATTRIBUTES)}{chain} of {_pick(rng, self.world.names)}?"

    def _sum(self, level: int, rng: random.Random) -> str:
        name, total = _pick(rng, self.world.names), self._number(rng, 0)
        said = [f"{name} has {total} coins."]
        for _ in range(level + 1):
            total, change = self._change(name, total, rng)
            said.append(change)
        return " ".join([*said, f"How many coins does {name} have?"])

    def _number(self, rng: random.Random, least: int, most: int | None = None) -> int:
        most = self.cfg.largest if most is None else most
        return least + int(rng.random() * (most - least + 1))

    def _change(self, name: str, total: int, rng: random.Random) -> tuple[int, str]:
        gain = total == 0 or (total < self.cfg.largest and rng.random() < 0.5)
        if gain:
            number = self._number(rng, 1, self.cfg.largest - total)
            return total + number, f"{name} {_pick(rng, GAINS)} {number}."
        number = self._number(rng, 1, total)
        return total - number, f"{name} {_pick(rng, LOSSES)} {number}."

    def solve(self, text: str) -> Asked:
        """Returns a problem with its steps and its answer. Raises ValueError for another text."""
        if found := HOPS.fullmatch(text):
            return self._solve_hops(text, found)
        if HELD.match(text):
            return self._solve_sum(text)
        raise ValueError(f"{text!r:.80} is no problem of the micro-world")

    def _solve_hops(self, text: str, found: re.Match) -> Asked:
        at, steps, names = self._index[found[3]], [], self.world.names
        for relation in reversed(re.findall("|".join(RELATIONS), found[2])):  # the last one first
            after = self.related[relation][at]
            steps.append(RELATED.format(r=relation, E=names[at], F=names[after]))
            at = after
        a = ATTRIBUTES.index(found[1])
        value = self.world.values[a][self.world.facts_EA[at, a]]
        steps.append(STATED[found[1]][0].format(E=names[at], v=value))
        return Asked(text, tuple(steps), value)

    def _solve_sum(self, text: str) -> Asked:
        held = HELD.match(text)
        total, steps = int(held[2]) if held else 0, []
        for _, verb, number in CHANGE.findall(text):
            step, total = _step(total, verb in GAINS, int(number))
            steps.append(step)
        return Asked(text, tuple(steps), str(total))

    def supports(self, text: str, thought: str, answer: str) -> bool:
        """True if a thought has all steps to its conclusion `answer`, in order, and no false claim.

        A conclusion may be wrong only if a step is: so a supported one is right. Sentences that
        claim nothing about entities or sums are ignored.
        """
        asked = self.solve(text)
        said = [sentence.strip() for sentence in SENTENCE.findall(thought)]
        if answer != asked.answer or any(self.holds(one) is False for one in said):
            return False
        rest = iter(said)
        return all(step in rest for step in asked.steps)

    def holds(self, sentence: str) -> bool | None:
        """True or False for a statement about an entity or a sum; None for any other sentence."""
        if found := SUM.fullmatch(sentence):
            a, sign, b, c = found.groups()
            return int(a) + (int(b) if sign == "+" else -int(b)) == int(c)
        return self._facts[sentence] if sentence in self._facts else None

    def documents(self, split: str, part_of: Callable[[str], str]) -> Iterator[str]:
        """Yields the documents of a part. Raises UserError if they are too many for the world.

        Their riddles are problems of the same part by `part_of`: a run that learns from documents
        of train never saw a problem of test.
        """
        rng = random.Random(f"{split} {self.cfg.seed}")
        seen: set[str] = set()
        wanted = getattr(self.cfg, split)
        for _ in range(20 * wanted + 20):
            if len(seen) == wanted:
                return
            text = self._document(rng, lambda riddle: part_of(riddle) == split)
            if text not in seen:
                seen.add(text)
                yield text
        raise UserError(f"data.world.{split}: too many documents for this world; lower it")

    def _document(self, rng: random.Random, own: Callable[[str], bool]) -> str:
        e = int(rng.random() * len(self.world.names))
        said = [f"About {self.world.names[e]}."]
        while len(" ".join(said).split()) < WORDS:
            if self.cfg.riddles and rng.random() < self.cfg.riddles:
                said.append(self._riddle(rng, own))
            else:
                said += self._story(e, rng) if rng.random() < 0.5 else self._two_facts(e, rng)
        return " ".join(said)

    def _riddle(self, rng: random.Random, own: Callable[[str], bool]) -> str:
        """Returns a problem of level 1 for which `own` is true, with its answer."""
        for _ in range(TRIES):
            text = self._hops(1, rng) if rng.random() < 0.5 else self._sum(1, rng)
            if own(text):
                return f"{text} {ANSWERED.format(self.solve(text).answer)}"
        raise UserError("data.world: too few problems for riddles; use more entities")

    def _two_facts(self, e: int, rng: random.Random) -> list[str]:
        """Returns a relation of the entity, and a fact of the related one or of itself."""
        names, relation = self.world.names, _pick(rng, RELATIONS)
        other = self.related[relation][e]
        about = other if rng.random() < 0.7 else e
        a = int(rng.random() * len(ATTRIBUTES))
        value = self.world.values[a][self.world.facts_EA[about, a]]
        form = _pick(rng, STATED[ATTRIBUTES[a]])
        related = RELATED.format(r=relation, E=names[e], F=names[other])
        return [related, form.format(E=names[about], v=value)]

    def _story(self, e: int, rng: random.Random) -> list[str]:
        """Returns a running sum of two or three changes, each with its result."""
        name, total = self.world.names[e], self._number(rng, 0)
        said = [f"{name} has {total} coins."]
        for _ in range(2 + int(rng.random() * 2)):
            after, change = self._change(name, total, rng)
            step, total = _step(total, after > total, abs(after - total))
            said += [change, step]
        return said


class StepThinker:
    """The rule (`sip.data.thoughts.Thinker`) of a world with riddles: the steps to the answer."""

    def __init__(self, world: ProblemWorld):
        self._world = world

    def thoughts(self, texts: Sequence[str]) -> list[list[tuple[int, str]]]:
        """Returns the thoughts of each text as (index in the text, thought): after each problem."""
        solve = self._world.solve
        return [[(x.end(), solve(x[0]).thought) for x in RIDDLE.finditer(text)] for text in texts]


def _step(total: int, gain: bool, number: int) -> tuple[str, int]:
    """Returns a step of a sum, "7 + 5 = 12.", and its result."""
    after = total + number if gain else total - number
    return f"{total} {'+' if gain else '-'} {number} = {after}.", after


def _pick(rng: random.Random, options):
    return options[int(rng.random() * len(options))]  # as in `world`: a stream that never changes
