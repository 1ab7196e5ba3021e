"""Answers to problems that a frozen model samples once, kept in the run's directory.

RUN_DIR/NAME/settings.json      what the answers depend on; if it differs, they are sampled anew
RUN_DIR/NAME/00000.json ..      the answers to a batch of problems each

An interrupted run continues after the last batch that it has written, and gives the same answers as
an uninterrupted one.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from etils import epath

from sip import processes, workdir
from sip.data.problems import ProblemsConfig
from sip.data.prompts import Prompt
from sip.hf import configs
from sip.loading import load_params, source_dir
from sip.rewards import answers, majority
from sip.rewards.answers import AnswersConfig
from sip.run import Run
from sip.sampling import SamplingConfig
from sip.structs import Params
from sip.tasks.rl import problems
from sip.tasks.rl.problems import Solved
from sip.tasks.rl.task import AnswerWriter
from sip.training import checkpoints, loop

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Sampled(Solved):
    """N sampled answers to a problem, checked and grouped by equivalence (`majority.grouped`)."""

    groups: list[int]

    @property
    def vote(self) -> majority.Vote:
        """The vote of the answers."""
        return majority.vote(self.groups)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A frozen model, and how it answers."""

    source: str  # run or checkpoint directory
    key: str  # config key that names it
    problems: ProblemsConfig
    answers: AnswersConfig
    sampling: SamplingConfig
    samples: int  # answers to each problem
    most: int  # tokens of the longest answer
    batch: int  # problems answered at a time
    stops: tuple[int, ...]


# problems of a part, place of the first among all of them -> their answers
Solve = Callable[[Sequence[Prompt], int], list[Solved]]


def solved(run: Run, name: str, wanted: Wanted, asked: Sequence[Prompt], mesh) -> list[Sampled]:
    """Returns a frozen model's answers to problems, sampled now or in an earlier start."""

    def opened() -> Solve:
        params, writer = model(run, wanted, mesh)
        return lambda some, start: solve(run, wanted, params, writer, some, start)

    return kept(run, name, wanted, {}, asked, opened)


def figures(found: Sequence[Sampled]) -> dict[str, float]:
    """Returns the figures of `problems.figures`; the votes are the groups that are known."""
    return problems.figures(found, problems.as_votes([one.groups for one in found]))


def model(run: Run, wanted: Wanted, mesh) -> tuple[Params, AnswerWriter]:
    """Loads the frozen model. Returns its parameters and the writer of its answers."""
    params, cfg = load_params(source_dir(run.workdir, wanted.source, wanted.key), mesh)
    return params, AnswerWriter(cfg, mesh, run.tokenizer, 0, wanted.most, wanted.stops)


def solve(
    run: Run,
    wanted: Wanted,
    params: Params,
    writer: AnswerWriter,
    asked: Sequence[Prompt],
    start: int = 0,
) -> list[Solved]:
    """Samples answers as `wanted` says; `start` is the place of the first problem."""
    return problems.solve(
        params,
        writer,
        wanted.problems,
        answers.checker(wanted.answers),
        asked,
        samples=wanted.samples,
        sampling=wanted.sampling,
        batch=wanted.batch,
        seed=run.seed,
        start=start,
    )


def kept(
    run: Run,
    name: str,
    wanted: Wanted,
    more: dict[str, Any],
    asked: Sequence[Prompt],
    opened: Callable[[], Solve],
) -> list[Sampled]:
    """Returns the answers to problems: those of parts that are written, and new ones.

    `opened` loads the model; it is called only if a part is missing. `more` are further settings
    that the answers depend on.
    """
    where = epath.Path(run.directory) / name
    settings = _settings(run, wanted, asked) | more
    processes.on_lead(lambda: _begin(where, workdir.resolved(settings)))
    equal = majority.equal_by(answers.checker(wanted.answers))
    found: list[Sampled] = []
    answer = None
    for part, start in enumerate(range(0, len(asked), wanted.batch)):
        loop.leave()
        path = where / f"{part:05d}.json"
        rows = processes.broadcast(functools.partial(_read, path))
        if rows is None:
            if answer is None:
                said = f"{wanted.samples} answers to each of {len(asked):,} problems"
                run.say(f"{run.name}: {name}: {said}, by {wanted.source}")
                answer = opened()
            some = answer(asked[start : start + wanted.batch], start)
            groups = majority.grouped([one.answers for one in some], equal)
            pairs = zip(some, groups, strict=True)
            rows = [{**asdict(one), "groups": own} for one, own in pairs]
            text = workdir.to_json({"answers": rows}).encode()
            processes.on_lead(functools.partial(workdir.write_atomically, path, text))
        found += [Sampled(**row) for row in rows]
    return found


def _settings(run: Run, wanted: Wanted, asked: Sequence[Prompt]) -> dict[str, Any]:
    directory = source_dir(run.workdir, wanted.source, wanted.key)
    # Files of a published checkpoint are compared by sip/stages/inputs.py.
    known = directory if configs.exists(directory) else checkpoints.identity(directory)
    own = {key: x for key, x in asdict(wanted).items() if key != "key"}
    ids = hashlib.sha256(json.dumps([list(one.ids) for one in asked]).encode()).hexdigest()
    return {**own, "source": known, "seed": run.seed, "asked": ids}


def _begin(where: epath.Path, settings: dict[str, Any]) -> None:
    """Makes the directory; what it has of other settings, or half written, is removed."""
    path = where / SETTINGS
    if path.exists() and workdir.read_json(path) == settings:
        for left in where.glob(".*.part"):
            left.unlink()
        return
    if where.exists():
        where.rmtree()
    workdir.write_atomically(path, workdir.to_json(settings).encode())


def _read(path: epath.Path) -> list[dict[str, Any]] | None:
    return workdir.read_json(path, answers=list)["answers"] if path.exists() else None
