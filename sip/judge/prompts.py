"""Judge prompts as data: one text file per aspect, filled piece by piece.

A file has a header (version, kind, options, values; of a reasoned aspect also the phrase that its
verdict follows) and two parts, each under its marker line: the trunk, shared by all candidates of a
prefix, and the branch, one candidate or pair. The branch starts on a new line. A filled template is
a tuple of segments: the template's own words at even places, the text under judgement at odd ones.
Segments are encoded one by one, so text under judgement can neither merge with the template's
tokens nor be read as a template.
"""

import json
import pathlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from sip.structs import UserError
from sip.text import template
from sip.text.chat import Turn
from sip.text.segments import Markup
from sip.text.template import fields, fill, pieces
from sip.text.tokenizer import Tokenizer
from sip.text.tokenizer_json import is_phrase

MARKERS = "=== trunk\n", "\n=== branch\n"
FIELDS = {"pairwise": ["first", "second"], "pointwise": ["text"]}


@dataclass(frozen=True)
class Aspect:
    """One question a judge is asked. `values[o]` is what option o is worth, between 0 and 1.

    Pairwise: the first option says that the first candidate is better, the last one that the second
    is; between them there may be a tie. `values` is (1, 0) or (1, 1/2, 0).
    Without a `verdict` the answer's first words are the option itself.
    """

    name: str
    kind: str  # pairwise | pointwise
    trunk: str
    branch: str
    options: tuple[str, ...]
    values: tuple[float, ...]
    verdict: str = ""  # the phrase before the option in a reasoned answer; empty: no reasoning
    version: int = 1  # of the words: other words have another one
    head: str = ""  # what a chat template writes before the trunk, and after a branch
    tail: str = ""

    def __post_init__(self):
        problem = _problem(self)
        if problem:
            raise UserError(f"aspect {self.name!r}: {problem}")

    @property
    def reference(self) -> bool:
        """Whether the judge is shown the original suffix."""
        return "reference" in fields(self.trunk)

    @property
    def per_prefix(self) -> bool:
        """Whether the trunk differs between prefixes (False: the instruction alone)."""
        return bool(fields(self.trunk))


def load(name: str) -> Aspect:
    """A built-in aspect by its name, or a user's own by the path of its .txt file."""
    return parse(pathlib.Path(name).stem, template.read("aspect", name, "sip.judge"))


def parse(name: str, text: str) -> Aspect:
    """The aspect written in a prompt file's `text`."""
    header, found, parts = text.partition(MARKERS[0])
    trunk, also, branch = parts.partition(MARKERS[1])
    if not (found and also):
        raise UserError(f"aspect {name!r}: the prompt file lacks '=== trunk' or '=== branch'")
    try:
        entries = dict(line.split(": ", 1) for line in header.splitlines() if line)
        options = tuple(json.loads(entries.pop("options")))
        values = tuple(map(float, json.loads(entries.pop("values"))))
        kind, verdict = entries.pop("kind"), json.loads(entries.pop("verdict", '""'))
        version = int(entries.pop("version", "1"))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"aspect {name!r}: bad header in the prompt file ({error})") from None
    if entries:
        raise UserError(f"aspect {name!r}: unknown header line {min(entries)!r}")
    branch = "\n" + branch.removesuffix("\n")
    return Aspect(name, kind, trunk, branch, options, values, verdict, version)


def _problem(aspect: Aspect) -> str | None:
    if aspect.kind not in FIELDS:
        return f"kind must be one of {sorted(FIELDS)}, not {aspect.kind!r}"
    if not set(fields(aspect.trunk)) <= {"prefix", "reference"}:
        return "the trunk may name {prefix} and {reference} only"
    if list(fields(aspect.branch)) != FIELDS[aspect.kind]:
        return f"the branch must name {FIELDS[aspect.kind]}, once each and in this order"
    if len(set(aspect.options)) < 2 or len(set(aspect.options)) != len(aspect.options):
        return "it needs two or more different options"
    if len(aspect.values) != len(aspect.options) or not all(0 <= v <= 1 for v in aspect.values):
        return "it needs one value between 0 and 1 per option"
    if not isinstance(aspect.verdict, str):
        return f"verdict must be a string, not {aspect.verdict!r}"
    if aspect.kind == "pairwise" and aspect.values not in ((1.0, 0.0), (1.0, 0.5, 0.0)):
        return "a pairwise aspect has options of values 1 and 0, and between them 0.5 for a tie"
    return None


def trunk(aspect: Aspect, *, prefix: str, reference: str) -> tuple[str, ...]:
    """What all candidates of a prefix share."""
    filled = fill(aspect.trunk, {"prefix": prefix, "reference": reference})
    return (Markup(aspect.head), "", *filled) if aspect.head else filled


def branch(aspect: Aspect, *candidates: str) -> tuple[str, ...]:
    """One candidate (pointwise) or two in the order shown (pairwise)."""
    filled = fill(aspect.branch, dict(zip(FIELDS[aspect.kind], candidates, strict=True)))
    return (*filled, "", Markup(aspect.tail)) if aspect.tail else filled


def seated(aspect: Aspect, turn: Turn) -> Aspect:
    """The aspect, asked in a chat: trunk and branch are one message of a user's.

    A reasoned answer begins where the model's turn does. A direct one is an option right where the
    answer's own words begin, without the space that its prompt file has before it: the template
    says whether there is one.
    """
    if aspect.verdict:
        return replace(aspect, head=turn.head, tail=turn.tail)
    options = tuple(turn.space + option.lstrip(" ") for option in aspect.options)
    return replace(aspect, head=turn.head, tail=turn.direct, options=options)


def symbols(aspects: Iterable[Aspect]) -> tuple[str, ...]:
    """Strings that a tokenizer trained for these prompts should hold as single tokens.

    Of a template's own words those that it keeps out of text under judgement, if they are symbols.
    """
    found: dict[str, None] = {}
    for aspect in aspects:
        literals = pieces(aspect.trunk)[::2] + pieces(aspect.branch)[::2]
        found.update(dict.fromkeys((*filter(is_phrase, literals), *aspect.options)))
    return tuple(found)


def check_options(tokenizer: Tokenizer, aspect: Aspect) -> None:
    """Raises UserError unless each option is one token of its own, as a direct verdict must be.

    Options differ, so tokens that decode to them do too.
    """
    if aspect.verdict:
        raise UserError(
            f"aspect {aspect.name!r} is answered after reasoning (verdict {aspect.verdict!r}): "
            "its verdicts are not single tokens"
        )
    for option in aspect.options:
        ids = tokenizer.encode(option)
        if len(ids) != 1 or tokenizer.decode(ids) != option:
            raise UserError(
                f"aspect {aspect.name!r}: option {option!r} is {len(ids)} tokens of the tokenizer, "
                "not one: choose another word or train the tokenizer with it as a symbol"
            )
