"""Preference pairs from JSON Lines: a prompt, a chosen and a rejected answer.

Formats, recognised line by line by their fields:

prompt, chosen, rejected               texts, or lists of messages ({"role": .., "content": ..})
chosen, rejected                       whole conversations with a common beginning, the prompt
question, response_A, response_B       label "A>B" or "B>A" (JudgeBench)
input, output_1, output_2              label 1 or 2, the better one (MT-Bench, LLMBar)

A line may have a number `margin`, by how much the chosen answer is better. A pair that teaches
nothing (an empty side, equal sides, a tie) or that cannot be read is left out and counted by its
reason. All pairs of a prompt are in the same part (train, validation or test), by the hash that
splits documents.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sip.data import conversations
from sip.data.conversations import Format, Unusable, check_left_out, read_rows, row_of
from sip.data.documents import PARTS, part
from sip.sections import is_finite
from sip.structs import UserError
from sip.text.chat import Message
from sip.text.segments import Ids
from sip.text.tokenizer import Cached, Tokenizer

Side = str | tuple[Message, ...]  # a text, or messages
# The field names of each format: prompt, first side, second side.
FORMATS = {
    "chosen": ("prompt", "chosen", "rejected"),
    "response_A": ("question", "response_A", "response_B"),
    "output_1": ("input", "output_1", "output_2"),
}
# Labels by which the first or the second side is chosen; equal marks are a tie.
FIRST, SECOND, TIE = ("A>B", 1, "1"), ("B>A", 2, "2"), ("A=B", "B=A", 0, "0", "tie")
ASSISTANT = "\n\nAssistant:"  # begins an answer in dialogues that are one text
# Reasons why a line is left out.
TIED = "a tie"
EMPTY, EQUAL, ALONE = "with an empty side", "with equal sides", "without a common beginning"
MANY = "with a side of other messages than one answer"
UNLIKE, NO_TEXT = "with sides of two kinds", "with a side that is neither text nor messages"
NO_LABEL, NO_MARGIN = "with an unknown label", "with a margin that is no number >= 0"
NO_PROMPT = "with a prompt that is neither text nor messages"
TOO_LONG = "longer than {} tokens (model.max_len)"


@dataclass(frozen=True)
class Pair:
    """A prompt with a chosen and a rejected answer: three texts, or three lists of messages."""

    prompt: Side
    chosen: Side
    rejected: Side
    margin: float | None = None  # by how much the chosen answer is better; None: not said


@dataclass(frozen=True)
class Pairs:
    """The pairs of files, and the lines that are left out by reason."""

    pairs: list[Pair]
    read: int  # lines
    left_out: Mapping[str, int]


def read(path: str, *, max_skipped_fraction: float) -> Pairs:
    """Reads JSON Lines of pairs; `path` is a file, several, a folder or a glob.

    Raises UserError if a file cannot be read, if there is no pair, or if more than
    `max_skipped_fraction` of the lines are left out.
    """
    found, left_out = read_rows(
        path, _pair, what="lines", fields="prompt: .QUESTION, chosen: .BETTER, rejected: .WORSE",
        max_skipped_fraction=max_skipped_fraction,
    )  # fmt: skip
    pairs = [pair for _, pair in found]
    return Pairs(pairs, len(pairs) + sum(left_out.values()), left_out)


def _pair(line: bytes) -> Pair:
    """Returns the pair of a line. Raises Unusable."""
    row = row_of(line)
    fields = next((f for key, f in FORMATS.items() if key in row), FORMATS["chosen"])
    prompt, first, second = fields
    for name in (first, second):
        if name not in row:
            raise Unusable(f"without a field {name!r}", row)
    sides = [_side(row[name], NO_TEXT) for name in (first, second)]
    if prompt != "prompt":
        sides = sides if _first_is_better(row) else sides[::-1]
    given = _side(row[prompt], NO_PROMPT) if prompt in row else None
    return _checked(*_parted(given, *sides), _margin(row))


def _side(value: Any, reason: str) -> Side:
    """Returns a text, or messages. Raises Unusable with `reason` for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        value = [value]
    good = isinstance(value, list) and all(map(_is_message, value))
    if not good:
        raise Unusable(reason)
    return tuple(value)


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and "role" in value
        and "content" in value
        and isinstance(value["role"], str)
        and isinstance(value["content"], str)
    )


def _first_is_better(row: dict[str, Any]) -> bool:
    label = row["label"] if "label" in row else None
    label = label.strip() if isinstance(label, str) else label
    if isinstance(label, bool) or label not in (*FIRST, *SECOND, *TIE):
        raise Unusable(NO_LABEL)
    if label in TIE:
        raise Unusable(TIED)
    return label in FIRST


def _margin(row: dict[str, Any]) -> float | None:
    value = row["margin"] if "margin" in row else None
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not is_finite(value) or value < 0:
        raise Unusable(NO_MARGIN)
    return float(value)


def _parted(given: Side | None, chosen: Side, rejected: Side) -> tuple[Side, Side, Side]:
    """Returns (prompt, chosen, rejected), with the common beginning of whole conversations in the
    prompt."""
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise Unusable(UNLIKE)
    if isinstance(chosen, str) and isinstance(rejected, str):
        if given is None:
            at = _common_text(chosen, rejected)
            return chosen[:at], chosen[at:], rejected[at:]
        if isinstance(given, str):
            return given, chosen, rejected
        answer = lambda text: ({"role": "assistant", "content": text},)  # a chat's bare answers
        return given, answer(chosen), answer(rejected)
    assert not isinstance(chosen, str) and not isinstance(rejected, str)
    same = [a == b for a, b in zip(chosen, rejected, strict=False)]
    at = same.index(False) if False in same else len(same)
    begun, chosen, rejected = tuple(chosen[:at]), tuple(chosen[at:]), tuple(rejected[at:])
    if given is None and not begun and (chosen and rejected):
        raise Unusable(ALONE)
    return _prompt(given, begun), chosen, rejected


def _prompt(given: Side | None, begun: tuple[Message, ...]) -> Side:
    """The prompt's messages: those given, and those that both sides begin with.

    Some files repeat the prompt at the beginning of both sides.
    """
    asked: tuple[Message, ...] = ()
    if isinstance(given, str):
        asked = ({"role": "user", "content": given},)
    elif given is not None:
        asked = tuple(given)
    said = lambda messages: [(m["role"], m["content"]) for m in messages]
    repeated = not asked or said(begun[-len(asked) :]) == said(asked)
    return begun if begun and repeated else (*asked, *begun)


def _common_text(a: str, b: str) -> int:
    """Returns the length of the prompt that two dialogues begin with, in characters.

    It ends behind the last "\\n\\nAssistant:" of the common beginning, or else behind its last
    white space, so that no word is cut.
    """
    common = os.path.commonprefix([a, b])
    at = common.rfind(ASSISTANT)
    if at >= 0:
        return at + len(ASSISTANT)
    return len(common) - len(common.split()[-1]) if _inside_a_word(common) else len(common)


def _inside_a_word(text: str) -> bool:
    return bool(text) and not text[-1].isspace()


def _checked(prompt: Side, chosen: Side, rejected: Side, margin: float | None) -> Pair:
    if any(_blank(side) for side in (chosen, rejected)):
        raise Unusable(EMPTY)
    if _said(chosen) == _said(rejected):
        raise Unusable(EQUAL)
    return Pair(prompt, chosen, rejected, margin)


def _blank(side: Side) -> bool:
    if isinstance(side, str):
        return not side.strip()
    return not side or any(not m["content"].strip() for m in side if m["role"] == "assistant")


def _said(side: Side):
    if isinstance(side, str):
        return side.strip()
    return [(m["role"], m["content"].strip()) for m in side]


def part_of(pair: Pair) -> str:
    """Returns the part (train, validation or test) of a pair, by a hash of its prompt.

    Pairs without a prompt are split by their chosen answer.
    """
    prompt = pair.prompt or pair.chosen
    return part(prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True))


@dataclass(frozen=True)
class Tokens:
    """A pair as token ids. The prompt begins with BOS or the template's beginning; each answer ends
    with EOS or the template's end of an answer."""

    prompt: Ids
    chosen: Ids
    rejected: Ids
    margin: float | None = None


Encode = Callable[[Pair], Tokens]


def plain(tokenizer: Tokenizer) -> Encode:
    """Returns the encoding of pairs of texts: BOS, the prompt, and an answer with EOS.

    Raises UserError for a pair of messages.
    """
    cached = Cached(tokenizer, 1 << 12)

    def encode(pair: Pair) -> Tokens:
        if not all(isinstance(x, str) for x in (pair.prompt, pair.chosen, pair.rejected)):
            raise UserError(
                "pairs.chat is empty, but the pairs are messages; set it to a chat template, such "
                "as own (the tokenizer's) or turns"
            )
        prompt, *sides = (cached.encode(x) for x in (pair.prompt, pair.chosen, pair.rejected))
        chosen, rejected = ([*ids, tokenizer.eos] for ids in sides)
        return Tokens([tokenizer.bos, *prompt], chosen, rejected, pair.margin)

    return encode


def chatted(form: Format) -> Encode:
    """Returns the encoding of pairs by a chat template; a text is a message.

    It raises Unusable for a pair that breaks the rules of conversations.
    """

    def encode(pair: Pair) -> Tokens:
        asked = conversations.messages_of(_listed(pair.prompt), "user")
        asked = conversations.checked(asked, answered=False)
        prompt = conversations.prompt(form, asked)
        chosen, rejected = (
            _answer(form, asked, prompt, side) for side in (pair.chosen, pair.rejected)
        )
        return Tokens(prompt, chosen, rejected, pair.margin)

    return encode


def _listed(side: Side):
    return side if isinstance(side, str) else list(side)


def _answer(form: Format, asked: list[Message], prompt: Ids, side: Side) -> Ids:
    """Returns the ids of an answer behind its prompt, up to the token that ends it."""
    said = conversations.messages_of(_listed(side), "assistant")
    if [message["role"] for message in said] != ["assistant"]:
        raise Unusable(MANY)
    example = conversations.examples(form, conversations.answered(asked, said))[-1]
    if example.ids[: len(prompt)] != prompt:
        raise Unusable("whose answers the chat template begins without its generation prompt")
    end = len(example.learned) - example.learned[::-1].index(True)
    return example.ids[len(prompt) : end]


def tokens(
    found: Pairs, encode: Encode, *, path: str, max_len: int, max_skipped_fraction: float
) -> tuple[dict[str, list[Tokens]], Mapping[str, int]]:
    """Encodes pairs. Returns ({train | validation | test: pairs}, left_out by reason).

    A prompt with its longer answer must fit `max_len` tokens. Raises UserError if more than
    `max_skipped_fraction` of the lines are left out, or no pair is left to train on.
    """
    parts: dict[str, list[Tokens]] = {which: [] for which in PARTS}
    counts = Counter(found.left_out)
    for pair in found.pairs:
        try:
            new = encode(pair)
        except Unusable as why:
            counts[str(why)] += 1
            continue
        if len(new.prompt) + max(len(new.chosen), len(new.rejected)) > max_len:
            counts[TOO_LONG.format(max_len)] += 1
        elif new.chosen == new.rejected:
            counts[EQUAL] += 1
        else:
            parts[part_of(pair)].append(new)
    check_left_out(path, "lines", found.read, counts, max_skipped_fraction)
    if not parts["train"]:
        raise UserError(
            f"{path}: all {len(found.pairs)} pairs are held out by the hash of their "
            "prompts, none is left to train on; add pairs"
        )
    return parts, dict(counts)
