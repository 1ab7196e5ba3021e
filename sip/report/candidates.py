"""Reads candidates.jsonl and samples.jsonl of a run for the page, and marks differences.

A line of candidates.jsonl is one prefix of one step:

    {"step", "row", "kind": "candidates" | "answers", "prompt", "reference", "candidates": [
        {"source", "text", "score", "aspects", "valid", "why", "chosen", "rejected", "advantage",
         "tokens", "ended", "said": [{"aspect", "against", "text", "value"}]}]}

A line of samples.jsonl is a greedy continuation: {"step", "prompt", "text"}; one of alarms.jsonl is
an alarm of the watch for reward hacking: {"step", "said"}. Texts are whatever a model wrote: they
are data, and the page shows them as text.
"""

import difflib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from sip.stages import alarms, candidate_log, session

CANDIDATES, SAMPLES, ALARMS = candidate_log.FILE, session.SAMPLES_FILE, alarms.FILE
WORDS = re.compile(r"\s+|\w+|[^\w\s]")
MOST_WORDS = 1500  # of a compared text; the time grows with the square


def read(directory: str, file: str) -> tuple[list[dict], int]:
    """Returns (readable lines of a file, number of unreadable ones).

    A run that is going or was killed leaves an incomplete last line, which does not count.
    """
    path = epath.Path(directory) / file
    if not path.exists():
        return [], 0
    lines = path.read_bytes().split(b"\n")[:-1]
    make = {CANDIDATES: prefix, SAMPLES: sample, ALARMS: alarm}[file]
    found = [_made(make, line) for line in lines if line.strip(b"\0 \r")]
    rows = [row for row in found if row is not None]
    return rows, len(found) - len(rows)


def _made(make, line: bytes) -> dict | None:
    try:
        return make(json.loads(line.decode(errors="replace").strip("\0")))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def sample(line: Mapping[str, Any]) -> dict:
    """Returns a checked line of samples.jsonl. Raises KeyError or TypeError."""
    return {
        "step": _whole(line["step"]),
        "prompt": _text(line["prompt"]),
        "text": _text(line["text"]),
    }


def alarm(line: Mapping[str, Any]) -> dict:
    """Returns a checked line of alarms.jsonl. Raises KeyError or TypeError."""
    return {"step": _whole(line["step"]), "said": _text(line["said"])}


def prefix(line: Mapping[str, Any]) -> dict:
    """Returns a checked line of candidates.jsonl with marked differences.

    `compared` are the indices of the two compared candidates; each of them has `marks`, ranges of
    UTF-16 code units that the other does not have, or None if a text is too long to compare.
    Raises KeyError or TypeError.
    """
    found = [_candidate(x) for x in line["candidates"]]
    pair = compared(found)
    if pair is not None:
        a, b = (found[i] for i in pair)
        a["marks"], b["marks"] = marks(a["text"], b["text"])
    return {
        "step": _whole(line["step"]),
        "row": _whole(line["row"]),
        "kind": _text(line["kind"]),
        "prompt": _text(line["prompt"]),
        "reference": _optional(line, "reference", _text),
        "candidates": found,
        "compared": pair,
    }


def compared(found: list[dict]) -> list[int] | None:
    """Returns the indices of the chosen candidate and of the rejected one, or of the suffix if none
    is rejected; without a chosen one those of the highest and the lowest advantage. None without
    such a pair."""
    first = lambda holds: next((i for i, x in enumerate(found) if holds(x)), None)
    chosen = first(lambda x: x["chosen"])
    other = first(lambda x: x["rejected"])
    if other is None:
        other = first(lambda x: x["source"] == "suffix" and not x["chosen"])
    if chosen is not None:
        return None if other is None else [chosen, other]
    learned = [i for i, x in enumerate(found) if x["advantage"] is not None]
    pair = [pick(learned, key=lambda i: found[i]["advantage"]) for pick in (max, min) if learned]
    return pair if pair and pair[0] != pair[1] else None


def marks(a: str, b: str) -> tuple[list[list[int]] | None, list[list[int]] | None]:
    """Returns the ranges of each text whose words the other does not have, in UTF-16 code units."""
    words = [WORDS.findall(text) for text in (a, b)]
    if max(map(len, words)) > MOST_WORDS:
        return None, None
    codes = difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes()
    places = [_places(some) for some in words]
    ranges = [
        [[at[low], at[high]] for low, high in spans if high > low]
        for at, spans in zip(
            places,
            (
                [(i, j) for tag, i, j, _, _ in codes if tag != "equal"],
                [(i, j) for tag, _, _, i, j in codes if tag != "equal"],
            ),
            strict=True,
        )
    ]
    return ranges[0], ranges[1]


def _places(words: list[str]) -> list[int]:
    """Returns where each word begins in JavaScript's string, and the end of the last one."""
    found = [0]
    for word in words:
        found.append(found[-1] + len(word.encode("utf-16-le", "surrogatepass")) // 2)
    return found


def _candidate(value: Mapping[str, Any]) -> dict:
    aspects = value["aspects"] if "aspects" in value else {}
    said = value["said"] if "said" in value else []
    return {
        "source": _text(value["source"]),
        "text": _text(value["text"]),
        "score": _optional(value, "score", _number),
        "aspects": {_text(k): None if x is None else _number(x) for k, x in aspects.items()},
        "valid": value["valid"] is True,
        "why": _optional(value, "why", _text),
        "chosen": value["chosen"] is True,
        "rejected": value["rejected"] is True,
        "advantage": _optional(value, "advantage", _number),
        "tokens": _optional(value, "tokens", _whole),
        "ended": _optional(value, "ended", bool),
        "said": [_vote(x) for x in said],
    }


def _vote(value: Mapping[str, Any]) -> dict:
    return {
        "aspect": _text(value["aspect"]),
        "against": _optional(value, "against", _whole),
        "text": _optional(value, "text", _text) or "",
        "value": _optional(value, "value", _number),
    }


def _optional(value: Mapping[str, Any], key: str, make) -> Any:
    return None if key not in value or value[key] is None else make(value[key])


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("no whole number")
    return value


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError("no number")
    return round(float(value), 6) if math.isfinite(value) else None
