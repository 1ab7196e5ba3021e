"""The `audit` section of a run: a judge that is held out, and what it is asked."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from sip.judge import audit, scoring
from sip.judge.audit import Point
from sip.judge.scoring import Judged, Stats
from sip.stages import judging
from sip.structs import UserError
from sip.training import checkpoints


@dataclass(frozen=True)
class AuditConfig:
    """Before updates 1, 1 + every_steps, ... a second judge sees some of the same candidates; the
    run ends early where the first one's choice gets worse by it (sip/judge/audit.py)."""

    judge: judging.JudgeConfig
    every_steps: int = 0  # 0: never
    prefixes: int = 8  # of a batch
    max_drop: float = 0.1  # of the mean score of the judge's choice; aspects are summed
    patience: int = 3  # audits in a row that are worse than that; 0: the run is never ended

    def __post_init__(self):
        if min(self.every_steps, self.patience) < 0 or self.prefixes < 1 or self.max_drop < 0:
            raise UserError(
                "audit: every_steps, patience and max_drop must be at least 0, prefixes at least 1"
            )

    @property
    def who(self) -> str:
        """What its figures' names begin with: the ground truth is named."""
        return "audit_truth" if self.judge.backend == "truth" else "audit"

    def sources(self) -> dict[str, str]:
        """The run or directory that it needs, by the key that names it."""
        found = self.judge.sources() if self.every_steps else {}
        return {f"audit.{key}": source for key, source in found.items()}

    def check(self, *, judged: bool, rewrite: bool, batch: int) -> None:
        """Raises UserError where the run leaves nothing to audit."""
        if not self.every_steps:
            return
        if not judged:
            raise UserError("audit.every_steps: nothing is judged in this run")
        if self.judge.own:
            raise UserError("audit.judge.init_from: the policy itself is no judge that is held out")
        if self.judge.reference == "rewrite" and not rewrite:
            raise UserError("audit.judge.reference: there is no rewrite among the candidates")
        if self.prefixes > batch:
            raise UserError(f"audit.prefixes {self.prefixes}: a batch has {batch}")


@dataclass(frozen=True)
class Audit:
    """A judge to ask, and when."""

    config: AuditConfig
    judge: scoring.Judge

    def due(self, at: int) -> bool:
        """Whether the candidates of update at + 1 are audited."""
        return at % self.config.every_steps == 0

    def figures(self, judged: Judged, prefixes, pool, references, most_invalid: float) -> Stats:
        """Of the first prefixes of a batch, judged already."""
        some = slice(self.config.prefixes)
        asked_BK = pool.valid_BK[some]
        found = self.judge.score(prefixes[some], pool.texts[some], references[some], asked_BK)
        judging.check_invalid(
            asked_BK, found.valid_BK, most_invalid, "of the audit, candidates.max_invalid"
        )
        return audit.compare(_rows(judged, some), found, pool.sources, who=self.config.who)


def _rows(judged: Judged, some: slice) -> Judged:
    aspects = {name: (x_BK[some], ok_BK[some]) for name, (x_BK, ok_BK) in judged.aspects.items()}
    return dataclasses.replace(
        judged, scores_BK=judged.scores_BK[some], valid_BK=judged.valid_BK[some], aspects=aspects
    )


def build(wanted: AuditConfig, workdir, truth, mesh, tokenizer, seed: int = 0) -> Audit | None:
    """The audit of the `audit` section; None where it is never asked."""
    if not wanted.every_steps:
        return None
    try:
        judge = judging.build(wanted.judge, workdir, truth, mesh, tokenizer, seed)
    except UserError as e:
        raise UserError(f"audit: {e}") from None
    return Audit(wanted, judge)


def kept(directory: str) -> list[Point]:
    """The audits of a run so far, from its last checkpoint."""
    if not checkpoints.exists(directory):
        return []
    return [Point(**point) for point in checkpoints.record(directory)["audit"]]


def plain(points: Sequence[Point]) -> dict[str, list]:
    """The same for a checkpoint's record."""
    return {"audit": [dataclasses.asdict(point) for point in points]}


def new(wanted: AuditConfig, found: Stats, at: int, rollouts: int) -> list[Point]:
    """The audit among the figures of update at + 1, if it had one."""
    return audit.point(found, at, rollouts, who=wanted.who)


def end(wanted: AuditConfig, points: Sequence[Point], done: int, steps: int) -> tuple[int, str]:
    """(last step, reason): the step that was just done and why, or that of a whole run."""
    reason = audit.drift(points, max_drop=wanted.max_drop, patience=wanted.patience)
    return (done, reason) if reason and done < steps else (steps, "")
