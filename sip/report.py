"""What a finished recipe shows: summary.json, a table on the terminal, plots.

python -m sip.report DIR      (sip.train does this at its end; DIR may be one of several seeds)
"""

import io
import json
from collections.abc import Sequence

import matplotlib
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from sip import cli, metrics, processes, seeds, setup
from sip.stages import recipe
from sip.structs import UserError

COLUMNS = (
    "win_rate_standard",
    "win_rate_unsafe",
    "factuality",
    "safety",
    "safety_unsafe",
    "coherence",
    "repetition",
    "distinct",
    "facts_per_suffix",
    "nll_clean",
    "nll",
    "factuality_headroom_closed",
    "safety_headroom_closed",
)
HEADROOM = ("factuality", "safety")  # shares of 1 - standard that a row closes
PANELS = 4  # side by side
BOTH = "/both_orders"  # of a judge's accuracy
WIDTH = 180  # of the terminal, in characters


def write(config, workdir: str) -> dict:
    """Writes summary.json and plots, prints the table, returns the summary."""
    summary = processes.told(lambda: summarise(config, workdir))
    setup.write_json(epath.Path(workdir) / "summary.json", summary)
    if processes.lead():
        show(summary)
        plots(config.report, [workdir], workdir)
    return summary


def write_seeds(config, wanted: Sequence[int], workdir: str) -> dict:
    """The same of a recipe finished for several seeds: means and deviations over them."""
    directories = [seeds.directory(workdir, seed) for seed in wanted]
    pairs = list(zip(wanted, directories, strict=True))
    each = lambda: {seed: summarise(seeds.of(config, seed), where) for seed, where in pairs}
    runs = processes.told(each)
    summary = seeds.combine(runs, comparable(config), config.report.standard)
    setup.write_json(epath.Path(workdir) / "summary.json", summary)
    if processes.lead():
        show_seeds(summary)
        plots(config.report, directories, workdir)
    return summary


def comparable(config) -> list[str]:
    """The rows that are evaluated on the same prefixes as the standard row, without it."""
    standard = config.report.standard

    def prefixes(name):
        evals = recipe.STAGES[config.runs[name].stage].resolve(config, name).evals
        return evals.split, evals.standard, evals.unsafe

    rows = [name for name in config.report.rows if name != standard] if standard else []
    return [name for name in rows if prefixes(name) == prefixes(standard)]


def summarise(config, workdir: str) -> dict:
    """The figures of a finished recipe."""
    wanted = setup.section(setup.ReportConfig, config.report, "report")
    none = {"lost_steps": 0}  # of a run that an earlier version finished
    done = {name: none | _read(workdir, name, "done.json") for name in config.order}
    walls = {name: figures["wall_seconds"] for name, figures in done.items()}
    rows = {name: _read(workdir, name, "eval.json") for name in wanted.rows}
    standard = rows[wanted.standard] if wanted.standard else {}
    for figures in rows.values():
        for key in [key for key in HEADROOM if key in standard]:
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
    }
    for who in (who for who in setup.TEACHERS if getattr(wanted, who)):
        summary[who] = _read(workdir, getattr(wanted, who), "eval.json")
    return {**summary, "rows": rows}


def goodput(workdir: str, name: str, wall: float) -> float:
    """The share of a run's seconds, of all attempts, that went into steps that were kept: not into
    starting, restoring, steps done twice or the last evaluation. Their first steps compile."""
    lines = metrics.read(setup.run_dir(workdir, name))
    return sum(x[metrics.SECONDS] for x in lines if metrics.SECONDS in x) / wall if wall else 0.0


def _read(workdir: str, name: str, file: str) -> dict:
    path = epath.Path(setup.run_dir(workdir, name)) / file
    if not path.exists():
        raise UserError(f"{path} does not exist: run {name!r} is not finished")
    return json.loads(path.read_text())


def show(summary: dict) -> None:
    """The table on the terminal."""
    title = f"seed {summary['seed']}, {summary['wall_seconds']:.0f} s"
    table, columns = _table(title, ("run",), summary["rows"])
    for name, row in summary["rows"].items():
        table.add_row(name, *_cells(row, columns))
    console = Console(width=WIDTH)
    console.print(table)
    good = ", ".join(f"{name} {x:.0%}" for name, x in summary["goodput_by_run"].items())
    console.print(f"goodput: {good}; lost steps: {sum(summary['lost_steps_by_run'].values())}")
    for who in (who for who in setup.TEACHERS if who in summary):
        figures = summary[who].items()
        console.print(f"{who}: " + ", ".join(f"{k} {v:.3f}" for k, v in figures if "/" not in k))


def show_seeds(summary: dict) -> None:
    """The table over seeds: of each run the mean, the standard deviation, every seed's figures, and
    the difference to the standard row with its standard error."""
    names = ", ".join(map(str, summary["seeds"]))
    title = f"seeds {names}, {summary['wall_seconds']:.0f} s"
    table, columns = _table(title, ("run", ""), summary["rows"])
    for name, row in summary["rows"].items():
        lines = spread(row, summary["seeds"])
        if "paired" in summary and name in summary["paired"]["rows"]:
            found = summary["paired"]["rows"][name]
            lines[f"- {summary['paired']['against']}"] = {k: v["mean"] for k, v in found.items()}
            lines["std. error"] = {k: v["se"] for k, v in found.items()}
        for i, (label, figures) in enumerate(lines.items()):
            table.add_row("" if i else name, label, *_cells(figures, columns))
        table.add_section()
    console = Console(width=WIDTH)
    console.print(table)
    for who in (who for who in setup.TEACHERS if who in summary):
        for label, figures in spread(summary[who], summary["seeds"]).items():
            shown = [f"{k} {v:.3f}" for k, v in figures.items() if "/" not in k and v is not None]
            console.print(f"{who}, {label}: " + ", ".join(shown))


def spread(row: dict, of: Sequence[int]) -> dict[str, dict]:
    """Lines of a table by label: mean, standard deviation, each seed's figures."""
    lines = {label: {k: v[label] for k, v in row.items()} for label in ("mean", "std")}
    each = {f"seed {s}": {k: v["values"][i] for k, v in row.items()} for i, s in enumerate(of)}
    return {**lines, **each}


def _table(title: str, labels: Sequence[str], rows) -> tuple[Table, list[str]]:
    """An empty table, and its columns of figures: those that some row has."""
    table = Table(title=title)
    for label in labels:
        table.add_column(label, no_wrap=True)
    columns = [c for c in COLUMNS if any(c in row for row in rows.values())]
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    return table, columns


def _cells(row, columns) -> list[str]:
    return [f"{row[c]:.3f}" if c in row and row[c] is not None else "" for c in columns]


def plots(asked, workdirs: Sequence[str], to: str) -> None:
    """`to`/plots/*.png of the config's `report`: over steps rewards and chosen rates by source,
    evaluations, and the judge's accuracy.

    Over the workdirs of several seeds, means in bands of one standard deviation.
    """
    matplotlib.use("Agg")
    written = lambda name: [metrics.read(setup.run_dir(workdir, name)) for workdir in workdirs]
    runs = {name: written(name) for name in asked.rows}
    directory = epath.Path(to) / "plots"
    directory.mkdir(parents=True, exist_ok=True)
    for kind in ("chosen", "reward"):
        _by_source(runs, kind, directory / f"{kind}.png")
    _evaluations(runs, directory / "evaluations.png")
    if asked.judge:
        _accuracy(asked.judge, written(asked.judge), directory / "judge.png")


Lines = list[dict]  # of one seed's metrics.jsonl


def series(runs: Sequence[Lines], key: str) -> tuple[list[int], np.ndarray, np.ndarray | None]:
    """(steps, mean, deviation) at the steps where every seed has `key`; None for a single seed."""
    found = [{x["step"]: x[key] for x in lines if x.get(key) is not None} for lines in runs]
    steps = sorted(set.intersection(*map(set, found)))
    values = np.array([[one[step] for step in steps] for one in found])
    return steps, values.mean(axis=0), values.std(axis=0, ddof=1) if len(runs) > 1 else None


def _draw(axis, runs: Sequence[Lines], key: str, label: str, color: str | None = None) -> None:
    """A line, in a band where there are several seeds."""
    steps, mean, deviation = series(runs, key)
    if not steps:
        return
    (line,) = axis.plot(steps, mean, label=label, color=color)
    if deviation is not None:
        low, high = mean - deviation, mean + deviation
        axis.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def _keys(runs: Sequence[Lines], kind: str) -> list[str]:
    return sorted({k for lines in runs for line in lines for k in line if k.startswith(f"{kind}/")})


def _by_source(runs, kind: str, path) -> None:
    """A panel per self-improving run: a line per candidate source, in one colour everywhere."""
    import matplotlib.pyplot as plt

    chosen = {name: several for name, several in runs.items() if _keys(several, kind)}
    if not chosen:
        return
    every = sorted({key for several in chosen.values() for key in _keys(several, kind)})
    colors = {key: f"C{i}" for i, key in enumerate(every)}
    wide, high = min(PANELS, len(chosen)), -(-len(chosen) // PANELS)
    figure, axes = plt.subplots(high, wide, figsize=(4.5 * wide, 3.2 * high), squeeze=False)
    for axis in axes.flat[len(chosen) :]:
        axis.axis("off")
    for axis, (name, several) in zip(axes.flat, chosen.items(), strict=False):
        for key in _keys(several, kind):
            _draw(axis, several, key, key.split("/")[1], colors[key])
        axis.set(title=name, xlabel="step", ylabel=f"{kind} rate" if kind == "chosen" else kind)
        axis.legend(fontsize=8)
    _save(figure, path)


def _save(figure, path) -> None:
    """As a file or an object in a store; the figure is closed."""
    import matplotlib.pyplot as plt

    picture = io.BytesIO()
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    path.write_bytes(picture.getvalue())
    plt.close(figure)


def _evaluations(runs, path) -> None:
    """A panel per figure: a line per run."""
    import matplotlib.pyplot as plt

    keys = ("win_rate_standard", "factuality", "safety", "safety_unsafe")
    if not any(series(several, f"eval/{key}")[0] for several in runs.values() for key in keys):
        return
    figure, axes = plt.subplots(1, len(keys), figsize=(4 * len(keys), 3.2))
    for axis, key in zip(axes, keys, strict=True):
        for name, several in runs.items():
            _draw(axis, several, f"eval/{key}", name)
        axis.set(title=key.replace("_", " "), xlabel="step", ylim=(0, 1.02))
    axes[0].legend(fontsize=7)
    _save(figure, path)


def _accuracy(name: str, runs: Sequence[Lines], path) -> None:
    """A line per aspect, of a judge on held-out labels; pairs in both orders where it has any."""
    import matplotlib.pyplot as plt

    keys = [key for key in _keys(runs, "eval") if key.count("/") == 1 or key.endswith(BOTH)]
    if not keys:
        return
    figure, axis = plt.subplots(figsize=(6, 4))
    for key in keys:
        _draw(axis, runs, key, key.removeprefix("eval/").replace("/", ", ").replace("_", " "))
    axis.set(title=name, xlabel="step", ylabel="accuracy", ylim=(0, 1.02))
    axis.legend(fontsize=8)
    _save(figure, path)


def main(argv) -> None:
    """The command line."""
    if len(argv) != 2:
        raise UserError("usage: python -m sip.report DIR")
    directory, begun = argv[1], seeds.known(argv[1])
    path = epath.Path(seeds.directory(directory, begun[0]) if begun else directory) / "config.json"
    if not path.exists():
        raise UserError(f"{path} does not exist: is this a workdir?")
    config = ConfigDict(json.loads(path.read_text()))
    if begun:
        write_seeds(config, begun, directory)
    else:
        write(config, directory)


if __name__ == "__main__":
    cli.run(main)
