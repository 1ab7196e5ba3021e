"""Thoughts in texts: inserted by a teacher, checked, read from files, and encoded as token ids.

An annotated text is c = [x1, t1, x2, t2, ..]: the texts x, joined, are the original byte for byte,
and every thought t stands between one pair of tags (arXiv 2601.21343, thinking mid-training).
`Pieces` are such a text: texts at even places, thoughts at odd ones.

    accepted   compares a teacher's answer with the original text, and screens its thoughts
    read       annotated texts of JSON Lines
    forks      places where thoughts stand: prefix, thought and suffix as token ids

A teacher may use any pair of tags in KNOWN. White space beside a tag is a matter of the tag's place
and need not be the original's; the text of the result always is.
"""

import functools
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from sip.data import files, records
from sip.data.documents import BOUND, PARTS, listed
from sip.sections import at_least, check
from sip.structs import UserError
from sip.text.ngrams import ngrams
from sip.text.segments import Ids
from sip.text.tokenizer import Tokenizer

Pieces = tuple[str, ...]  # texts at even places, thoughts at odd ones; a text at both ends
Tags = tuple[str, str]  # the strings that open and close a thought
TAGS = ("<think>", "</think>")
KNOWN = (  # pairs that teachers use
    TAGS,
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<thoughts>", "</thoughts>"),
    ("<reasoning>", "</reasoning>"),
    ("[think]", "[/think]"),
    ("[thought]", "[/thought]"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
# Reasons why a text is rejected.
TAGGED, CHANGED, UNCLOSED = "with tags in the original", "with a changed text", "never closed"
UNOPENED, NESTED, NONE = "closed without an opening", "nested", "without a usable thought"
# Reasons why a thought is dropped.
EMPTY, LONG, QUOTES = "empty", "too long", "quoting the text that follows"
LEAD, TWICE = "before the text", "right after another thought"
WORD, VISIBLE = re.compile(r"\w+"), re.compile(r"\S")


class Rejected(Exception):
    """An annotated text that cannot be used; the text is the reason, such as "nested".

    `dropped` counts the thoughts that were dropped by reason, if that is why none is left.
    """

    def __init__(self, reason: str, dropped: Mapping[str, int] | None = None):
        super().__init__(reason)
        self.dropped = dict(dropped or {})


@dataclass(frozen=True)
class QuoteConfig:
    """A thought quotes its target, the text that follows it, if `run` words in a row are in both,
    but not in the text before. Words are compared without case, marks and white space; a target of
    fewer than `run` words cannot be quoted."""

    run: int = 5  # words in a row
    target: int = 64  # words of the following text

    def __post_init__(self):
        check("quote", self, run=at_least(1), target=at_least(1))


@dataclass(frozen=True)
class ThoughtRule:
    """The thoughts that are kept."""

    most_words: int = 128  # most words of a thought
    quote: QuoteConfig = QuoteConfig()


class Thinker(Protocol):
    """A rule that thinks about texts of a generated world."""

    def thoughts(self, texts: Sequence[str]) -> list[list[tuple[int, str]]]:
        """Returns the thoughts of each text as (index in the text, thought), in order."""
        ...


def words(text: str) -> list[str]:
    """Returns the words of a text, without case and marks."""
    return WORD.findall(text.casefold())


Runs = set[tuple[str, ...]]  # words in a row


def target(before: str, after: str, rule: QuoteConfig) -> Runs:
    """Returns the runs of words of the text after a place that a thought there must not quote."""
    here, known = (ngrams(x, rule.run) for x in (words(after)[: rule.target], words(before)))
    return set(here) - set(known)


def quotes(thought: str, forbidden: Runs, rule: QuoteConfig) -> bool:
    """True if a thought quotes its `target`, see `QuoteConfig`."""
    return not forbidden.isdisjoint(ngrams(words(thought), rule.run))


@functools.lru_cache(maxsize=8)
def _pattern(pairs: tuple[Tags, ...]) -> re.Pattern:
    longest = sorted({tag for pair in pairs for tag in pair}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)), re.IGNORECASE)


def tagged(text: str, tags: Tags) -> bool:
    """True if a text contains one of `tags` or of the tags that teachers use."""
    return _pattern((tags, *KNOWN)).search(text) is not None


def untagged(text: str) -> str:
    """Returns a text with a space in the place of each tag that teachers use."""
    return _pattern(KNOWN).sub(" ", text)


def parse(text: str, pairs: tuple[Tags, ...]) -> Pieces:
    """Splits a text at tags. Raises Rejected if a thought is never closed, or contains a tag."""
    closing = {a.casefold(): b.casefold() for a, b in pairs}
    pieces, at, wanted = [], 0, ""
    for found in _pattern(pairs).finditer(text):
        tag = found[0].casefold()
        pieces.append(text[at : found.start()])
        at = found.end()
        if wanted and tag != wanted:
            raise Rejected(NESTED)
        if not wanted and tag not in closing:
            raise Rejected(UNOPENED)
        wanted = "" if wanted else closing[tag]
    if wanted:
        raise Rejected(UNCLOSED)
    return (*pieces, text[at:])


def original(pieces: Pieces) -> str:
    """Returns the text without its thoughts."""
    return "".join(pieces[::2])


def joined(pieces: Pieces, tags: Tags) -> str:
    """Returns the annotated text, with one pair of tags around every thought."""
    return "".join(f"{tags[0]}{x}{tags[1]}" if i % 2 else x for i, x in enumerate(pieces))


@dataclass(frozen=True)
class Annotated:
    """An accepted text with its thoughts, and counts of those that were dropped."""

    pieces: Pieces
    dropped: Mapping[str, int] = field(default_factory=dict)  # reason -> number of thoughts

    @property
    def thoughts(self) -> Pieces:
        """The thoughts."""
        return self.pieces[1::2]


def accepted(text: str, answer: str, tags: Tags, rule: ThoughtRule) -> Annotated:
    """Compares a teacher's answer with the text that it was asked to annotate.

    The texts of the result are slices of `text`. Raises Rejected with the reason.
    """
    if tagged(text, tags):
        raise Rejected(TAGGED)
    found = parse(answer, (tags, *KNOWN))
    return screened(tuple(_aligned(text, found)), rule)


def _aligned(text: str, found: Pieces) -> Iterator[str]:
    """Yields the pieces of an answer, the texts among them as slices of the original text.

    White space at the seams is the original's, and stands after the thought.
    """
    at = 0
    for i, piece in enumerate(found):
        if i % 2:
            yield piece.strip()
            continue
        core, start = piece.strip(), at
        if core:
            first = VISIBLE.search(text, at)
            if first is None or not text.startswith(core, first.start()):
                raise Rejected(CHANGED)
            at = first.start() + len(core)
        if i == len(found) - 1:
            if VISIBLE.search(text, at):
                raise Rejected(CHANGED)
            at = len(text)
        yield text[start:at]


def screened(pieces: Pieces, rule: ThoughtRule) -> Annotated:
    """Drops the thoughts that a rule forbids. Raises Rejected if none is left.

    A thought before the first word is dropped too: many teachers think about their task there.
    """
    kept, whole, end = [pieces[0]], original(pieces), len(pieces[0])
    dropped: Counter = Counter()
    for thought, text in zip(pieces[1::2], pieces[2::2], strict=True):
        reason = _unusable(thought, kept, whole[:end], whole[end:], rule)
        if reason:
            dropped[reason] += 1
            kept[-1] += text
        else:
            kept += [thought, text]
        end += len(text)
    if len(kept) == 1:
        raise Rejected(NONE, dropped)
    return Annotated(tuple(kept), dict(dropped))


def _unusable(thought: str, kept: list[str], before: str, after: str, rule: ThoughtRule) -> str:
    """Returns the reason to drop a thought; empty if it is kept."""
    if not before.strip():
        return LEAD
    if len(kept) > 1 and not kept[-1].strip():
        return TWICE
    if not thought.strip():
        return EMPTY
    if len(words(thought)) > rule.most_words:
        return LONG
    forbidden = target(before, after, rule.quote)
    return QUOTES if quotes(thought, forbidden, rule.quote) else ""


def placed(text: str, thoughts: Iterable[tuple[int, str]]) -> Pieces:
    """Returns a text with thoughts inserted at (index, thought), in order."""
    pieces, at = [], 0
    for place, thought in thoughts:
        pieces += [text[at:place], thought]
        at = place
    return (*pieces, text[at:])


def read(
    path: str, split: str, tags: Tags, max_skipped_fraction: float
) -> tuple[list[Pieces], dict[str, int]]:
    """Reads the annotated texts of a split from JSON Lines; `path` is a file, a folder or a glob.

    A line has `text`, with tags, and `part`: train, validation or test. `split` is a part and
    optionally a slice of it. Returns (texts, left_out by reason). Raises UserError if a file cannot
    be read, if too many lines are unusable, or if the split is empty.
    """
    name, low, high = slice_of(split)
    found: list[Pieces] = []
    left_out: Counter = Counter()
    total = 0
    for file in files.listed(path, "jsonl"):
        for record, reason in records.read(file, "jsonl"):
            total += 1
            try:
                part, pieces = _annotated(record, reason, tags)
            except Rejected as why:
                left_out[str(why)] += 1
                continue
            if part == name:
                found.append(pieces)
    if left_out.total() > max_skipped_fraction * total:
        raise UserError(
            f"{path}: {left_out.total():,} of {total:,} annotated texts cannot be used, more than "
            f"max_skipped_fraction={max_skipped_fraction} allows: {listed(left_out)}"
        )
    found = found[_place(low, len(found)) : _place(high, len(found))]
    if not found:
        raise UserError(f"{path}: no annotated text in split {split!r}")
    return found, dict(left_out)


def _annotated(record: Mapping, reason: str, tags: Tags) -> tuple[str, Pieces]:
    """Returns (part, pieces) of a line. Raises Rejected."""
    if reason:
        raise Rejected(reason)
    text = record["text"] if "text" in record else None
    part = record["part"] if "part" in record else None
    if not isinstance(text, str) or part not in PARTS:
        raise Rejected(f"without a text and a part of {', '.join(PARTS)}")
    pieces = parse(text, (tags,))
    if len(pieces) == 1:
        raise Rejected(NONE)
    return part, pieces


def slice_of(split: str) -> tuple[str, str, str]:
    """Returns (part, low, high) of a split such as train[:50%]. Raises UserError."""
    found = re.fullmatch(rf"(\w+)(?:\[({BOUND})?:({BOUND})?\])?", split)
    if not found or found[1] not in PARTS:
        raise UserError(
            f"split {split!r:.80}: must be one of {', '.join(PARTS)}, optionally with [a%:b%]"
        )
    return found[1], found[2] or "0%", found[3] or "100%"


def _place(bound: str, count: int) -> int:
    return round(int(bound[:-1]) / 100 * count) if bound.endswith("%") else int(bound)


def tag_ids(tokenizer: Tokenizer, tags: Tags) -> tuple[int, int]:
    """Returns the token ids of the tags. Raises UserError unless each is a token by itself."""
    found = []
    for tag in tags:
        ids = [tokenizer.specials[tag]] if tag in tokenizer.specials else tokenizer.encode(tag)
        if len(ids) != 1:
            raise UserError(
                f"thoughts.tags: {tag!r} is {len(ids)} tokens of the tokenizer, not one; name it "
                "in tokenizer.symbols of a tokenizer trained here, or choose two tokens of this one"
            )
        found += ids
    if found[0] == found[1]:
        raise UserError(f"thoughts.tags: {tags} are the same token")
    return found[0], found[1]


def encode(tokenizer: Tokenizer, pieces: Pieces, ids: tuple[int, int]) -> tuple[Ids, list[bool]]:
    """Returns (token ids, True at thoughts and their tags) of an annotated text.

    BOS, the pieces, EOS. Each piece is encoded by itself; `ids` are those of the tags.
    """
    found, of_thought = [tokenizer.bos], [False]
    for i, piece in enumerate(pieces):
        own = tokenizer.encode(piece)
        own = [ids[0], *own, ids[1]] if i % 2 else own
        found += own
        of_thought += [i % 2 == 1] * len(own)
    return [*found, tokenizer.eos], [*of_thought, False]


@dataclass(frozen=True)
class Fork:
    """A place of a text: the tokens before it, those after it, and the teacher's thought there."""

    prefix: Ids  # BOS first, if it begins the text
    suffix: Ids
    thought: Ids = field(default_factory=list)  # without tags; empty: none is known


@dataclass(frozen=True, eq=False)
class Forks:
    """The places of the thoughts in many texts, stored as positions and copied on access.

    Letters: N tokens that prefixes are cut from, M tokens of all texts, F forks, T tokens of all
    thoughts.
    """

    before_N: np.ndarray  # int32, BOS and the texts, with the earlier thoughts if they are kept
    start_F: np.ndarray  # index in before_N of the prefix's first token
    at_F: np.ndarray  # index in before_N after the prefix
    after_M: np.ndarray  # int32, BOS and the texts without thoughts
    from_F: np.ndarray  # index in after_M of the suffix's first token
    suffix: int  # tokens of each suffix
    thoughts_T: np.ndarray  # int32
    end_F: np.ndarray  # index in thoughts_T after each thought

    def __len__(self) -> int:
        return len(self.at_F)

    def __getitem__(self, index: int) -> Fork:
        start, at, after = (int(x_F[index]) for x_F in (self.start_F, self.at_F, self.from_F))
        first, end = int(self.end_F[index - 1]) if index else 0, int(self.end_F[index])
        return Fork(
            self.before_N[start:at].tolist(),
            self.after_M[after : after + self.suffix].tolist(),
            self.thoughts_T[first:end].tolist(),
        )


def forks(
    tokenizer: Tokenizer,
    texts: Iterable[Pieces],
    *,
    prefix_min: int,
    prefix_max: int,
    suffix: int,
    tags: tuple[int, int] | None = None,
) -> Forks:
    """Returns the places of the thoughts in annotated texts.

    A place needs `prefix_min` tokens of text before it and `suffix` tokens of text after it. Of the
    tokens before it the last `prefix_max` are kept. With `tags`, the token ids of the tags, earlier
    thoughts are among them, as in `encode`; part of a thought never is. Pieces are encoded one by
    one, as in `encode`.
    """
    before, after, told = array("i"), array("i"), array("i")
    found = array("q")  # start, at, from and end of each place
    for pieces in texts:
        begin, first = len(before), len(after)
        before.append(tokenizer.bos)
        after.append(tokenizer.bos)
        places, kept = [], []  # kept: where thoughts begin and end in `before`
        for i, piece in enumerate(pieces):
            ids = tokenizer.encode(piece)
            if i % 2:
                places.append((len(before), len(after), ids))
                ids = [] if tags is None else [tags[0], *ids, tags[1]]
                kept.append((len(before), len(before) + len(ids)))
            else:
                after.extend(ids)
            before.extend(ids)
        for at, split, thought in places:
            start = max(begin, at - prefix_max)
            start = next((end for low, end in kept if low < start < end), start)
            enough = min(split - first, at - start) >= prefix_min
            if enough and split + suffix <= len(after):
                told.extend(thought)
                found.extend((start, at, split, len(told)))
    start_F, at_F, from_F, end_F = np.array(found, np.int64).reshape(-1, 4).T
    of = lambda tokens: np.array(tokens, np.int32)
    return Forks(of(before), start_F, at_F, of(after), from_F, suffix, of(told), end_F)


def outside(ids: Ids, tags: tuple[int, int]) -> Ids:
    """Returns the tokens of a text outside of its thoughts and their tags."""
    found, inside = [], False
    for token in ids:
        if token in tags:
            inside = token == tags[0]
        elif not inside:
            found.append(token)
    return found
