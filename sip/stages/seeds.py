"""A recipe over several seeds: the layout of its directory.

    DIR/seeds.json              seeds begun in DIR, and whether they share corpus and tokenizer
    DIR/data, tokenizer.model   corpus and tokenizer, if they are shared
    DIR/seed0, DIR/seed1, ...   one workdir per seed
    DIR/summary.json            means, deviations and paired differences

A run's seed determines its parameters, its order of documents and its rollouts. The corpus has its
own seed (data.world.seed). If a config derives it from the run's seed, nothing is shared.
"""

import copy
from collections.abc import Collection, Iterable, Sequence

from etils import epath

from sip import processes, sections
from sip import workdir as workdirs
from sip.stages import binding, recipe
from sip.structs import UserError


def parse(text: str) -> tuple[int, ...]:
    """Parses the seeds of `--seeds=0,1,2`. Raises UserError naming an invalid or repeated seed."""
    found: list[int] = []
    for word in map(str.strip, text.split(",")):
        if not (
            word.isascii() and word.isdigit() and len(word) < 11 and int(word) <= sections.LARGEST
        ):
            raise UserError(
                f"--seeds={text:.100}: {word!r:.40} is no whole number from 0 to {sections.LARGEST}"
            )
        if int(word) in found:
            raise UserError(f"--seeds={text}: {word} is repeated")
        found.append(int(word))
    return tuple(found)


def directory(workdir: str, seed: int) -> str:
    """Returns the workdir of one seed."""
    return str(epath.Path(workdir) / workdirs.seed_name(seed))


def siblings(workdir: str) -> list[str]:
    """Returns the workdirs that share corpus and tokenizer with this one, itself included."""
    home = workdirs.shared_dir(workdir)
    if home == workdirs.absolute(workdir):
        return [workdir]
    return [directory(str(home), seed) for seed in known(str(home))]


def of(config, seed: int):
    """Returns a copy of the config with `seed`; config fields that refer to the seed follow."""
    own = copy.deepcopy(config)
    own.seed = seed
    return own


def known(workdir: str) -> tuple[int, ...]:
    """Returns the seeds begun in a workdir; empty if it has no seeds.json."""
    path = epath.Path(workdir) / workdirs.SEEDS
    return tuple(workdirs.read_seeds(path)["seeds"]) if path.exists() else ()


def claim(config, seeds: Sequence[int], workdir: str, taken: Collection[str] = ()) -> None:
    """Checks the seeds as `check_claim` does, then writes seeds.json."""
    every = check_claim(config, seeds, workdir, taken)
    processes.on_lead(lambda: _claim(config, every, workdir))


def _claim(config, every: tuple[int, ...], workdir: str) -> None:
    path = epath.Path(workdir)
    started = (path / workdirs.SEEDS).exists() or (path / workdirs.CONFIG).exists()
    if started and not any(binding.begun(directory(workdir, seed)) for seed in every):
        binding.forget_tokenizer(path)  # a failed start may have trained it on another corpus
    (path / workdirs.CONFIG).unlink(missing_ok=True)  # of a failed start without --seeds
    found = {"seeds": every, "shared": shared(config, every)}
    workdirs.write_json(path / workdirs.SEEDS, found)


def check_claim(
    config, seeds: Sequence[int], workdir: str, taken: Collection[str] = ()
) -> tuple[int, ...]:
    """Checks all seeds, including those begun earlier, against the config, and returns them.

    `taken` are runs that are copied from another workdir. Raises UserError if the workdir belongs
    to a single run or to seeds of another config.
    """
    try:
        if binding.begun(workdir):
            raise UserError(
                f"workdir {workdir} belongs to a run without --seeds; use another workdir"
            )
        recipe.check(config, directory(workdir, seeds[0]), taken)
        earlier = [seed for seed in known(workdir) if binding.begun(directory(workdir, seed))]
        every = tuple(dict.fromkeys((*earlier, *seeds)))
        for seed in every:
            own, where = of(config, seed), directory(workdir, seed)
            recipe.check(own, where, taken)
            recipe.check_meshes(own)
            binding.check(own, where)
        return every
    except (OSError, ValueError) as e:
        raise UserError(f"workdir {workdir}: {e}") from e


def shared(config, seeds: Iterable[int]) -> bool:
    """Returns True if the config's corpus and tokenizer do not depend on the seed.

    One unused seed is compared too, so that the answer is meaningful for a single seed.
    """
    read = lambda seed: [sections.plain(of(config, seed)[key]) for key in ("data", "tokenizer")]
    first, *others = (read(seed) for seed in (*seeds, max(seeds) + 1))
    return all(other == first for other in others)
