"""What a judge knows of a prefix, written down by itself and shown with whatever it is asked.

To tell in one step whether a claim is true, a judge has to recall the fact and compare it with the
claim. One that has first written what it knows (arXiv 2110.08387, 2210.01296) need only compare.
Notes hang on the prefix alone: they are written once and stand in the trunk, for all candidates.
"""

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sip.judge import prompts
from sip.sampling import SamplingConfig
from sip.structs import Asked, Tree, UserError
from sip.template import fields, fill, pieces
from sip.textgen import Cached, Ids, TextGenerator, snug, tokens_of
from sip.tokenizer import Tokenizer

MARKERS = "=== trunk\n", "\n=== branch\n", "\n=== shown\n"
GREEDY = SamplingConfig(temperature=0.0)


@dataclass(frozen=True)
class Recall:
    """How a judge is asked for its notes, and how they are shown to it."""

    name: str
    trunk: str
    branch: str
    shown: str  # goes to the end of an aspect's trunk
    tokens: int  # a note has at most so many

    def __post_init__(self):
        named = [fields(text) for text in (self.trunk, self.branch, self.shown)]
        if named != [("prefix",), (), ("notes",)]:
            raise UserError(
                f"recall {self.name!r}: the trunk names {{prefix}}, the branch nothing and "
                "what is shown {notes}, once each"
            )
        if self.tokens < 1:
            raise UserError(f"recall {self.name!r}: tokens must be at least 1")

    def prompt(self, prefix: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(trunk, branch) after which the notes on a prefix are written."""
        return fill(self.trunk, {"prefix": prefix}), (self.branch,)

    def show(self, trunk: tuple[str, ...], notes: str) -> tuple[str, ...]:
        """An aspect's filled trunk with the notes at its end."""
        first, *rest = fill(self.shown, {"notes": notes})
        return (*trunk[:-1], trunk[-1] + first, *rest)

    def symbols(self) -> tuple[str, ...]:
        """Strings that a tokenizer trained for this prompt should hold as single tokens."""
        parts = (self.trunk, self.branch, self.shown)
        return tuple(dict.fromkeys(s for text in parts for s in pieces(text)[::2] if s))


def load(name: str) -> Recall:
    """A built-in prompt by its name, or a user's own by the path of its .txt file."""
    text = prompts.read("recall", name)
    header, trunk, branch, shown = prompts.split("recall", name, text, MARKERS)
    try:
        entries = dict(line.split(": ", 1) for line in header.splitlines() if line)
        tokens, _ = int(entries.pop("tokens")), int(entries.pop("version", "1"))
    except (ValueError, KeyError) as error:
        raise UserError(f"recall {name!r}: bad header in the prompt file ({error})") from None
    if entries:
        raise UserError(f"recall {name!r}: unknown header line {min(entries)!r}")
    branch, shown = ("\n" + text.removesuffix("\n") for text in (branch, shown))
    return Recall(pathlib.Path(name).stem, trunk, branch, shown, tokens)


def write(recall: Recall, textgen: TextGenerator, prefixes: Sequence[str]) -> dict[str, str | None]:
    """Notes by prefix, greedy; None where they could not be written."""
    different = list(dict.fromkeys(prefixes))
    asked = [recall.prompt(prefix) for prefix in different]
    said = textgen.generate(
        [trunk for trunk, _ in asked],
        [[branch] for _, branch in asked],
        votes=1,
        max_tokens=recall.tokens,
        sampling=GREEDY,
        seed=0,
    )
    return {prefix: notes for prefix, ((notes,),) in zip(different, said, strict=True)}


def shown(
    recall: Recall | None,
    known: Mapping[str, str | None],
    prefixes: Sequence[str],
    trunks: Sequence[tuple[str, ...]],
) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """(trunks with what is `known` of their prefixes, valid_N); without recall as they are."""
    if recall is None:
        return list(trunks), np.ones(len(trunks), bool)
    notes = [known[prefix] for prefix in prefixes]
    told = [recall.show(trunk, text or "") for trunk, text in zip(trunks, notes, strict=True)]
    return told, np.array([text is not None for text in notes], bool)


@dataclass(frozen=True)
class RecallExamples:
    """True notes on prefixes, as trees of one branch each, whose tokens and EOS are asked for."""

    recall: Recall
    prefixes: list[str]
    notes: list[str]
    tree: Tree  # leading axis N
    asked: dict[str, Asked]  # `recall.name`

    def __len__(self):
        return len(self.prefixes)

    def accuracy(self, textgen: TextGenerator) -> dict[str, tuple[float, float]]:
        """(right, asked): notes that are the true ones, word for word."""
        known = write(self.recall, textgen, self.prefixes)
        right = [known[p] == notes for p, notes in zip(self.prefixes, self.notes, strict=True)]
        return {self.recall.name: (float(sum(right)), float(len(right)))}


def examples(
    recall: Recall,
    tokenizer: Tokenizer,
    prefixes: Sequence[str],
    notes: Sequence[str],
    *,
    max_len: int,
) -> RecallExamples:
    """True notes to learn; those too long for `recall.tokens` or `max_len` are left out."""
    cached, kept = Cached(tokenizer), []
    for prefix, text in dict(zip(prefixes, notes, strict=True)).items():
        trunk, branch = recall.prompt(prefix)
        ids = [tokenizer.bos, *tokens_of(cached, trunk)]
        begun, said = tokens_of(cached, branch), [*cached.encode(text), tokenizer.eos]
        if len(said) <= recall.tokens and len(ids) + len(begun) + len(said) <= max_len:
            kept.append((prefix, text, ids, begun, said))
    if not kept:
        raise UserError(f"recall {recall.name!r}: no note fits")
    branches = [[[*begun, *said[:-1]]] for *_, begun, said in kept]
    tree = snug([ids for _, _, ids, _, _ in kept], branches, tokenizer.pad, 1)
    asked = _asked([(len(begun), said) for *_, begun, said in kept])
    return RecallExamples(
        recall, [row[0] for row in kept], [row[1] for row in kept], tree, {recall.name: asked}
    )


def _asked(rows: Sequence[tuple[int, Ids]]) -> Asked:
    """Tokens to say after the first so many of a branch."""
    M = max(len(said) for _, said in rows)
    shape = (len(rows), 1, M)
    at_NCM, token_NCM = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    mask_NCM = np.zeros(shape, bool)
    for n, (begun, said) in enumerate(rows):
        at_NCM[n, 0, : len(said)] = begun - 1 + np.arange(len(said))
        token_NCM[n, 0, : len(said)], mask_NCM[n, 0, : len(said)] = said, True
    return Asked(at_NCM, token_NCM, mask_NCM)
