"""The section `gap` of a config: policies, judges, prompts, utility and filters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sip.data.documents import PARTS
from sip.data.problems import ProblemsConfig
from sip.evals.intervals import IntervalConfig
from sip.judge.build import JudgeConfig
from sip.judge.scoring import TRUE_ASPECTS
from sip.rewards.answers import AnswersConfig, check_fits
from sip.sampling import SamplingConfig
from sip.sections import at_least, check, one_of, section
from sip.structs import UserError

TRUTH, ANSWERS, JUDGE = "truth", "answers", "judge"


@dataclass(frozen=True)
class VerifierConfig:
    """A verifier: a judge, and the way in which it is asked.

    With `rounds` 0 each answer gets the judge's score. The mechanisms of arXiv 2412.02674 are
    prompt files in `judge.weights`: multiple choice `correct`, CoT-score `reasoned_score`,
    CoT-binary `reasoned_correct`. A tournament asks a pairwise one, such as `reasoned_better`.
    """

    judge: JudgeConfig  # init_from "policy": each policy verifies its own answers
    rounds: int = 0  # tournament: rounds of single elimination; 0: scores

    def __post_init__(self):
        check("verifier", self, rounds=at_least(0, most=16))
        if self.judge.live:
            raise UserError("judge.live: a policy does not change here; leave it out")
        if self.judge.reference != "suffix":
            raise UserError("judge.reference: there is no rewrite here; use suffix")


@dataclass(frozen=True)
class UtilityConfig:
    """The utility of an answer, in 0..1: what is gained or lost in truth."""

    by: str = TRUTH  # truth: of the corpus | answers: the check of problems | judge: an audit judge
    # truth: aspects and weights; quality is the outcome against the document's own suffix.
    weights: tuple[tuple[str, float], ...] = tuple((name, 1.0) for name in TRUE_ASPECTS)
    check: AnswersConfig = AnswersConfig()  # answers: how they are compared
    judge: JudgeConfig | None = None  # judge: the audit judge

    def __post_init__(self):
        check("utility", self, by=one_of((TRUTH, ANSWERS, JUDGE)))
        for name, weight in self.weights:
            if name not in TRUE_ASPECTS or not weight > 0:
                known = ", ".join(TRUE_ASPECTS)
                raise UserError(
                    f"weights: {name!r} {weight}: must be of {known}, with a weight > 0"
                )
        if not self.weights or len(dict(self.weights)) < len(self.weights):
            raise UserError(f"weights {self.weights}: must name at least one aspect, each once")
        if (self.by == JUDGE) != (self.judge is not None):
            raise UserError(f"by {self.by!r}: needs a judge if it is 'judge', and else none")
        if self.judge and self.judge.own:
            raise UserError("judge.init_from: a policy does not audit itself; name a judge")


@dataclass(frozen=True)
class GapConfig:
    """The measurement of the generation-verification gap (`python -m sip.gap`)."""

    policies: tuple[str, ...]  # runs of the recipe, or directories of checkpoints
    judges: dict[str, Any]  # verifiers by name, see gap.judges.NAME
    utility: UtilityConfig = UtilityConfig()
    split: str = "test"  # documents that prefixes are taken from; of problems the part
    prompts: int = 128  # number of prompts
    answers: int = 16  # N, answers per prompt; of one there would be nothing to choose
    sampling: SamplingConfig = SamplingConfig()  # of the answers
    quantiles: tuple[float, ...] = (
        0.5,
        0.7,
        0.9,
    )  # q: the best 1 - q of each prompt's answers stay
    thresholds: tuple[float, ...] = ()  # answers with at least this score (0..1) stay
    betas: tuple[float, ...] = ()  # weights exp(score / beta), as of KL-regularised RL
    ensembles: tuple[tuple[str, ...], ...] = ()  # names of judges that must all keep an answer
    right: float = 1.0  # utility from which an answer counts in pass@k
    problems: ProblemsConfig | None = None  # problems in place of the corpus's prefixes
    chat: str = ""  # problems: chat template of the prompts: own | turns | harmony | a .jinja file
    max_tokens: int = 512  # problems: most tokens of an answer
    batch: int = 32  # prompts at a time
    intervals: IntervalConfig = IntervalConfig()

    def __post_init__(self):
        check(
            "gap",
            self,
            prompts=at_least(1),
            answers=at_least(2),
            right=at_least(0, most=1),
            max_tokens=at_least(1),
            batch=at_least(1),
        )
        if not self.policies or len(set(self.policies)) < len(self.policies):
            raise UserError(f"policies {self.policies}: must name at least one, each once")
        if not self.judges:
            raise UserError("judges: at least one section is needed")
        self._check_filters()
        self._check_utility()

    def _check_filters(self):
        rules = (("quantiles", lambda x: 0 <= x < 1, "in [0, 1)"),)
        rules += (("thresholds", lambda x: 0 <= x <= 1, "in 0..1"),)
        rules += (("betas", lambda x: x > 0, "> 0"),)
        for key, holds, text in rules:
            if bad := [x for x in getattr(self, key) if not holds(x)]:
                raise UserError(f"{key}: {bad[0]} must be {text}")
        for names in self.ensembles:
            unknown = [name for name in names if name not in self.judges]
            if len(names) < 2 or unknown:
                raise UserError(
                    f"ensembles {names}: must be two or more of {', '.join(self.judges)}"
                )

    def _check_utility(self):
        if (self.utility.by == ANSWERS) != (self.problems is not None):
            raise UserError("utility.by 'answers' and gap.problems need each other")
        if self.problems is not None:
            check_fits(self.utility.check, self.problems)
            if self.split not in PARTS:
                raise UserError(
                    f"split {self.split!r}: of problems it is one of {', '.join(PARTS)}"
                )


def check_section(config) -> None:
    """Raises UserError if the config has a section `gap` that is wrong."""
    if "gap" in config and config.gap is not None:
        read(config)


def read(config) -> tuple[GapConfig, dict[str, VerifierConfig]]:
    """Reads the section `gap` of a config and the verifiers in it. Raises UserError."""
    if "gap" not in config or config.gap is None:
        raise UserError(
            "--config: it has no section `gap`; use configs/gap.py, or name a self-improving run "
            "with --run for its pre-flight"
        )
    cfg = section(GapConfig, config.gap, "gap")
    found = {}
    for name, values in cfg.judges.items():
        if not isinstance(values, Mapping):
            raise UserError(f"config gap.judges.{name}: must be a section")
        found[name] = section(VerifierConfig, values, f"gap.judges.{name}")
    for names in cfg.ensembles:
        if played := [name for name in names if found[name].rounds]:
            raise UserError(f"config gap.ensembles: {played[0]!r} is a tournament, without scores")
    if not (cfg.quantiles or cfg.thresholds or cfg.betas or all(v.rounds for v in found.values())):
        raise UserError("config gap: give quantiles, thresholds or betas")
    return cfg, found
