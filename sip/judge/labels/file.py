"""Labelled examples in a JSON Lines file, for corpora without a ground truth.

A line has the keys `aspect` (name of a judge prompt), `prefix`, `candidates` (one text, or two for
a pairwise aspect), `label` (the right option) and, if the aspect shows one, `reference`. Pairs are
asked in both orders. The prefix determines the split of a line (train, validation or test), by the
same hash that splits documents.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sip.data.documents import PARTS, part
from sip.data.records import NOT_UTF8, text_of
from sip.judge import prompts
from sip.judge.labels import ground_truth as labels
from sip.judge.labels.ground_truth import Example, LabelledPrompts
from sip.judge.prompts import FIELDS, Aspect
from sip.structs import UserError
from sip.text.lines import read_texts
from sip.text.segments import Text, tokens_of
from sip.text.tokenizer import Cached, Tokenizer
from sip.workdir import to_json, write_atomically

Rows = dict[Text, list[Example]]  # trunk -> its examples
PER_ROW = 16  # most examples per trunk; even, to keep the two orders of a pair together


@dataclass(frozen=True)
class LabelLine:
    """One labelled example, a line of the file."""

    aspect: Aspect
    prefix: str
    candidates: tuple[str, ...]  # one text (pointwise) or two (pairwise)
    label: int  # index of the right option
    reference: str  # empty if the aspect shows none


def read(
    path: str, aspects: Sequence[Aspect], tokenizer: Tokenizer, *, max_len: int
) -> dict[str, dict[str, LabelledPrompts]]:
    """Reads a file of labels. Returns {"train" | "validation" | "test": {aspect: examples}}.

    Prompts longer than `max_len` tokens are dropped. Raises UserError with the number of a
    malformed line, or for an aspect without examples in a split.
    """
    rows: dict[str, dict[str, Rows]] = {
        which: {aspect.name: defaultdict(list) for aspect in aspects} for which in PARTS
    }
    known = {aspect.name: aspect for aspect in aspects}
    for number, text in enumerate(read_texts(path, "labels"), 1):
        if text.strip():
            line = _line(f"{path}:{number}", text, known)
            for trunk, example in _examples(line):
                rows[part(line.prefix)][line.aspect.name][trunk].append(example)
    cached = Cached(tokenizer)
    return {
        which: {
            name: _labelled(path, which, known[name], found, cached, max_len)
            for name, found in by_aspect.items()
        }
        for which, by_aspect in rows.items()
    }


def labelled(
    split: str, aspect: Aspect, lines: Sequence[LabelLine], tokenizer: Tokenizer, max_len: int
) -> LabelledPrompts:
    """Returns labelled lines of one aspect as prompts, pairs in both orders.

    Prompts longer than `max_len` tokens are dropped; raises UserError if all are.
    """
    rows: Rows = defaultdict(list)
    for line in lines:
        for trunk, example in _examples(line):
            rows[trunk].append(example)
    return _labelled("labels", split, aspect, rows, Cached(tokenizer), max_len)


def write(path: str, lines: Sequence[LabelLine]) -> None:
    """Writes a file of labels atomically. Raises UserError if it exists already."""
    check_new(path)
    try:
        text = "".join(f"{to_json(_values(line))}\n" for line in lines)
        check_new(path)  # again: `lines` may be made only while they are written
        write_atomically(path, text.encode())
    except OSError as error:
        raise UserError(f"{path}: cannot write the labels: {error.strerror}") from None


def check_new(path: str) -> None:
    """Raises UserError if the file exists already or its directory does not."""
    if Path(path).exists():
        raise UserError(f"{path}: file exists already and is not overwritten; choose another name")
    if not Path(path).parent.is_dir():
        raise UserError(f"{path}: directory {Path(path).parent} does not exist; create it first")


def _values(line: LabelLine) -> dict[str, Any]:
    """The JSON object of a line."""
    values = dict(
        aspect=line.aspect.name,
        prefix=line.prefix,
        candidates=line.candidates,
        label=line.aspect.options[line.label].strip(),
    )
    return {**values, "reference": line.reference} if line.aspect.reference else values


def _line(at: str, text: str, known: dict[str, Aspect]) -> LabelLine:
    """Parses a line; `at` is FILE:LINE for errors."""
    try:
        values: Any = json.loads(text)
        aspect = known[values["aspect"]]
        options = [option.strip() for option in aspect.options]
        candidates, label = tuple(values["candidates"]), options.index(values["label"].strip())
        reference = values["reference"] if aspect.reference else ""
        texts = (values["prefix"], reference, *candidates)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{at}: not a labelled example ({type(error).__name__}: {error})") from None
    if text_of(values["prefix"])[1] == NOT_UTF8:  # it decides the split
        raise UserError(f"{at}: prefix: {NOT_UTF8}; it has a lone surrogate, such as \\ud800")
    if len(candidates) != len(FIELDS[aspect.kind]) or not all(isinstance(t, str) for t in texts):
        raise UserError(f"{at}: {aspect.name} needs {len(FIELDS[aspect.kind])} texts in candidates")
    return LabelLine(aspect, values["prefix"], candidates, label, reference)


def _examples(line: LabelLine) -> Sequence[tuple[Text, Example]]:
    """Lists (trunk, (branch, label)) of a line; a pair gives two, one for each order."""
    trunk = prompts.trunk(line.aspect, prefix=line.prefix, reference=line.reference)
    found = [(trunk, (prompts.branch(line.aspect, *line.candidates), line.label))]
    if line.aspect.kind == "pairwise":
        other = prompts.branch(line.aspect, *reversed(line.candidates))
        last = len(line.aspect.options) - 1
        found.append((trunk, (other, last - line.label)))
    return found


def _labelled(path, which, aspect, rows: Rows, cached, max_len) -> LabelledPrompts:
    """The examples that fit `max_len` tokens, up to PER_ROW on a trunk."""
    kept: list[tuple[Text, list[Example]]] = []
    for trunk, row in rows.items():
        room = max_len - 1 - len(tokens_of(cached, trunk))  # BOS
        fit = [example for example in row if len(tokens_of(cached, example[0])) < room]
        kept += [(trunk, fit[i : i + PER_ROW]) for i in range(0, len(fit), PER_ROW)]
    if not kept:
        raise UserError(
            f"{path}: no {which} example of aspect {aspect.name!r} fits {max_len} tokens"
        )
    label_rows = [[label for _, label in row] for _, row in kept]
    length_N1 = np.array([[len(row)] for row in label_rows])
    C = int(length_N1.max())
    asked = [(trunk, [branch for branch, _ in row]) for trunk, row in kept]
    return LabelledPrompts(aspect, asked, labels.padded(label_rows, C), np.arange(C) < length_N1)
