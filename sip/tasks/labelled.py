"""Labelled examples to train a judge, and held-out ones to evaluate it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sip.data.corpus import Corpus
from sip.data.documents import SCORES
from sip.evals import continuations
from sip.judge import build as judges
from sip.judge import prompts
from sip.judge.labels import file as label_file
from sip.judge.labels import ground_truth as labels
from sip.judge.labels import synthesis
from sip.judge.labels.corruptions import CORRUPTIONS
from sip.judge.labels.ground_truth import LabelledPrompts
from sip.judge.prompts import Aspect
from sip.judge.proofread import ProofreadConfig
from sip.loading import LoadedModel, load_params, source_dir
from sip.run import Run
from sip.sampling import SamplingConfig
from sip.sections import at_least, check, one_of
from sip.structs import UserError
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
    rollouts: int = 0  # rollouts per prefix
    documents: int = 2000  # number of prefixes to learn from
    held_out: int = 200  # number of prefixes of each held-out split
    seed: int = 0  # added to the run's: judges of two seeds learn from other versions

    def __post_init__(self):
        check(
            "corrupted",
            self,
            documents=at_least(1),
            held_out=at_least(1),
            rollouts=at_least(0, most=8),
            seed=at_least(0),
        )
        if prompts.load(self.aspect).kind != "pairwise" or prompts.load(self.aspect).reference:
            raise UserError(f"corrupted.aspect {self.aspect!r}: must be pairwise, no reference")
        for kind in self.kinds:
            synthesis.check_rule("corrupted.kinds: no corruption", kind)
        if bool(self.source) != bool(self.rollouts):
            raise UserError("corrupted: source and rollouts are needed together")
        if not self.kinds and not self.source:
            raise UserError("corrupted.kinds is empty and there are no rollouts; name a corruption")

    def sources(self) -> dict[str, str]:
        """The run or directory that samples rollouts, by config key."""
        return {"corrupted.source": self.source} if self.source else {}


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
    tokens than the suffix, so that the length does not tell the label.
    """
    aspect = prompts.load(wanted.aspect)
    source = source_model(run, wanted.source, "task.corrupted.source", mesh)

    def examples(split: str, documents: int, seed: int) -> dict[str, LabelledPrompts]:
        corpus = run.corpus(split)
        asked = continuations.prompts(corpus.chunks, range(documents), run.tokenizer)
        spoiled = synthesis.by_rule(wanted.kinds, asked.prefixes, asked.suffixes, seed)
        found = [versions for _, versions in spoiled]
        if source:
            rows = _rollouts(source, asked, wanted.rollouts, 1.0, corpus.cut.suffix, seed)
            found += map(list, zip(*rows, strict=True))
        made = [
            synthesis.pairs(
                aspect, asked.prefixes, asked.suffixes, each, synthesis.trimmer(run.tokenizer)
            )
            for each in found
        ]
        lines = [line for each in made for line in each.lines]
        if not lines:
            why = synthesis.dropped(made)
            raise UserError(f"task.corrupted: no usable pair in split {split} ({why})")
        return {aspect.name: label_file.labelled(split, aspect, lines, run.tokenizer, max_len)}

    learned = examples(split, wanted.documents, run.seed + wanted.seed)
    return Labelled(learned, {part: examples(part, wanted.held_out, 0) for part in HELD_OUT})


def write_accuracy(run: Run, ratios: Mapping[str, float]) -> dict[str, Any]:
    """Writes eval.json of a judge's run and returns its contents."""
    return run.write_eval({f"{k}_accuracy": v for k, v in ratios.items()})
