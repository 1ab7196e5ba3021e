"""Labelled examples for training and grading a judge, where a ground truth knows the answers.

Each prefix gets candidates: its suffix, spoiled versions of it, and whatever the caller adds
(rollouts, rewrites). All are labelled by the truth. Examples become trees: a trunk per prefix, a
prompt per branch. What should be said of it is asked at its end (the verdict) and, where marks are
wanted, at the end of each sentence under judgement: a verdict alone says little of where it lies.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import jax
import numpy as np

from sip.data import pipeline
from sip.data.documents import Truth
from sip.judge import prompts
from sip.judge.labels import sentence_grades
from sip.judge.labels.corruptions import CORRUPTIONS, Others, Phrases
from sip.judge.prompts import Aspect
from sip.judge.proofread import Proofreader, plain
from sip.metrics import pair
from sip.padding import padded_tree
from sip.structs import Targets, Tree, UserError
from sip.text.segments import Ids, Text, tokens_of
from sip.text.tokenizer import Cached, Tokenizer
from sip.textgen.protocol import TextGenerator

Example = tuple[Text, int]  # a branch and the index of the right option


@dataclass(frozen=True)
class LabelledPrompts:
    """N trunks with up to C labelled branches each."""

    aspect: Aspect
    prompts: list[tuple[Text, list[Text]]]
    labels_NC: np.ndarray
    mask_NC: np.ndarray

    def __len__(self):
        return len(self.prompts)


@dataclass(frozen=True)
class LabelledTrees(LabelledPrompts):
    """The same as numpy trees too."""

    tree: Tree  # leading axis N; a branch is a prompt's tokens
    asked: dict[str, Targets]  # `aspect.name`: verdicts; with marks, also `aspect.name/grades`

    def batch(self, step: int, size: int, *, seed: int) -> tuple[Tree, dict[str, Targets]]:
        """(tree, asked) of a step; each epoch is a permutation, addressed by position."""
        rows = pipeline.epochs(len(self), step, size, seed=seed)
        return jax.tree.map(lambda x: x[rows], (self.tree, self.asked))


@dataclass(frozen=True)
class Candidates:
    """The different texts of one prefix; `origin[i]` is what text i was made from, or -1."""

    texts: list[str]
    origin: list[int]


def candidates(
    suffixes: Sequence[str],
    pools: Sequence[Sequence[str]],
    *,
    corruptions: int,
    seed: int,
    trim: Callable[[str], str] = str,
) -> list[Candidates]:
    """Per prefix: suffix, its pool, and `corruptions` kinds of corrupted text, all trimmed.

    What is spoiled is the suffix or the last of the pool, by convention the corrected suffix.
    """
    rng, phrases = np.random.default_rng((seed, 0)), Phrases(suffixes)
    found = []
    for i, (suffix, longer) in enumerate(zip(suffixes, pools, strict=True)):
        pool = [trim(text) for text in longer]
        texts = dict.fromkeys([text for text in (suffix, *pool) if text.strip()], -1)
        if suffix.strip():
            other = suffixes[(i + int(rng.integers(1, max(len(suffixes), 2)))) % len(suffixes)]
            others = Others(other, phrases)
            whole = [text for text in (suffix, *pool[-1:]) if text.strip()]
            texts.update(dict.fromkeys(whole[1:], 0) if whole[-1] != suffix else {})
            for kind in rng.choice(list(CORRUPTIONS), corruptions, replace=False):
                text = whole[int(rng.integers(len(whole)))]
                texts.setdefault(
                    trim(CORRUPTIONS[kind](text, others, rng)), list(texts).index(text)
                )
        found.append(Candidates(list(texts), list(texts.values())))
    return found


def make(
    truth: Truth,
    tokenizer: Tokenizer,
    aspects: Sequence[Aspect],
    prefixes: Sequence[str],
    suffixes: Sequence[str],
    pools: Sequence[Sequence[str]],
    *,
    per_prefix: Mapping[str, int],
    max_len: int,
    seed: int,
    corruptions: int = 2,
    most: int = 0,
    references: Sequence[str] | None = None,
    grades: Mapping[str, Aspect] | None = None,
    proofreader: Proofreader | None = None,
) -> dict[str, LabelledTrees]:
    """Labelled trees per aspect, at most `per_prefix[aspect]` branches on each trunk.

    `references`: what aspects with a reference are shown; None: the suffixes.
    `most`: tokens of a candidate, 0 for any number. A policy's candidates are as long as suffixes:
    a judge that has seen longer rewrites would know them by their length.
    `grades`: aspects whose texts are also marked by the sentence, and with which options.
    `proofreader`: the candidates are shown as it has read them.

    Pairs come in both orders, so their verdicts balance exactly; ties are dropped. Pointwise
    classes are cut to the rarest one, or to half a fair share where that is more. Prompts longer
    than `max_len` are dropped.
    """
    mark = proofreader.config.mark if proofreader else ""
    trim = lambda text: tokenizer.decode(tokenizer.encode(plain(text, mark))[: most or None])
    suffixes = [plain(suffix, mark) for suffix in suffixes]
    found = candidates(suffixes, pools, corruptions=corruptions, seed=seed, trim=trim)
    texts = [each.texts for each in found]
    sizes = [len(row) for row in texts]
    repeated = [p for p, row in zip(prefixes, texts, strict=True) for _ in row]
    known = truth.score(repeated, list(chain.from_iterable(texts)))
    found = _proofread(proofreader, prefixes, found)
    texts = [each.texts for each in found]
    trees = {}
    for i, aspect in enumerate(aspects):
        if aspect.name not in known:
            raise UserError(f"labels: the ground truth knows no aspect {aspect.name!r}")
        value = np.split(np.asarray(known[aspect.name], np.float64), np.cumsum(sizes)[:-1])
        rng = np.random.default_rng((seed, 1, i))
        examples = (
            _pairs(truth, aspect, found, value, per_prefix[aspect.name] // 2, rng)
            if aspect.kind == "pairwise"
            else _points(aspect, texts, value, per_prefix[aspect.name], rng)
        )
        shown = zip(prefixes, suffixes if references is None else references, strict=True)
        trunks = [prompts.trunk(aspect, prefix=p, reference=trim(s)) for p, s in shown]
        rows = _rows(aspect, trunks, examples, per_prefix[aspect.name])
        made = _trees(tokenizer, aspect, rows, per_prefix[aspect.name], max_len)
        if grades and aspect.name in grades:
            prefix_of = dict(zip(trunks, prefixes, strict=True))
            made = _graded(truth, tokenizer, made, grades[aspect.name], prefix_of, mark)
        trees[aspect.name] = made
    return trees


def _proofread(reader: Proofreader | None, prefixes, found) -> list[Candidates]:
    """The candidates as they are shown."""
    if reader is None:
        return found
    told = reader.read(prefixes, [each.texts for each in found])
    texts = [[text for text in row if text is not None] for row in told]
    if any(len(row) < len(each.texts) for row, each in zip(texts, found, strict=True)):
        raise UserError("labels.proofread: its model's max_len is too small for these texts")
    pairs = zip(texts, found, strict=True)
    return [Candidates(row, each.origin) for row, each in pairs]


def _graded(truth, tokenizer, trees: LabelledTrees, grades, prefix_of, mark) -> LabelledTrees:
    """The trees with marks in every text under judgement; a proofreader's `mark` is no word."""
    texts = [(t, text) for t, branches in trees.prompts for b in branches for text in b[1::2]]
    pairs = [(prefix_of[t], text) for t, text in texts]
    known = sentence_grades.make(truth, tokenizer, grades, trees.aspect.name, pairs, mark)
    cached = Cached(tokenizer)
    found = [
        [_grades_of(cached, branch, functools.partial(known, prefix_of[trunk])) for branch in row]
        for trunk, row in trees.prompts
    ]
    answers = [cached.encode(option)[0] for option in grades.options]
    N, C = trees.mask_NC.shape
    M = max(len(each) for row in found for each in row)
    at_NCM, token_NCM = np.zeros((N, C, M), np.int32), np.zeros((N, C, M), np.int32)
    mask_NCM = np.zeros((N, C, M), bool)
    for n, row in enumerate(found):
        for c, each in enumerate(row):
            for m, (at, option) in enumerate(each):
                at_NCM[n, c, m], token_NCM[n, c, m] = at, answers[option]
            mask_NCM[n, c, : len(each)] = True
    asked = {f"{trees.aspect.name}/grades": Targets(at_NCM, token_NCM, mask_NCM)}
    return dataclasses.replace(trees, asked={**trees.asked, **asked})


def _grades_of(cached: Cached, branch: Text, known) -> list[sentence_grades.Grade]:
    """(position, option) of the marks in a branch's texts under judgement."""
    found, start = [], 0
    for i, segment in enumerate(branch):
        if i % 2:
            found += [(start + end - 1, option) for end, option in known(segment)]
        start += len((cached.encode, cached.plain)[i % 2](segment))
    return found


def _pairs(truth, aspect, found, value, count, rng) -> list[list[Example]]:
    """Up to `count` untied pairs per prefix, each in both orders.

    Half of them are a text and what was made from it, which differ in one respect alone: of pairs
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
        last = len(aspect.options) - 1
        both = [(*two[at], last * int(outcome[at] < 0.5)) for at in chosen]
        both += [(j, i, last - label) for i, j, label in both]
        rows.append(
            [(prompts.branch(aspect, each.texts[i], each.texts[j]), label) for i, j, label in both]
        )
    return rows


def _points(aspect, texts, value, C, rng) -> list[list[Example]]:
    """Candidates labelled with the option whose value is nearest; where a trunk holds one prefix's
    at most C, of all classes in turn: then the prefix alone does not tell the label."""

    def label(v):
        return int(np.argmin(np.abs(np.array(aspect.values) - v)))

    rows: list[list[Example]] = [
        [(prompts.branch(aspect, text), label(v)) for text, v in zip(row, values, strict=True)]
        for row, values in zip(texts, value, strict=True)
    ]
    if aspect.per_prefix:
        rows = [_in_turn(row, rng)[:C] for row in rows]
    return _balanced(rows, len(aspect.options), rng)


def _in_turn(row: list[Example], rng) -> list[Example]:
    """One example of each class, then a second of each, and so on; in random order otherwise."""
    row = [row[i] for i in rng.permutation(len(row))]
    seen: dict[int, int] = {}
    turns = []
    for _, o in row:
        turns.append(seen.setdefault(o, 0))
        seen[o] += 1
    return [row[i] for i in np.argsort(turns, kind="stable")]


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
    cached = Cached(tokenizer)
    answers = np.array([cached.encode(option)[0] for option in aspect.options], np.int32)
    kept = []
    for trunk, examples in rows:
        ids = [tokenizer.bos, *tokens_of(cached, trunk)]
        full = [(b, label, tokens_of(cached, b)) for b, label in examples]
        full = [example for example in full if len(ids) + len(example[2]) < max_len]
        if full:
            kept.append((trunk, ids, full))
    if not kept:
        raise UserError(f"labels: no example of aspect {aspect.name!r} fits {max_len} tokens")
    branches = [[ids for _, _, ids in full] for _, _, full in kept]
    tree = _snug([ids for _, ids, _ in kept], branches, tokenizer.pad, C)
    labels_NC = padded([[label for _, label, _ in full] for _, _, full in kept], C)
    length_NC = np.asarray(tree.mask_BCR).sum(-1)
    verdicts = Targets(
        np.maximum(length_NC - 1, 0)[..., None].astype(np.int32),
        answers[labels_NC][..., None],
        (length_NC > 0)[..., None],
    )
    asked = [(trunk, [branch for branch, _, _ in full]) for trunk, _, full in kept]
    return LabelledTrees(aspect, asked, labels_NC, length_NC > 0, tree, {aspect.name: verdicts})


def padded(labels: Sequence[Sequence[int]], C: int) -> np.ndarray:
    """labels_NC, zeros where a row has fewer than C."""
    return np.array([[*row, *[0] * (C - len(row))] for row in labels], int)


def accuracy(
    textgen: TextGenerator, labelled: Mapping[str, LabelledPrompts]
) -> dict[str, tuple[float, float]]:
    """(right, asked) by the likeliest option: `quality`, and per class `quality/one`.

    A prompt that the generator cannot answer is wrong.
    """
    counts = {}
    for found in labelled.values():
        trunks, branches = zip(*found.prompts, strict=True)
        logp_NCO = textgen.choose(trunks, branches, found.aspect.options)
        said_NC = np.where(np.isnan(logp_NCO).any(-1), -1, logp_NCO.argmax(-1))
        counts |= right(found, said_NC) | both_orders(found, np.exp(logp_NCO))
    return counts


def both_orders(labelled: LabelledPrompts, p_NCO: np.ndarray) -> dict[str, tuple[float, float]]:
    """(right, asked) of pairs that are there in both orders, whose probabilities are averaged, as a
    policy's judge has them: `quality/both_orders`. Evenly split is half right, unanswered wrong."""
    if labelled.aspect.kind != "pairwise" or len(labelled.aspect.options) != 2:
        return {}
    right, pairs = 0.0, swaps(labelled)
    for place, swapped in pairs:
        better = (p_NCO[place][0] + p_NCO[swapped][1]) / 2
        first = 0.5 if better == 0.5 else float(better > 0.5)
        wanted = 1 - labelled.labels_NC[place]
        right += 0.0 if np.isnan(better) else 1 - abs(wanted - first)
    return {f"{labelled.aspect.name}/both_orders": (right, float(len(pairs)))} if pairs else {}


Place = tuple[int, int]  # (n, c)


def swaps(labelled: LabelledPrompts) -> list[tuple[Place, Place]]:
    """Where a pair stands, and where the same in the other order: by the one that comes first."""
    pairs = [
        ((n, c), (n, branch[1], branch[3]))
        for n, (_, row) in enumerate(labelled.prompts)
        for c, branch in enumerate(row)
        if not isinstance(branch, str)
    ]
    at = {pair: place for place, pair in pairs}
    both = [(place, at[n, b, a]) for place, (n, a, b) in pairs if (n, b, a) in at]
    return [(place, swapped) for place, swapped in both if place < swapped]


def right(labelled: LabelledPrompts, said_NC: np.ndarray) -> dict[str, tuple[float, float]]:
    """(right, asked) where option `said_NC` was said, -1 for none: overall and per class."""
    C, aspect = said_NC.shape[1], labelled.aspect
    label_NC, mask_NC = labelled.labels_NC[:, :C], labelled.mask_NC[:, :C]
    asked = {aspect.name: mask_NC} | {
        f"{aspect.name}/{option.strip()}": mask_NC & (label_NC == o)
        for o, option in enumerate(aspect.options)
    }
    return {key: pair(said_NC == label_NC, asked_NC) for key, asked_NC in asked.items()}


def _snug(trunks: Sequence[Ids], branches: Sequence[Sequence[Ids]], pad: int, C: int) -> Tree:
    """A tree as small as its longest trunk and branch, to the next multiple of 4."""
    longest = lambda rows: -(-max(map(len, rows)) // 4) * 4
    return padded_tree(
        trunks, branches, pad, longest(trunks), C, longest(chain.from_iterable(branches))
    )
