"""Upper bound on a judge's factuality accuracy: a perfect reader of the judge's prompts.

A prompt does not contain the true facts, but it contains a proofreader's marks. The perfect reader
knows two counts per text, found by the corpus's ground truth: facts in sentences with a mark, and
facts in sentences without one. It answers with the most frequent label of texts with these counts.
A judge's accuracy is compared with the accuracy of this reader.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from etils import epath

from sip import loading
from sip.bench.flags import JSON, JUDGE, PREFIXES
from sip.bench.trained_judge import taught
from sip.data.documents import Truth
from sip.hf import hub
from sip.judge.labels import sentence_grades
from sip.judge.labels.ground_truth import LabelledPrompts
from sip.judge.proofread import plain
from sip.structs import UserError
from sip.text.tokenizer import Tokenizer
from sip.workdir import to_json

Seen = tuple[int, int]  # number of facts in sentences (without a mark, with a mark)
Examples = Sequence[tuple[Seen, int]]  # (counts, index of the right option)


def examples(
    truth: Truth, tokenizer: Tokenizer, asked: LabelledPrompts, mark: str
) -> list[tuple[Seen, int]]:
    """Counts the facts of every labelled text, for a pointwise aspect whose prompt has the prefix.

    Args:
        truth: The corpus's ground truth, which finds facts.
        tokenizer: Splits texts into sentences.
        asked: Labelled prompts of the judge.
        mark: The proofreader's mark in a sentence.

    Returns:
        [((facts without a mark, facts with one), label)] per text.
    """
    found, prefixes, sentences, of = [], [], [], []
    for (trunk, branches), labels_C in zip(asked.prompts, asked.labels_NC, strict=True):
        for branch, label in zip(branches, labels_C.tolist(), strict=False):
            before = trunk[1]  # the prefix; facts of a sentence depend on the text before it
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
    """Returns the accuracy on `asked` of a reader that has learned from `known`.

    Keys: `marks` (the reader sees both counts), `facts` (it sees only their sum).
    """
    alone = lambda rows: [((sum(seen), 0), label) for seen, label in rows]
    return {"marks": _right(known, asked), "facts": _right(alone(known), alone(asked))}


def _right(known: Examples, asked: Examples) -> float:
    labels: Mapping[Seen, Counter] = defaultdict(Counter)
    for seen, label in known:
        labels[seen][label] += 1
    often = Counter(label for _, label in known).most_common(1)[0][0]  # for counts not in `known`
    say = lambda seen: labels[seen].most_common(1)[0][0] if seen in labels else often
    return sum(say(seen) == label for seen, label in asked) / max(1, len(asked))


def bench_reader() -> None:
    """Runs the `reader` benchmark and prints its result."""
    if not JUDGE.value or PREFIXES.value < 1:
        raise UserError("reader: --judge is needed, and --prefixes must be at least 1")
    directory, count = hub.local(str(JUDGE.value)), int(PREFIXES.value)
    made, mark, truth = taught(directory, documents=count, held_out=count)
    if FACTS not in made.held_out["test"]:
        raise UserError(f"--judge {directory}: this judge was not trained on aspect {FACTS!r}")
    tokenizer = loading.kept_tokenizer(directory)
    known, asked = (
        examples(truth, tokenizer, labels[FACTS], mark)
        for labels in (made.examples, made.held_out["test"])
    )
    found = {**accuracy(known, asked), "known": len(known), "asked": len(asked)}
    own = json.loads((epath.Path(directory) / "eval.json").read_text())[f"{FACTS}_accuracy"]
    found |= {"judge": own, "share": own / found["marks"]}
    if JSON.value:
        return print(to_json(found))
    print(
        f"{FACTS}, {len(asked)} texts: accuracy of a perfect reader {found['marks']:.3f} (without "
        f"marks {found['facts']:.3f}), learned from {len(known)} texts; of the judge {own:.3f}, "
        f"{found['share']:.2f} of the perfect reader's"
    )


FACTS = "factuality"
