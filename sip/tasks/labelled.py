"""Labelled examples to train a judge, and held-out ones to evaluate it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sip.data.corpus import Corpus
from sip.evals import continuations
from sip.judge import build as judges
from sip.judge import prompts
from sip.judge.labels import file as label_file
from sip.judge.labels import ground_truth as labels
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
            corruptions=at_least(0),
        )
        if not self.source:
            raise UserError("labels.source is empty; name a run or a checkpoint directory")
        if not self.per_prefix:
            raise UserError("labels.per_prefix names no aspect")
        for name, most in self.per_prefix.items():
            prompts.load(name)  # checks that it exists
            if most < 1:
                raise UserError(f"labels.per_prefix: {name} must be >= 1, not {most}")
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
    # Decode rollouts by the run's tokenizer: the source's own is a copy of it.
    directory = source_dir(run.workdir, wanted.source, "task.labels.source")
    params, cfg = load_params(directory, mesh)
    source = LoadedModel(params, cfg, run.tokenizer, mesh)
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


def pools(
    wanted: Any, corpus: Corpus, asked, seed: int, source: LoadedModel | None
) -> list[list[str]]:
    """Candidates beside the suffix: rollouts at each temperature, and last a corrected suffix.

    `wanted` has the fields rollouts, temperatures and rewrites of a LabelConfig; without a `source`
    there are no rollouts.
    """
    rows = [
        continuations.sample(
            source,
            asked,
            branches=wanted.rollouts,
            steps=corpus.cut.suffix,
            sampling=SamplingConfig(temperature=t),
            seed=seed,
            batch=64,
        )
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


def write_accuracy(run: Run, ratios: Mapping[str, float]) -> dict[str, Any]:
    """Writes eval.json of a judge's run and returns its contents."""
    return run.write_eval({f"{k}_accuracy": v for k, v in ratios.items()})
