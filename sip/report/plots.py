"""Plots of a run's metrics over steps."""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from etils import epath

from sip import metrics
from sip.workdir import run_dir

PANELS = 4  # maximum number of panels per row


BOTH = "/both_orders"  # ending of a judge's accuracy over pairs judged in both orders


def plots(asked, workdirs: Sequence[str], to: str) -> None:
    """Writes plots over training steps to `to`/plots/*.png.

    Plots: rewards and chosen rates by candidate source, evaluations, and the judge's accuracy. With
    several workdirs (one per seed) lines are means and bands are one standard deviation.

    Args:
        asked: The config's section `report`.
        workdirs: One workdir, or one per seed.
        to: Directory in which the folder `plots` is created.
    """
    matplotlib.use("Agg")
    written = lambda name: [metrics.read(run_dir(workdir, name)) for workdir in workdirs]
    runs = {name: written(name) for name in asked.rows}
    directory = epath.Path(to) / "plots"
    directory.mkdir(parents=True, exist_ok=True)
    for kind in ("chosen", "reward"):
        _by_source(runs, kind, directory / f"{kind}.png")
    _evaluations(runs, directory / "evaluations.png")
    if asked.judge:
        _accuracy(asked.judge, written(asked.judge), directory / "judge.png")


Lines = list[dict]  # lines of one seed's metrics.jsonl


def series(runs: Sequence[Lines], key: str) -> tuple[list[int], np.ndarray, np.ndarray | None]:
    """Returns (steps, mean, standard deviation) of metric `key` over seeds.

    Only steps at which every seed has the metric count. The deviation is None for a single seed.
    """
    found = [{x["step"]: x[key] for x in lines if x.get(key) is not None} for lines in runs]
    steps = sorted(set.intersection(*map(set, found)))
    values = np.array([[one[step] for step in steps] for one in found])
    return steps, values.mean(axis=0), values.std(axis=0, ddof=1) if len(runs) > 1 else None


def _draw(axis, runs: Sequence[Lines], key: str, label: str, color: str | None = None) -> None:
    """Draws a line, and a band of one standard deviation if there are several seeds."""
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
    """Plots a panel per self-improving run, with a line per candidate source.

    A source has the same colour in all panels.
    """
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
    save(figure, path)


def save(figure, path) -> None:
    """Writes the figure to a local or gs:// path and closes it."""
    import matplotlib.pyplot as plt

    # matplotlib cannot write to gs://, so the PNG is made in memory.
    picture = io.BytesIO()
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    path.write_bytes(picture.getvalue())
    plt.close(figure)


def _evaluations(runs, path) -> None:
    """Plots a panel per evaluation metric, with a line per run."""
    import matplotlib.pyplot as plt

    keys = ("win_rate_standard", "factuality", "safety", "safety_unsafe")
    if not any(series(several, f"eval/{key}")[0] for several in runs.values() for key in keys):
        return
    figure, axes = plt.subplots(1, len(keys), figsize=(4 * len(keys), 3.2))
    for axis, key in zip(axes, keys, strict=True):
        for name, several in runs.items():
            _draw(axis, several, f"eval/{key}", name)
        axis.set(title=key.replace("_", " "), xlabel="step", ylim=(0, 1.02))
    next(axis for axis in axes if axis.lines).legend(fontsize=7)
    save(figure, path)


def _accuracy(name: str, runs: Sequence[Lines], path) -> None:
    """Plots a judge's accuracy on held-out labels, with a line per aspect.

    Aspects that compare pairs also have a line for pairs judged in both orders.
    """
    import matplotlib.pyplot as plt

    keys = [key for key in _keys(runs, "eval") if key.count("/") == 1 or key.endswith(BOTH)]
    if not keys:
        return
    figure, axis = plt.subplots(figsize=(6, 4))
    for key in keys:
        _draw(axis, runs, key, key.removeprefix("eval/").replace("/", ", ").replace("_", " "))
    axis.set(title=name, xlabel="step", ylabel="accuracy", ylim=(0, 1.02))
    axis.legend(fontsize=8)
    save(figure, path)
