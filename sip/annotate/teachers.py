"""Teachers insert thoughts into texts: a language model asked in text, or the corpus's rule."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sip.data import thoughts
from sip.data.thoughts import Pieces, Rejected, Tags, Thinker, ThoughtRule
from sip.sampling import SamplingConfig
from sip.structs import UserError
from sip.text import template
from sip.text.chat import Turn
from sip.text.segments import Markup
from sip.textgen.protocol import Cut, Said, TextGenerator
from sip.textgen.remote import Remote

# Reasons why a text is rejected, besides those of `thoughts`.
FAILED, CUT, TOO_LONG = "without an answer", "with an answer that was cut", "too long"


@dataclass(frozen=True)
class Unreached:
    """No answer, for a reason that may pass: a server that was down or busy."""

    problem: str  # one line


# The answer to each text: annotated, with a teacher's tags; None or a `Cut` for a failure.
Teacher = Callable[[list[str]], Sequence[Said | Unreached]]


@dataclass
class Yield:
    """Counts of what became of texts and of thoughts."""

    texts: int = 0  # texts that were tried, without those that are still to be answered
    accepted: int = 0
    rejected: Counter = field(default_factory=Counter)  # reason -> texts
    thoughts: int = 0  # thoughts in accepted texts
    dropped: Counter = field(default_factory=Counter)  # reason -> thoughts

    @property
    def answered(self) -> int:
        """Number of texts that the teacher was asked about and has answered."""
        return self.texts - self.rejected[thoughts.TAGGED] - self.rejected[TOO_LONG]

    def said(self) -> dict:
        """Returns the counts as JSON values."""
        found = dataclasses.asdict(self)
        return {**found, "rejected": dict(self.rejected), "dropped": dict(self.dropped)}


@dataclass(frozen=True)
class Asked:
    """The tags and rules of annotated texts, and the longest text that is tried."""

    tags: Tags
    rule: ThoughtRule
    most_words: int  # words of the longest text that is tried


@dataclass(frozen=True)
class Portion:
    """The outcome for some texts, by place."""

    pieces: list[Pieces | None]  # the annotated text of each accepted text
    asked: int  # number of texts that the teacher was asked about
    unreached: dict[int, str]  # texts that are still to be answered, with the problem


def annotate(texts: list[str], teacher: Teacher, how: Asked, counts: Yield) -> Portion:
    """Asks the teacher to annotate texts; counts the accepted and the rejected ones."""
    found: list[Pieces | None] = [None] * len(texts)
    unreached: dict[int, str] = {}
    usable: list[int] = []
    for i, text in enumerate(texts):
        reason = ""
        if thoughts.tagged(text, how.tags):
            reason = thoughts.TAGGED
        elif len(thoughts.words(text)) > how.most_words:
            reason = TOO_LONG
        if reason:
            counts.rejected[reason] += 1
        else:
            usable.append(i)
    for i, said in zip(usable, teacher([texts[i] for i in usable]), strict=True):
        if isinstance(said, Unreached):
            unreached[i] = said.problem
            continue
        try:
            one = thoughts.accepted(texts[i], _whole(said), how.tags, how.rule)
        except Rejected as why:
            counts.rejected[str(why)] += 1
            counts.dropped.update(why.dropped)
            continue
        found[i] = one.pieces
        counts.accepted += 1
        counts.thoughts += len(one.thoughts)
        counts.dropped.update(one.dropped)
    counts.texts += len(texts) - len(unreached)
    return Portion(found, len(usable), unreached)


def _whole(said: Said) -> str:
    """Returns an answer that has an end. Raises Rejected for another."""
    if said is None:
        raise Rejected(FAILED)
    if isinstance(said, Cut):
        raise Rejected(CUT)
    return said


def by_rule(thinker: Thinker | None, tags: Tags) -> Teacher:
    """Returns the corpus's rule as a teacher. Raises UserError if the corpus has none."""
    if thinker is None:
        raise UserError("--thinker=truth: this corpus has no rule that thinks; name a model")

    def teach(texts: list[str]) -> list[Said]:
        rows = zip(texts, thinker.thoughts(texts), strict=True)
        return [thoughts.joined(thoughts.placed(text, row), tags) for text, row in rows]

    return teach


def load_prompt(name: str) -> str:
    """Loads a prompt that asks a model to annotate a text: a built-in name or a .txt file's path.

    It contains {text} once, and no other field. Raises UserError.
    """
    text = template.read("thoughts prompt", name, "thoughts").removesuffix("\n")
    if template.fields(text) != ("text",):
        raise UserError(f"thoughts prompt {name!r} must contain {{text}} once, and no other field")
    return text


def by_model(
    model: TextGenerator,
    prompt: str,
    *,
    max_tokens: int,
    sampling: SamplingConfig,
    seed: int,
    turn: Turn | None = None,
) -> Teacher:
    """Returns a language model as a teacher; with `turn` it is asked in a chat template."""
    head, tail = _around(prompt)
    trunk = (Markup(turn.head), "", head) if turn else (head,)
    end = (tail, "", Markup(turn.tail)) if turn else (tail,)

    def teach(texts: list[str]) -> list[Said]:
        if not texts:
            return []
        branches = [[("", text, *end)] for text in texts]
        found = model.generate(
            [trunk] * len(texts),
            branches,
            votes=1,
            max_tokens=max_tokens,
            sampling=sampling,
            seed=seed,
        )
        return [said for ((said,),) in found]

    return teach


def by_server(
    server: Remote, prompt: str, *, max_tokens: int, sampling: SamplingConfig, seed: int
) -> Teacher:
    """Returns a model on a server as a teacher: what the server does not answer is `Unreached`,
    but for a request that it refuses, such as a text that is too long for it."""
    head, tail = _around(prompt)

    def teach(texts: list[str]) -> list[Said | Unreached]:
        branches = [("", text, tail) for text in texts]
        how: Any = dict(max_tokens=max_tokens, sampling=sampling, seed=seed)
        found = server.answers([(head,)] * len(texts), branches, **how)
        passing = lambda answer: answer.problem and not answer.final
        return [Unreached(one.problem) if passing(one) else one.value for one in found]

    return teach


def _around(prompt: str) -> tuple[str, str]:
    """Returns the parts of a prompt before and after the text.

    Not `template.fill`: it would put the text on one line.
    """
    head, _, tail = template.pieces(prompt)
    return head, tail
