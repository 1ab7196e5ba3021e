"""Prints examples as a model sees them: context and learned tokens, special tokens, odd characters.

    rows = show.spans(tokenizer, ids, learned, parts=[("prefix", 24), ("suffix", 48)])
    print(show.example("document 3, 48 tokens", rows))

gives

    document 3, 48 tokens
      context  prefix  «<s>»The river
      learned  suffix   rose.\\n
                       It fell.«</s>»

A span is a stretch of text with one role. Special tokens stand in « »; the text itself has these
characters escaped, and control, invisible and private characters too.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sip.text.tokenizer import Tokenizer, continuation

CONTEXT, LEARNED, SPECIAL = "context", "learned", "special"
ROLES = (CONTEXT, LEARNED, SPECIAL)
SPACE = "␣"  # a space at an end of a shown line
OWN = f"«»{SPACE}\ufffd"  # shown escaped where they are text; U+FFFD is half a character


@dataclass(frozen=True)
class Span:
    """A stretch of an example. A special token is learned if it stands in a learned stretch."""

    text: str
    role: str  # one of ROLES
    learned: bool  # its tokens count in the loss
    part: str = ""  # what it belongs to, such as prefix, user or chosen


def spans(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    learned: Sequence[bool],
    parts: Sequence[tuple[str, int]] = (),
) -> list[Span]:
    """Returns the spans of one example, given its tokens and its loss mask.

    `parts` lists (name, index after its last token) in order; tokens after the last part have no
    name. Padding is left to the caller.
    """
    names = _names(len(ids), parts)
    special = {i: text for text, i in tokenizer.specials.items()}
    made: list[Span] = []
    start = 0
    for end in range(1, len(ids) + 1):
        one = ids[start] in special
        same = end < len(ids) and not one and ids[end] not in special
        if same and (learned[end], names[end]) == (learned[start], names[start]):
            continue
        text = special[ids[start]] if one else continuation(tokenizer, ids[:start], ids[start:end])
        role = SPECIAL if one else LEARNED if learned[start] else CONTEXT
        made.append(Span(text, role, bool(learned[start]), names[start]))
        start = end
    return made


def _names(count: int, parts: Sequence[tuple[str, int]]) -> list[str]:
    """Returns the name of each token's part."""
    found: list[str] = []
    for name, end in parts:
        found += [name] * (min(end, count) - len(found))
    return found + [""] * (count - len(found))


def example(title: str, rows: Iterable[Span]) -> str:
    """Returns an example as text: its title, and a line per stretch of one role and part.

    A line break in the text is shown as \\n and continues on the next line.
    """
    found: list[tuple[str, str, str]] = []  # learned or context, part, text
    for row in rows:
        role = LEARNED if row.learned else CONTEXT
        # Only shown line breaks hold real ones.
        shown = "\\n\n".join(map(escaped, row.text.split("\n")))
        text = f"«{shown}»" if row.role == SPECIAL else shown
        if found and found[-1][:2] == (role, row.part):
            text = found.pop()[2] + text
        found.append((role, row.part, text))
    wide = max((len(part) for _, part, _ in found), default=0)
    lines = [title]
    for role, part, text in found:
        for number, line in enumerate(text.removesuffix("\n").split("\n")):
            margin = f"{role}  {part:<{wide}}" if not number else " " * (len(role) + 2 + wide)
            lines.append(f"  {margin}{'  ' if wide else ''}{_edges(line)}")
    return "\n".join(lines)


def _edges(line: str) -> str:
    """Makes the spaces at both ends of a line visible."""
    inner = line.strip(" ")
    if not inner:
        return SPACE * len(line)
    before, after = len(line) - len(line.lstrip(" ")), len(line) - len(line.rstrip(" "))
    return f"{SPACE * before}{inner}{SPACE * after}"


def escaped(text: str) -> str:
    """Returns a text with backslashes, « », ␣, and control, invisible and private characters
    escaped."""
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable() and character not in OWN:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode()
