"""Labelled examples for training and grading a judge, where a ground truth knows the answers.

Each prefix gets candidates: its suffix, spoiled versions of it, and whatever the caller adds
(rollouts, rewrites). All are labelled by the truth. Examples become trees: a trunk per prefix, a
prompt per branch. What should be said of it is asked at its end (the verdict) and, where marks are
wanted, at the end of each sentence under judgement: a verdict alone says little of where it lies.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import TYPE_CHECKING

import jax
import numpy as np

from sip.data import pipeline
from sip.judge import marks, prompts
from sip.judge.prompts import Aspect
from sip.structs import Asked, Tree, UserError
from sip.textgen import Text, TextGenerator, bucket, pack, tokens_of
from sip.tokenizer import Tokenizer

if TYPE_CHECKING:
    from sip.data.documents import Truth

Example = tuple[Text, int]  # a branch and the index of the right option


@dataclass(frozen=True)
class LabelledTrees:
    """N trunks with up to C labelled branches each, as prompts and as numpy trees."""

    aspect: Aspect
    prompts: list[tuple[Text, list[Text]]]
    labels_NC: np.ndarray
    mask_NC: np.ndarray
    tree: Tree  # leading axis N; a branch is a prompt's tokens
    asked: dict[str, Asked]  # `aspect.name`: verdicts; with marks, also `aspect.name/marks`

    def __len__(self):
        return len(self.prompts)

    def batch(self, step: int, size: int, *, seed: int) -> tuple[Tree, dict[str, Asked]]:
        """(tree, asked) of a step; each epoch is a permutation, addressed by position."""
        rows = pipeline.epochs(len(self), step, size, seed=seed)
        return jax.tree.map(lambda x: x[rows], (self.tree, self.asked))


def shuffle_words(text: str, other: str, rng: np.random.Generator) -> str:
    """The words in another order."""
    del other
    return _joined(text, list(rng.permutation(text.split())))


def repeat_phrase(text: str, other: str, rng: np.random.Generator) -> str:
    """A phrase repeated to the end, the number of words kept."""
    del other
    words = text.split()
    size = max(min(len(words) // 2, int(rng.integers(2, 9))), 1)
    start = int(rng.integers(0, max(len(words) - 2 * size, 0) + 1))
    return _joined(text, (words[:start] + words[start : start + size] * len(words))[: len(words)])


def repeat_sentence(text: str, other: str, rng: np.random.Generator) -> str:
    """A sentence said twice, in the place of the next one: well written, and idle."""
    del other
    sentences = re.findall(r"[^.!?]*[.!?]|[^.!?]+$", text)
    if len(sentences) < 2:
        return text
    at = int(rng.integers(0, len(sentences) - 1))
    again = sentences[at].strip()
    if at == 0 and len(sentences) > 2:  # the first may be the rest of the prefix's last sentence
        at, again = 1, sentences[1].strip()
    cut = sentences[: at + 1] + [" " + again] + sentences[at + 2 :]
    return _joined(text, "".join(cut).split()[: len(text.split())])


def splice(text: str, other: str, rng: np.random.Generator) -> str:
    """The beginning, continued with the end of another document's suffix."""
    words, others = text.split(), other.split()
    cut = int(rng.integers(0, len(words)))
    return _joined(text, words[:cut] + others[cut:])


def swap_word(text: str, other: str, rng: np.random.Generator) -> str:
    """One word replaced by the word at the same place of another document's suffix."""
    words, others = text.split(), other.split()
    places = [i for i, pair in enumerate(zip(words, others, strict=False)) if pair[0] != pair[1]]
    if places:
        i = places[int(rng.integers(len(places)))]
        words[i] = others[i]
    return _joined(text, words)


def _joined(text: str, words: Sequence[str]) -> str:
    """The words with the text's own space before them."""
    return text[: len(text) - len(text.lstrip())] + " ".join(words)


SPOILERS: dict[str, Callable[[str, str, np.random.Generator], str]] = {
    "shuffle": shuffle_words,
    "repeat": repeat_phrase,
    "echo": repeat_sentence,
    "splice": splice,
    "swap": swap_word,
}


@dataclass(frozen=True)
class Candidates:
    """The different texts of one prefix; `origin[i]` is what text i was spoiled from, or -1."""

    texts: list[str]
    origin: list[int]


def candidates(
    suffixes: Sequence[str], pools: Sequence[Sequence[str]], *, spoilers: int, seed: int
) -> list[Candidates]:
    """Per prefix: suffix, its pool, and `spoilers` kinds of spoiled text.

    What is spoiled is the suffix or the last of the pool, by convention a corrected suffix.
    """
    rng = np.random.default_rng((seed, 0))
    found = []
    for i, (suffix, pool) in enumerate(zip(suffixes, pools, strict=True)):
        texts = dict.fromkeys([text for text in (suffix, *pool) if text.strip()], -1)
        if suffix.strip():
            other = suffixes[(i + int(rng.integers(1, max(len(suffixes), 2)))) % len(suffixes)]
            whole = [text for text in (suffix, *pool[-1:]) if text.strip()]
            for kind in rng.choice(list(SPOILERS), spoilers, replace=False):
                text = whole[int(rng.integers(len(whole)))]
                texts.setdefault(SPOILERS[kind](text, other, rng), list(texts).index(text))
        found.append(Candidates(list(texts), list(texts.values())))
    return found


def make(
    truth: "Truth",
    tokenizer: Tokenizer,
    aspects: Sequence[Aspect],
    prefixes: Sequence[str],
    suffixes: Sequence[str],
    pools: Sequence[Sequence[str]],
    *,
    per_prefix: Mapping[str, int],
    max_len: int,
    seed: int,
    spoilers: int = 2,
    grades: Mapping[str, Aspect] | None = None,
) -> dict[str, LabelledTrees]:
    """Labelled trees per aspect, at most `per_prefix[aspect]` branches on each trunk.

    `grades`: aspects whose texts are also marked by the sentence, and with which options.

    Pairs come in both orders, so their verdicts balance exactly; ties are dropped. Pointwise
    classes are cut to the rarest one, or to half a fair share where that is more. Prompts longer
    than `max_len` are dropped.
    """
    found = candidates(suffixes, pools, spoilers=spoilers, seed=seed)
    texts = [each.texts for each in found]
    sizes = [len(row) for row in texts]
    repeated = [p for p, row in zip(prefixes, texts, strict=True) for _ in row]
    known = truth.score(repeated, list(chain.from_iterable(texts)))
    trees = {}
    for i, aspect in enumerate(aspects):
        if aspect.name not in known:
            raise UserError(f"labels: the ground truth knows no aspect {aspect.name!r}")
        value = np.split(np.asarray(known[aspect.name], np.float64), np.cumsum(sizes)[:-1])
        rng = np.random.default_rng((seed, 1, i))
        examples = (
            _pairs(truth, aspect, found, value, per_prefix[aspect.name] // 2, rng)
            if aspect.kind == "pairwise"
            else _balanced(_points(aspect, texts, value), len(aspect.options), rng)
        )
        trunks = [
            prompts.trunk(aspect, prefix=p, reference=s)
            for p, s in zip(prefixes, suffixes, strict=True)
        ]
        rows = _rows(aspect, trunks, examples, per_prefix[aspect.name])
        made = _trees(tokenizer, aspect, rows, per_prefix[aspect.name], max_len)
        if grades and aspect.name in grades:
            prefix_of = dict(zip(trunks, prefixes, strict=True))
            made = _marked(truth, tokenizer, made, grades[aspect.name], prefix_of)
        trees[aspect.name] = made
    return trees


def _marked(truth, tokenizer, trees: LabelledTrees, grades: Aspect, prefix_of) -> LabelledTrees:
    """The trees with marks in every text under judgement."""
    texts = [(t, text) for t, branches in trees.prompts for b in branches for text in b[1::2]]
    known = marks.make(
        truth, tokenizer, grades, trees.aspect.name, [(prefix_of[t], text) for t, text in texts]
    )
    encode = functools.cache(tokenizer.encode)
    found = [
        [_marks_of(encode, branch, functools.partial(known, prefix_of[trunk])) for branch in row]
        for trunk, row in trees.prompts
    ]
    answers = [encode(option)[0] for option in grades.options]
    N, C = trees.mask_NC.shape
    M = max(len(each) for row in found for each in row)
    at_NCM, token_NCM = np.zeros((N, C, M), np.int32), np.zeros((N, C, M), np.int32)
    mask_NCM = np.zeros((N, C, M), bool)
    for n, row in enumerate(found):
        for c, each in enumerate(row):
            for m, (at, option) in enumerate(each):
                at_NCM[n, c, m], token_NCM[n, c, m] = at, answers[option]
            mask_NCM[n, c, : len(each)] = True
    asked = {f"{trees.aspect.name}/marks": Asked(at_NCM, token_NCM, mask_NCM)}
    return dataclasses.replace(trees, asked={**trees.asked, **asked})


def _marks_of(encode, branch: Text, known) -> list[marks.Mark]:
    """(position, option) of the marks in a branch's texts under judgement."""
    found, start = [], 0
    for i, segment in enumerate(branch):
        if i % 2:
            found += [(start + end - 1, option) for end, option in known(segment)]
        start += len(encode(segment))
    return found


def _pairs(truth, aspect, found, value, count, rng) -> list[list[Example]]:
    """Up to `count` untied pairs per prefix, each in both orders.

    Half of them are a text and its spoiled version, which differ in one fault alone: of pairs
    drawn at random few would show a fault that a policy has yet to fall for.
    """
    rows = []
    for each, quality in zip(found, value, strict=True):
        two = np.array(list(combinations(range(len(each.texts)), 2)), int).reshape(-1, 2)
        outcome = np.asarray(truth.compare(quality[two[:, 0]], quality[two[:, 1]]))
        untied = rng.permutation(np.flatnonzero(outcome != 0.5))
        twins = np.array(each.origin, int)[two[untied, 1]] == two[untied, 0]
        first = untied[twins][: (count + 1) // 2]
        chosen = [*first, *np.setdiff1d(untied, first, assume_unique=True)][:count]
        both = [(*two[at], int(outcome[at] < 0.5)) for at in chosen]
        both += [(j, i, 1 - label) for i, j, label in both]
        rows.append(
            [(prompts.branch(aspect, each.texts[i], each.texts[j]), label) for i, j, label in both]
        )
    return rows


def _points(aspect, texts, value) -> list[list[Example]]:
    """Every candidate, labelled with the option whose value is nearest."""

    def label(v):
        return int(np.argmin(np.abs(np.array(aspect.values) - v)))

    return [
        [(prompts.branch(aspect, text), label(v)) for text, v in zip(row, values, strict=True)]
        for row, values in zip(texts, value, strict=True)
    ]


def _balanced(examples: list[list[Example]], classes: int, rng) -> list[list[Example]]:
    """Thins the frequent classes; what is left of a row comes in random order."""
    labels = np.array([label for _, label in chain.from_iterable(examples)], int)
    present = [n for n in np.bincount(labels, minlength=classes) if n] or [0]
    limit = max(min(present), len(labels) // (2 * len(present)))
    keep = np.zeros(len(labels), bool)
    for o in range(classes):
        keep[rng.permutation(np.flatnonzero(labels == o))[:limit]] = True
    rows = np.split(keep, np.cumsum([len(row) for row in examples])[:-1])
    return [
        [row[i] for i in rng.permutation(np.flatnonzero(kept))]
        for row, kept in zip(examples, rows, strict=True)
    ]


def _rows(aspect, trunks, examples, C) -> list[tuple[Text, list[Example]]]:
    """(trunk, examples) with at most C each; where all trunks are one, its rows are filled up."""
    if aspect.per_prefix:
        return [(t, row[:C]) for t, row in zip(trunks, examples, strict=True)]
    flat = list(chain.from_iterable(examples))
    return [(trunks[0], flat[i : i + C]) for i in range(0, len(flat), C)]


def _trees(tokenizer, aspect, rows, C, max_len) -> LabelledTrees:
    """The examples that fit, tokenised."""
    encode = functools.cache(tokenizer.encode)
    answers = np.array([encode(option)[0] for option in aspect.options], np.int32)
    kept = []
    for trunk, examples in rows:
        ids = [tokenizer.bos, *tokens_of(encode, trunk)]
        full = [(b, label, tokens_of(encode, b)) for b, label in examples]
        full = [example for example in full if len(ids) + len(example[2]) < max_len]
        if full:
            kept.append((trunk, ids, full))
    if not kept:
        raise UserError(f"labels: no example of aspect {aspect.name!r} fits {max_len} tokens")
    branches = [[ids for _, _, ids in full] for _, _, full in kept]
    T = bucket(max(len(ids) for _, ids, _ in kept), 16)
    R = bucket(max(map(len, chain.from_iterable(branches))), 16)
    tree = pack([ids for _, ids, _ in kept], branches, tokenizer.pad, T, C, R)
    labels_NC = np.array(
        [[label for _, label, _ in full] + [0] * (C - len(full)) for _, _, full in kept]
    )
    length_NC = np.asarray(tree.mask_BCR).sum(-1)
    verdicts = Asked(
        np.maximum(length_NC - 1, 0)[..., None].astype(np.int32),
        answers[labels_NC][..., None],
        (length_NC > 0)[..., None],
    )
    asked = [(trunk, [branch for branch, _, _ in full]) for trunk, _, full in kept]
    return LabelledTrees(aspect, asked, labels_NC, length_NC > 0, tree, {aspect.name: verdicts})


def accuracy(
    textgen: TextGenerator, labelled: Mapping[str, LabelledTrees]
) -> dict[str, tuple[float, float]]:
    """(right, asked) by the likeliest option: `quality`, and per class `quality/one`.

    A prompt that the generator cannot answer is wrong.
    """
    counts = {}
    for name, trees in labelled.items():
        trunks, branches = zip(*trees.prompts, strict=True)
        logp_NCO = textgen.choose(trunks, branches, trees.aspect.options)
        said_NC = np.where(np.isnan(logp_NCO).any(-1), -1, logp_NCO.argmax(-1))
        C = said_NC.shape[1]
        label_NC, mask_NC = trees.labels_NC[:, :C], trees.mask_NC[:, :C]
        for key, asked_NC in [(name, mask_NC)] + [
            (f"{name}/{option.strip()}", mask_NC & (label_NC == o))
            for o, option in enumerate(trees.aspect.options)
        ]:
            right = (said_NC == label_NC) & asked_NC
            counts[key] = float(right.sum()), float(asked_NC.sum())
    return counts
