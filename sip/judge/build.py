"""The `judge` section of a run's config, and the functions that build a judge from it."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sip.judge import diagnostics, judged, prompts, scoring
from sip.judge.prompts import Aspect
from sip.judge.proofread import ProofreadConfig, Proofreader
from sip.judge.schedules import ScheduleConfig
from sip.judge.voting import Stats, Voting
from sip.loading import LoadedModel, kept_tokenizer, load_model, recorded_model, source_dir
from sip.models.config import ModelConfig, check_storage_dtype
from sip.sampling import SamplingConfig
from sip.sections import at_least, check, one_of
from sip.structs import Params, UserError
from sip.text import chat
from sip.textgen import remote
from sip.textgen.local import Local
from sip.textgen.protocol import TextGenerator
from sip.textgen.scripted import MARKED, RULES, ruled

BACKENDS = ("local", "http", "rule", "truth")
POLICY = "policy"


@dataclass(frozen=True)
class JudgeConfig:
    """The judge of a run: its backend, its aspects and their weights.

    A candidate's score is the weighted sum of its scores on all aspects. An aspect is a built-in
    name or the path of a .txt prompt file. `votes`, `max_tokens` and `sampling` apply to reasoned
    aspects only (those with a `verdict:` line in the prompt file). Raises UserError if keys
    contradict each other.
    """

    backend: str  # local: a model in this job | http: a server | rule: a fixed rule | truth: corpus
    weights: tuple[tuple[str, float], ...]  # ((aspect name or path of a .txt file, weight), ...)
    http: remote.RemoteConfig = remote.RemoteConfig()  # http: the server and its request options
    init_from: str = ""  # local: a run, a checkpoint directory, or "policy" (the trained model)
    live: bool = False  # init_from policy: use each step's parameters instead of step 0's
    rule: str = ""  # rule: name of the rule
    min_mass: float = 0.5  # direct aspects: least total probability of the options, else invalid
    hard: bool = False  # pairwise: count the likeliest option alone instead of probabilities
    votes: int = 1  # J, sampled answers per question
    max_tokens: int = 512  # most tokens of an answer
    sampling: SamplingConfig = Voting.sampling  # sampling of answers
    batch: int = 16  # local: prefixes judged at a time
    reference: str = "suffix"  # suffix | rewrite: the reference shown to aspects that have one
    proofread: ProofreadConfig = ProofreadConfig()  # local, http, rule fewer_marks: marks in texts
    schedule: ScheduleConfig = ScheduleConfig()  # pairwise aspects: which pairs are compared
    chat: str = ""  # local: chat template: own (the model's) | harmony | a .jinja file; empty: none
    accuracy: float = 1.0  # truth: share of exact verdicts; the others are inverted
    param_dtype: str = ""  # local: storage in float32 | bfloat16 | int8; empty: as saved

    def __post_init__(self):
        check(
            "judge",
            self,
            backend=one_of(BACKENDS),
            reference=one_of(("suffix", "rewrite")),
            rule=one_of(tuple(RULES) if self.backend == "rule" else ("", *RULES)),
            min_mass=at_least(0, most=1),
            batch=at_least(1),
            accuracy=at_least(0, most=1),
        )
        if self.accuracy != 1 and self.backend != "truth":
            raise UserError(f"judge.accuracy needs backend truth, not {self.backend!r}")
        self._check_proofread()
        if self.chat and self.backend != "local":
            raise UserError(f"judge.chat needs backend local, not {self.backend!r}")
        chat.check(self.chat, "judge.chat")
        if self.backend == "local" and not self.init_from:
            raise UserError("judge.init_from is empty, but backend local needs a run or checkpoint")
        check_storage_dtype(self.param_dtype, "judge.param_dtype")
        if self.param_dtype and (self.backend != "local" or self.own):
            raise UserError(
                "judge.param_dtype needs backend local and init_from other than 'policy'"
            )
        if self.live and not self.own:
            raise UserError("judge.live needs backend local and init_from 'policy'")
        self.voting(0)
        self._check_aspects()
        if self.backend == "http":
            self.http.check_named()

    def _check_proofread(self):
        """Raises UserError if the backend does not read marks, or the rule on marks has none."""
        marks = self.backend == "rule" and self.rule == MARKED
        reads = marks or self.backend in ("local", "http")
        if self.proofread.init_from and not reads:
            raise UserError(
                f"judge.proofread needs backend local or http, or rule {MARKED}, not "
                f"{self.backend!r}"
            )
        if marks and not self.proofread.init_from:
            raise UserError(f"judge.rule {MARKED} needs judge.proofread.init_from: who marks texts")

    def _check_aspects(self):
        """Raises UserError if the backend cannot answer one of the aspects, or one occurs twice."""
        if not self.weights or not any(weight for _, weight in self.weights):
            raise UserError(f"judge.weights: an aspect needs a weight, not {self.weights}")
        for name, weight in self.weights:
            if not 0 <= weight < math.inf:
                raise UserError(f"judge.weights: {name!r} must be finite and >= 0, not {weight}")
            if self.backend == "truth" and name not in scoring.TRUE_ASPECTS:
                known = ", ".join(scoring.TRUE_ASPECTS)
                raise UserError(f"judge.weights: no aspect {name!r} of the truth; it has {known}")
        asked = self.aspects()
        names = [aspect.name for aspect in asked] or [name for name, _ in self.weights]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"judge.weights: aspect {name!r} occurs twice")
        for aspect in asked:
            if aspect.verdict and self.backend == "rule":
                raise UserError(
                    f"judge.weights: aspect {aspect.name!r} is answered after reasoning, "
                    "and backend rule does not write text"
                )
            if self.backend == "http" and not aspect.verdict:
                self._check_listed(aspect)

    def _check_listed(self, aspect: Aspect) -> None:
        """Raises UserError unless a server's log-probabilities can tell the options apart.

        Its first token for "10" may be "1".
        """
        if not self.http.logprobs:
            raise UserError(
                "http.logprobs must be at least 1: the verdict of aspect "
                f"{aspect.name!r} is read from log-probabilities"
            )
        chat = self.http.api == "chat"
        names = [option.lstrip() if chat else option for option in aspect.options]
        for name in () if self.http.tokens else names:
            longer = [other for other in names if other != name and other.startswith(name)]
            if longer:
                raise UserError(
                    f"judge.weights: aspect {aspect.name!r}: option {name!r} begins option "
                    f"{longer[0]!r}, and the server's first token may be the same for both; use "
                    "other words, a reasoned aspect (verdict:), or http.tokens"
                )

    @property
    def own(self) -> bool:
        """True if the policy judges itself."""
        return self.backend == "local" and self.init_from == POLICY

    @property
    def loads(self) -> bool:
        """True if a model is loaded besides the policy: the judge itself or a proofreader."""
        return not self.own and (self.backend == "local" or bool(self.proofread.init_from))

    def aspects(self) -> tuple[Aspect, ...]:
        """The aspects that are asked in text; none for backend truth."""
        asked = () if self.backend == "truth" else self.weights
        return tuple(prompts.load(name) for name, _ in asked)

    def voting(self, seed: int) -> Voting:
        """The sampling of reasoned verdicts. Raises UserError for bad votes or max_tokens."""
        try:
            return Voting(self.votes, self.max_tokens, self.sampling, seed)
        except UserError as e:
            raise UserError(f"judge.{e}") from None

    def sources(self) -> dict[str, str]:
        """The runs or directories that this section reads, by config key."""
        named = self.backend == "local" and not self.own
        found = {"judge.init_from": self.init_from} if named else {}
        if self.proofread.init_from:
            found["judge.proofread.init_from"] = self.proofread.init_from
        return found

    def server(self) -> remote.RemoteConfig:
        """The `http` section; without log-probabilities if all verdicts are read from texts."""
        reasoned = all(aspect.verdict for aspect in self.aspects())
        return dataclasses.replace(self.http, logprobs=0) if reasoned else self.http

    def reach(self) -> None:
        """Raises UserError if the judge is a server that does not answer."""
        if self.backend == "http":
            remote.check(self.server())


def build(
    wanted: JudgeConfig, workdir, truth, mesh, tokenizer, seed: int = 0, heard: int = 0
) -> judged.Judge:
    """Builds the judge of a `judge` section.

    `truth` is needed by backend truth, `tokenizer` by backend http with `http.tokens`. `seed` seeds
    the sampling of votes. Of the first `heard` prefixes of a call the judge returns its reasoned
    answers as written. Raises UserError if the judge cannot be built or its server does not answer.
    """
    if wanted.backend == "truth":
        if truth is None:
            raise UserError(
                "judge.backend truth: this corpus has no ground truth; use another backend"
            )
        return scoring.TruthJudge(truth, dict(wanted.weights), wanted.schedule, wanted.accuracy)
    if wanted.own:
        raise UserError("judge.init_from: only the policy of a self-improving run judges itself")
    asking = functools.partial(_asking, wanted, workdir, mesh, seed, heard=heard)
    if wanted.backend == "rule":
        return asking(ruled(wanted.rule, wanted.proofread.mark))
    if wanted.backend == "http":
        server = remote.OnLead(remote.Remote(wanted.server(), tokenizer))
        if wanted.http.tokens:
            _check_options(wanted.aspects(), tokenizer)
        server.check()
        return asking(server, stats=server.stats)
    source = source_dir(workdir, wanted.init_from, "judge.init_from")
    model = load_model(source, mesh, wanted.param_dtype)  # with the judge's own tokenizer
    aspects = aspects_in(wanted, workdir, model.tokenizer)
    local = _local(wanted, aspects, model)
    return asking(local, aspects, stats=local.stats)


def of_policy(
    wanted: JudgeConfig, cfg: ModelConfig, workdir, mesh, tokenizer, seed: int, heard: int = 0
) -> Callable[[Params], scoring.TextJudge]:
    """Returns a function from the policy's parameters to a judge on the policy's mesh.

    Parameters are an argument of the jitted programs, so another step's do not recompile them.
    """
    aspects = aspects_in(wanted, workdir, tokenizer)
    local = _local(wanted, aspects, LoadedModel(None, cfg, tokenizer, mesh))
    judge = _asking(wanted, workdir, mesh, seed, local, aspects, stats=local.stats, heard=heard)
    return lambda params: dataclasses.replace(judge, textgen=local.of(params))


def check_model(wanted: JudgeConfig, directory: str) -> None:
    """Raises UserError unless the checkpoint in `directory` can answer the aspects, by its
    tokenizer, its chat template and its max_len."""
    aspects = aspects_in(wanted, "", kept_tokenizer(directory))
    check_room(wanted, aspects, recorded_model(directory), "judge")


def aspects_in(wanted: JudgeConfig, workdir: str, tokenizer) -> tuple[Aspect, ...]:
    """The aspects for a local judge, in the chat template of `wanted.chat` if there is one.

    Raises UserError if an option is not one token, or if the template cannot be used.
    """
    aspects = wanted.aspects()
    if wanted.chat:
        turn = chat.turn(chat.load(wanted.chat, tokenizer, workdir))
        aspects = tuple(prompts.seated(aspect, turn) for aspect in aspects)
    _check_options(aspects, tokenizer)
    return aspects


def _local(wanted: JudgeConfig, aspects: Sequence[Aspect], model: LoadedModel) -> Local:
    """The local text generator. Raises UserError if answers leave no room for a prompt."""
    check_room(wanted, aspects, model.cfg, "judge")
    return Local(model, batch=wanted.batch)


def check_room(wanted: JudgeConfig, aspects: Sequence[Aspect], cfg: ModelConfig, key: str) -> None:
    """Raises UserError, naming the section `key`, if answers leave no room for a prompt."""
    if any(aspect.verdict for aspect in aspects) and wanted.max_tokens >= cfg.max_len:
        raise UserError(
            f"{key}.max_tokens {wanted.max_tokens} leaves no room for a prompt in the judge's "
            f"max_len {cfg.max_len}"
        )


def _check_options(aspects: Sequence[Aspect], tokenizer) -> None:
    for aspect in aspects:
        if not aspect.verdict:
            prompts.check_options(tokenizer, aspect)


def _asking(
    wanted: JudgeConfig,
    workdir,
    mesh,
    seed: int,
    textgen: TextGenerator,
    aspects: Sequence[Aspect] = (),
    **more,
) -> scoring.TextJudge:
    """A TextJudge on `textgen`. `aspects` replaces the config's aspects if it is given."""
    aspects = tuple(aspects) or wanted.aspects()
    return scoring.TextJudge(
        textgen,
        aspects,
        {aspect.name: w for aspect, (_, w) in zip(aspects, wanted.weights, strict=True)},
        min_mass=wanted.min_mass,
        hard=wanted.hard,
        schedule=wanted.schedule,
        proofreader=proofreader(wanted.proofread, workdir, mesh, "judge.proofread.init_from"),
        voting=wanted.voting(seed),
        **more,
    )


def proofreader(wanted: ProofreadConfig, workdir, mesh, key: str) -> Proofreader | None:
    """Loads the proofreader of a `proofread` section with its own tokenizer.

    Returns None if the section has no `init_from`. `key` is the config key shown in errors.
    """
    if not wanted.init_from:
        return None
    source = source_dir(workdir, wanted.init_from, key)
    return Proofreader(load_model(source, mesh, wanted.param_dtype), wanted)


def check_invalid(
    asked_BK: np.ndarray, valid_BK: np.ndarray, most: float, key: str, metrics: Stats
) -> None:
    """Raises UserError if more than the share `most` of the verdicts is invalid.

    Stops the run: an unreadable judge has no fallback. `key` is the config key of `most`; `metrics`
    are the judge's, for the reasons.
    """
    share = 1 - valid_BK.sum() / max(1, asked_BK.sum())
    if share > most:
        why = diagnostics.reasons(metrics)
        raise UserError(
            f"judge: {share:.0%} of the verdicts are invalid ({key})"
            f"{': ' + why if why else ''}; check the judge"
        )
