"""A judge's labelled examples of a run: to learn from, and held out to grade it by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from etils import epath

from sip import setup
from sip.evals import continuations
from sip.judge import label_file, labels, prompts
from sip.judge.labels import LabelledPrompts
from sip.judge.prompts import Aspect
from sip.judge.proofread import ProofreadConfig
from sip.sampling import SamplingConfig
from sip.stages import judging
from sip.structs import UserError

HELD_OUT = ("validation", "test")


@dataclass(frozen=True)
class LabelConfig:
    """Candidates of `documents` prefixes, labelled by the truth."""

    per_prefix: dict[str, int]  # aspects, and how many examples of each stand on one trunk
    source: str  # the run whose rollouts are among the candidates
    documents: int = 2000
    held_out: int = 200
    rollouts: int = 2  # at each temperature
    temperatures: tuple[float, ...] = (1.0,)  # below 1: what an improved policy tends to write
    rewrites: bool = True
    reference: str = "suffix"  # suffix | rewrite: as the judge will be shown
    spoilers: int = 2
    proofread: ProofreadConfig = ProofreadConfig()  # as the judge's own

    def __post_init__(self):
        if self.reference not in ("suffix", "rewrite"):
            raise UserError(f"labels.reference must be suffix or rewrite, not {self.reference!r}")
        if self.reference == "rewrite" and not self.rewrites:
            raise UserError("labels.reference: there are no rewrites without labels.rewrites")

    def sources(self) -> dict[str, str]:
        """The runs or directories that it needs, by the key that names them."""
        reader = self.proofread.init_from
        return {"labels.source": self.source, "labels.proofread.init_from": reader}


@dataclass(frozen=True)
class LabelFileConfig:
    """A file of labelled examples (`sip.judge.label_file`)."""

    path: str
    aspects: tuple[str, ...]

    def __post_init__(self):
        if not self.path or not self.aspects:
            raise UserError("label_file: path and aspects are both wanted")


@dataclass(frozen=True)
class Labelled:
    """Examples by aspect; `held_out` has them by split too."""

    examples: Mapping[str, Any]
    held_out: Mapping[str, Mapping[str, LabelledPrompts]]


def made(
    config,
    wanted: LabelConfig,
    aspects: list[Aspect],
    corpus: setup.Corpus,
    workdir: str,
    mesh,
    tokenizer,
    *,
    max_len: int,
    grades: dict[str, Aspect] | None = None,
) -> Labelled:
    """Labelled trees of the corpus, and of the validation and the test split."""
    if corpus.documents.truth is None:
        raise UserError("labels: this corpus has no ground truth to label with")
    source = setup.load_params(setup.source_dir(workdir, wanted.source), mesh)
    reader = judging.proofreader(wanted.proofread, workdir, mesh, "labels.proofread.init_from")

    def labelled(corpus, documents, seed):
        asked = continuations.prompts(corpus.chunks, range(documents), tokenizer)
        pools = _pools(wanted, corpus, asked, seed, source, mesh, tokenizer)
        return labels.make(
            corpus.documents.truth,
            tokenizer,
            aspects,
            asked.prefixes,
            asked.suffixes,
            pools,
            per_prefix=wanted.per_prefix,
            max_len=max_len,
            seed=seed,
            spoilers=wanted.spoilers,
            most=corpus.cut.suffix,
            references=[pool[-1] for pool in pools] if wanted.reference == "rewrite" else None,
            grades=grades,
            proofreader=reader,
        )

    return Labelled(
        labelled(corpus, wanted.documents, config.seed),
        {
            split: labelled(setup.corpus(config, split, workdir, tokenizer), wanted.held_out, 0)
            for split in HELD_OUT
        },
    )


def _pools(wanted: LabelConfig, corpus, asked, seed, source, mesh, tokenizer) -> list[list[str]]:
    """Candidates beside the suffix: rollouts at each temperature, last a corrected one."""
    params, cfg = source
    rows = [
        continuations.sample(
            params,
            cfg,
            mesh,
            tokenizer,
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
    better = corpus.documents.truth.rewrite(asked.prefixes, asked.suffixes, corpus.cut.suffix)
    return [[*pool, text] for pool, text in zip(pools, better, strict=True)]


def from_file(wanted: LabelFileConfig, split: str, tokenizer, *, max_len: int) -> Labelled:
    """The examples of a file; `split` is the part to learn from."""
    aspects = [prompts.load(name) for name in wanted.aspects]
    found = label_file.read(wanted.path, aspects, tokenizer, max_len=max_len)
    return Labelled(found[split], {part: found[part] for part in HELD_OUT})


def write_accuracy(workdir: str, name: str, ratios: dict[str, float]) -> dict[str, float]:
    """eval.json of a judge's run, and what stands in it."""
    figures = {f"{k}_accuracy": v for k, v in ratios.items()}
    setup.write_json(epath.Path(setup.run_dir(workdir, name)) / "eval.json", figures)
    return figures
