"""Who judges: the `judge` section of a run, and the judge that it names."""

from dataclasses import dataclass

import numpy as np

from sip import remote, setup
from sip.judge import prompts, scoring
from sip.judge.proofread import ProofreadConfig, Proofreader
from sip.judge.schedules import ScheduleConfig
from sip.structs import UserError
from sip.textgen import Local, ruled

BACKENDS = ("local", "http", "rule", "truth")


@dataclass(frozen=True)
class JudgeConfig:
    """Who judges. Weights name the aspects, which are summed."""

    backend: str  # local | http | rule | truth
    weights: dict[str, float]
    http: remote.RemoteConfig = remote.RemoteConfig()  # http: which server, and how it is asked
    init_from: str = ""  # local: a run or a directory with a checkpoint
    rule: str = ""  # rule: its name
    min_mass: float = 0.5
    hard: bool = False
    batch: int = 16  # local: prefixes judged at a time
    reference: str = "suffix"  # suffix | rewrite: what aspects with a reference are shown
    proofread: ProofreadConfig = ProofreadConfig()  # local, http: marks in what it is shown
    schedule: ScheduleConfig = ScheduleConfig()  # who is compared, where judging is pairwise

    def __post_init__(self):
        if self.reference not in ("suffix", "rewrite"):
            raise UserError(f"judge.reference must be suffix or rewrite, not {self.reference!r}")
        if self.backend not in BACKENDS:
            raise UserError(f"judge.backend must be one of {BACKENDS}, not {self.backend!r}")
        if self.proofread.init_from and self.backend in ("rule", "truth"):
            raise UserError(f"judge.proofread: backend {self.backend} reads no marks")
        if self.batch < 1:
            raise UserError(f"judge.batch must be at least 1, not {self.batch}")
        if self.backend == "http":
            self.http.check_named()
            if not self.http.logprobs:
                raise UserError("http.logprobs must be at least 1: verdicts are read from them")

    def sources(self) -> dict[str, str]:
        """The run or directory that it needs, by the key that names it."""
        found = {"judge.init_from": self.init_from} if self.backend == "local" else {}
        return {**found, "judge.proofread.init_from": self.proofread.init_from}

    def reach(self) -> None:
        """Raises UserError where a judge behind HTTP does not answer."""
        if self.backend == "http":
            remote.check(self.http)


def build(wanted: JudgeConfig, workdir, truth, mesh, tokenizer) -> scoring.Judge:
    """The judge of the `judge` section."""
    if wanted.backend == "truth":
        if truth is None:
            raise UserError("judge.backend truth: this corpus has no ground truth")
        return scoring.TruthJudge(truth, wanted.weights, wanted.schedule)
    aspects = tuple(prompts.load(a) for a in wanted.weights)
    if wanted.backend == "local" or (wanted.backend == "http" and wanted.http.tokens):
        for aspect in aspects:
            prompts.check_options(tokenizer, aspect)
    reader = proofreader(wanted.proofread, workdir, mesh, "judge.proofread.init_from")
    how = (aspects, wanted.weights, wanted.min_mass, wanted.hard, wanted.schedule, reader)
    if wanted.backend == "rule":
        return scoring.TextJudge(ruled(wanted.rule), *how)
    if wanted.backend == "http":
        server = remote.Remote(wanted.http, tokenizer)
        server.check()
        return scoring.TextJudge(server, *how, stats=server.stats)
    params, cfg = setup.load_params(
        setup.source_dir(workdir, wanted.init_from, "judge.init_from"), mesh
    )
    local = Local(params, cfg, tokenizer, mesh, batch=wanted.batch)
    return scoring.TextJudge(local, *how)


def proofreader(wanted: ProofreadConfig, workdir, mesh, key: str) -> Proofreader | None:
    """The proofreader of a `proofread` section, with its own tokenizer; None where nothing is
    marked. `key` names its `init_from`."""
    if not wanted.init_from:
        return None
    source = setup.source_dir(workdir, wanted.init_from, key)
    params, cfg = setup.load_params(source, mesh)
    return Proofreader(params, cfg, setup.kept_tokenizer(source), mesh, wanted)


def check_invalid(asked_BK: np.ndarray, valid_BK: np.ndarray, most: float, key: str) -> None:
    """Stops the run where the judge cannot be read: nothing is scored in its place."""
    share = 1 - valid_BK.sum() / max(1, asked_BK.sum())
    if share > most:
        raise UserError(f"judge: {share:.0%} of the verdicts are invalid ({key})")
