"""Writes the report of a finished config: summary.json, a table on the terminal, plots."""

from collections.abc import Sequence

from etils import epath

from sip import processes
from sip import workdir as workdirs
from sip.report import statistics
from sip.report.journeys import plot_journeys
from sip.report.plots import plots
from sip.report.summary import against_first, comparable, summarise
from sip.report.tables import show, show_seeds, untrained
from sip.sections import section
from sip.stages import seeds
from sip.stages.recipe import ReportConfig


def write(config, workdir: str) -> dict:
    """Writes summary.json and plots, prints the table and returns the summary.

    Raises UserError if a run is not finished.
    """
    # Process 0 reads the files, and all processes return the same summary.
    summary = processes.broadcast(lambda: summarise(config, workdir))
    workdirs.write_json(epath.Path(workdir) / "summary.json", summary)
    if processes.lead():
        plots(config.report, [workdir], workdir)
        plot_journeys(_journeys(config), [summary["rows"]], workdir)
        show(summary)
        _say(untrained(config))
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
        _say(untrained(config))
    return summary


def _say(line: str) -> None:
    if line:
        print(line)


def _journeys(config) -> tuple[tuple[str, ...], ...]:
    return section(ReportConfig, config.report, "report").journeys
