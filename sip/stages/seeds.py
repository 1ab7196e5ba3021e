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
from collections.abc import Iterable, Sequence

from etils import epath

from sip import sections
from sip import workdir as workdirs
from sip.stages import recipe
from sip.structs import UserError

MOST = 2**31  # of a seed, for every generator that takes it


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
    return str(epath.Path(workdir) / workdirs.seed_name(seed))


def of(config, seed: int):
    """A copy of the config with that seed; what refers to the seed follows."""
    own = copy.deepcopy(config)
    own.seed = seed
    return own


def known(workdir: str) -> tuple[int, ...]:
    """The seeds begun in a workdir; none where it is not one of seeds."""
    path = epath.Path(workdir) / workdirs.SEEDS
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
        workdirs.write_json(
            path / workdirs.SEEDS, {"seeds": every, "shared": shared(config, every)}
        )
    except (OSError, ValueError) as e:
        raise UserError(f"workdir {workdir}: {e}") from e


def shared(config, seeds: Iterable[int]) -> bool:
    """Whether corpus and tokenizer are the same for all seeds, and for one more."""
    read = lambda seed: [sections.plain(of(config, seed)[key]) for key in ("data", "tokenizer")]
    first, *others = (read(seed) for seed in (*seeds, max(seeds) + 1))
    return all(other == first for other in others)
