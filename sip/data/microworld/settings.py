"""The config of a micro-world. A module of its own: checking a config must not import TFDS."""

import dataclasses
import hashlib
from dataclasses import dataclass

from sip.data.microworld import lexicon
from sip.sections import at_least, check
from sip.structs import UserError

FORMAT = 1  # increase it if world, templates or documents change: old data sets are not reused
DATA_VERSION = f"{FORMAT}.0.0"  # of the data sets, as TFDS writes it
KINDS = ("plain", "elaborated", "hearsay", "unsafe", "bad")  # kinds of documents
SPLITS = ("test", "validation", "train")  # a split contains no text of the splits before it
ONSETS = "b d f g h k l m n p r s t v w z".split()
VOWELS = "aeiou"
ENDINGS = "ao"  # names in -a take the pronoun she, names in -o he
MAX_ENTITIES = (len(ONSETS) * len(VOWELS)) ** 2 * len(ONSETS) * len(ENDINGS) // 2
MAX_VALUES = min(len(words.split()) for words in lexicon.VALUES.values())
TWO_HOP, RUNNING_SUM = PROBLEMS = ("two_hop", "running_sum")  # kinds of problems
RELATIONS = ("friend", "cousin")  # between the entities of problems
ANSWERED = "The answer is {}."  # the end of a riddle
SHARES = ("wrong", "myth", "register", "unsafe_register")


@dataclass(frozen=True)
class WorldConfig:
    """The parameters of a micro-world and its corpus; equal values give identical bytes.

    The fractions plain + elaborated + hearsay + unsafe + bad must sum to 1. Raises UserError for an
    invalid value.
    """

    seed: int = 0  # of facts and documents
    entities: int = 48  # number of entities that the documents are about
    values_per_attribute: int = 12  # possible values of each attribute
    train: int = 40_000  # number of documents to learn from
    validation: int = 1_500  # number of held-out documents
    test: int = 2_500  # number of held-out documents
    plain: float = 0.26  # fraction of documents of this kind
    elaborated: float = 0.11  # fraction of documents of this kind
    hearsay: float = 0.31  # fraction of documents of this kind
    unsafe: float = 0.21  # fraction of documents of this kind
    bad: float = 0.11  # fraction of documents of this kind
    wrong: float = 0.85  # fraction of the facts in hearsay documents that are wrong
    myth: float = 0.80  # fraction of the wrong facts that use the one fixed false value
    register: float = 0.68  # fraction of a document's sentences that are of its kind
    unsafe_register: float = 0.9  # same for unsafe documents; high: greedy text stays unsafe

    def __post_init__(self):
        check(
            "world",
            self,
            seed=at_least(0),
            entities=at_least(2, most=MAX_ENTITIES),
            values_per_attribute=at_least(2, most=MAX_VALUES),
            **dict.fromkeys(SPLITS, at_least(0)),
            **dict.fromkeys((*KINDS, *SHARES), at_least(0, most=1)),
        )
        if abs(sum(getattr(self, kind) for kind in KINDS) - 1) >= 1e-6:
            raise UserError(f"world.{'+'.join(KINDS)}: must be 1 in sum")

    def key(self) -> str:
        """Returns a hash of the parameters and the format, ten hex digits."""
        text = repr((FORMAT, sorted(dataclasses.asdict(self).items())))
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def folder(self) -> str:
        """Returns the path of the world's data set inside a data directory."""
        return f"microworld/{self.name()}/{DATA_VERSION}"

    def name(self) -> str:
        """Returns the name of the data set's TFDS config. It contains the hash, so no stale data
        set is reused."""
        return f"world_{self.key()}"


STANDARD = WorldConfig()


@dataclass(frozen=True)
class ProblemWorldConfig:
    """The parameters of a micro-world of problems and of its documents. Raises UserError."""

    seed: int = 0  # of facts, relations and documents
    entities: int = 16  # number of entities that documents and problems are about
    values_per_attribute: int = 8  # possible values of each attribute
    largest: int = 12  # largest number of a sum
    riddles: float = 0.0  # fraction of the paragraphs that ask a problem and say its answer alone
    train: int = 4_000  # number of documents to learn from
    validation: int = 300  # number of held-out documents
    test: int = 300  # number of held-out documents

    def __post_init__(self):
        check(
            "world",
            self,
            seed=at_least(0),
            entities=at_least(2, most=MAX_ENTITIES),
            values_per_attribute=at_least(2, most=MAX_VALUES),
            largest=at_least(2, most=10_000),
            riddles=at_least(0, most=1),
            **dict.fromkeys(SPLITS, at_least(1)),
        )
