"""Labelled examples to train and evaluate a judge, for corpora with a ground truth.

The candidates of a prefix are its suffix, corrupted versions of it, and a pool given by the caller
(rollouts, rewrites). The ground truth labels them. Examples become trees with one trunk per prefix
and one prompt per branch. The target of the verdict is at the last token of a branch. With sentence
grades there are further targets at the end of each sentence under judgement, as a verdict alone
does not show where a fault is.
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
from sip.text.tokenizer import Cached, Tokenizer, beginning
from sip.textgen.local import about
from sip.textgen.protocol import TextGenerator

Example = tuple[Text, int]  # (branch, index of the right option)
Grades = Callable[[Text, str], list[sentence_grades.Grade]]  # of (trunk, text under judgement)


@dataclass(frozen=True)
class LabelledPrompts:
    """N trunks with up to C labelled branches each."""

    aspect: Aspect
    prompts: list[tuple[Text, list[Text]]]  # (trunk, branches)
    labels_NC: np.ndarray  # index of the right option
    mask_NC: np.ndarray  # branches that exist, left aligned

    def __len__(self):
        return len(self.prompts)


@dataclass(frozen=True)
class LabelledTrees(LabelledPrompts):
    """Labelled prompts, also as tokens in a numpy tree with targets to train on."""

    tree: Tree  # leading axis N
    asked: dict[str, Targets]  # ASPECT: verdicts; with sentence grades also ASPECT/grades

    def batch(self, step: int, size: int, *, seed: int) -> tuple[Tree, dict[str, Targets]]:
        """Returns (tree, asked) of a step. Each epoch is a permutation that depends on `seed`."""
        rows = pipeline.epochs(len(self), step, size, seed=seed)
        return jax.tree.map(lambda x: x[rows], (self.tree, self.asked))


@dataclass(frozen=True)
class Candidates:
    """The distinct candidate texts of one prefix."""

    texts: list[str]
    origin: list[int]  # index of the text that text i was made from, or -1


def candidates(
    prefixes: Sequence[str],
    suffixes: Sequence[str],
    pools: Sequence[Sequence[str]],
    *,
    corruptions: int,
    seed: int,
    trim: Callable[[str], str] = str,
) -> list[Candidates]:
    """Lists the candidates of each prefix: its suffix, its pool, and corrupted texts, all trimmed.

    `corruptions` is the number of kinds of corrupted text per prefix. The corrupted text is the
    suffix or the last text of the pool, by convention the corrected suffix.
    """
    rng, phrases = np.random.default_rng((seed, 0)), Phrases(suffixes)
    found = []
    for i, (suffix, longer) in enumerate(zip(suffixes, pools, strict=True)):
        pool = [trim(text) for text in longer]
        texts = dict.fromkeys([text for text in (suffix, *pool) if text.strip()], -1)
        if suffix.strip():
            other = suffixes[(i + int(rng.integers(1, max(len(suffixes), 2)))) % len(suffixes)]
            others = Others(other, phrases, prefixes[i])
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
    """Makes labelled trees per aspect, with at most `per_prefix[aspect]` branches on each trunk.

    `references`: references shown by aspects that have one; None: the suffixes.
    `most`: most tokens of a candidate, 0 for no limit. A policy's candidates are as long as
    suffixes, so a judge trained on longer rewrites could recognise them by their length.
    `grades`: for an aspect, the pointwise aspect whose options grade the sentences of its texts.
    `proofreader`: marks the candidates before they are shown.

    Pairs come in both orders, so pairwise labels are balanced exactly; ties are dropped. Pointwise
    classes are cut to the size of the rarest class, or to half of a fair share if that is more.
    Prompts longer than `max_len` tokens are dropped. Raises UserError if an aspect is unknown to
    the ground truth or has no example that fits.
    """
    mark = proofreader.config.mark if proofreader else ""
    trim = lambda text: beginning(tokenizer, plain(text, mark), most or None)
    suffixes = [plain(suffix, mark) for suffix in suffixes]
    found = candidates(prefixes, suffixes, pools, corruptions=corruptions, seed=seed, trim=trim)
    texts = [each.texts for each in found]
    sizes = [len(row) for row in texts]
    repeated = [p for p, row in zip(prefixes, texts, strict=True) for _ in row]
    # Score the texts before the proofreader's marks are put in: the truth must not see them.
    known = truth.score(repeated, list(chain.from_iterable(texts)))
    found = _proofread(proofreader, prefixes, found)
    texts = [each.texts for each in found]
    trees = {}
    for i, aspect in enumerate(aspects):
        if aspect.name not in known:
            raise UserError(f"labels: aspect {aspect.name!r} is unknown to the ground truth")
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
            graders = grades[aspect.name]
            by_truth = _by_truth(truth, tokenizer, made, graders, prefix_of, mark)
            made = graded(tokenizer, made, graders, by_truth)
        trees[aspect.name] = made
    return trees


def _proofread(reader: Proofreader | None, prefixes, found) -> list[Candidates]:
    """The candidates with the proofreader's marks. Raises UserError if a text does not fit it."""
    if reader is None:
        return found
    told = reader.read_all(prefixes, [each.texts for each in found], "task.labels.proofread")
    return [Candidates(row, each.origin) for row, each in zip(told, found, strict=True)]


def _by_truth(truth, tokenizer, trees: LabelledTrees, grades, prefix_of, mark) -> Grades:
    """Returns the ground truth's grades(trunk, text) of every text under judgement in the trees.

    A proofreader's `mark` is removed from a text before it is scored.
    """
    texts = [(t, text) for t, branches in trees.prompts for b in branches for text in b[1::2]]
    pairs = [(prefix_of[t], text) for t, text in texts]
    known = sentence_grades.make(truth, tokenizer, grades, trees.aspect.name, pairs, mark)
    return lambda trunk, text: known(prefix_of[trunk], text)


def graded(
    tokenizer: Tokenizer, trees: LabelledTrees, grades: Aspect, known: Grades
) -> LabelledTrees:
    """Adds the grades of sentences as targets to labelled trees: known(trunk, text)."""
    cached = Cached(tokenizer)
    found = [
        [_grades_of(cached, branch, functools.partial(known, trunk)) for branch in row]
        for trunk, row in trees.prompts
    ]
    answers = [cached.encode(option)[0] for option in grades.options]
    N, C = trees.mask_NC.shape
    M = max(len(each) for row in found for each in row)  # most graded sentences of a branch
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
    """Lists (token index in the branch, option) of the sentences of a branch."""
    found, start = [], 0
    for i, segment in enumerate(branch):
        if i % 2:  # text under judgement; even segments are the template's own words
            found += [(start + end - 1, option) for end, option in known(segment)]
        start += len((cached.encode, cached.plain)[i % 2](segment))
    return found


def _pairs(truth, aspect, found, value, count, rng) -> list[list[Example]]:
    """Labels up to `count` untied pairs per prefix, each in both orders.

    Up to half of them are a text and its own corrupted version, which differ in one respect. Among
    random pairs few would show faults that the policy does not make yet.
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
    """Labels single candidates with the option whose value is nearest.

    If trunks depend on the prefix, each keeps at most C candidates, taken from all classes in turn:
    otherwise the prefix alone would predict the label.
    """

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
    """Reorders a row: one example of each class, then a second of each, ...; random within."""
    row = [row[i] for i in rng.permutation(len(row))]
    seen: dict[int, int] = {}
    turns = []
    for _, o in row:
        turns.append(seen.setdefault(o, 0))
        seen[o] += 1
    return [row[i] for i in np.argsort(turns, kind="stable")]


def _balanced(examples: list[list[Example]], classes: int, rng) -> list[list[Example]]:
    """Drops random examples of frequent classes, and shuffles the rest of each row."""
    labels = np.array([label for _, label in chain.from_iterable(examples)], int)
    present = [n for n in np.bincount(labels, minlength=classes) if n] or [0]
    # The size of the rarest class, but at least half of a fair share: a very rare class must not
    # cost nearly all examples.
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
    """Lists (trunk, at most C examples). If all trunks are equal, rows are filled up to C."""
    if aspect.per_prefix:
        return [(t, row[:C]) for t, row in zip(trunks, examples, strict=True)]
    flat = list(chain.from_iterable(examples))
    return [(trunks[0], flat[i : i + C]) for i in range(0, len(flat), C)]


def _trees(tokenizer, aspect, rows, C, max_len) -> LabelledTrees:
    """Tokenises the examples that fit `max_len`. Raises UserError if there is none."""
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
    # One target per branch, at its last token: the option's token, which is not in the branch.
    verdicts = Targets(
        np.maximum(length_NC - 1, 0)[..., None].astype(np.int32),
        answers[labels_NC][..., None],
        (length_NC > 0)[..., None],
    )
    asked = [(trunk, [branch for branch, _, _ in full]) for trunk, _, full in kept]
    return LabelledTrees(aspect, asked, labels_NC, length_NC > 0, tree, {aspect.name: verdicts})


def as_trees(tokenizer: Tokenizer, found: LabelledPrompts, max_len: int) -> LabelledTrees:
    """Tokenises labelled prompts, to train on them. Raises UserError if none fits `max_len`."""
    C = found.mask_NC.shape[1]
    rows = [
        (trunk, list(zip(branches, labels_C[mask_C].tolist(), strict=True)))
        for (trunk, branches), labels_C, mask_C in zip(
            found.prompts, found.labels_NC, found.mask_NC, strict=True
        )
    ]
    return _trees(tokenizer, found.aspect, rows, C, max_len)


def padded(labels: Sequence[Sequence[int]], C: int) -> np.ndarray:
    """Returns labels_NC; rows with fewer than C labels are padded with 0."""
    return np.array([[*row, *[0] * (C - len(row))] for row in labels], int)


def accuracy(
    textgen: TextGenerator, labelled: Mapping[str, LabelledPrompts]
) -> dict[str, tuple[float, float]]:
    """Measures accuracy by the likeliest option: (right, asked) by aspect, and by aspect/OPTION.

    A prompt that the generator cannot answer counts as wrong. Pairs that are there in both orders
    also give `both_orders`.
    """
    counts = {}
    for found in labelled.values():
        trunks, branches = zip(*found.prompts, strict=True)
        logp_NCO = about(textgen, trunks)(branches, found.aspect.options, found.mask_NC.shape[1])
        said_NC = np.where(np.isnan(logp_NCO).any(-1), -1, logp_NCO.argmax(-1))
        counts |= right(found, said_NC) | both_orders(found, np.exp(logp_NCO))
    return counts


def both_orders(labelled: LabelledPrompts, p_NCO: np.ndarray) -> dict[str, tuple[float, float]]:
    """Measures accuracy on pairs in both orders: {ASPECT/both_orders: (right, pairs)}.

    The probabilities of the two orders are averaged, as in the judging of a policy's candidates. An
    even split counts as half right, an unanswered pair as wrong. Empty for aspects that are not
    pairwise with two options, and if no pair is there in both orders.
    """
    if labelled.aspect.kind != "pairwise" or len(labelled.aspect.options) != 2:
        return {}
    right, pairs = 0.0, swaps(labelled)
    for place, swapped in pairs:
        better = (p_NCO[place][0] + p_NCO[swapped][1]) / 2
        first = 0.5 if better == 0.5 else float(better > 0.5)
        wanted = 1 - labelled.labels_NC[place]
        right += 0.0 if np.isnan(better) else 1 - abs(wanted - first)
    return {f"{labelled.aspect.name}/both_orders": (right, float(len(pairs)))} if pairs else {}


Place = tuple[int, int]  # (n, c): trunk and branch


def swaps(labelled: LabelledPrompts) -> list[tuple[Place, Place]]:
    """Lists (place of a pair, place of the same pair in the other order), each pair once."""
    pairs = [
        ((n, c), (n, branch[1], branch[3]))
        for n, (_, row) in enumerate(labelled.prompts)
        for c, branch in enumerate(row)  # branch[1] and branch[3] are the two candidates
        if not isinstance(branch, str)
    ]
    at = {pair: place for place, pair in pairs}
    both = [(place, at[n, b, a]) for place, (n, a, b) in pairs if (n, b, a) in at]
    return [(place, swapped) for place, swapped in both if place < swapped]


def right(labelled: LabelledPrompts, said_NC: np.ndarray) -> dict[str, tuple[float, float]]:
    """Counts right answers: (right, asked) by aspect and by aspect/OPTION.

    `said_NC` is the option of each answer, -1 for none.
    """
    C, aspect = said_NC.shape[1], labelled.aspect
    label_NC, mask_NC = labelled.labels_NC[:, :C], labelled.mask_NC[:, :C]
    asked = {aspect.name: mask_NC} | {
        f"{aspect.name}/{option.strip()}": mask_NC & (label_NC == o)
        for o, option in enumerate(aspect.options)
    }
    return {key: pair(said_NC == label_NC, asked_NC) for key, asked_NC in asked.items()}


def _snug(trunks: Sequence[Ids], branches: Sequence[Sequence[Ids]], pad: int, C: int) -> Tree:
    """A tree padded to its longest trunk and branch, rounded up to multiples of 4."""
    longest = lambda rows: -(-max(map(len, rows)) // 4) * 4
    return padded_tree(
        trunks, branches, pad, longest(trunks), C, longest(chain.from_iterable(branches))
    )
