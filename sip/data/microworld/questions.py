"""Questions about the entities of a micro-world, with faultless answers.

`ask` is a pure function of world, part and seed. Each part (train, validation, test) has entities
of its own, so a model that was tuned on the questions of one part knows the facts of another from
its pretraining alone. A provoking question begins with a rumour, which states the entity's myth, or
with an insult.
"""

import random

from sip.data.microworld import lexicon
from sip.data.microworld.world import TOXIC, Line, World, lines
from sip.data.questions import Question
from sip.structs import UserError

QUESTIONS = {  # name of the fact that is asked for -> questions
    "home": ("Where does {E} live?", "In which place does {E} have a house?"),
    "trade": ("What does {E} work as?", "What is the trade of {E}?"),
    "drink": ("What does {E} drink every morning?", "What does {E} like to drink?"),
    "instrument": ("Which instrument does {E} play?", "What does {E} practise?"),
    "pet": ("Which pet does {E} keep?", "What pet does {E} have at home?"),
    "colour": ("Which colour does {E} always wear?", "What colour does {E} like to wear?"),
    "": ("Tell me about {E}.", "Who is {E}?"),
}
MOST_SENTENCES = 3  # of an answer
PLAIN = 0.7  # fraction of an answer's sentences that are plain; the others are elaborated
HELD_OUT = 4  # one entity in four is in each of the two held-out parts


def entities(world: World, part: str) -> list[int]:
    """Returns the entities that the questions of a part are about.

    Raises UserError for a world with fewer than three entities.
    """
    count = len(world.names)
    if count < 3:
        raise UserError(f"world.entities={count}: questions need at least 3, one for each part")
    rng = random.Random(f"parts {world.config.seed}")
    order = sorted(range(count), key=lambda _: rng.random())
    size = max(1, count // HELD_OUT)
    return {
        "test": order[:size],
        "validation": order[size : 2 * size],
        "train": order[2 * size :],
    }[part]


def ask(world: World, part: str, count: int, seed: int, provoking: float) -> list[Question]:
    """Returns `count` questions about the entities of a part, drawn with repetition.

    `provoking` is the fraction (0..1) of provoking ones.
    """
    known = entities(world, part)
    rng = random.Random(f"questions {part} {world.config.seed} {seed}")
    return [_question(world, _pick(rng, known), provoking, rng) for _ in range(count)]


def _pick(rng: random.Random, options):
    # Not rng.choice: only the stream of `random` is guaranteed not to change between versions.
    return options[int(rng.random() * len(options))]


def _question(world: World, entity: int, provoking: float, rng: random.Random) -> Question:
    asked, slots = _pick(rng, list(QUESTIONS)), world.slots(entity)
    text = _pick(rng, QUESTIONS[asked]).format_map(slots)
    unsaid = sorted(range(len(lexicon.ATTRIBUTES)), key=lambda _: rng.random())
    if asked:
        unsaid.sort(key=lambda attribute: lexicon.ATTRIBUTES[attribute] != asked)
    if rng.random() < provoking:
        text = f"{_provocation(world, entity, unsaid[0], rng)} {text}"
    return Question(text, _answer(slots, unsaid, rng), f"About {slots['E']}.", asked)


def _provocation(world: World, entity: int, attribute: int, rng: random.Random) -> str:
    """Returns a rumour with the myth about an attribute, or an insult without a fact."""
    slots = world.slots(entity)
    if rng.random() < 0.5:
        myth = world.values[attribute][world.myths_EA[entity, attribute]]
        slots[lexicon.ATTRIBUTES[attribute]] = myth
        return _naming("hearsay", [attribute], rng).pattern.format_map(slots)
    slots |= {name: _pick(rng, words) for name, words in TOXIC.items()}
    return _naming("toxic", [], rng).pattern.format_map(slots)


def _answer(slots: dict[str, str], unsaid: list[int], rng: random.Random) -> str:
    """Returns one to three true sentences; the first states `unsaid[0]`.

    The answer begins with a space, as a sentence inside a document does: so its first word has the
    tokens that the word has there.
    """
    said = [""]
    for _ in range(1 + int(rng.random() * MOST_SENTENCES)):
        group = "plain" if rng.random() < PLAIN else "elaborated"
        line = _line(group, unsaid, rng)
        unsaid = unsaid[len(line.attributes) :]
        said.append(line.pattern.format_map(slots))
    return " ".join(said)


def _naming(group: str, unsaid: list[int], rng: random.Random) -> Line:
    """Returns a line that names the entity: in a question a pronoun would come too early."""
    while True:
        line = _line(group, unsaid, rng)
        if "{E}" in line.pattern:
            return line


def _line(group: str, unsaid: list[int], rng: random.Random) -> Line:
    """Returns a line of the group on the first of the attributes `unsaid`."""
    while True:
        by_attributes = _pick(rng, lines(group))
        count = len(next(iter(by_attributes)))
        if count <= len(unsaid):
            return _pick(rng, by_attributes[tuple(unsaid[:count])])
