"""Labelled examples for training a judge, and held-out ones to grade it by."""

from collections.abc import Mapping
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
from sip.structs import UserError

HELD_OUT = ("validation", "test")


@dataclass(frozen=True)
class LabelConfig:
    """Candidates of `documents` prefixes, labelled by the corpus's ground truth."""

    per_prefix: dict[str, int]  # aspect -> number of its examples per trunk
    source: str  # the run whose rollouts are among the candidates
    documents: int = 2000  # prefixes to learn from
    held_out: int = 200  # prefixes of each held-out split
    rollouts: int = 2  # per prefix and temperature
    temperatures: tuple[float, ...] = (1.0,)  # below 1: what a better policy tends to write
    rewrites: bool = True  # corrected suffixes are among the candidates
    reference: str = "suffix"  # suffix | rewrite: the reference that the judge is shown
    corruptions: int = 2  # kinds of corrupted text per prefix
    proofread: ProofreadConfig = ProofreadConfig()  # the same as the judge's

    def __post_init__(self):
        if self.reference not in ("suffix", "rewrite"):
            raise UserError(f"labels.reference must be suffix or rewrite, not {self.reference!r}")
        if self.reference == "rewrite" and not self.rewrites:
            raise UserError("labels.reference: there are no rewrites without labels.rewrites")

    def sources(self) -> dict[str, str]:
        """The runs or directories that are read, by the config key that names them."""
        reader = self.proofread.init_from
        return {"labels.source": self.source, "labels.proofread.init_from": reader}


@dataclass(frozen=True)
class LabelFileConfig:
    """A JSON Lines file of labelled examples (sip/judge/labels/file.py)."""

    path: str
    aspects: tuple[str, ...]

    def __post_init__(self):
        if not self.path or not self.aspects:
            raise UserError("label_file: path and aspects are both needed")


@dataclass(frozen=True)
class Labelled:
    """Examples by aspect, to learn from; `held_out` has others by split and aspect."""

    examples: Mapping[str, Any]
    held_out: Mapping[str, Mapping[str, LabelledPrompts]]


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

    Prompts longer than `max_len` tokens are dropped.
    """
    run.corpus(split).ground_truth("labels")
    # Rollouts are decoded by the run's tokenizer: the source's own is a copy of it.
    params, cfg = load_params(source_dir(run.workdir, wanted.source, "labels.source"), mesh)
    source = LoadedModel(params, cfg, run.tokenizer, mesh)
    reader = judges.proofreader(wanted.proofread, run.workdir, mesh, "labels.proofread.init_from")

    def labelled(split, documents, seed):
        corpus = run.corpus(split)
        truth = corpus.ground_truth("labels")
        asked = continuations.prompts(corpus.chunks, range(documents), run.tokenizer)
        pools = _pools(wanted, corpus, asked, seed, source)
        return labels.make(
            truth,
            run.tokenizer,
            aspects,
            asked.prefixes,
            asked.suffixes,
            pools,
            per_prefix=wanted.per_prefix,
            max_len=max_len,
            seed=seed,
            corruptions=wanted.corruptions,
            most=corpus.cut.suffix,
            references=[pool[-1] for pool in pools] if wanted.reference == "rewrite" else None,
            grades=grades,
            proofreader=reader,
        )

    held_out = {part: labelled(part, wanted.held_out, 0) for part in HELD_OUT}
    return Labelled(labelled(split, wanted.documents, run.seed), held_out)


def _pools(
    wanted: LabelConfig, corpus: Corpus, asked, seed: int, source: LoadedModel
) -> list[list[str]]:
    """Candidates beside the suffix: rollouts at each temperature, and last a corrected suffix."""
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
    ]
    pools = [[text for row in several for text in row] for several in zip(*rows, strict=True)]
    if not wanted.rewrites:
        return pools
    truth = corpus.ground_truth("labels.rewrites")
    better = truth.rewrite(asked.prefixes, asked.suffixes, corpus.cut.suffix)
    return [[*pool, text] for pool, text in zip(pools, better, strict=True)]


def from_file(wanted: LabelFileConfig, split: str, tokenizer, *, max_len: int) -> Labelled:
    """Reads labelled examples from a file; `split` is the part to learn from."""
    aspects = [prompts.load(name) for name in wanted.aspects]
    found = label_file.read(wanted.path, aspects, tokenizer, max_len=max_len)
    return Labelled(found[split], {part: found[part] for part in HELD_OUT})


def write_accuracy(run: Run, ratios: Mapping[str, float]) -> dict[str, Any]:
    """Writes eval.json of a judge's run and returns its contents."""
    return run.write_eval({f"{k}_accuracy": v for k, v in ratios.items()})
