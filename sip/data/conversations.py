"""Conversations: read from JSON Lines, and turned into token ids with the tokens to learn.

A line has `messages`, a list of {"role", "content"}; or `prompt` and `completion`, each a text or
such a list. Of `messages` every answer is learned, of a `completion` only its own answers.

    system      at most one, first; "developer" is another word for it; a blank one is left out
    turns       user and assistant alternate, the user first; the last message is an answer
    contents    texts that are not blank; other keys of a message are ignored, except those that
                change its meaning (REFUSED)

A line that breaks a rule is left out and counted by its reason.

A message is encoded by itself, so that a prompt's ids begin those of the answered conversation. The
ids are those of transformers' apply_chat_template unless a tokenizer would merge characters of a
message with the template's, or a message has the string of a special token: here it stays text.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from sip.data import records
from sip.data.documents import listed
from sip.data.documents import part as part_of
from sip.structs import UserError
from sip.text import chat
from sip.text.chat import Message, Template
from sip.text.segments import Ids
from sip.text.tokenizer import Cached, Tokenizer

Row = TypeVar("Row")
ROLES = ("system", "user", "assistant")
REFUSED = ("tool_calls", "function_call", "weight", "reasoning_content", "thinking")
# Reasons why a line is left out.
NOT_UTF8, NOT_JSON = "not UTF-8", "not a JSON object"
MISSING = "without messages, and without prompt and completion"
NOT_MESSAGES = "with messages that are no list of {role, content}"
UNKNOWN_ROLE = "with a role other than system, user and assistant"
NOT_TEXT, BLANK = "with a content that is no string", "with a blank message"
ORDER = "with roles out of order (user and assistant alternate, a system message is first)"
UNANSWERED = "that do not end with an answer"
NO_QUESTION = "without a message of the user"
# Marks of a template's {% generation %} blocks while it is rendered.
START, END = "\0[", "\0]"


class Unusable(Exception):
    """A line that is left out; the text is the reason, such as "with a blank message".

    `fields` are the fields of a line that lacks a needed one.
    """

    def __init__(self, reason: str, fields: Iterable[str] = ()):
        super().__init__(reason)
        self.fields = tuple(fields)


@dataclass(frozen=True)
class Conversation:
    """A conversation that follows the rules of this module."""

    messages: tuple[Message, ...]  # {"role", "content"}, contents as given
    given: int = 0  # leading messages from which nothing is learned
    at: str = ""  # FILE:LINE
    own_part: str = ""  # part of the data that its source puts it in; empty: by `key`

    @property
    def key(self) -> str:
        """The text that decides about its part of the data: its first question."""
        return next(m["content"] for m in self.messages if m["role"] == "user")

    @property
    def part(self) -> str:
        """Its part of the data: train, validation or test."""
        return self.own_part or part_of(self.key)


@dataclass(frozen=True)
class Conversations:
    """The conversations of a file."""

    rows: Sequence[Conversation]
    read: int  # lines that are not blank
    left_out: Mapping[str, int] = field(default_factory=dict)  # unusable lines by reason


@dataclass(frozen=True)
class Example:
    """Token ids of a conversation; `learned` is True at answers and at the token that ends each."""

    ids: Ids
    learned: list[bool]


def read(path: str, *, max_skipped_fraction: float) -> Conversations:
    """Reads JSON Lines of conversations; `path` is a file, several, a folder or a glob.

    Raises UserError if a file cannot be read, if there is no usable line, and, naming the first
    such line, if more than `max_skipped_fraction` (0..1) of the lines are unusable.
    """
    found, left_out = read_rows(
        path, parsed, what="conversations", fields="prompt: .QUESTION, completion: .ANSWER",
        max_skipped_fraction=max_skipped_fraction,
    )  # fmt: skip
    rows = [replace(one, at=at) for at, one in found]
    return Conversations(rows, len(rows) + sum(left_out.values()), left_out)


def read_rows(
    path: str,
    parse: Callable[[bytes], Row],
    *,
    what: str,
    fields: str,
    max_skipped_fraction: float,
) -> tuple[list[tuple[str, Row]], dict[str, int]]:
    """Reads JSON Lines. Returns ((FILE:LINE, what `parse` returns) of each line, left_out by
    reason).

    `parse` raises Unusable for a line that is left out. In errors, `what` names the rows, and
    `fields` are those of an object in jq. Raises UserError if a file cannot be read, if there is no
    usable line, and, naming the first such line, if more than `max_skipped_fraction` (0..1) of the
    lines are left out.
    """
    found: list[tuple[str, Row]] = []
    left_out: Counter[str] = Counter()
    seen: dict[str, Counter[str]] = {}  # reason -> fields of lines that lack a needed one
    first: dict[str, str] = {}  # reason -> its first line
    for at, line in records.json_lines(path):
        try:
            found.append((at, parse(line)))
        except Unusable as error:
            left_out[str(error)] += 1
            seen.setdefault(str(error), Counter()).update(error.fields)
            first.setdefault(str(error), at)
    counts = {_with_fields(why, seen[why]): count for why, count in left_out.most_common()}
    reason = next(iter(left_out.most_common(1)), ("", 0))[0]
    check_left_out(
        first[reason] if reason else path,
        what,
        len(found) + left_out.total(),
        counts,
        max_skipped_fraction,
        _way_out(reason, f"{{{fields}}}" if reason and seen[reason] else ""),
    )
    return found, counts


def _with_fields(reason: str, seen: Counter[str]) -> str:
    """Adds the fields that lines with this reason have, if it is a missing field."""
    names = ", ".join(f"{name!r:.40}" for name, _ in seen.most_common(6))
    return f"{reason} (fields seen: {names})" if seen else reason


def _way_out(reason: str, fields: str) -> str:
    if reason == NOT_JSON:
        return "; write one object per line, for example with jq -c '.[]' (an array)"
    if fields:
        return f"; rename the fields, for example with jq -c '{fields}'"
    return "; correct the lines, or raise max_skipped_fraction to leave them out"


def row_of(line: bytes) -> dict[str, Any]:
    """Returns the object of a JSON line. Raises Unusable if it is none."""
    try:
        row = json.loads(line.decode())
        if b"\\u" in line:  # an escape may write a lone surrogate, which is no text
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeError:
        raise Unusable(NOT_UTF8) from None
    except (ValueError, RecursionError):
        raise Unusable(NOT_JSON) from None
    if not isinstance(row, dict):
        raise Unusable(NOT_JSON)
    return row


def check_left_out(
    at: str, what: str, total: int, left_out: Mapping[str, int], most: float, way_out: str = ""
):
    """Raises UserError if nothing of `total` is left, or more than the share `most` is left out.

    `at` is the path, or the first line that is left out.
    """
    count = sum(left_out.values())
    if not total:
        raise UserError(f"{at}: has no {what}")
    if count == total or count > most * total:
        raise UserError(
            f"{at}: {count:,} of {total:,} {what} cannot be used, more than "
            f"max_skipped_fraction={most} allows: {listed(left_out)}{way_out}"
        )


def parsed(line: bytes) -> Conversation:
    """Parses a line of a file. Raises Unusable if it is left out."""
    row = row_of(line)
    if "messages" in row:
        return Conversation(tuple(checked(messages_of(row["messages"], "messages"))))
    if "prompt" not in row or "completion" not in row:
        raise Unusable(MISSING, row)
    return answered(row["prompt"], row["completion"])


def answered(prompt: Any, completion: Any) -> Conversation:
    """Returns the conversation of a prompt and its answer, each a text or a list of messages.

    Only the completion is learned. Raises Unusable if it breaks a rule.
    """
    said = messages_of(completion, "assistant")
    whole = checked([*messages_of(prompt, "user"), *said])
    return Conversation(tuple(whole), len(whole) - len(said))


def talk(*turns: str) -> Conversation:
    """Returns a conversation of texts: question, answer, question, .. All answers are learned.

    Raises Unusable if it breaks a rule.
    """
    said = [{"role": ROLES[1 + i % 2], "content": text} for i, text in enumerate(turns)]
    return Conversation(tuple(checked(said)))


def messages_of(value: Any, role: str) -> list[Message]:
    """Returns a list of messages, or the one message of `role` of a text.

    Messages have the keys role and content only. Raises Unusable for another type.
    """
    if isinstance(value, str) and role in ROLES:
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        raise Unusable(NOT_MESSAGES)
    return [_message(one) for one in value]


def _message(value: Any) -> Message:
    if not isinstance(value, dict) or "role" not in value or "content" not in value:
        raise Unusable(NOT_MESSAGES)
    for key in REFUSED:
        if key in value and value[key] not in (None, [], ""):
            raise Unusable(f"with {key!r} in a message, which is not supported")
    role = "system" if value["role"] == "developer" else value["role"]
    if role not in ROLES:
        raise Unusable(UNKNOWN_ROLE)
    if not isinstance(value["content"], str):
        raise Unusable(NOT_TEXT)
    return {"role": role, "content": value["content"]}


def checked(messages: Sequence[Message], *, answered: bool = True) -> list[Message]:
    """Returns messages that follow the rules, without a blank system message.

    `answered`: the last one is an answer, else a question. Raises Unusable if they
    break a rule.
    """
    found = list(messages)
    if found and found[0]["role"] == "system" and not found[0]["content"].strip():
        found = found[1:]
    turns = found[1:] if found and found[0]["role"] == "system" else found
    if not all(message["content"].strip() for message in found):
        raise Unusable(BLANK)
    # A lone surrogate, which only an escape of JSON can write, is no text.
    if any("\ud800" <= c <= "\udfff" for message in found for c in message["content"]):
        raise Unusable(NOT_UTF8)
    if not any(message["role"] == "user" for message in turns):
        raise Unusable(NO_QUESTION)
    if any(m["role"] != ("user", "assistant")[i % 2] for i, m in enumerate(turns)):
        raise Unusable(ORDER)
    if (turns[-1]["role"] == "assistant") != answered:
        raise Unusable(UNANSWERED if answered else "that end with an answer, not a question")
    return found


@dataclass(frozen=True, eq=False)
class Format:
    """A chat template with its tokenizer, checked by `open_format`."""

    template: Template
    tokenizer: Tokenizer
    cached: Cached  # of the template's own texts
    tail: str  # template text from a question to the end of the generation prompt
    lead: str  # template text from there to an answer, which the model writes: an empty thought
    end: int  # id of the token that ends an answer
    marked: bool  # the template marks answers with {% generation %}
    whole: bool  # later turns change nothing in earlier ones

    @property
    def stops(self) -> tuple[int, ...]:
        """Ids of the tokens that end an answer."""
        return tuple(dict.fromkeys((self.end, *self.tokenizer.stops)))


def named_format(name: str, tokenizer: Tokenizer, workdir: str = "") -> Format:
    """Returns the format of the chat template `name` (`chat.load`). Raises UserError."""
    return open_format(chat.load(name, tokenizer, workdir), tokenizer)


def open_format(template: Template, tokenizer: Tokenizer) -> Format:
    """Checks that a template tells where an answer begins and ends.

    Raises UserError, naming the template, if it does not write a question and its answer once, if
    an answer does not begin where its generation prompt ends, or if no special token ends it.
    """
    turn = chat.turn(template)
    tail = turn.tail.rstrip(" ")
    cached = Cached(tokenizer, 1 << 16)
    talk = [{"role": role, "content": "words"} for role in ROLES]
    parts, _ = _parts(template, talk[1:], generation_start=START)
    after = _parts(template, talk[1:])[0][-1]
    ends = {*tokenizer.stops, *tokenizer.specials.values()}
    end = next((i for i in cached.encode_special(after) if i in ends), None)
    if end is None:
        raise UserError(
            f"{template.title}: no special token of the tokenizer ends an answer, so a model "
            f"would not learn to stop (after an answer comes {after!r}); use another template"
        )
    whole = all(_keeps(template, first) for first in (talk[1:], talk))
    return Format(
        template=template,
        tokenizer=tokenizer,
        cached=cached,
        tail=tail,
        lead=turn.direct[len(tail) :].strip(" "),
        end=end,
        marked=START in "".join(parts),
        whole=whole,
    )


def _keeps(template: Template, first: Sequence[Message]) -> bool:
    """True if a second turn leaves the text of the `first` as it is, or is not possible."""
    try:
        short, long = (_parts(template, said)[0] for said in (first, [*first, *first[-2:]]))
    except UserError:  # it takes no system message, or one turn only
        return True
    # Without the text after the last answer: some templates end a conversation with one more token.
    return "".join(long).startswith("".join(short[:-1]))


def _parts(template: Template, messages: Sequence[Message], *, more: bool = False, **variables):
    """Segments and the indices of their messages; `more`: with the generation prompt."""
    return chat.placed(template, messages, add_generation_prompt=more, **variables)


def examples(form: Format, conversation: Conversation) -> list[Example]:
    """Returns the examples of a conversation.

    One with all answers; or one per answer if the template writes earlier turns in another way than
    when they were answered, because it drops their thoughts or moves the system message. Raises
    Unusable if the template rejects the conversation or changes its messages.
    """
    messages = conversation.messages
    if form.whole:
        return [_encoded(form, messages, conversation.given)]
    at = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i >= conversation.given]
    return [_encoded(form, messages[: i + 1], i) for i in at]


def prompt(form: Format, messages: Sequence[Message]) -> Ids:
    """Returns the ids of a conversation up to the point where the model answers.

    They begin the example of the answered conversation. Raises Unusable as `examples` does.
    """
    return _encoded(form, messages, len(messages), more=True).ids


def _encoded(
    form: Format, messages: Sequence[Message], given: int, *, more: bool = False
) -> Example:
    """Encodes a conversation; answers before message `given` are not learned."""
    marked = form.marked and not more
    parts, order = _rendered(form, messages, more, marked)
    if more:  # a template without a generation prompt writes no header; `tail` has it
        parts = [*parts[:-1], form.tail]
    found, space, inside = Example([], []), "", not marked
    for place, part in enumerate(parts):
        before, after = (place - 1) // 2, place // 2  # of the messages around a template's text
        learns = lambda nth: nth in range(len(order)) and order[nth] >= given
        answer = lambda nth: nth in range(len(order)) and _answers(messages[order[nth]])
        if place % 2:
            counts = inside and learns(after) and answer(after)
            _add(found, form.tokenizer.plain(space + part), counts)
            continue
        # Spaces before a message belong to its first token.
        space = part[len(part.rstrip(" ")) :] if place < len(parts) - 1 else ""
        part = part[: len(part) - len(space)]
        if marked:
            sides = [learns(nth) and answer(nth) for nth in (before, after)]
            inside = _add_marked(found, form, part, inside, *sides)
        elif answer(after):
            _add_header(found, form, part, learns(after))
        else:
            _add_end(found, form, part, learns(before) and answer(before))
    return found


def _answers(message: Message) -> bool:
    return message["role"] == "assistant"


def _add(found: Example, ids: Ids, counts: bool) -> None:
    found.ids.extend(ids)
    found.learned.extend([counts] * len(ids))


def _rendered(form: Format, messages: Sequence[Message], more: bool, marked: bool):
    """Returns segments and the indices of their messages; raises Unusable if they are changed."""
    marks = {"generation_start": START, "generation_end": END} if marked else {}
    try:
        parts, order = _parts(form.template, messages, more=more, **marks)
        whole = chat.render(form.template, messages, add_generation_prompt=more, **marks)
    except UserError as error:
        said = str(error).removeprefix(f"{form.template.title}: ")
        raise Unusable(f"that the chat template rejects ({said})") from None
    if "".join(parts) != whole or sorted(order) != list(range(len(messages))):
        raise Unusable("of which the chat template changes or leaves out a message or thought")
    return parts, order


def _add_marked(
    found: Example, form: Format, part: str, inside: bool, before: bool, after: bool
) -> bool:
    """Adds a template's text with marks of generation; returns True if it ends inside them.

    `before` and `after` say if the message on that side is learned.
    """
    counts = before  # a block that begins here belongs to the message after the text
    for piece in re.split(f"({re.escape(START)}|{re.escape(END)})", part):
        if piece == START:
            inside, counts = True, after
        elif piece == END:
            inside = False
        else:
            _add(found, form.cached.encode_special(piece), inside and counts)
    return inside


def _add_header(found: Example, form: Format, part: str, learns: bool) -> None:
    """Adds the text before an answer; it counts from the end of the generation prompt.

    The model itself has to write the rest, such as the channel or an empty thought.
    """
    if not part.startswith(form.tail):
        raise Unusable("whose answers the chat template begins without its generation prompt")
    _add(found, form.cached.encode_special(form.tail), False)
    _add(found, form.cached.encode_special(part[len(form.tail) :]), learns)


def _add_end(found: Example, form: Format, part: str, learns: bool) -> None:
    """Adds other text of the template; after a learned answer it counts up to the end token."""
    ids = form.cached.encode_special(part)
    if learns and form.end not in ids:
        raise Unusable("with an answer that the chat template does not end")
    size = ids.index(form.end) + 1 if learns else 0
    _add(found, ids[:size], True)
    _add(found, ids[size:], False)
