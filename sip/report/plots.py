"""Plots of a run's metrics over steps, as PNG files."""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from etils import epath

from sip import metrics
from sip.report.panels import Line, Panel, panels
from sip.workdir import run_dir

WIDE = 4  # maximum number of panels per row
SIZE = (4.5, 3.2)  # inches of a panel
MARGINS = dict(left=0.75, right=0.15, bottom=0.5, top=0.35)  # inches around a panel's axes


def plots(asked, workdirs: Sequence[str], to: str) -> None:
    """Writes plots over training steps to `to`/plots/*.png.

    Plots: losses, rewards and chosen rates by candidate source, evaluations, audits, and the
    judge's accuracy. With several workdirs (one per seed) lines are means and bands are one
    standard deviation. A panel of constant lines is left out.

    Args:
        asked: The config's section `report`.
        workdirs: One workdir, or one per seed.
        to: Directory in which the folder `plots` is created.
    """
    matplotlib.use("Agg")
    names = dict.fromkeys((*asked.rows, asked.judge) if asked.judge else asked.rows)
    logged = lambda name: [metrics.read(run_dir(workdir, name)) for workdir in workdirs]
    begun = {name: [lines for lines in logged(name) if lines] for name in names}
    runs = {name: lines for name, lines in begun.items() if lines}
    directory = epath.Path(to) / "plots"
    directory.mkdir(parents=True, exist_ok=True)
    found = panels(runs, asked.judge)
    for kind in dict.fromkeys(panel.kind for panel in found):
        _draw([panel for panel in found if panel.kind == kind], directory / f"{kind}.png")


def _draw(found: Sequence[Panel], path) -> None:
    """Writes one PNG file of panels."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    wide, high = min(WIDE, len(found)), -(-len(found) // WIDE)
    figure, axes = plt.subplots(
        high,
        wide,
        figsize=(SIZE[0] * wide, SIZE[1] * high),
        squeeze=False,
        gridspec_kw=_grid(high, wide),
    )
    for axis in axes.flat[len(found) :]:
        axis.axis("off")
    for axis, panel in zip(axes.flat, found, strict=False):
        for line in panel.lines:
            _line(axis, line)
        if panel.level is not None:
            axis.axhline(panel.level, color="0.5", linewidth=0.8, linestyle=":")
        # A title without a place is moved out of the way of ticks, which lays them out once more.
        axis.set_title(panel.title, y=1.0)
        axis.set(xlabel="step", ylabel=panel.label)
        if panel.rate:
            axis.set_ylim(-0.02, 1.02)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.tick_params(labelsize=8)
        axis.legend(fontsize=7)
    save(figure, path)


def _grid(high: int, wide: int) -> dict[str, float]:
    """Returns the grid of panels with fixed margins, as fractions of the figure.

    Margins measured from the text, as of `tight_layout`, draw every figure twice.
    """
    width, height = SIZE[0] * wide, SIZE[1] * high
    gap_x, gap_y = MARGINS["left"] + MARGINS["right"], MARGINS["bottom"] + MARGINS["top"]
    return dict(
        left=MARGINS["left"] / width,
        right=1 - MARGINS["right"] / width,
        bottom=MARGINS["bottom"] / height,
        top=1 - MARGINS["top"] / height,
        wspace=gap_x / (SIZE[0] - gap_x),
        hspace=gap_y / (SIZE[1] - gap_y),
    )


def _line(axis, line: Line) -> None:
    """Draws a line, and a band of one standard deviation if there are several seeds."""
    mark = "o" if len(line.steps) == 1 else None
    axis.plot(line.steps, line.mean, label=line.label, color=line.color, marker=mark)
    if line.deviation is not None:
        low, high = np.subtract(line.mean, line.deviation), np.add(line.mean, line.deviation)
        axis.fill_between(line.steps, low, high, color=line.color, alpha=0.2, linewidth=0)


def save(figure, path) -> None:
    """Writes the figure to a local or gs:// path and closes it."""
    import matplotlib.pyplot as plt

    # matplotlib cannot write to gs://, so the PNG is made in memory.
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110)
    path.write_bytes(picture.getvalue())
    plt.close(figure)
