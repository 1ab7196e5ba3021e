"""What a perfect reader makes of factuality: the most that a judge can tell from what it is shown.

What is right is not in a prompt; a proofreader's marks are. The reader is given, of each text, how
many facts stand in sentences with a mark and how many in others, as a corpus's ground truth finds
them, and says the label that most texts with these counts have. Its accuracy is what a judge's own
is held against.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from etils import epath

from sip import loading
from sip.bench.flags import JSON, JUDGE, PREFIXES
from sip.bench.trained_judge import taught
from sip.data.documents import Truth
from sip.judge.labels import sentence_grades
from sip.judge.labels.ground_truth import LabelledPrompts
from sip.judge.proofread import plain
from sip.structs import UserError
from sip.text.tokenizer import Tokenizer

Seen = tuple[int, int]  # facts in sentences without a mark, and with one
Examples = Sequence[tuple[Seen, int]]  # and the right option


def examples(
    truth: Truth, tokenizer: Tokenizer, asked: LabelledPrompts, mark: str
) -> list[tuple[Seen, int]]:
    """What is seen of every labelled text of a pointwise aspect that is shown the prefix."""
    found, prefixes, sentences, of = [], [], [], []
    for (trunk, branches), labels_C in zip(asked.prompts, asked.labels_NC, strict=True):
        for branch, label in zip(branches, labels_C.tolist(), strict=False):
            before = trunk[1]
            for _, sentence in sentence_grades.sentences(tokenizer, branch[1]):
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


def bench_reader() -> None:
    """Measures, and prints what was found."""
    if not JUDGE.value or PREFIXES.value < 1:
        raise UserError("reader: --judge is needed, and --prefixes of at least 1")
    directory, count = str(JUDGE.value), int(PREFIXES.value)
    made, mark, truth = taught(directory, documents=count, held_out=count)
    if FACTS not in made.held_out["test"]:
        raise UserError(f"--judge {directory}: it was not taught {FACTS!r}")
    tokenizer = loading.kept_tokenizer(directory)
    known, asked = (
        examples(truth, tokenizer, labels[FACTS], mark)
        for labels in (made.examples, made.held_out["test"])
    )
    found = {**accuracy(known, asked), "known": len(known), "asked": len(asked)}
    own = json.loads((epath.Path(directory) / "eval.json").read_text())[f"{FACTS}_accuracy"]
    found |= {"judge": own, "share": own / found["marks"]}
    if JSON.value:
        return print(json.dumps(found))
    print(
        f"{FACTS}, {len(asked)} texts: a perfect reader {found['marks']:.3f} (without marks "
        f"{found['facts']:.3f}), learned from {len(known)}; the judge {own:.3f}, "
        f"{found['share']:.2f} of it"
    )


FACTS = "factuality"
