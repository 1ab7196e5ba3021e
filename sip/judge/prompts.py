"""Judge prompts are data: one text file per aspect.

A file has a header (version, kind, options, values; for a reasoned aspect also `verdict`, the
phrase before the verdict) and two parts, each under a marker line. The trunk is shared by all
candidates of a prefix. The branch shows one candidate or one pair and starts on a new line.

A filled template is a tuple of segments: the template's own words at even indices, the text under
judgement at odd ones. Segments are encoded one by one, so text under judgement can neither merge
with the template's tokens nor be read as part of the template.
"""

import contextlib
import json
import pathlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sip.judge import verdicts
from sip.structs import UserError
from sip.text import template
from sip.text.chat import Turn
from sip.text.segments import Markup
from sip.text.template import fields, fill, pieces, quote
from sip.text.tokenizer import Tokenizer
from sip.text.tokenizer_json import is_phrase

MARKERS = "=== trunk\n", "\n=== branch\n"
FIELDS = {"pairwise": ["first", "second"], "pointwise": ["text"]}


@dataclass(frozen=True)
class Aspect:
    """One question to a judge, with its prompt and its possible answers.

    `values[o]` is the score of option o, between 0 and 1. In a pairwise aspect the first option
    means that the first candidate is better and the last option that the second one is. A tie may
    be between them: `values` is (1, 0) or (1, 1/2, 0). An aspect is reasoned if it has a `verdict`:
    the judge writes its reasoning, then this phrase, then the option. Otherwise it is direct: the
    answer begins with the option. Raises UserError if the parts do not fit together.
    """

    name: str
    kind: str  # pairwise | pointwise
    trunk: str  # template with {prefix} and {reference}, both optional
    branch: str  # template with {first} and {second}, or {text}
    options: tuple[str, ...]
    values: tuple[float, ...]
    verdict: str = ""  # the phrase before the option in a reasoned answer; empty: no reasoning
    version: int = 1  # version of the wording; a changed wording has a new version
    head: str = ""  # text of the chat template before the trunk
    tail: str = ""  # text of the chat template after a branch

    def __post_init__(self):
        problem = _problem(self)
        if problem:
            raise UserError(f"aspect {self.name!r}: {problem}")

    @property
    def reference(self) -> bool:
        """True if the prompt shows a reference text beside the candidates."""
        return "reference" in fields(self.trunk)

    @property
    def per_prefix(self) -> bool:
        """True if the trunk depends on the prefix or reference; False if it is the same for all."""
        return bool(fields(self.trunk))


def load(name: str) -> Aspect:
    """Loads a built-in aspect by name, or a user's own by the path of its .txt file."""
    return parse(pathlib.Path(name).stem, template.read("aspect", name, "judge"))


def parse(name: str, text: str) -> Aspect:
    """Parses the `text` of a prompt file. Raises UserError if it is malformed."""
    header, found, parts = text.partition(MARKERS[0])
    trunk, also, branch = parts.partition(MARKERS[1])
    if not (found and also):
        raise UserError(
            f"aspect {name!r}: the prompt file needs a line '=== trunk' and a line '=== branch'"
        )
    try:
        entries = _entries(header)
        kind, version = entries.pop("kind"), int(entries.pop("version", "1"))
        options = tuple(_json("options", entries.pop("options"), list, str))
        values = tuple(map(float, _json("values", entries.pop("values"), list, int | float)))
        verdict = _json("verdict", entries.pop("verdict", '""'), str)
    except KeyError as error:
        raise UserError(f"aspect {name!r}: no line {error} in the prompt file's header") from None
    except (ValueError, OverflowError) as error:
        raise UserError(f"aspect {name!r}: bad header in the prompt file ({error})") from None
    if entries:
        raise UserError(f"aspect {name!r}: unknown header line {min(entries)!r}")
    branch = "\n" + branch.removesuffix("\n")
    return Aspect(name, kind, trunk, branch, options, values, verdict, version)


def _entries(header: str) -> dict[str, str]:
    """Splits a header into its lines KEY: VALUE. Raises ValueError."""
    found: dict[str, str] = {}
    for line in filter(None, header.split("\n")):
        key, colon, value = line.partition(": ")
        if not colon or key in found:
            raise ValueError(f"{line:.80} must be KEY: VALUE, each key once")
        found[key] = value
    return found


def _json(key: str, text: str, kind: type, each: Any = object) -> Any:
    """Parses a header's JSON value of type `kind`; a list has entries of type `each`.

    Raises ValueError.
    """
    found: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(text)
    if not isinstance(found, kind) or not all(isinstance(x, each) for x in found):
        wanted = 'in quotation marks, like "Score:"' if kind is str else "a list like [1, 0]"
        wanted = 'a list like ["yes", "no"]' if each is str else wanted
        raise ValueError(f"{key}: {text:.80} must be {wanted}")
    return found


def _problem(aspect: Aspect) -> str | None:
    """Describes what is wrong with an aspect; None if it is valid."""
    if aspect.kind not in FIELDS:
        return f"kind must be one of {sorted(FIELDS)}, not {aspect.kind!r}"
    if not set(fields(aspect.trunk)) <= {"prefix", "reference"}:
        return "the trunk may contain only the fields {prefix} and {reference}"
    if list(fields(aspect.branch)) != FIELDS[aspect.kind]:
        return f"the branch must contain the fields {FIELDS[aspect.kind]}, once each, in this order"
    read = [tuple(verdicts.pieces(option.casefold())) for option in aspect.options]
    if len(read) < 2 or len(set(read)) < len(read) or () in read:
        return "at least two options are needed, different in more than case, spaces and markup"
    if len(aspect.values) != len(aspect.options) or not all(0 <= v <= 1 for v in aspect.values):
        return "one value between 0 and 1 is needed per option"
    if aspect.verdict and not verdicts.pieces(aspect.verdict):
        return f"verdict must have words or signs, not {aspect.verdict!r} alone"
    if aspect.kind == "pairwise" and aspect.values not in ((1.0, 0.0), (1.0, 0.5, 0.0)):
        return "values of a pairwise aspect must be [1, 0], or [1, 0.5, 0] with a tie"
    return None


def trunk(aspect: Aspect, *, prefix: str, reference: str) -> tuple[str, ...]:
    """Fills the trunk, the part of a prompt that all candidates of a prefix share."""
    filled = fill(aspect.trunk, {"prefix": prefix, "reference": reference})
    return (Markup(aspect.head), "", *filled) if aspect.head else filled


def branch(aspect: Aspect, *candidates: str) -> tuple[str, ...]:
    """Fills the branch with one candidate (pointwise) or two in the order shown (pairwise)."""
    filled = fill(aspect.branch, dict(zip(FIELDS[aspect.kind], candidates, strict=True)))
    return (*filled, *_tail(aspect))


def pairs(
    aspect: Aspect, texts: Sequence[str], orders: Iterable[tuple[int, int]]
) -> list[tuple[str, ...]]:
    """Returns the `branch` of texts[i] and texts[j] for each (i, j): a pairwise aspect's.

    Each text is quoted once, so that all pairs cost little more than their texts.
    """
    quoted = [quote(text) for text in texts]
    begin, between, last = pieces(aspect.branch)[::2]
    end = last, *_tail(aspect)
    return [(begin, quoted[i], between, quoted[j], *end) for i, j in orders]


def _tail(aspect: Aspect) -> tuple[str, ...]:
    return ("", Markup(aspect.tail)) if aspect.tail else ()


def seated(aspect: Aspect, turn: Turn) -> Aspect:
    """Returns the aspect for a chat model: trunk and branch become one user message.

    A reasoned answer begins at the start of the model's turn. A direct answer is the option at the
    first token of the final answer. The chat template determines whether an option begins with a
    space; the space in the prompt file is dropped.
    """
    if aspect.verdict:
        return replace(aspect, head=turn.head, tail=turn.tail)
    options = tuple(turn.space + option.lstrip(" ") for option in aspect.options)
    return replace(aspect, head=turn.head, tail=turn.direct, options=options)


def symbols(aspects: Iterable[Aspect]) -> tuple[str, ...]:
    """Lists the strings that a tokenizer trained for these prompts should encode as single tokens.

    These are the options, and the literal pieces of the templates that are single phrases.
    """
    found: dict[str, None] = {}
    for aspect in aspects:
        literals = pieces(aspect.trunk)[::2] + pieces(aspect.branch)[::2]
        found.update(dict.fromkeys((*filter(is_phrase, literals), *aspect.options)))
    return tuple(found)


def check_options(tokenizer: Tokenizer, aspect: Aspect) -> None:
    """Raises UserError unless each option of a direct aspect is exactly one token.

    Different options have different tokens, as each token decodes to its option.
    """
    if aspect.verdict:
        raise UserError(
            f"aspect {aspect.name!r} is answered after reasoning (verdict {aspect.verdict!r}): "
            "its verdicts are not single tokens; use a direct aspect"
        )
    for option in aspect.options:
        ids = tokenizer.encode(option)
        if len(ids) != 1 or tokenizer.decode(ids) != option:
            raise UserError(
                f"aspect {aspect.name!r}: option {option!r} is {len(ids)} tokens of the tokenizer, "
                "not one; choose another word or train the tokenizer with it as a symbol"
            )
