"""Evaluates greedy continuations of held-out prefixes by a corpus's ground truth.

On a corpus without a ground truth it measures the negative log-likelihood of held-out suffixes and,
if the section names a judge, the win rate against the baseline by that judge.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from etils import epath

from sip.data import control as controls
from sip.data.documents import Truth
from sip.evals import continuations, judged
from sip.evals.continuations import SAMPLES, Prompts
from sip.judge import build as judges
from sip.judge.judged import Judge
from sip.loading import LoadedModel
from sip.mesh import full_rows
from sip.models.config import ModelConfig
from sip.run import Run
from sip.sections import at_least, check
from sip.structs import Params, UserError
from sip.text.tokenizer import Tokenizer
from sip.training import loop
from sip.workdir import read_json, run_dir, write_json


@dataclass(frozen=True)
class EvalConfig:
    """The evaluation of a run on held-out prefixes, during the run and at its end.

    Win rates are against the continuations of the `baseline` run.
    """

    every_steps: int = 0  # steps between evaluations on validation; 0: none during the run
    validation: int = 256  # number of prefixes of evaluations during the run
    split: str = "test"  # documents for the evaluation at the end of the run
    standard: int = 1024  # number of unselected prefixes at the end
    unsafe: int = 512  # number of unsafe prefixes at the end
    batch: int = 128  # prefixes per batch
    baseline: str = ""  # name of the run to compare with; empty: this run itself
    judge: judges.JudgeConfig | None = None  # judge of the final win rate; none: no such figure
    control: str = ""  # control token between prefix and continuation; empty: none

    def __post_init__(self):
        check(
            "evals",
            self,
            every_steps=at_least(0),
            validation=at_least(1),
            standard=at_least(1),
            unsafe=at_least(0),
            batch=at_least(1),
        )
        if self.judge is not None and self.judge.own:
            raise UserError("evals.judge.init_from: a model does not evaluate itself; name a judge")
        if self.judge is not None and not self.baseline:
            raise UserError("evals.judge needs evals.baseline, the run to compare with")

    def sources(self, key: str = "evals") -> dict[str, str]:
        """The runs or directories that the evaluation reads, by config key; `key` is its own."""
        asked = self.judge.sources() if self.judge else {}
        return {f"{key}.baseline": self.baseline, **{f"{key}.{k}": v for k, v in asked.items()}}

    def reach(self) -> None:
        """Raises UserError if the judge is a server that does not answer."""
        if self.judge:
            self.judge.reach()

    def symbols(self) -> dict[str, str]:
        """The control token by its config key."""
        return {"evals.control": self.control} if self.control else {}

    def needs_truth(self) -> str:
        """The key of a judge that is the ground truth."""
        return "evals.judge.backend" if self.judge and self.judge.backend == "truth" else ""


CONTINUATIONS = "continuations.json"  # in a run's directory
SCORES = "win_rate_standard factuality safety coherence grammatical repetition distinct".split()
SCORES += "facts_per_suffix win_rate_unsafe safety_unsafe".split()
# Names in the log of an evaluation during the run: with a ground truth, and without.
FIGURES = tuple(f"eval/{name}" for name in SCORES)
PLAIN_FIGURES = ("eval/nll",)


def figures(truth: bool) -> tuple[str, ...]:
    """Names in the log of the figures of an evaluation during the run."""
    return FIGURES if truth else PLAIN_FIGURES


@dataclass(frozen=True)
class HeldOut:
    """Held-out prompts in three sets."""

    standard: Prompts  # unselected
    unsafe: Prompts  # with an unsafe prefix
    clean: Prompts  # with a safe prefix and a faultless suffix

    def controlled(self, tokenizer: Tokenizer, control: str, key: str) -> "HeldOut":
        """The prompts with a control token after their prefixes; unchanged if `control` is empty.

        Their texts stay. Raises UserError, naming `key`, if `control` is not one token.
        """
        if not control:
            return self
        token = controls.token(tokenizer, control, key)
        put = lambda asked: continuations.controlled(asked, token, tokenizer.pad)
        return HeldOut(put(self.standard), put(self.unsafe), put(self.clean))


def held_out(
    chunks, truth: Truth | None, tokenizer: Tokenizer, *, standard: int, unsafe: int
) -> HeldOut:
    """Selects held-out prompts: the first `standard` chunks, and unsafe and clean ones among all.

    There are at most `unsafe` unsafe and `standard` clean prompts, none without a ground truth.
    """
    if truth is None:
        asked = continuations.prompts(chunks, range(standard), tokenizer)
        none = asked.where(np.zeros(len(asked), bool))
        return HeldOut(asked, none, none)
    everything = continuations.prompts(chunks, range(len(chunks)), tokenizer)
    first = np.arange(len(everything)) < standard
    prefix = truth.score([""] * len(everything), everything.prefixes)
    suffix = truth.score(everything.prefixes, everything.suffixes)
    bad = np.asarray(prefix["safety"]) == 0
    clean = (
        ~bad
        & (np.asarray(suffix["safety"]) == 1)
        & (np.asarray(suffix["factuality"]) == 1)
        & (np.asarray(suffix["grammatical"]) == 1)
    )
    return HeldOut(
        everything.where(first),
        everything.where(bad & (np.cumsum(bad) <= unsafe)),
        everything.where(clean & (np.cumsum(clean) <= standard)),
    )


Texts = dict[str, list[str]]  # "standard" and "unsafe" continuations


def write(model: LoadedModel, held: HeldOut, *, steps: int, batch: int) -> Texts:
    """Decodes the model's greedy continuations of the standard and the unsafe prompts."""
    one = lambda asked: continuations.greedy(model, asked, steps=steps, batch=batch)
    return {"standard": one(held.standard), "unsafe": one(held.unsafe)}


def win_rate(truth: Truth, asked: Prompts, quality, baseline: list[str]) -> float:
    """Mean outcome of texts of `quality` against the baseline's continuations; ties count 1/2."""
    if len(quality) != len(baseline):
        raise UserError(
            f"evals: {len(baseline)} baseline continuations for {len(quality)} prefixes; rerun it"
        )
    other = truth.score(asked.prefixes, baseline)["quality"]
    return float(np.mean(truth.compare(quality, other)))


def row(truth: Truth, held: HeldOut, texts: Texts, baseline: Texts) -> dict[str, float]:
    """Metrics of one model by name: `*_unsafe` on unsafe prefixes, all others on standard ones."""
    known = truth.score(held.standard.prefixes, texts["standard"])
    mean = lambda name: float(np.mean(known[name]))
    found = {
        "win_rate_standard": win_rate(truth, held.standard, known["quality"], baseline["standard"]),
        "factuality": mean("factuality"),
        "safety": mean("safety"),
        "coherence": mean("coherent"),
        "grammatical": mean("grammatical"),
        "repetition": mean("repetition"),
        "distinct": len(set(texts["standard"])) / max(1, len(texts["standard"])),
        "facts_per_suffix": mean("facts"),
    }
    if not len(held.unsafe):  # a mean over nothing is left out
        return found
    unsafe = truth.score(held.unsafe.prefixes, texts["unsafe"])
    won = win_rate(truth, held.unsafe, unsafe["quality"], baseline["unsafe"])
    return {**found, "win_rate_unsafe": won, "safety_unsafe": float(np.mean(unsafe["safety"]))}


def likelihood(
    model: LoadedModel, held: HeldOut, truth: Truth | None, *, batch: int
) -> dict[str, float]:
    """Mean negative log-likelihood (nats) per suffix token: `nll_clean` of clean suffixes.

    Without a ground truth `nll` of all suffixes. Empty if there is no clean suffix.
    """
    name, asked = ("nll", held.standard) if truth is None else ("nll_clean", held.clean)
    if not len(asked):
        return {}
    return {name: continuations.suffix_nll(model, asked, batch=batch)}


@dataclass(frozen=True)
class Suite:
    """The evaluation of a run: prompts, baseline and the model's description."""

    config: EvalConfig
    truth: Truth | None
    validation: HeldOut
    test: HeldOut
    directory: str  # of the run
    baseline: str  # directory of the baseline run; the same if the run is its own baseline
    cfg: ModelConfig
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    steps: int  # tokens of a continuation
    judge: Callable[[], Judge] | None  # builds the judge of the final win rate
    samples: int  # continuations of an evaluation during the run that are kept to be read


def suite(
    run: Run, evals: EvalConfig, cfg: ModelConfig, mesh, samples: int = 0, any_length: bool = False
) -> Suite:
    """Builds the evaluation of a run. Reads the held-out splits once per process.

    `samples` is the number of continuations that `during` returns. `any_length`: as `Run.corpus`.
    """
    during = evals.validation, evals.validation // 2
    final = during if evals.split == "validation" else (evals.standard, evals.unsafe)
    corpus = functools.partial(run.corpus, any_length=any_length)
    wanted, truth = evals.judge, corpus(evals.split).documents.truth
    held = lambda split, sizes: _held_out(corpus(split), run.tokenizer, *sizes).controlled(
        run.tokenizer, evals.control, "evals.control"
    )
    return Suite(
        evals,
        truth,
        held("validation", during),
        held(evals.split, final),
        run.directory,
        run_dir(run.workdir, evals.baseline or run.name),
        cfg,
        mesh,
        run.tokenizer,
        run.cut.suffix,
        wanted
        and functools.partial(
            judges.build, wanted, run.workdir, truth, mesh, run.tokenizer, run.seed
        ),
        samples,
    )


@functools.lru_cache(maxsize=8)
def _held_out(corpus, tokenizer, standard, unsafe) -> HeldOut:
    return held_out(
        corpus.chunks, corpus.documents.truth, tokenizer, standard=standard, unsafe=unsafe
    )


def _texts(s: Suite, params, held: HeldOut) -> Texts:
    return write(_model(s, params), held, steps=s.steps, batch=s.config.batch)


def _model(s: Suite, params: Params) -> LoadedModel:
    return LoadedModel(params, s.cfg, s.tokenizer, s.mesh)


def during(s: Suite, params: Params) -> dict[str, Any]:
    """Evaluates on validation prompts. Returns metrics by their names in the log, `eval/..`, and
    some greedy continuations (SAMPLES).

    Raises UserError if the baseline is another run without continuations.
    """
    if s.truth is None:
        figures = _likelihood(s, params, s.validation)
        texts = _some(s, params) if s.samples else []
    else:
        every = _texts(s, params, s.validation)
        baseline = _baseline(s)["validation"] if s.baseline != s.directory else every
        figures = row(s.truth, s.validation, every, baseline)
        texts = every["standard"][: s.samples]
    named = {f"eval/{k}": v for k, v in figures.items()}
    pairs = list(zip(s.validation.standard.prefixes, texts, strict=False))
    return {**named, SAMPLES: pairs} if pairs else named


def _some(s: Suite, params: Params) -> list[str]:
    """Decodes the first continuations, which an evaluation without a ground truth does not need."""
    asked = s.validation.standard
    some = asked.where(np.arange(len(asked)) < s.samples)
    rows = full_rows(s.mesh, len(some))
    return continuations.greedy(_model(s, params), some, steps=s.steps, batch=rows)


def finish(s: Suite, params: Params, **more: Any) -> dict[str, Any]:
    """Evaluates on the final split. Returns the metrics with `more` added.

    Writes them to eval.json and all continuations to continuations.json in the run's directory.
    """
    # The run may be asked to stop; `leave` is called between the long parts.
    loop.leave()
    texts = {"validation": _texts(s, params, s.validation)}
    loop.leave()
    texts["test"] = _texts(s, params, s.test)
    loop.leave()
    figures = _likelihood(s, params, s.test)
    if s.truth is not None:
        baseline = _baseline(s) if s.baseline != s.directory else texts
        figures = {**row(s.truth, s.test, texts["test"], baseline["test"]), **figures}
    if s.judge is not None:
        loop.leave()
        ours, theirs = (x["test"]["standard"] for x in (texts, _baseline(s)))
        figures |= judged.win_rate(s.judge(), s.test.standard, ours, theirs)
    figures = {**figures, **more}
    write_json(epath.Path(s.directory) / CONTINUATIONS, texts)
    write_json(epath.Path(s.directory) / "eval.json", figures)
    return figures


def _likelihood(s: Suite, params, held: HeldOut) -> dict[str, float]:
    return likelihood(_model(s, params), held, s.truth, batch=s.config.batch)


def _baseline(s: Suite) -> dict[str, Texts]:
    """The continuations of the baseline run. Raises UserError if it has not finished."""
    path = epath.Path(s.baseline) / CONTINUATIONS
    if not path.exists():
        raise UserError(f"evals.baseline: {path} does not exist; run the baseline first")
    return read_json(path)
