"""Prompts of the paper's evaluations, read from files in their published formats.

name                  file
standard              JSON Lines: prefix, reference (its true continuation)
unsafe                JSON Lines: prefix
realtoxicityprompts   JSON Lines: prompt.text
toxigen               JSON Lines: prompt; or .txt, a prompt per line. \\n in it is a line break
xstest                CSV: prompt, label (safe or unsafe); gives xstest_safe and xstest_unsafe
factscore             JSON Lines: input; or .txt, an entity per line
truthfulqa            JSON: question, mc1_targets, mc2_targets (mc_task.json)
halueval              JSON Lines: knowledge, question, right_answer, hallucinated_answer (QA)

The last two are questions with choices, read by `choices`.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sip.structs import UserError
from sip.text.lines import read_text, read_texts

OWN = ("standard", "unsafe")  # prefixes of the run's corpus, or of files
WRITTEN = ("realtoxicityprompts", "toxigen", "xstest", "factscore")  # to be continued
CHOICES = ("truthfulqa", "halueval")
FILES = (*OWN, *WRITTEN, *CHOICES)  # names of files
T = TypeVar("T")


@dataclass(frozen=True)
class PromptSet:
    """Prompts to be continued. Letter: E prompts."""

    name: str
    prompts: Sequence[str]
    references: Sequence[str] = ()  # true continuations; empty if there are none

    def __len__(self):
        return len(self.prompts)


@dataclass(frozen=True)
class Record:
    """A record of a file, and where it is."""

    at: str  # FILE:NUMBER
    values: Mapping[str, Any]

    def get(self, field: str, kind: type = str) -> Any:
        """Returns a field, of inner records by dots. Raises UserError naming the fields seen."""
        found: Any = self.values
        for name in field.split("."):
            if not isinstance(found, Mapping) or name not in found:
                seen = ", ".join(map(str, self.values)) or "none"
                raise UserError(f"{self.at}: no field {field!r}; the fields are {seen:.300}")
            found = found[name]
        if not isinstance(found, kind):
            words = {str: "a text", dict: "an object"}[kind]
            raise UserError(f"{self.at}: field {field!r} must be {words}, not {found!r:.40}")
        if kind is str and not found.strip():
            raise UserError(f"{self.at}: field {field!r} is blank")
        return found


def records(path: str) -> list[Record]:
    """Reads the records of a .jsonl, .json (an array), .csv or .txt file.

    A line of a .txt file is a record with the field `text`; blank lines are left out. Raises
    UserError if the file cannot be read or has no record.
    """
    if path.endswith(".csv"):
        rows = _table(path)
        numbered = list(enumerate(rows, 2))
    elif path.endswith(".json"):
        rows = _array(path)
        numbered = list(enumerate(rows, 1))
    else:
        lines = list(enumerate(read_texts(path, "evaluation set"), 1))
        plain = path.endswith(".txt")
        numbered = [
            (i, {"text": line} if plain else _object(line, f"{path}:{i}"))
            for i, line in lines
            if line.strip()
        ]
    if not numbered:
        raise UserError(f"{path}: has no records")
    return [Record(f"{path}:{i}", row) for i, row in numbered]


def _table(path: str) -> list[Any]:
    reader = csv.DictReader(io.StringIO(read_text(path, "evaluation set")), strict=True)
    try:
        return list(reader)
    except csv.Error as error:
        raise UserError(
            f"{path}: not CSV after line {reader.line_num} ({error}); is a quotation mark unclosed?"
        ) from None


def _array(path: str) -> list[Any]:
    try:
        found = json.loads(read_text(path, "evaluation set"))
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not JSON; JSON Lines end in .jsonl") from None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise UserError(f"{path}: must be an array of objects; JSON Lines end in .jsonl")
    return found


def _object(line: str, at: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{at}: not a JSON object; .txt, .csv and .json files end so")
    return found


def some(items: Sequence[T], limit: int) -> Sequence[T]:
    """Returns `limit` evenly spaced items, or all if it is 0: files are often sorted by group."""
    if not 0 < limit < len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def load(name: str, path: str, limit: int = 0) -> list[PromptSet]:
    """Reads the prompts of file `name`. Raises UserError naming a missing field."""
    if name == "xstest":
        return _xstest(path, limit)
    found = some(records(path), limit)
    references = [one.get("reference") for one in found] if name == "standard" else []
    return [PromptSet(name, [_prompt(name, one) for one in found], references)]


def _prompt(name: str, one: Record) -> str:
    """Returns the prompt of a record."""
    if name in OWN:
        return one.get("prefix")
    if name == "realtoxicityprompts":
        return one.get("prompt.text")
    plain = set(one.values) == {"text"}
    if name == "toxigen":
        return one.get("text" if plain else "prompt").replace("\\n", "\n")
    # FActScore's question; its file of prompts has entities alone.
    question = f"Question: Tell me a bio of {one.get('text')}." if plain else one.get("input")
    return f"{question.rstrip()}\nAnswer:"


def _xstest(path: str, limit: int) -> list[PromptSet]:
    """Reads XSTest. Raises UserError for a label other than safe and unsafe."""
    prompts: dict[str, list[str]] = {"safe": [], "unsafe": []}
    for one in records(path):
        label = one.get("label")
        if label not in prompts:
            raise UserError(f"{one.at}: label {label!r} must be safe or unsafe")
        prompts[label].append(one.get("prompt"))
    for label, found in prompts.items():
        if not found:
            raise UserError(f"{path}: no prompt has the label {label!r}")
    return [PromptSet(f"xstest_{label}", some(found, limit)) for label, found in prompts.items()]
