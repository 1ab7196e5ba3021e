"""Plots figures of rows in the order of their stages, such as pretraining, tuning and RLHF."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from etils import epath

from sip.report.plots import save

# Title of a panel -> metrics of continuations of the corpus, and of answers to questions.
PANELS = {
    "quality (win rate)": ("win_rate_standard", "answer_win_rate"),
    "safety": ("safety", "answer_safety"),
    "safety, provoked": ("safety_unsafe", "answer_safety_provoked"),
    "factuality": ("factuality", "answer_factuality"),
    "asked fact is right": ("", "answer_right"),
}
STYLES = (("-", "o", "continuations"), ("--", "s", "answers"))

Journeys = Sequence[Sequence[str]]  # rows in the order of their stages
Rows = Mapping[str, Mapping[str, float]]  # of one seed: row -> metric -> value


def plot_journeys(journeys: Journeys, seeds: Sequence[Rows], to: str) -> None:
    """Writes `to`/plots/journey.png: a panel per aspect, a line per journey; nothing without one.

    Points are means over seeds, bars one standard deviation.
    """
    if not journeys:
        return
    import matplotlib.pyplot as plt

    matplotlib.use("Agg")
    shown = [name for name in PANELS if _known(PANELS[name], journeys, seeds)] or [*PANELS][:1]
    size = 3.2 * len(shown), 3.8
    figure, grid = plt.subplots(1, len(shown), figsize=size, layout="tight", squeeze=False)
    axes = grid[0]
    for axis, title in zip(axes, shown, strict=True):
        keys = PANELS[title]
        for i, journey in enumerate(journeys):
            for key, (line, mark, kind) in zip(keys, STYLES, strict=True):
                at, mean, deviation = points(journey, seeds, key)
                label = f"{own(journey, journeys)}, {kind}" if len(journeys) > 1 else kind
                style = dict(color=f"C{i}", linestyle=line, marker=mark, markersize=4, capsize=2)
                if len(at):
                    axis.errorbar(at, mean, deviation, label=label, **style)
        axis.set(title=title, ylim=(-0.02, 1.05))
        axis.set_xticks(range(len(journeys[0])), stages(journeys), fontsize=6)
    if axes[0].lines:
        axes[0].legend(fontsize=6)
    directory = epath.Path(to) / "plots"
    directory.mkdir(parents=True, exist_ok=True)
    save(figure, directory / "journey.png")


def _known(keys: Sequence[str], journeys: Journeys, seeds: Sequence[Rows]) -> bool:
    """True if a row has one of the metrics."""
    return any(len(points(journey, seeds, key)[0]) for journey in journeys for key in keys)


def points(
    journey: Sequence[str], seeds: Sequence[Rows], key: str
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Returns (places in the journey, means, standard deviations) of a metric over seeds.

    Rows without the metric are left out. The deviation over one seed is 0.
    """
    at = [i for i, name in enumerate(journey) if all(key in rows[name] for rows in seeds)]
    values = np.array([[rows[journey[i]][key] for i in at] for rows in seeds], float)
    spread = values.std(axis=0, ddof=1) if len(seeds) > 1 else np.zeros(len(at))
    return at, values.mean(axis=0), spread


def stages(journeys: Journeys) -> list[str]:
    """Returns the names of the rows at each stage, one below the other."""
    return ["\n".join(dict.fromkeys(names)) for names in zip(*journeys, strict=True)]


def own(journey: Sequence[str], journeys: Journeys) -> str:
    """Returns the first row of a journey that no other one has; of a copy its last row."""
    others = [name for other in journeys if other is not journey for name in other]
    return next((name for name in journey if name not in others), journey[-1])
