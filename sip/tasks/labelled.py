"""Labelled examples to train a judge, and held-out ones to evaluate it."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import numpy as np

from sip.data.corpus import Corpus
from sip.data.documents import SCORES
from sip.evals import continuations
from sip.judge import build as judges
from sip.judge import prompts
from sip.judge.labels import file as label_file
from sip.judge.labels import ground_truth as labels
from sip.judge.labels import sentence_grades, synthesis
from sip.judge.labels.corruptions import CORRUPTIONS
from sip.judge.labels.file import LabelLine
from sip.judge.labels.ground_truth import LabelledPrompts
from sip.judge.prompts import Aspect
from sip.judge.proofread import ProofreadConfig, Proofreader
from sip.loading import LoadedModel, load_params, source_dir
from sip.run import Run
from sip.sampling import SamplingConfig
from sip.sections import at_least, check, one_of
from sip.structs import UserError
from sip.text.segments import Text
from sip.text.tokenizer import Tokenizer
from sip.workdir import place

HELD_OUT = ("validation", "test")


@dataclass(frozen=True)
class LabelConfig:
    """Labels by the corpus's ground truth: the prefixes and the candidates to label.

    Raises UserError for contradicting keys.
    """

    per_prefix: dict[str, int]  # aspect -> most examples per trunk
    source: str  # run or checkpoint directory that samples rollouts
    documents: int = 2000  # number of prefixes to learn from
    held_out: int = 200  # number of prefixes of each held-out split
    rollouts: int = 2  # rollouts per prefix and temperature
    temperatures: tuple[float, ...] = (1.0,)  # of rollouts; below 1 they resemble a better policy's
    rewrites: bool = True  # corrected suffixes are among the candidates
    reference: str = "suffix"  # suffix | rewrite: the reference that the judge is shown
    corruptions: int = 2  # number of kinds of corrupted text per prefix
    proofread: ProofreadConfig = ProofreadConfig()  # must equal that of the judge in use

    def __post_init__(self):
        check(
            "labels",
            self,
            reference=one_of(("suffix", "rewrite")),
            documents=at_least(1),
            held_out=at_least(1),
            rollouts=at_least(0),
            corruptions=at_least(0, most=len(CORRUPTIONS)),
        )
        if not self.source:
            raise UserError("labels.source is empty; name a run or a checkpoint directory")
        if not self.per_prefix:
            raise UserError("labels.per_prefix names no aspect")
        for name, most in self.per_prefix.items():
            aspect = prompts.load(name)
            if aspect.name not in SCORES:
                raise UserError(
                    f"labels.per_prefix: {name} is unknown to the ground truth, which has "
                    f"{', '.join(SCORES)}"
                )
            least = 2 if aspect.kind == "pairwise" else 1  # pairs come in both orders
            if most < least:
                raise UserError(f"labels.per_prefix: {name} must be >= {least}, not {most}")
        for temperature in self.temperatures:
            SamplingConfig(temperature=temperature)  # checks it
        if self.rollouts and not self.temperatures:
            raise UserError("labels.temperatures is empty, but labels.rollouts is not 0")
        if self.reference == "rewrite" and not self.rewrites:
            raise UserError("labels.reference 'rewrite' needs labels.rewrites")

    def sources(self) -> dict[str, str]:
        """The runs or directories that this section reads, by config key."""
        reader = self.proofread.init_from
        return {"labels.source": self.source, "labels.proofread.init_from": reader}


@dataclass(frozen=True)
class LabelFileConfig:
    """A JSON Lines file of labelled examples (sip/judge/labels/file.py)."""

    path: str  # the file
    aspects: tuple[str, ...]  # names or .txt files of the aspects in the file

    def __post_init__(self):
        if not self.path or not self.aspects:
            raise UserError("label_file: path and aspects are both needed")
        object.__setattr__(self, "path", place(self.path))
        for name in self.aspects:
            prompts.load(name)  # checks that it exists


@dataclass(frozen=True)
class CorruptedConfig:
    """Labels without a ground truth: a suffix is better than its corrupted versions.

    These are the labels of arXiv 2601.21343 for quality, where a larger model writes the corrupted
    version. Raises UserError for an unknown corruption or a pointwise aspect.
    """

    aspect: str  # pairwise aspect to learn
    kinds: tuple[str, ...]  # names in sip/judge/labels/corruptions.py, one version each
    source: str = ""  # run or checkpoint whose rollouts are worse versions too; empty: none
    rollouts: int = 0  # rollouts per prefix and temperature
    temperatures: tuple[float, ...] = (1.0,)  # of rollouts
    pairs: int = 0  # most pairs of a prefix, drawn from all kinds of versions; 0: all
    documents: int = 2000  # number of prefixes to learn from
    held_out: int = 200  # number of prefixes of each held-out split
    seed: int = 0  # added to the run's: judges of two seeds learn from other versions
    unwanted: tuple[str, ...] = ()  # words, phrases; a text with one is worse than one without
    grades: str = ""  # pointwise aspect: changed sentences get its worst option, others its best
    grades_weight: float = 1.0  # loss weight of the grades; verdicts have 1
    proofread: ProofreadConfig = ProofreadConfig()  # must equal that of the judge in use

    def __post_init__(self):
        check(
            "corrupted",
            self,
            documents=at_least(1),
            held_out=at_least(1),
            rollouts=at_least(0, most=8),
            pairs=at_least(0),
            seed=at_least(0),
            grades_weight=at_least(0),
        )
        synthesis.has_any(self.unwanted)  # checks them
        if self.grades and prompts.load(self.grades).kind != "pointwise":
            raise UserError(f"corrupted.grades: aspect {self.grades!r} must be pointwise")
        if prompts.load(self.aspect).kind != "pairwise" or prompts.load(self.aspect).reference:
            raise UserError(f"corrupted.aspect {self.aspect!r}: must be pairwise, no reference")
        for kind in self.kinds:
            synthesis.check_rule("corrupted.kinds: no corruption", kind)
        if bool(self.source) != bool(self.rollouts):
            raise UserError("corrupted: source and rollouts are needed together")
        for temperature in self.temperatures:
            SamplingConfig(temperature=temperature)  # checks it
        if self.rollouts and not self.temperatures:
            raise UserError("corrupted.temperatures is empty, but corrupted.rollouts is not 0")
        if not (self.kinds or self.source or self.unwanted):
            raise UserError("corrupted.kinds is empty and there are no rollouts; name a corruption")

    def sources(self) -> dict[str, str]:
        """The runs or directories that this section reads, by config key."""
        reader = self.proofread.init_from
        found = {"corrupted.source": self.source, "corrupted.proofread.init_from": reader}
        return {key: source for key, source in found.items() if source}


def figures(names: Iterable[str]) -> tuple[str, ...]:
    """Names in the log of the accuracies on aspects: of all answers, and by option."""
    found = []
    for aspect in map(prompts.load, names):
        own = f"eval/{aspect.name}"
        found += [own, *(f"{own}/{option.strip()}" for option in aspect.options)]
        if aspect.kind == "pairwise" and not aspect.verdict:
            found.append(f"{own}/both_orders")
    return tuple(found)


@dataclass(frozen=True)
class Labelled:
    """Labelled examples of a run."""

    examples: Mapping[str, Any]  # aspect -> examples to learn from
    held_out: Mapping[str, Mapping[str, LabelledPrompts]]  # split -> aspect -> examples
    grades: labels.Grades | None = None  # of sentences in the examples, where they are known


def made(
    run: Run,
    wanted: LabelConfig,
    aspects: list[Aspect],
    split: str,
    mesh,
    *,
    max_len: int,
    grades: dict[str, Aspect] | None = None,
) -> Labelled:
    """Labels candidates of the run's corpus: of `split` to learn from, and of the held-out splits.

    `grades` are the aspects that grade sentences, by graded aspect. Prompts longer than `max_len`
    tokens are dropped. Raises UserError if the corpus has no ground truth.
    """
    # Called only for its error, before a model is loaded.
    run.corpus(split).ground_truth("task.labels")
    source = source_model(run, wanted.source, "task.labels.source", mesh)
    key = "task.labels.proofread.init_from"
    reader = judges.proofreader(wanted.proofread, run.workdir, mesh, key)

    def labelled(split, documents, seed):
        corpus = run.corpus(split)
        truth = corpus.ground_truth("task.labels")
        asked = continuations.prompts(corpus.chunks, range(documents), run.tokenizer)
        found = pools(wanted, corpus, asked, seed, source)
        return labels.make(
            truth,
            run.tokenizer,
            aspects,
            asked.prefixes,
            asked.suffixes,
            found,
            per_prefix=wanted.per_prefix,
            max_len=max_len,
            seed=seed,
            corruptions=wanted.corruptions,
            most=corpus.cut.suffix,
            references=[pool[-1] for pool in found] if wanted.reference == "rewrite" else None,
            grades=grades,
            proofreader=reader,
        )

    examples = labelled(split, wanted.documents, run.seed)
    return Labelled(examples, {part: labelled(part, wanted.held_out, 0) for part in HELD_OUT})


def source_model(run: Run, source: str, key: str, mesh) -> LoadedModel | None:
    """Loads the model that samples rollouts; `key` is its config key. None without a `source`."""
    return loaded(run, source, key, mesh) if source else None


def loaded(run: Run, source: str, key: str, mesh) -> LoadedModel:
    """Loads the model of a run or checkpoint directory; `key` is its config key."""
    params, cfg = load_params(source_dir(run.workdir, source, key), mesh)
    # Decode rollouts by the run's tokenizer: the source's own is a copy of it.
    return LoadedModel(params, cfg, run.tokenizer, mesh)


def _rollouts(
    source: LoadedModel, asked, rollouts: int, temperature: float, steps: int, seed: int
) -> list[list[str]]:
    """Samples rollouts of each prefix: [prompt][rollout]."""
    return continuations.sample(
        source,
        asked,
        branches=rollouts,
        steps=steps,
        sampling=SamplingConfig(temperature=temperature),
        seed=seed,
        batch=64,
    )


def pools(
    wanted: Any, corpus: Corpus, asked, seed: int, source: LoadedModel | None
) -> list[list[str]]:
    """Candidates beside the suffix: rollouts at each temperature, and last a corrected suffix.

    `wanted` has the fields rollouts, temperatures and rewrites of a LabelConfig; without a `source`
    there are no rollouts.
    """
    rows = [
        _rollouts(source, asked, wanted.rollouts, t, corpus.cut.suffix, seed)
        for t in wanted.temperatures
        if source is not None
    ]
    found = [[text for row in several for text in row] for several in zip(*rows, strict=True)]
    found = found or [[] for _ in asked.suffixes]
    if not wanted.rewrites:
        return found
    truth = corpus.ground_truth("task.labels.rewrites")
    better = truth.rewrite(asked.prefixes, asked.suffixes, corpus.cut.suffix)
    return [[*pool, text] for pool, text in zip(found, better, strict=True)]


def from_file(wanted: LabelFileConfig, split: str, tokenizer, *, max_len: int) -> Labelled:
    """Reads labelled examples from a file; `split` is the split to learn from. Raises UserError."""
    aspects = [prompts.load(name) for name in wanted.aspects]
    found = label_file.read(wanted.path, aspects, tokenizer, max_len=max_len)
    return Labelled(found[split], {part: found[part] for part in HELD_OUT})


def corrupted(run: Run, wanted: CorruptedConfig, split: str, mesh, *, max_len: int) -> Labelled:
    """Makes pairs of a suffix and a worse version of it, in both orders: of `split` to learn from,
    and of the held-out splits.

    Worse versions are corrupted suffixes, and rollouts of `wanted.source`. No version has more
    tokens than the suffix, so that the length does not tell the label. Which sentences were changed
    is known, so the examples to learn from have grades if `wanted.grades` names an aspect.
    """
    aspect = prompts.load(wanted.aspect)
    source = source_model(run, wanted.source, "task.corrupted.source", mesh)
    key = "task.corrupted.proofread.init_from"
    reader = judges.proofreader(wanted.proofread, run.workdir, mesh, key)
    unwanted, trim = synthesis.has_any(wanted.unwanted), synthesis.trimmer(run.tokenizer)

    def read(split: str, documents: int) -> continuations.Prompts:
        return continuations.prompts(run.corpus(split).chunks, range(documents), run.tokenizer)

    def pairs(
        split: str, asked: continuations.Prompts, seed: int
    ) -> tuple[list[LabelLine], list[LabelLine]]:
        """Makes pairs with corrupted suffixes, and pairs with rollouts."""
        changed, sampled = _versions(wanted, run.corpus(split), asked, source, seed, trim)
        usable_KN = [[v is not None for v in versions] for _, versions in changed + sampled]
        drawn_KN = _drawn(np.array(usable_KN), wanted.pairs, seed)
        made = []
        for drawn_N, (prefixes, versions) in zip(drawn_KN, changed + sampled, strict=True):
            before, better = (list(compress(x, drawn_N)) for x in (prefixes, asked.suffixes))
            worse: list[Any] = list(compress(versions, drawn_N))
            made.append(synthesis.pairs(aspect, before, better, worse, trim, unwanted))
        if not any(each.lines for each in made):
            why = synthesis.dropped(made)
            raise UserError(f"task.corrupted: no usable pair in split {split} ({why})")
        lines = [each.lines for each in made]
        first = sum(lines[: len(changed)], [])
        return _marked(reader, first), _marked(reader, sum(lines[len(changed) :], []))

    def labelled(split: str, lines: list[LabelLine]) -> dict[str, LabelledPrompts]:
        return {aspect.name: label_file.labelled(split, aspect, lines, run.tokenizer, max_len)}

    def held_out(part: str) -> dict[str, LabelledPrompts]:
        return labelled(part, sum(pairs(part, read(part, wanted.held_out), 0), []))

    asked = read(split, wanted.documents)
    say_unwanted(run, wanted.unwanted, asked)
    changed, sampled = pairs(split, asked, run.seed + wanted.seed)
    return Labelled(
        labelled(split, changed + sampled),
        {part: held_out(part) for part in HELD_OUT},
        _changes(run.tokenizer, wanted, changed, sampled) if wanted.grades else None,
    )


def say_unwanted(run: Run, words: Sequence[str], asked: continuations.Prompts) -> None:
    """Says how many of the chunks to learn from have one of the unwanted words, if there are any
    words. None may be a misspelt word, or a small part of the corpus."""
    if words:
        has = synthesis.has_any(words)
        found = [has(p + s) for p, s in zip(asked.prefixes, asked.suffixes, strict=True)]
        share = f"{sum(found):,} of {len(found):,} chunks have an unwanted word"
        nothing = "" if any(found) else f"; nothing is learned about {list(words)}"
        run.say(f"{run.name}: {share}{nothing}")


def _marked(reader: Proofreader | None, lines: list[LabelLine]) -> list[LabelLine]:
    """Puts the proofreader's marks into the texts. Raises UserError if one does not fit it."""
    if reader is None:
        return lines
    asked: dict[str, dict[str, None]] = {}  # prefix -> its distinct texts
    for line in lines:
        asked.setdefault(line.prefix, {}).update(dict.fromkeys(line.candidates))
    texts = list(map(list, asked.values()))
    told = reader.read_all(list(asked), texts, "task.corrupted.proofread")
    read = {
        (prefix, text): marked
        for prefix, own, row in zip(asked, texts, told, strict=True)
        for text, marked in zip(own, row, strict=True)
    }
    return [
        replace(line, candidates=tuple(read[line.prefix, text] for text in line.candidates))
        for line in lines
    ]


Versions = tuple[Sequence[str], Sequence[Any]]  # (prefixes, versions of the suffixes or None)


def _versions(
    wanted: CorruptedConfig, corpus: Corpus, asked, source: LoadedModel | None, seed: int, trim
) -> tuple[list[Versions], list[Versions]]:
    """Makes worse versions of all suffixes, a list of each kind: corrupted ones, and rollouts."""
    spoiled = synthesis.by_rule(wanted.kinds, asked.prefixes, asked.suffixes, seed)
    unwanted = synthesis.has_any(wanted.unwanted)

    # Which is better, an unwanted text or one in which the word is broken, nobody can say.
    def told(versions):
        return [
            None if unwanted(suffix) and not unwanted(trim(v, suffix)) else v
            for suffix, v in zip(asked.suffixes, versions, strict=True)
        ]

    changed: list[Versions] = [(asked.prefixes, told(versions)) for _, versions in spoiled]
    if wanted.unwanted:
        taint = synthesis.tainted(unwanted, asked.prefixes, asked.suffixes, seed)
        none = ("", None)
        before, versions = zip(*(row or none for row in taint), strict=True)
        changed.append((before, versions))
    sampled: list[Versions] = []
    if source:
        for temperature in wanted.temperatures:
            rows = _rollouts(source, asked, wanted.rollouts, temperature, corpus.cut.suffix, seed)
            sampled += [(asked.prefixes, row) for row in zip(*rows, strict=True)]
    return changed, sampled


def _drawn(usable_KN: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Draws `most` of the usable kinds of versions of each document, all if 0; bool [K, N]."""
    place_KN = np.random.default_rng((seed, 0, 2)).random(usable_KN.shape)
    place_KN = np.where(usable_KN, place_KN, np.inf).argsort(0).argsort(0)
    return usable_KN & (place_KN < (most or len(usable_KN)))


def _changes(
    tokenizer: Tokenizer,
    wanted: CorruptedConfig,
    changed: list[LabelLine],
    sampled: list[LabelLine],
) -> labels.Grades:
    """Returns the grades of sentences: were they changed, or have they an unwanted word?

    Of rollouts nobody knows which sentences are worse, so only those with such a word are graded.
    """
    unwanted, mark = synthesis.has_any(wanted.unwanted), wanted.proofread.mark
    grades = prompts.load(wanted.grades)
    worst = int(np.argmin(grades.values))
    known: dict[tuple[Text, str], list[sentence_grades.Grade]] = {}
    of_changes = functools.partial(sentence_grades.of_changes, tokenizer, grades)
    for line in sampled:
        trunk, (suffix, version) = _shown(line)
        found = sentence_grades.sentences(tokenizer, version, mark)
        known[trunk, version] = [(end, worst) for end, sentence in found if unwanted(sentence)]
        known[trunk, suffix] = of_changes(suffix, suffix, unwanted, mark)
    for line in changed:
        trunk, (suffix, version) = _shown(line)
        for text in (suffix, version):
            known[trunk, text] = of_changes(suffix, text, unwanted, mark)
    return lambda trunk, text: known[trunk, text]


def _shown(line: LabelLine) -> tuple[Text, tuple[str, ...]]:
    """Returns the trunk of a line's prompt, and its texts as the prompt shows them."""
    branch = prompts.branch(line.aspect, *line.candidates)
    return prompts.trunk(line.aspect, prefix=line.prefix, reference=line.reference), branch[1::2]


def write_accuracy(run: Run, ratios: Mapping[str, float]) -> dict[str, Any]:
    """Writes eval.json of a judge's run and returns its contents."""
    return run.write_eval({f"{k}_accuracy": v for k, v in ratios.items()})
