"""A question about a generated world, as its ground truth asks it (`Truth.ask`)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A question about one entity of a generated world, with a faultless answer."""

    text: str  # the question, as a user asks it
    answer: str  # begins with a space, if sentences of the corpus do
    about: str  # prefix that names the entity; answers are scored as its continuations
    asked: str  # name of the fact that is asked for; empty: any fact
