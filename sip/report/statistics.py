"""Means, standard deviations and paired differences over seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence

from sip.stages.recipe import TEACHERS

Row = Mapping[str, float]


def combine(
    runs: Mapping[int, Mapping],
    paired: Sequence[str],
    standard: str,
    journeys: Sequence[tuple[str, str]] = (),
) -> dict:
    """Combines the summaries of several seeds into one.

    Rows are also compared with the standard row seed by seed. The runs of one seed start from the
    same model and vary together, so paired differences vary less than the figures themselves.

    Args:
        runs: Summary of each seed.
        paired: Names of the rows to compare with the standard row.
        standard: Name of the standard row; "" for no comparison.
        journeys: Pairs of rows at the same stage of two journeys, also compared seed by seed.

    Returns:
        The contents of summary.json.
    """
    seeds = list(runs)
    rows = {name: over([runs[s]["rows"][name] for s in seeds]) for name in runs[seeds[0]]["rows"]}
    summary = {
        "seeds": seeds,
        "wall_seconds": sum(run["wall_seconds"] for run in runs.values()),
        "rows": rows,
        "runs": {str(seed): run for seed, run in runs.items()},
    }
    for who in (who for who in TEACHERS if who in runs[seeds[0]]):
        summary[who] = over([run[who] for run in runs.values()])
    if journeys:
        pairs = [(f"{a} - {b}", differences(rows[a], rows[b])) for a, b in journeys]
        summary["journey"] = dict(pairs)
    if standard:
        pairs = {name: differences(rows[name], rows[standard]) for name in paired}
        summary["paired"] = {"against": standard, "rows": pairs}
    return summary


def over(figures: Sequence[Row]) -> dict[str, dict]:
    """Returns {metric: {mean, std, values}} of one row over seeds.

    `values` has one entry per seed, None for a missing metric. Text values are skipped.
    """
    names = dict.fromkeys(k for row in figures for k, v in row.items() if not isinstance(v, str))
    of_all = {name: [row[name] if name in row else None for row in figures] for name in names}
    return {
        name: {"mean": mean(values), "std": deviation(values), "values": values}
        for name, values in of_all.items()
    }


def differences(row: Mapping[str, dict], standard: Mapping[str, dict]) -> dict[str, dict]:
    """Returns {metric: {mean, se, values}} of row minus standard row, paired by seed.

    `se` is the standard error of the mean.
    """
    found = {}
    for name in [name for name in row if name in standard]:
        both = zip(row[name]["values"], standard[name]["values"], strict=True)
        values = [None if a is None or b is None else a - b for a, b in both]
        found[name] = {"mean": mean(values), "se": error(values), "values": values}
    return found


def mean(values: Sequence[float | None]) -> float | None:
    """Returns the mean over the seeds that have a value; None if no seed has one."""
    have = [x for x in values if x is not None]
    return statistics.fmean(have) if have else None


def deviation(values: Sequence[float | None]) -> float | None:
    """Returns the sample standard deviation (n - 1); None for fewer than two values."""
    have = [x for x in values if x is not None]
    return statistics.stdev(have) if len(have) > 1 else None


def error(values: Sequence[float | None]) -> float | None:
    """Returns the standard error of the mean over seeds; None for fewer than two values."""
    spread = deviation(values)
    count = sum(x is not None for x in values)
    return None if spread is None else spread / math.sqrt(count)
