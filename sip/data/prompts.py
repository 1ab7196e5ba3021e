"""Prompts from JSON Lines: `prompt`, a text or a list of messages, beside any other fields.

The other fields are handed to rewards. A line without a usable prompt is left out and counted by
its reason. A prompt's part (train, validation or test) is chosen by a hash of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sip.data import conversations
from sip.data.conversations import BLANK, Format, Unusable, read_rows, row_of
from sip.data.documents import PARTS, part
from sip.structs import UserError
from sip.text.segments import Ids
from sip.text.tokenizer import Tokenizer

MISSING = "without a field 'prompt'"
NEITHER = "with a prompt that is neither text nor messages"
TOO_LONG = "longer than {} tokens (model.max_len - answer)"


@dataclass(frozen=True)
class Prompt:
    """A prompt as token ids, as text for a judge, and as it stands in the file."""

    ids: Ids
    text: str
    given: Any  # a text or a list of messages
    fields: Mapping[str, Any] = field(default_factory=dict)  # the other fields of its line


Encode = Callable[[Any], Ids]


def plain(tokenizer: Tokenizer) -> Encode:
    """Returns the encoding of texts: BOS and the text. Raises UserError for messages."""

    def encode(given) -> Ids:
        if not isinstance(given, str):
            raise UserError(
                "task.chat is empty, but the prompts are messages; set it to a chat template, such "
                "as own (the tokenizer's) or turns"
            )
        return [tokenizer.bos, *tokenizer.encode(given)]

    return encode


def chatted(form: Format) -> Encode:
    """Returns the encoding by a chat template, up to where the model answers."""

    def encode(given) -> Ids:
        messages = conversations.messages_of(given, "user")
        return conversations.prompt(form, conversations.checked(messages, answered=False))

    return encode


def encoding(name: str, tokenizer: Tokenizer, workdir: str = "") -> tuple[Encode, tuple[int, ...]]:
    """Returns (encoding of prompts, token ids that end an answer) of the chat template `name`, or
    of plain texts if it is empty. Raises UserError."""
    if not name:
        return plain(tokenizer), tokenizer.stops
    form = conversations.named_format(name, tokenizer, workdir)
    return chatted(form), form.stops


def read(
    path: str, encode: Encode, *, max_len: int, max_skipped_fraction: float
) -> tuple[dict[str, list[Prompt]], dict[str, int]]:
    """Reads JSON Lines; `path` is a file, several, a folder or a glob.

    Returns ({train | validation | test: prompts}, left_out by reason). Raises UserError if a file
    cannot be read, or if more than `max_skipped_fraction` of the lines are left out.
    """

    def parse(line: bytes) -> Prompt:
        found = _prompt(line, encode)
        if len(found.ids) > max_len:
            raise Unusable(TOO_LONG.format(max_len))
        return found

    found, left_out = read_rows(
        path, parse, what="prompts", fields="prompt: .QUESTION",
        max_skipped_fraction=max_skipped_fraction,
    )  # fmt: skip
    parts: dict[str, list[Prompt]] = {which: [] for which in PARTS}
    for _, prompt in found:
        parts[part(prompt.text)].append(prompt)
    return parts, left_out


def _prompt(line: bytes, encode: Encode) -> Prompt:
    row = row_of(line)
    if "prompt" not in row:
        raise Unusable(MISSING, row)
    given = row["prompt"]
    if not isinstance(given, str | list):
        raise Unusable(NEITHER)
    text = given if isinstance(given, str) else _text(given)
    if not text.strip():
        raise Unusable(BLANK)
    return Prompt(encode(given), text, given, {k: x for k, x in row.items() if k != "prompt"})


def _text(messages: list[Any]) -> str:
    """Returns messages as one text: the content of a single one, else a paragraph for each."""
    said = conversations.messages_of(messages, "user")
    if len(said) == 1:
        return said[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in said)
