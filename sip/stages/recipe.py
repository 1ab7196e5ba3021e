"""A recipe: a config with a list of runs, checked as a whole before anything is written."""

from dataclasses import dataclass
from typing import Any

from etils import epath

from sip import processes
from sip import workdir as workdirs
from sip.data import corpus as corpora
from sip.loading import source_dir
from sip.run import TokenizerConfig, build_meshes, check_model
from sip.sections import section
from sip.stages import rl, selfimprove, supervised
from sip.structs import UserError
from sip.workdir import BEST

STAGES = {"supervised": supervised, "selfimprove": selfimprove, "rl": rl}
TEACHERS = ("judge", "rewriter")  # runs whose evaluations are shown next to the rows


@dataclass(frozen=True)
class ReportConfig:
    """The `report` section: the runs that tables and plots show. Only `rows` must not be empty."""

    rows: tuple[str, ...]  # names of the compared runs, one table row each
    judge: str  # run that trained the judge, or empty
    standard: str  # row that the others are compared with, or empty
    rewriter: str = ""  # run that trained the rewriter, or empty

    def __post_init__(self):
        if self.standard and self.standard not in self.rows:
            raise UserError(
                f"standard {self.standard!r} is not one of the rows {', '.join(self.rows)}"
            )

    def names(self) -> tuple[str, ...]:
        """Returns the names of all runs that the report needs."""
        named = (*self.rows, self.judge, self.rewriter, self.standard)
        return tuple(name for name in named if name)


@dataclass(frozen=True)
class Recipe:
    """A whole config."""

    seed: int  # of parameters, order of documents and rollouts
    data: dict[str, Any]  # corpus and its split into prefixes and suffixes
    tokenizer: TokenizerConfig
    order: tuple[str, ...]  # names of the runs, in the order of training
    runs: dict[str, Any]  # name -> config of a run
    report: ReportConfig

    def __post_init__(self):
        if not 0 <= self.seed < 1 << 31:  # JAX would silently drop higher bits
            raise UserError(f"seed {self.seed}: must be in 0..{(1 << 31) - 1}")


def check_reachable(workdir: str) -> None:
    """Raises UserError if a remote workdir (gs://...) cannot be read."""
    workdirs.check_reachable(workdir, "workdir")


def check(config, workdir: str) -> None:
    """Checks the whole recipe before anything is written or compiled. Raises UserError."""
    recipe = section(Recipe, config, "")
    cut = corpora.cut_config(recipe.data)
    corpora.data_config(config.data, "train")
    earlier: list[str] = []
    for name in recipe.order:
        if name not in recipe.runs:
            raise UserError(
                f"config order: no run {name!r}; there are {', '.join(sorted(recipe.runs))}"
            )
        check_run(config, name, workdir, cut, earlier)
        earlier.append(name)
    for name in recipe.report.names():
        if name not in earlier:
            raise UserError(f"config report: run {name!r} is not in config order")


def check_meshes(config) -> None:
    """Builds every run's meshes on the present devices. Raises UserError if one does not fit."""
    for name in config.order:
        try:
            build_meshes(STAGES[config.runs[name].stage].resolve(config, name))
        except UserError as e:
            raise UserError(f"config runs.{name}: {e}") from None


def check_run(config, name: str, workdir: str, cut: corpora.CutConfig, earlier: list[str]) -> None:
    """Checks one run. Raises UserError naming the key that is wrong.

    The runs it reads must be trained earlier (`earlier`) or exist in the workdir. The servers it
    needs must answer, unless it is done already.
    """
    stage = config.runs[name].stage if "stage" in config.runs[name] else None
    if stage not in STAGES:
        raise UserError(f"config runs.{name}.stage must be one of {sorted(STAGES)}, not {stage!r}")
    run = STAGES[stage].resolve(config, name)
    check_model(run.model, cut)
    check_proofread(config, name)
    for key, source in run.sources().items():
        if source and source.removesuffix(f"/{BEST}") not in earlier:
            source_dir(workdir, source, f"config runs.{name}.{key}")
    if not (epath.Path(workdirs.run_dir(workdir, name)) / "done.json").exists():
        try:
            processes.on_lead(run.reach)
        except UserError as e:
            raise UserError(f"config runs.{name}: {e}") from None


def check_proofread(config, name: str) -> None:
    """Raises UserError if a judge's proofreader differs from the one of its training labels."""
    run = config.runs[name]
    sections = [("judge", run.judge)] if "judge" in run else []
    task = run.task if "task" in run and hasattr(run.task, "keys") else {}
    sections += [("task.judge", task["judge"])] if "judge" in task else []
    sections += [("audit.judge", run.audit.judge)] if "audit" in run else []
    for key, judge in sections:
        source = judge.init_from if judge.backend == "local" else ""
        taught = config.runs[source] if source in config.runs else {}
        task = taught["task"] if "task" in taught else {}
        labels = task["labels"] if hasattr(task, "keys") and "labels" in task else None
        if not labels:
            continue
        here, there = (dict(x.proofread, batch=0) for x in (judge, labels))
        if here != there and (here["init_from"] or there["init_from"]):
            raise UserError(
                f"config runs.{name}.{key}.proofread differs from runs.{source}.task.labels."
                "proofread: a judge must see texts proofread as in its training"
            )
