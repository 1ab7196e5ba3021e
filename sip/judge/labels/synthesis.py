"""Labels where no ground truth knows the answers: spoiled suffixes, and votes that all agree.

As arXiv 2601.21343 teaches its judge: of two texts the original suffix is better than a version
that was spoiled, by a larger model that is asked to or by rule; and what is safe, or better, is
what every one of J votes of a reasoning model says (8 of 8 there). What fails is dropped and
counted, never labelled.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sip.judge import prompts, verdicts, voting
from sip.judge.labels.corruptions import EVERY, Others, Phrases
from sip.judge.labels.file import LabelLine
from sip.judge.prompts import Aspect
from sip.judge.voting import Voting
from sip.structs import UserError
from sip.text import template
from sip.textgen.protocol import TextGenerator

Spoiled = list[str | None]  # None where it failed
LEAST = 0.5  # of the suffix's characters that a spoiled version has at least


@dataclass(frozen=True)
class Made:
    """Labelled examples, and why others were dropped."""

    lines: list[LabelLine]
    dropped: Counter = field(default_factory=Counter)

    @property
    def asked(self) -> int:
        """All that were to be labelled."""
        return len(self.lines) + self.dropped.total()


def load_spoiler(name: str) -> str:
    """A built-in template of {prefix} and {suffix}, or a user's own by the path of a .txt file."""
    text = template.read("spoiler prompt", name).removesuffix("\n")
    named = template.fields(text)
    if not set(named) <= {"prefix", "suffix"} or "suffix" not in named:
        raise UserError(f"spoiler prompt {name!r}: it names {{suffix}}, and {{prefix}} if wanted")
    return text


def by_model(
    textgen: TextGenerator,
    spoiler: str,
    prefixes: Sequence[str],
    suffixes: Sequence[str],
    asking: Voting,
) -> Spoiled:
    """Versions that a model was asked to spoil, on one line: the first that it says."""
    branches = [
        [template.fill(spoiler, {"prefix": prefix, "suffix": suffix})]
        for prefix, suffix in zip(prefixes, suffixes, strict=True)
    ]
    once = dataclasses.replace(asking, votes=1)
    said = voting.answers(once, textgen, [""] * len(branches), branches)
    return [_cleaned(text, suffix) for ((text,),), suffix in zip(said, suffixes, strict=True)]


def _cleaned(text: str | None, suffix: str) -> str | None:
    """The first line of an answer, behind the space that the suffix begins with."""
    if text is None:
        return None
    first = (text.strip().splitlines() or [""])[0].strip()
    return suffix[: len(suffix) - len(suffix.lstrip())] + first


def by_rule(names: Sequence[str], suffixes: Sequence[str], seed: int) -> list[tuple[str, Spoiled]]:
    """(name, versions) of each of the spoilers `names`; noise is addressed by seed and suffix."""
    for name in names:
        if name not in EVERY:
            raise UserError(f"spoiler {name!r}: not one of {', '.join(EVERY)}")
    phrases = Phrases(suffixes)
    found: dict[str, Spoiled] = {name: [] for name in names}
    for i, suffix in enumerate(suffixes):
        rng = np.random.default_rng((seed, i))
        other = suffixes[(i + int(rng.integers(1, max(len(suffixes), 2)))) % len(suffixes)]
        for name in names:
            found[name].append(EVERY[name](suffix, Others(other, phrases), rng))
    return list(found.items())


def pairs(
    aspect: Aspect,
    prefixes: Sequence[str],
    suffixes: Sequence[str],
    spoiled: Spoiled,
    trim: Callable[[str, str], str] = lambda text, suffix: text,
) -> Made:
    """Each suffix against its spoiled version, which is the worse one.

    `trim(version, suffix)` makes it as long as the suffix at most, or its length would tell.
    """
    _check_kind(aspect, "pairwise")
    lines, dropped = [], Counter()
    for prefix, suffix, version in zip(prefixes, suffixes, spoiled, strict=True):
        version = None if version is None else trim(version, suffix)
        reason = _unusable(suffix, version)
        if reason or version is None:
            dropped[reason] += 1
        else:
            lines.append(LabelLine(aspect, prefix, (suffix, version), 0, ""))
    return Made(lines, dropped)


def _unusable(suffix: str, version: str | None) -> str:
    if version is None:
        return "failed"
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
    """Texts labelled by the votes of a model that are all of one mind.

    `aspect` is what the model is asked, `named` (by default the same) what the label is for: an
    aspect with the same options in other words.
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
    """Pairs of which all votes, in both orders, say the same: which is the better, or a tie."""
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
        elif one + other != len(aspect.options) - 1:
            dropped["by order"] += 1
        else:
            lines.append(LabelLine(named, prefix, candidates, one, ""))
    return Made(lines, dropped)


def unanimous(votes: Sequence[int | str]) -> tuple[int | None, str]:
    """(the option of all votes, "") or (None, why); a vote is an option, or why there is none."""
    problems = [vote for vote in votes if isinstance(vote, str)]
    if problems:
        return None, problems[0]
    first = votes[0]
    return (int(first), "") if all(vote == first for vote in votes) else (None, "split")


def _votes(textgen, aspect, trunks, branches, asking: Voting) -> list[list[list[int | str]]]:
    """votes[b][c][j]: the option that was said, or "failed" or "unread"."""
    said = voting.answers(asking, textgen, trunks, branches)

    def vote(text: str | None) -> int | str:
        if text is None:
            return "failed"
        option = verdicts.parse(text, aspect.options, phrase=aspect.verdict)
        return "unread" if option is None else option

    return [[[vote(text) for text in texts] for texts in row] for row in said]


def _check_kind(aspect: Aspect, kind: str) -> None:
    if aspect.kind != kind or aspect.reference:
        raise UserError(f"aspect {aspect.name!r}: wanted is a {kind} one without a reference")


def _named(aspect: Aspect, named: Aspect | None) -> Aspect:
    if named is None:
        return aspect
    if (named.kind, named.values, named.reference) != (aspect.kind, aspect.values, False):
        raise UserError(f"aspect {named.name!r} asks another question than {aspect.name!r}")
    return named
