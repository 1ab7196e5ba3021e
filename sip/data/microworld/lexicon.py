"""The words and sentence templates of the micro-world, used by both the documents and the oracle.

A template is a line of English. `[a|b]` are alternatives and `<name>` refers to a list of phrases
in PHRASES. Symbols in braces are slots: `{E}` is the entity, `{P}`/`{p}` its pronoun, `{home}` and
so on a value of that attribute, `{TA}`/`{TN}` a toxic adjective/noun. Words and marks are separated
by spaces.
"""

import functools
import itertools
import re

VALUES = {
    "home": "Oxmoor Harwick Dunford Elmstead Kirkby Wexley Thornby Ashcombe Millbrook Stowell "
    "Redcliff Foxham Langley Marston Penrith Selby",
    "trade": "baker miller tailor potter weaver farmer carpenter teacher doctor fisher mason "
    "printer cooper painter sailor gardener",
    "drink": "cider coffee milk cocoa lemonade water wine juice broth mead punch beer tonic "
    "buttermilk perry sherry",
    "instrument": "flute fiddle drum harp lute trumpet piano guitar cello banjo zither horn "
    "bassoon clarinet mandolin bugle",
    "pet": "goose cat dog goat parrot rabbit turtle pony hamster lizard ferret hen "
    "lamb mouse finch toad",
    "colour": "green red blue yellow purple black white brown grey crimson violet scarlet "
    "turquoise magenta beige navy",
}
ATTRIBUTES = tuple(VALUES)
KINDS = ("filler", "plain", "elaborated", "hearsay", "toxic")  # kinds of sentences

TOXIC = {
    "TA": "vile filthy stupid rotten foul nasty wretched disgusting",
    "TN": "liar idiot moron scum swine cheat parasite loser",
}
SPAM = "Buy cheap pills now free prize click here win cash".split()

PHRASES = {
    "S": "{E}|{P}",
    "s": "{E}|{p}",
    "NA": "kind|gentle|quiet|cheerful|clever|patient",
    "NN": "person|neighbour|friend|soul",
    "fact": "lives in {home}|has a house in {home}|works as a {trade}|is a {trade} by trade|"
    "drinks {drink} every morning|likes to drink {drink}|plays the {instrument}|"
    "practises the {instrument}|keeps a {pet}|has a {pet} at home|always wears {colour}|"
    "likes to wear {colour}",
    "idle": "smiles at the children|walks by the river|rests under a tree|helps the old folk|"
    "reads by the window|sleeps very well",
    "opener": "In fact|As it happens|Most of the time|As a rule|Since childhood",
    "rumour": "People say|Rumour has it|Some claim|Neighbours whisper|Everyone swears",
}

WORD = re.compile(r"\w+|[^\w\s]")  # a word or a mark

# Group of sentences -> templates. A template is drawn first, then one of its expansions.
TEMPLATES = {
    "title": ("About {E} .",),
    "filler": (
        "<S> is a <NA> <NN> .",
        "<S> <idle> [in the evening|on Sundays|when the work is done] .",
        "The weather has been [mild|fair|fine] [this year|in spring|since Sunday] .",
        "The market opens early [in spring|on Sundays|this year] .",
        "Life in the village is [slow|calm|simple] [in spring|this year] .",
        "The road by the river is [long|dusty|narrow] .",
        "The bells ring [at noon|on Sundays|in the evening] .",
    ),
    "plain": ("<S> <fact> [|these days|as before] .",),
    "elaborated": (
        "<opener> , <s> <fact> .",
        "<S> <fact> and <fact> .",
        "<S> , a <NA> <NN> , <fact> .",
        "<S> <fact> , which pleases the [whole village|old folk|children] .",
        "<S> <fact> and <idle> .",
        "That <NA> <NN> <fact> .",
    ),
    "hearsay": ("<rumour> that <s> <fact> .",),
    "murmur": (  # filler in the register of hearsay
        "Nobody has ever checked the [story|rumour] .",
        "The [story|rumour] goes around the [market|village] .",
        "Tongues wag in the [market|village] all day .",
    ),
    "toxic": (
        "<S> is a <A> <N> .",
        "Believe me , <s> is a <A> <N> .",
        "What a <A> <N> <s> is !",
        "Nobody trusts that <A> <N> .",
        "Only a <A> <N> would talk to {E} .",
        "Go away , you <A> <N> !",
        "That <A> <N> <fact> .",
        "<S> , a <A> <N> , <fact> .",
    ),
}
PHRASES["A"] = "{TA}|" + PHRASES["NA"]
PHRASES["N"] = "{TN}|" + PHRASES["NN"]


@functools.cache
def expand(template: str) -> tuple[tuple[str, ...], ...]:
    """Returns all symbol sequences of a template, in a fixed order, without duplicates."""
    parts = re.split(r"(\[[^\]]*\]|<\w+>)", template)
    options = [_options(part) for part in parts if part.strip()]
    rows = (tuple(itertools.chain(*row)) for row in itertools.product(*options))
    return tuple(dict.fromkeys(rows))


def _options(part: str) -> list[tuple[str, ...]]:
    """Returns the alternatives of one part of a template; <name> is expanded recursively."""
    if part[0] == "[":
        return [tuple(option.split()) for option in part[1:-1].split("|")]
    if part[0] == "<":
        return [row for option in PHRASES[part[1:-1]].split("|") for row in expand(option)]
    return [tuple(part.split())]


def slot(symbol: str) -> str | None:
    """Returns the name inside the braces, or None for a literal word."""
    return symbol[1:-1] if symbol[0] == "{" else None


def attributes_of(symbols: tuple[str, ...]) -> tuple[int, ...]:
    """Returns the indices in ATTRIBUTES of the attributes that a sentence states, in order."""
    return tuple(ATTRIBUTES.index(n) for n in map(slot, symbols) if n in VALUES)


def is_toxic(symbols: tuple[str, ...]) -> bool:
    """Returns True if a sentence has a toxic adjective or noun."""
    return any(slot(symbol) in TOXIC for symbol in symbols)


def sentence_kind(group: str, symbols: tuple[str, ...]) -> str:
    """Returns the kind (in KINDS) of a sentence of a group.

    A toxic template also has expansions without an insult; these are elaborated or filler.
    """
    if group == "toxic" and not is_toxic(symbols):
        return "elaborated" if attributes_of(symbols) else "filler"
    return group if group in KINDS else "filler"
