"""Collects the figures of all finished runs of a config."""

from collections.abc import Mapping, Sequence

from etils import epath

from sip import metrics
from sip import workdir as workdirs
from sip.evals.ground_truth import EvalConfig
from sip.sections import section
from sip.stages.recipe import TEACHERS, ReportConfig
from sip.structs import UserError

# Metrics with a maximum of 1; the summary has the share of (1 - standard) that a row gains.
HEADROOM = ("factuality", "safety")


def comparable(config) -> list[str]:
    """Lists the rows that are evaluated on the same prefixes as the standard row."""
    standard = config.report.standard

    def prefixes(name):
        evals = section(EvalConfig, config.runs[name].evals, f"runs.{name}.evals")
        return evals.split, evals.standard, evals.unsafe

    rows = [name for name in config.report.rows if name != standard] if standard else []
    return [name for name in rows if prefixes(name) == prefixes(standard)]


def against_first(journeys: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """Lists (row, row of the first journey at the same stage) of all other journeys' own rows."""
    first = journeys[0] if journeys else ()
    pairs = [(a, b) for other in journeys[1:] for a, b in zip(other, first, strict=True)]
    return [(a, b) for a, b in dict.fromkeys(pairs) if a != b]


def summarise(config, workdir: str) -> dict:
    """Returns the figures of a finished config, the contents of summary.json.

    Raises UserError if a run is not finished.
    """
    summary, missing = collect(config, workdir)
    if missing:
        raise UserError(f"{missing[0]}; run sip.train again")
    return summary


def collect(config, workdir: str) -> tuple[dict, list[str]]:
    """Returns (the figures of what is finished, what is missing in words).

    The figures have the form of summary.json. Runs and rows that are not finished are left out.
    """
    wanted, missing = section(ReportConfig, config.report, "report"), []
    none = {"lost_steps": 0, "left_out": {}}  # earlier versions did not write these keys
    found = _present(workdir, config.order, "done.json", missing)
    done = {name: none | figures for name, figures in found.items()}
    walls = {name: figures["wall_seconds"] for name, figures in done.items()}
    teachers = {who: getattr(wanted, who) for who in TEACHERS if getattr(wanted, who)}
    evaluated = _present(workdir, (*wanted.rows, *teachers.values()), "eval.json", missing)
    rows = {name: evaluated[name] for name in wanted.rows if name in evaluated}
    standard = rows[wanted.standard] if wanted.standard in rows else {}
    for figures in rows.values():
        # A figure that is not finite is null in eval.json.
        for key in [key for key in HEADROOM if None not in (_at(standard, key), _at(figures, key))]:
            room = 1 - standard[key]
            figures[f"{key}_headroom_closed"] = (
                (figures[key] - standard[key]) / room if room else 0.0
            )
    summary = {
        "wall_seconds": sum(walls.values()),
        "seed": config.seed,
        "wall_by_run": walls,
        "goodput_by_run": {name: goodput(workdir, name, wall) for name, wall in walls.items()},
        "lost_steps_by_run": {name: figures["lost_steps"] for name, figures in done.items()},
        # Documents that were read but not used: run -> split -> reason -> number.
        "left_out_by_run": {name: figures["left_out"] for name, figures in done.items()},
    }
    if pairs := against_first(wanted.journeys):
        both = [(a, b) for a, b in pairs if a in rows and b in rows]
        summary["journey"] = {f"{a} - {b}": _difference(rows[a], rows[b]) for a, b in both}
    summary |= {who: evaluated[name] for who, name in teachers.items() if name in evaluated}
    return {**summary, "rows": rows}, list(dict.fromkeys(missing))


def _present(workdir: str, names: Sequence[str], file: str, missing: list[str]) -> dict[str, dict]:
    """Reads a file of each run; a run without it is named in `missing`."""
    found = {}
    for name in dict.fromkeys(names):
        path = epath.Path(workdirs.run_dir(workdir, name)) / file
        if not path.exists():
            missing.append(f"{path} does not exist: run {name!r} is not finished")
            continue
        keys = {"wall_seconds": (int, float)} if file == workdirs.DONE else {}
        try:
            found[name] = workdirs.read_json(path, **keys)
        except UserError as e:
            missing.append(str(e))
    return found


def _difference(row: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Returns row minus other row by metric, of those that both have."""
    both = [key for key in row if None not in (row[key], _at(other, key))]
    return {key: row[key] - other[key] for key in both}


def goodput(workdir: str, name: str, wall: float) -> float:
    """Returns the share of a run's wall time, over all attempts, spent in steps that count.

    Start-up, restoring, repeated steps and the final evaluation do not count. Compilation does,
    because it is a part of the first steps.

    Args:
        workdir: The workdir.
        name: Name of the run.
        wall: Wall time of the run over all attempts, seconds.
    """
    lines = metrics.read(workdirs.run_dir(workdir, name))
    return sum(_at(x, metrics.SECONDS) or 0.0 for x in lines) / wall if wall else 0.0


def _at(figures: Mapping[str, float | None], key: str) -> float | None:
    return figures[key] if key in figures else None
