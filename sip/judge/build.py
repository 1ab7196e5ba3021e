"""Who judges: the `judge` section of a run, and the judge that it names."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sip.judge import judged, prompts, scoring
from sip.judge.prompts import Aspect
from sip.judge.proofread import ProofreadConfig, Proofreader
from sip.judge.schedules import ScheduleConfig
from sip.judge.voting import Voting
from sip.loading import LoadedModel, load_model, source_dir
from sip.models.config import ModelConfig, check_storage_dtype
from sip.sampling import SamplingConfig
from sip.structs import Params, UserError
from sip.text import chat
from sip.textgen import remote
from sip.textgen.local import Local
from sip.textgen.protocol import TextGenerator
from sip.textgen.scripted import ruled

BACKENDS = ("local", "http", "rule", "truth")
POLICY = "policy"


@dataclass(frozen=True)
class JudgeConfig:
    """Who judges. Weights name the aspects, which are summed: built-in ones or paths of .txt files.

    Votes are those of aspects that are answered after reasoning (`verdict:` in the prompt file).
    """

    backend: str  # local | http | rule | truth
    weights: tuple[tuple[str, float], ...]  # ((name or path, weight), ...)
    http: remote.RemoteConfig = remote.RemoteConfig()  # http: which server, and how it is asked
    init_from: str = ""  # local: a run or a directory with a checkpoint | policy: what is trained
    live: bool = False  # policy: judges with the parameters of each step, not with those of step 0
    rule: str = ""  # rule: its name
    min_mass: float = 0.5
    hard: bool = False
    votes: int = 1  # J answers to each question
    max_tokens: int = 512  # of an answer
    sampling: SamplingConfig = Voting.sampling  # of answers
    batch: int = 16  # local: prefixes judged at a time
    reference: str = "suffix"  # suffix | rewrite: what aspects with a reference are shown
    proofread: ProofreadConfig = ProofreadConfig()  # local, http: marks in what it is shown
    schedule: ScheduleConfig = ScheduleConfig()  # who is compared, where judging is pairwise
    chat: str = ""  # local: asked in a chat, by its "own" template | harmony | a .jinja file
    param_dtype: str = ""  # local: held in float32 | bfloat16 | int8; empty: as saved

    def __post_init__(self):
        if self.reference not in ("suffix", "rewrite"):
            raise UserError(f"judge.reference must be suffix or rewrite, not {self.reference!r}")
        if self.backend not in BACKENDS:
            raise UserError(f"judge.backend must be one of {BACKENDS}, not {self.backend!r}")
        if self.proofread.init_from and self.backend in ("rule", "truth"):
            raise UserError(f"judge.proofread: backend {self.backend} reads no marks")
        if self.batch < 1:
            raise UserError(f"judge.batch must be at least 1, not {self.batch}")
        if self.chat and self.backend != "local":
            raise UserError(f"judge.chat: for backend local alone, not {self.backend}")
        check_storage_dtype(self.param_dtype, "judge.param_dtype")
        if self.param_dtype and (self.backend != "local" or self.own):
            raise UserError("judge.param_dtype: for backend local alone, and not for the policy")
        if self.live and not self.own:
            raise UserError("judge.live: for backend local and init_from 'policy' alone")
        self.voting(0)
        self._check_aspects()
        if self.backend == "http":
            self.http.check_named()

    def _check_aspects(self):
        """They can be asked in the way that the backend answers."""
        asked = self.aspects()
        names = [aspect.name for aspect in asked]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"judge.weights: there are two aspects {name!r}")
        for aspect in asked:
            if aspect.verdict and self.backend == "rule":
                raise UserError(
                    f"judge.weights: aspect {aspect.name!r} is answered after reasoning, "
                    "and a rule has no words"
                )
            if self.backend == "http" and not aspect.verdict and not self.http.logprobs:
                raise UserError(
                    "http.logprobs must be at least 1: the verdict of aspect "
                    f"{aspect.name!r} is read from them"
                )

    @property
    def own(self) -> bool:
        """Whether the policy judges itself."""
        return self.backend == "local" and self.init_from == POLICY

    @property
    def loads(self) -> bool:
        """Whether a model is loaded for it: the judge, or who proofreads for a server."""
        return not self.own and (self.backend == "local" or bool(self.proofread.init_from))

    def aspects(self) -> tuple[Aspect, ...]:
        """The aspects that a judge is asked about in text."""
        asked = () if self.backend == "truth" else self.weights
        return tuple(prompts.load(name) for name, _ in asked)

    def voting(self, seed: int) -> Voting:
        """How reasoned verdicts are asked for."""
        try:
            return Voting(self.votes, self.max_tokens, self.sampling, seed)
        except UserError as e:
            raise UserError(f"judge.{e}") from None

    def sources(self) -> dict[str, str]:
        """The run or directory that it needs, by the key that names it."""
        named = self.backend == "local" and not self.own
        found = {"judge.init_from": self.init_from} if named else {}
        if self.proofread.init_from:
            found["judge.proofread.init_from"] = self.proofread.init_from
        return found

    def reach(self) -> None:
        """Raises UserError where a judge behind HTTP does not answer."""
        if self.backend == "http":
            remote.check(self.http)


def build(wanted: JudgeConfig, workdir, truth, mesh, tokenizer, seed: int = 0) -> judged.Judge:
    """The judge of the `judge` section; `seed` is of its votes."""
    if wanted.backend == "truth":
        if truth is None:
            raise UserError("judge.backend truth: this corpus has no ground truth")
        return scoring.TruthJudge(truth, dict(wanted.weights), wanted.schedule)
    if wanted.own:
        raise UserError("judge.init_from: only the policy of a self-improving run judges itself")
    asking = functools.partial(_asking, wanted, workdir, mesh, seed)
    if wanted.backend == "rule":
        return asking(ruled(wanted.rule))
    if wanted.backend == "http":
        server = remote.OnLead(remote.Remote(wanted.http, tokenizer))
        if wanted.http.tokens:
            _check_options(wanted.aspects(), tokenizer)
        server.check()
        return asking(server, stats=server.stats)
    source = source_dir(workdir, wanted.init_from, "judge.init_from")
    model = load_model(source, mesh, wanted.param_dtype)  # with its own tokenizer: it reads text
    aspects = _aspects(wanted, model.tokenizer)
    return asking(_local(wanted, aspects, model), aspects)


def of_policy(
    wanted: JudgeConfig, cfg: ModelConfig, workdir, mesh, tokenizer, seed: int
) -> Callable[[Params], scoring.TextJudge]:
    """The policy as a judge, on its own mesh, given its parameters; those of another step are
    another argument of the same programs."""
    aspects = _aspects(wanted, tokenizer)
    local = _local(wanted, aspects, LoadedModel(None, cfg, tokenizer, mesh))
    judge = _asking(wanted, workdir, mesh, seed, local, aspects)
    return lambda params: dataclasses.replace(judge, textgen=local.of(params))


def _aspects(wanted: JudgeConfig, tokenizer) -> tuple[Aspect, ...]:
    """The aspects as a local judge is asked about them."""
    if not wanted.chat:
        return wanted.aspects()
    turn = chat.turn(chat.load(wanted.chat, tokenizer))
    return tuple(prompts.seated(aspect, turn) for aspect in wanted.aspects())


def _local(wanted: JudgeConfig, aspects: Sequence[Aspect], model: LoadedModel) -> Local:
    _check_options(aspects, model.tokenizer)
    if any(aspect.verdict for aspect in aspects) and wanted.max_tokens >= model.cfg.max_len:
        raise UserError(
            f"judge.max_tokens {wanted.max_tokens} leaves no room for a prompt in the judge's "
            f"max_len {model.cfg.max_len}"
        )
    return Local(model, batch=wanted.batch)


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
    """The judge that asks `textgen`, about the config's aspects as they are or as given."""
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
    """The proofreader of a `proofread` section, with its own tokenizer; None where nothing is
    marked. `key` names its `init_from`."""
    if not wanted.init_from:
        return None
    source = source_dir(workdir, wanted.init_from, key)
    return Proofreader(load_model(source, mesh, wanted.param_dtype), wanted)


def check_invalid(asked_BK: np.ndarray, valid_BK: np.ndarray, most: float, key: str) -> None:
    """Stops the run where the judge cannot be read: nothing is scored in its place."""
    share = 1 - valid_BK.sum() / max(1, asked_BK.sum())
    if share > most:
        raise UserError(f"judge: {share:.0%} of the verdicts are invalid ({key})")
