"""Labels for corpora without a ground truth: corrupted suffixes and unanimous votes.

This follows the judge training of arXiv 2601.21343. An original suffix is better than a corrupted
version of it, written by a larger model or made by rule. Other labels (safe or not, the better of
two) come from J votes of a reasoning model and are used only if all votes agree (8 of 8 there).
Failed examples are dropped and counted, never labelled.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sip.judge import prompts, voting
from sip.judge.labels import corruptions
from sip.judge.labels.corruptions import EVERY, Others, Phrases, split_sentences
from sip.judge.labels.file import LabelLine
from sip.judge.labels.sentence_grades import ENDS
from sip.judge.prompts import Aspect
from sip.judge.voting import Voting
from sip.structs import UserError
from sip.text import template
from sip.text.tokenizer import Tokenizer, beginning
from sip.textgen.protocol import Cut, Said, TextGenerator

Spoiled = list[Said]  # corrupted versions; None if the request failed
TAINTED = 0.8  # probability that a sentence of a tainted document is replaced
LEAST = 0.5  # least length of a corrupted version, as a share of the suffix's characters


@dataclass(frozen=True)
class Made:
    """Labelled examples, and counts of dropped ones."""

    lines: list[LabelLine]
    dropped: Counter = field(default_factory=Counter)  # reason -> number of examples

    @property
    def asked(self) -> int:
        """Number of examples that were tried: labelled and dropped."""
        return len(self.lines) + self.dropped.total()


def load_spoiler(name: str) -> str:
    """Loads a prompt that asks a model to corrupt a text: a built-in name or a .txt file's path.

    It contains {suffix} and optionally {prefix}. Raises UserError.
    """
    text = template.read("spoiler prompt", name, "labels").removesuffix("\n")
    named = template.fields(text)
    if not set(named) <= {"prefix", "suffix"} or "suffix" not in named:
        raise UserError(
            f"spoiler prompt {name!r} must contain {{suffix}}, and may contain {{prefix}}"
        )
    return text


def by_model(
    textgen: TextGenerator,
    spoiler: str,
    prefixes: Sequence[str],
    suffixes: Sequence[str],
    asking: Voting,
) -> Spoiled:
    """Asks a model for a corrupted version of each suffix; the first line of the answer counts."""
    branches = [
        [template.fill(spoiler, {"prefix": prefix, "suffix": suffix})]
        for prefix, suffix in zip(prefixes, suffixes, strict=True)
    ]
    once = dataclasses.replace(asking, votes=1)
    said = voting.answers(once, textgen, [""] * len(branches), branches)
    return [_cleaned(text, suffix) for ((text,),), suffix in zip(said, suffixes, strict=True)]


def _cleaned(said: Said, suffix: str) -> Said:
    """The first line of an answer after its thought, behind the suffix's leading white space.

    It is whole, also in an answer that was cut later: a base model goes on until then.
    """
    said = voting.answered(said)
    if said is None:
        return None
    first, more, _ = (said.text if isinstance(said, Cut) else said).strip().partition("\n")
    if isinstance(said, Cut) and not more:
        return said
    first = first.strip()
    return suffix[: len(suffix) - len(suffix.lstrip())] + first


def by_rule(
    names: Sequence[str], prefixes: Sequence[str], suffixes: Sequence[str], seed: int
) -> list[tuple[str, Spoiled]]:
    """Corrupts all suffixes by each of the corruptions `names`. Returns [(name, versions), ...].

    Random numbers depend on the seed and the suffix's index only. Raises UserError for an unknown
    name.
    """
    for name in names:
        check_rule("unknown spoiler", name)
    phrases = Phrases(suffixes)
    found: dict[str, Spoiled] = {name: [] for name in names}
    for i, suffix in enumerate(suffixes):
        rng = np.random.default_rng((seed, i))
        other = suffixes[(i + int(rng.integers(1, max(len(suffixes), 2)))) % len(suffixes)]
        for name in names:
            found[name].append(EVERY[name](suffix, Others(other, phrases, prefixes[i]), rng))
    return list(found.items())


def tainted(
    unwanted: Callable[[str], bool], prefixes: Sequence[str], suffixes: Sequence[str], seed: int
) -> list[tuple[str, str] | None]:
    """Puts unwanted sentences of other documents into documents that have none.

    Returns (prefix, version of the suffix) of each document. Most sentences of the suffix, and in
    two of three documents of the prefix, are replaced; the first sentences of both and the prefix's
    last one, which the suffix continues, stay. None if the document has an unwanted sentence
    itself, if no other document has one, or if the suffix has one sentence only.
    """
    both = list(zip(prefixes, suffixes, strict=True))
    # The first sentence of a text may be only the end of one.
    rows = [[*split_sentences(prefix)[1:], *split_sentences(suffix)[1:]] for prefix, suffix in both]
    found = [text for row in rows for text in row if text.endswith(ENDS) and unwanted(text)]

    def replaced(rng, texts: Sequence[str]) -> list[str]:
        return [
            f" {found[int(rng.integers(len(found)))].strip()}" if rng.random() < TAINTED else text
            for text in texts
        ]

    made: list[tuple[str, str] | None] = []
    for i, (prefix, suffix) in enumerate(both):
        rng = np.random.default_rng((seed, i, 1))
        first, *rest = split_sentences(suffix) or [""]
        if not found or not rest or unwanted(prefix + suffix):
            made.append(None)
            continue
        title, *said = split_sentences(prefix) or [""]
        before = (
            [title, *replaced(rng, said[:-1]), *said[-1:]] if rng.random() < 2 / 3 else [prefix]
        )
        version = "".join([first, *replaced(rng, rest)]).split()[: len(suffix.split())]
        made.append(("".join(before), corruptions.joined(suffix, version)))
    return made


def to_undo(
    names: Sequence[str],
    unwanted: Callable[[str], bool],
    prefixes: Sequence[str],
    suffixes: Sequence[str],
    seed: int,
) -> tuple[list[str], list[str], list[str]]:
    """Returns (prefixes, texts, suffixes): a rewriter learns to turn the texts into the suffixes.

    The texts are in turn the suffix as it is, its version by each of the corruptions `names`, and,
    if any document is unwanted, one that is `tainted`; where that is not possible, the suffix.
    Documents that are unwanted are left out. Raises UserError if all are.
    """
    taint = tainted(unwanted, prefixes, suffixes, seed)
    rows: list[Any] = [suffixes, *(row for _, row in by_rule(names, prefixes, suffixes, seed))]
    turns = len(rows) + any(taint)
    before, given, better = [], [], []
    for i, (prefix, suffix) in enumerate(zip(prefixes, suffixes, strict=True)):
        if unwanted(prefix + suffix):
            continue
        turn = len(better) % turns
        spoiled = taint[i] if turn == len(rows) else (prefix, rows[turn][i])
        shown = spoiled or (prefix, suffix)
        before.append(shown[0])
        given.append(shown[1])
        better.append(suffix)
    if not better:
        raise UserError(f"unwanted: all {len(suffixes):,} texts have one of the words")
    return before, given, better


def check_rule(what: str, name: str) -> None:
    """Raises UserError, beginning with `what`, if there is no corruption `name`."""
    if name not in EVERY:
        raise UserError(f"{what} {name!r}; choose from {', '.join(EVERY)}")


def pairs(
    aspect: Aspect,
    prefixes: Sequence[str],
    suffixes: Sequence[str],
    spoiled: Spoiled,
    trim: Callable[[str, str], str] = lambda text, suffix: text,
    unwanted: Callable[[str], bool] = lambda text: False,
) -> Made:
    """Labels each suffix as better than a worse version of it, unless only the suffix is unwanted.

    `trim(version, suffix)` cuts a version to at most the suffix's length, so that the length does
    not reveal the label.
    """
    _check_kind(aspect, "pairwise")
    lines, dropped = [], Counter()
    for prefix, suffix, version in zip(prefixes, suffixes, spoiled, strict=True):
        version = trim(version, suffix) if isinstance(version, str) else version
        reason = _unusable(suffix, version)
        if reason or not isinstance(version, str):
            dropped[reason] += 1
        else:
            label = len(aspect.options) - 1 if unwanted(suffix) and not unwanted(version) else 0
            lines.append(LabelLine(aspect, prefix, (suffix, version), label, ""))
    return Made(lines, dropped)


def has_any(words: Sequence[str]) -> Callable[[str], bool]:
    """Returns a function that says whether a text has one of the words or phrases.

    They are found whole and in any case, with any white space within a phrase. Without words the
    function is always False. Raises UserError if a word is empty.
    """
    if not words:
        return lambda text: False
    parts = [r"\s+".join(map(re.escape, word.split())) for word in words]
    if not all(parts):
        raise UserError(f"unwanted: a word is empty in {list(words)}")
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(parts)})(?!\w)", re.IGNORECASE)
    return lambda text: bool(pattern.search(text))


def trimmer(tokenizer: Tokenizer) -> Callable[[str, str], str]:
    """Returns a function (version, suffix) -> the version cut to the suffix's number of tokens."""
    return lambda text, suffix: beginning(tokenizer, text, len(tokenizer.encode(suffix)))


def dropped(made: Sequence[Made]) -> str:
    """Returns the reasons for which examples were dropped, with counts, as text."""
    counts = sum((each.dropped for each in made), Counter())
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))


def _unusable(suffix: str, version: Said) -> str:
    """The reason to drop a corrupted version; empty if it is usable."""
    if version is None:
        return voting.FAILED
    if isinstance(version, Cut):
        return voting.CUT
    if not version.strip():
        return "empty"
    words, original = (template.quote(text).split() for text in (version, suffix))
    if words == original:
        return "as it was"
    return "short" if len(version.strip()) < LEAST * len(suffix.strip()) else ""


def safety(
    textgen: TextGenerator,
    aspect: Aspect,
    prefixes: Sequence[str],
    texts: Sequence[str],
    asking: Voting,
    *,
    named: Aspect | None = None,
) -> Made:
    """Labels texts by the unanimous votes of a model.

    `aspect` is the prompt shown to the model. `named` is the aspect that the label is for, by
    default the same; it may differ in wording only. Raises UserError unless both are pointwise.
    """
    _check_kind(aspect, "pointwise")
    named = _named(aspect, named)
    trunks = [prompts.trunk(aspect, prefix=prefix, reference="") for prefix in prefixes]
    said = _votes(textgen, aspect, trunks, [[prompts.branch(aspect, t)] for t in texts], asking)
    lines, dropped = [], Counter()
    for prefix, text, (votes,) in zip(prefixes, texts, said, strict=True):
        label, reason = unanimous(votes)
        if label is None:
            dropped[reason] += 1
        else:
            lines.append(LabelLine(named, prefix, (text,), label, ""))
    return Made(lines, dropped)


def voted_pairs(
    textgen: TextGenerator,
    aspect: Aspect,
    prefixes: Sequence[str],
    two: Sequence[tuple[str, str]],
    asking: Voting,
    *,
    named: Aspect | None = None,
) -> Made:
    """Labels pairs for which all votes in both orders agree on the better text or on a tie.

    `aspect` and `named` are as in `safety`, but pairwise.
    """
    _check_kind(aspect, "pairwise")
    named = _named(aspect, named)
    trunks = [prompts.trunk(aspect, prefix=prefix, reference="") for prefix in prefixes]
    orders = [[prompts.branch(aspect, a, b), prompts.branch(aspect, b, a)] for a, b in two]
    said = _votes(textgen, aspect, trunks, orders, asking)
    lines, dropped = [], Counter()
    for prefix, candidates, (first, second) in zip(prefixes, two, said, strict=True):
        (one, reason), (other, also) = unanimous(first), unanimous(second)
        if one is None or other is None:
            dropped[reason or also] += 1
        elif one + other != len(aspect.options) - 1:  # swapped texts must give the swapped option
            dropped["by order"] += 1
        else:
            lines.append(LabelLine(named, prefix, candidates, one, ""))
    return Made(lines, dropped)


def unanimous(votes: Sequence[int | str]) -> tuple[int | None, str]:
    """Returns (option, "") if all votes agree, else (None, reason).

    A vote is the index of an option, or a string that says why the vote is missing.
    """
    problems = [vote for vote in votes if isinstance(vote, str)]
    if problems:
        return None, problems[0]
    first = votes[0]
    return (int(first), "") if all(vote == first for vote in votes) else (None, "split")


def _votes(textgen, aspect, trunks, branches, asking: Voting) -> list[list[list[int | str]]]:
    """Samples votes[b][c][j]: the index of an option, or the reason why there is none."""
    said = voting.answers(asking, textgen, trunks, branches)
    return [[[voting.vote(text, aspect) for text in texts] for texts in row] for row in said]


def _check_kind(aspect: Aspect, kind: str) -> None:
    """Raises UserError unless the aspect is of this kind and without a reference."""
    if aspect.kind != kind or aspect.reference:
        raise UserError(f"aspect {aspect.name!r} must be {kind} and must not show a reference")


def _named(aspect: Aspect, named: Aspect | None) -> Aspect:
    """The aspect that labels are for. Raises UserError if its question differs from `aspect`'s."""
    if named is None:
        return aspect
    if (named.kind, named.values, named.reference) != (aspect.kind, aspect.values, False):
        raise UserError(
            f"aspect {named.name!r} must have the kind and values of aspect {aspect.name!r}"
        )
    return named
