"""Writes the report of a finished config: summary.json, a table on the terminal, plots."""

from collections.abc import Sequence

from etils import epath

from sip import processes
from sip import workdir as workdirs
from sip.report import statistics, verdict
from sip.report.journeys import plot_journeys
from sip.report.plots import plots
from sip.report.summary import against_first, collect, comparable, summarise
from sip.report.tables import show, show_seeds, untrained
from sip.sections import section
from sip.stages import seeds
from sip.stages.recipe import TEACHERS, ReportConfig


def write(config, workdir: str) -> dict:
    """Writes summary.json and plots of a finished config, prints the table, returns the summary.

    Raises UserError if a run is not finished.
    """
    # Process 0 reads the files, and all processes return the same summary.
    summary = processes.broadcast(lambda: summarise(config, workdir))
    workdirs.write_json(epath.Path(workdir) / "summary.json", summary)
    if processes.lead():
        plots(config.report, [workdir], workdir)
        plot_journeys(_journeys(config), [summary["rows"]], workdir)
        show(summary)
        _say(config, summary)
    return summary


def write_seeds(config, wanted: Sequence[int], workdir: str) -> dict:
    """Writes the report over several seeds: means and standard deviations; returns the summary.

    Args:
        config: The whole config.
        wanted: The seeds, all of them finished.
        workdir: Directory that contains seed0, seed1, ...
    """
    directories = [seeds.directory(workdir, seed) for seed in wanted]
    pairs = list(zip(wanted, directories, strict=True))
    each = lambda: {seed: summarise(seeds.of(config, seed), where) for seed, where in pairs}
    runs = processes.broadcast(each)
    stages = against_first(_journeys(config))
    summary = statistics.combine(runs, comparable(config), config.report.standard, stages)
    workdirs.write_json(epath.Path(workdir) / "summary.json", summary)
    if processes.lead():
        plots(config.report, directories, workdir)
        plot_journeys(_journeys(config), [run["rows"] for run in runs.values()], workdir)
        show_seeds(summary)
        _say(config, summary)
    return summary


def write_present(config, begun: Sequence[int], workdir: str) -> tuple[dict, list[str]]:
    """Writes plots and prints tables of what is there, finished or not.

    summary.json is written only if nothing is missing: sip.train takes it as the sign of a finished
    workdir.

    Args:
        config: The whole config.
        begun: The seeds begun in the workdir; empty for a workdir without seeds.
        workdir: The workdir.

    Returns:
        (summary of what is there, what is missing in words).
    """
    summary, missing = present(config, begun, workdir)
    if not missing:
        return write_seeds(config, begun, workdir) if begun else write(config, workdir), []
    plots(config.report, _directories(begun, workdir), workdir)
    (show_seeds if begun else show)(summary)
    _say(config, summary)
    return summary, missing


def present(config, begun: Sequence[int], workdir: str) -> tuple[dict, list[str]]:
    """Returns (summary of what is there, what is missing in words) and writes nothing."""
    configs = [seeds.of(config, seed) for seed in begun] or [config]
    where = _directories(begun, workdir)
    found = [collect(own, directory) for own, directory in zip(configs, where, strict=True)]
    missing = [what for _, some in found for what in some]
    if not begun:
        return found[0][0], missing
    runs = dict(zip(begun, (figures for figures, _ in found), strict=True))
    most = max(len(run["rows"]) for run in runs.values())
    ahead = {seed: run for seed, run in runs.items() if len(run["rows"]) == most}
    if len(ahead) < len(runs):
        names = ", ".join(map(str, ahead))
        missing.append(
            f"The figures are of {len(ahead)} of {len(runs)} seeds ({names}): the others have "
            "fewer evaluated rows"
        )
    return _combined(config, ahead), missing


def _directories(begun: Sequence[int], workdir: str) -> list[str]:
    return [seeds.directory(workdir, seed) for seed in begun] or [workdir]


def _combined(config, runs: dict[int, dict]) -> dict:
    """Returns the summary over seeds of the rows that every seed has."""
    every = set.intersection(*(set(run["rows"]) for run in runs.values()))
    shared = [who for who in TEACHERS if all(who in run for run in runs.values())]
    left = ("wall_seconds", "seed", *shared)
    cut = {
        seed: {key: run[key] for key in left}
        | {"rows": {name: row for name, row in run["rows"].items() if name in every}}
        for seed, run in runs.items()
    }
    standard = config.report.standard if config.report.standard in every else ""
    paired = [name for name in comparable(config) if name in every] if standard else []
    journeys = [(a, b) for a, b in against_first(_journeys(config)) if {a, b} <= every]
    return statistics.combine(cut, paired, standard, journeys)


def _say(config, summary: dict) -> None:
    """Prints what a reader of the table should know."""
    for line in (verdict.compared(config, summary["rows"]), untrained(config)):
        if line:
            print(line)


def _journeys(config) -> tuple[tuple[str, ...], ...]:
    return section(ReportConfig, config.report, "report").journeys
