"""A recipe is a config with a list of runs: checked as a whole before anything is written."""

import json
from dataclasses import dataclass
from typing import Any

from etils import epath

from sip import processes, setup
from sip.stages import best, rl, selfimprove, supervised
from sip.structs import UserError

STAGES = {"supervised": supervised, "selfimprove": selfimprove, "rl": rl}


@dataclass(frozen=True)
class Recipe:
    """A whole config."""

    seed: int
    data: dict[str, Any]
    tokenizer: setup.TokenizerConfig
    order: tuple[str, ...]
    runs: dict[str, Any]
    report: setup.ReportConfig


def check_reachable(workdir: str) -> None:
    """Raises UserError where a store cannot be read: no package for it, no credentials, no net."""
    if "://" not in workdir:
        return
    try:
        epath.Path(workdir).exists()
    except Exception as e:  # whatever the store's library raises
        reason = " ".join(str(e).split())[:200] or type(e).__name__
        raise UserError(f"workdir {workdir} is out of reach: {reason}") from e


def check(config, workdir: str) -> None:
    """Resolves the whole recipe before anything is written or compiled."""
    recipe = setup.section(Recipe, config, "")
    if "cut" not in recipe.data:
        raise UserError("config data.cut: missing")
    cut = setup.section(setup.CutConfig, recipe.data["cut"], "data.cut")
    setup.data_config(config.data, "train")
    earlier: list[str] = []
    for name in recipe.order:
        if name not in recipe.runs:
            raise UserError(f"config order: no run {name!r}; there are {sorted(recipe.runs)}")
        check_run(config, name, workdir, cut, earlier)
        earlier.append(name)
    for name in recipe.report.names():
        if name not in earlier:
            raise UserError(f"config report: run {name!r} is not in the order")


def check_meshes(config) -> None:
    """Builds every run's mesh on the devices that are here; what does not fit is an error."""
    for name in config.order:
        try:
            setup.build_meshes(STAGES[config.runs[name].stage].resolve(config, name))
        except UserError as e:
            raise UserError(f"config runs.{name}: {e}") from None


def check_run(config, name: str, workdir: str, cut: setup.CutConfig, earlier: list[str]) -> None:
    """Resolves one run; what it starts from is trained before it or lies there already."""
    stage = config.runs[name].stage if "stage" in config.runs[name] else None
    if stage not in STAGES:
        raise UserError(f"config runs.{name}.stage must be one of {sorted(STAGES)}, not {stage!r}")
    run = STAGES[stage].resolve(config, name)
    setup.check_model(run.model, cut)
    check_proofread(config, name)
    for key, source in run.sources().items():
        if source and source.removesuffix(f"/{best.FOLDER}") not in earlier:
            setup.source_dir(workdir, source, f"config runs.{name}.{key}")
    if not (epath.Path(setup.run_dir(workdir, name)) / "done.json").exists():
        try:
            processes.first(run.reach)
        except UserError as e:
            raise UserError(f"config runs.{name}: {e}") from None


def check_proofread(config, name: str) -> None:
    """A judge of the recipe is shown what it was taught on: texts read by the same proofreader."""
    run = config.runs[name]
    sections = [("judge", run.judge)] if "judge" in run else []
    sections += [("audit.judge", run.audit.judge)] if "audit" in run else []
    for key, judge in sections:
        source = judge.init_from if judge.backend == "local" else ""
        taught = config.runs[source] if source in config.runs else {}
        if "labels" not in taught:
            continue
        here, there = (dict(x.proofread, batch=0) for x in (judge, taught["labels"]))
        if here != there and (here["init_from"] or there["init_from"]):
            raise UserError(
                f"config runs.{name}.{key}.proofread differs from runs.{source}.labels.proofread: "
                "a judge is to be shown texts as it was taught to read them"
            )


def claim(config, workdir: str) -> None:
    """Writes the resolved config into a new workdir; one where another config has begun is kept."""
    check_claim(config, workdir)
    try:
        setup.write_json(epath.Path(workdir) / "config.json", resolved(config))
    except OSError as e:
        raise UserError(f"workdir {workdir}: {e}") from e


def check_claim(config, workdir: str) -> None:
    """Raises UserError where a workdir belongs to another config, or to a job over seeds."""
    path, wanted = epath.Path(workdir) / "config.json", resolved(config)
    if (path.parent / setup.SEEDS).exists():
        raise UserError(f"workdir {workdir} belongs to a job over seeds: --seeds is needed")
    try:
        tokenizer = setup.shared_dir(workdir) / "tokenizer.model"
        begun = (path.parent / "runs").exists() or tokenizer.exists()
        found = json.loads(path.read_text()) if path.exists() and begun else wanted
    except (OSError, ValueError) as e:
        raise UserError(f"workdir {workdir}: {e}") from e
    if found != wanted:
        keys = ", ".join(sorted(differing(found, wanted))[:5])
        raise UserError(f"workdir {workdir} belongs to another config; it differs in {keys}")


def resolved(config) -> dict[str, Any]:
    """A config as config.json has it."""
    return json.loads(json.dumps(setup.plain(config)))


def differing(a, b, at: str = "") -> set[str]:
    """Dotted names of what differs between two nested dicts."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return set() if a == b else {at}
    keys = set(a) | set(b)
    missing = object()
    return {
        found
        for k in keys
        for found in differing(
            a[k] if k in a else missing, b[k] if k in b else missing, f"{at}.{k}" if at else k
        )
    }
