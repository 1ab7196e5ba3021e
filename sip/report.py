"""What a finished recipe shows: summary.json, a table on the terminal, plots.

python -m sip.report DIR      (sip.train does this at its end)
"""

import json

import matplotlib
from etils import epath
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from sip import cli, metrics, setup
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


def write(config, workdir: str) -> dict:
    """Writes summary.json and plots, prints the table, returns the summary."""
    summary = summarise(config, workdir)
    setup.write_json(epath.Path(workdir) / "summary.json", summary)
    show(summary)
    plots(config, workdir)
    return summary


def summarise(config, workdir: str) -> dict:
    """The figures of a finished recipe."""
    wanted = setup.section(setup.ReportConfig, config.report, "report")
    walls = {name: _read(workdir, name, "done.json")["wall_seconds"] for name in config.order}
    rows = {name: _read(workdir, name, "eval.json") for name in wanted.rows}
    standard = rows[wanted.standard] if wanted.standard else {}
    for figures in rows.values():
        for key in [key for key in HEADROOM if key in standard]:
            room = 1 - standard[key]
            figures[f"{key}_headroom_closed"] = (
                (figures[key] - standard[key]) / room if room else 0.0
            )
    summary = {"wall_seconds": sum(walls.values()), "seed": config.seed, "wall_by_run": walls}
    if wanted.judge:
        summary["judge"] = _read(workdir, wanted.judge, "eval.json")
    return {**summary, "rows": rows}


def _read(workdir: str, name: str, file: str) -> dict:
    path = epath.Path(setup.run_dir(workdir, name)) / file
    if not path.exists():
        raise UserError(f"{path} does not exist: run {name!r} is not finished")
    return json.loads(path.read_text())


def show(summary: dict) -> None:
    """The table on the terminal."""
    table = Table(title=f"seed {summary['seed']}, {summary['wall_seconds']:.0f} s")
    table.add_column("run")
    columns = [c for c in COLUMNS if any(c in row for row in summary["rows"].values())]
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    for name, row in summary["rows"].items():
        table.add_row(name, *(f"{row[c]:.3f}" if c in row else "" for c in columns))
    console = Console(width=180)
    console.print(table)
    if "judge" in summary:
        figures = summary["judge"].items()
        console.print("judge: " + ", ".join(f"{k} {v:.3f}" for k, v in figures if "/" not in k))


def plots(config, workdir: str) -> None:
    """plots/*.png: rewards and chosen rates by source, and evaluations over steps."""
    matplotlib.use("Agg")
    runs = {name: metrics.read(setup.run_dir(workdir, name)) for name in config.report.rows}
    directory = epath.Path(workdir) / "plots"
    directory.mkdir(parents=True, exist_ok=True)
    for kind in ("chosen", "reward"):
        _by_source(runs, kind, directory / f"{kind}.png")
    _evaluations(runs, directory / "evaluations.png")


def _series(lines: list[dict], key: str):
    points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    return list(zip(*points, strict=True)) if points else ([], [])


def _by_source(runs, kind: str, path) -> None:
    """One panel per self-improving run: a line per candidate source."""
    import matplotlib.pyplot as plt

    chosen = {
        n: lines
        for n, lines in runs.items()
        if any(k.startswith(f"{kind}/") for line in lines for k in line)
    }
    if not chosen:
        return
    wide, high = min(PANELS, len(chosen)), -(-len(chosen) // PANELS)
    figure, axes = plt.subplots(high, wide, figsize=(4.5 * wide, 3.2 * high), squeeze=False)
    for axis in axes.flat[len(chosen) :]:
        axis.axis("off")
    for axis, (name, lines) in zip(axes.flat, chosen.items(), strict=False):
        for key in sorted({k for line in lines for k in line if k.startswith(f"{kind}/")}):
            axis.plot(*_series(lines, key), label=key.split("/")[1])
        axis.set(title=name, xlabel="step", ylabel=f"{kind} rate" if kind == "chosen" else kind)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _evaluations(runs, path) -> None:
    """A panel per figure: a line per run."""
    import matplotlib.pyplot as plt

    keys = ("win_rate_standard", "factuality", "safety", "safety_unsafe")
    if not any(_series(lines, f"eval/{key}")[0] for lines in runs.values() for key in keys):
        return
    figure, axes = plt.subplots(1, len(keys), figsize=(4 * len(keys), 3.2))
    for axis, key in zip(axes, keys, strict=True):
        for name, lines in runs.items():
            series = _series(lines, f"eval/{key}")
            if series[0]:
                axis.plot(*series, label=name)
        axis.set(title=key.replace("_", " "), xlabel="step", ylim=(0, 1.02))
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv) -> None:
    """The command line."""
    if len(argv) != 2:
        raise UserError("usage: python -m sip.report DIR")
    directory = argv[1]
    path = epath.Path(directory) / "config.json"
    if not path.exists():
        raise UserError(f"{path} does not exist: is this a workdir?")
    write(ConfigDict(json.loads(path.read_text())), directory)


if __name__ == "__main__":
    cli.run(main)
