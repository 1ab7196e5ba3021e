"""A recipe over several seeds: whose directory is whose, and the spread of their figures.

    DIR/seeds.json      the seeds begun in DIR, and whether they share corpus and tokenizer
    DIR/data            the corpus, and DIR/tokenizer.model, where they hang on no seed
    DIR/seed0, seed1    a workdir each
    DIR/summary.json    means, deviations and paired differences

The seed of a run is that of its parameters, its order of documents and its rollouts. A corpus has
one of its own (data.world.seed); a config may derive it from the run's, then nothing is shared.
"""

import copy
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from etils import epath

from sip import setup
from sip.stages import recipe
from sip.structs import UserError

MOST = 2**31  # of a seed, for every generator that takes it
Row = Mapping[str, float]


def parse(text: str) -> tuple[int, ...]:
    """The seeds of `--seeds=0,1,2`. Raises UserError naming what is no seed, or one twice."""
    found: list[int] = []
    for word in map(str.strip, text.split(",")):
        if not (word.isascii() and word.isdigit() and int(word) < MOST):
            raise UserError(f"--seeds={text}: {word!r} is no whole number from 0 to {MOST - 1}")
        if int(word) in found:
            raise UserError(f"--seeds={text}: {word} is there twice")
        found.append(int(word))
    return tuple(found)


def directory(workdir: str, seed: int) -> str:
    """The workdir of one seed."""
    return str(epath.Path(workdir) / setup.seed_name(seed))


def of(config, seed: int):
    """A copy of the config with that seed; what refers to the seed follows."""
    own = copy.deepcopy(config)
    own.seed = seed
    return own


def known(workdir: str) -> tuple[int, ...]:
    """The seeds begun in a workdir; none where it is not one of seeds."""
    path = epath.Path(workdir) / setup.SEEDS
    return tuple(json.loads(path.read_text())["seeds"]) if path.exists() else ()


def claim(config, seeds: Sequence[int], workdir: str) -> None:
    """Writes seeds.json; first all seeds, those begun before too, are checked against the config.

    Raises UserError where the workdir is a single run's or holds seeds of another config.
    """
    path = epath.Path(workdir)
    if any((path / name).exists() for name in ("config.json", "runs")):
        raise UserError(f"workdir {workdir} belongs to a run without --seeds")
    try:
        recipe.check(config, directory(workdir, seeds[0]))
        every = tuple(dict.fromkeys((*known(workdir), *seeds)))
        for seed in every:
            own, where = of(config, seed), directory(workdir, seed)
            recipe.check(own, where)
            recipe.check_meshes(own)
            recipe.check_claim(own, where)
        setup.write_json(path / setup.SEEDS, {"seeds": every, "shared": shared(config, every)})
    except (OSError, ValueError) as e:
        raise UserError(f"workdir {workdir}: {e}") from e


def shared(config, seeds: Iterable[int]) -> bool:
    """Whether corpus and tokenizer are the same for all seeds, and for one more."""
    read = lambda seed: [setup.plain(of(config, seed)[key]) for key in ("data", "tokenizer")]
    first, *others = (read(seed) for seed in (*seeds, max(seeds) + 1))
    return all(other == first for other in others)


def combine(runs: Mapping[int, Mapping], paired: Sequence[str], standard: str) -> dict:
    """summary.json of several seeds, from the summary of each.

    `paired`: the rows to compare with `standard` (empty: none) seed by seed. The runs of a seed
    start from one model, so they vary together, and differences vary less than the figures do.
    """
    seeds = list(runs)
    rows = {name: over([runs[s]["rows"][name] for s in seeds]) for name in runs[seeds[0]]["rows"]}
    summary = {
        "seeds": seeds,
        "wall_seconds": sum(run["wall_seconds"] for run in runs.values()),
        "rows": rows,
        "runs": {str(seed): run for seed, run in runs.items()},
    }
    for who in (who for who in setup.TEACHERS if who in runs[seeds[0]]):
        summary[who] = over([run[who] for run in runs.values()])
    if standard:
        pairs = {name: differences(rows[name], rows[standard]) for name in paired}
        summary["paired"] = {"against": standard, "rows": pairs}
    return summary


def over(figures: Sequence[Row]) -> dict[str, dict]:
    """{metric: {mean, std, values}} of one row's figures, a seed each; words are left out."""
    names = dict.fromkeys(k for row in figures for k, v in row.items() if not isinstance(v, str))
    of_all = {name: [row[name] if name in row else None for row in figures] for name in names}
    return {
        name: {"mean": mean(values), "std": deviation(values), "values": values}
        for name, values in of_all.items()
    }


def differences(row: Mapping[str, dict], standard: Mapping[str, dict]) -> dict[str, dict]:
    """{metric: {mean, se, values}} of a row less the standard row of the same seed."""
    found = {}
    for name in [name for name in row if name in standard]:
        both = zip(row[name]["values"], standard[name]["values"], strict=True)
        values = [None if a is None or b is None else a - b for a, b in both]
        found[name] = {"mean": mean(values), "se": error(values), "values": values}
    return found


def mean(values: Sequence[float | None]) -> float | None:
    """Of the seeds that have a value."""
    have = [x for x in values if x is not None]
    return statistics.fmean(have) if have else None


def deviation(values: Sequence[float | None]) -> float | None:
    """The sample's standard deviation (n - 1); of a single seed there is none."""
    have = [x for x in values if x is not None]
    return statistics.stdev(have) if len(have) > 1 else None


def error(values: Sequence[float | None]) -> float | None:
    """The standard error of the mean over seeds."""
    spread = deviation(values)
    count = sum(x is not None for x in values)
    return None if spread is None else spread / math.sqrt(count)
