"""What a perfect reader makes of factuality: the most that a judge can tell from what it is shown.

What is right is not in a prompt; a proofreader's marks are. The reader is given, of each text, how
many facts stand in sentences with a mark and how many in others, as a corpus's ground truth finds
them, and says the label that most texts with these counts have. Its accuracy is what a judge's own
is held against.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sip.judge import marks
from sip.judge.labels import LabelledPrompts
from sip.judge.proofread import plain
from sip.tokenizer import Tokenizer

if TYPE_CHECKING:
    from sip.data.documents import Truth

Seen = tuple[int, int]  # facts in sentences without a mark, and with one
Examples = Sequence[tuple[Seen, int]]  # and the right option


def examples(
    truth: "Truth", tokenizer: Tokenizer, asked: LabelledPrompts, mark: str
) -> list[tuple[Seen, int]]:
    """What is seen of every labelled text of a pointwise aspect that is shown the prefix."""
    found, prefixes, sentences, of = [], [], [], []
    for (trunk, branches), labels_C in zip(asked.prompts, asked.labels_NC, strict=True):
        for branch, label in zip(branches, labels_C.tolist(), strict=False):
            before = trunk[1]
            for _, sentence in marks.sentences(tokenizer, branch[1]):
                prefixes.append(before)
                sentences.append(plain(sentence, mark))
                of.append((len(found), mark in sentence))
                before += sentences[-1]
            found.append(([0, 0], label))
    facts = truth.score(prefixes, sentences)["facts"]
    for (at, marked), count in zip(of, facts.tolist(), strict=True):
        found[at][0][marked] += int(count)
    return [((unmarked, marked), label) for (unmarked, marked), label in found]


def accuracy(known: Examples, asked: Examples) -> dict[str, float]:
    """Of a reader that has seen `known`, with marks, and without: by the number of facts alone."""
    alone = lambda rows: [((sum(seen), 0), label) for seen, label in rows]
    return {"marks": _right(known, asked), "facts": _right(alone(known), alone(asked))}


def _right(known: Examples, asked: Examples) -> float:
    labels: Mapping[Seen, Counter] = defaultdict(Counter)
    for seen, label in known:
        labels[seen][label] += 1
    often = Counter(label for _, label in known).most_common(1)[0][0]  # of counts never seen
    say = lambda seen: labels[seen].most_common(1)[0][0] if seen in labels else often
    return sum(say(seen) == label for seen, label in asked) / max(1, len(asked))
