"""lm-evaluation-harness over our decoder (extra `eval`): its requests in, its answers out.

Conventions are those of the harness' own adapter for transformers, so that figures can be compared:
a context and its continuation are encoded as a whole and split behind the context's tokens, spaces
that end the context go with the continuation, and what is too long is cut from the left. A rolling
likelihood counts the BOS that begins a text, as there.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath

from sip import loading
from sip.evals import likelihoods
from sip.evals.likelihoods import Model, Pair
from sip.hf import spelling, tokens
from sip.hf.spelling import Spelling
from sip.sampling import SamplingConfig
from sip.structs import UserError
from sip.text import tokenizer as tokenizers
from sip.text.segments import Ids
from sip.text.tokenizer import Tokenizer, continuation

TASKS = Path(__file__).parent / "tasks"
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
KNOWN = (*LENGTHS, "until", "do_sample", "temperature", "top_k", "top_p")
MOST = 256  # tokens of an answer, where a task does not say


@dataclass(frozen=True, eq=False)
class Adapter:
    """What lm_eval asks of a model. A request's `args` are (context, continuation), (text,) or
    (context, settings of the generation)."""

    model: Model
    tokenizer: Tokenizer
    spelling: Spelling
    rank: int = 0
    world_size: int = 1

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether greedy decoding says the same) of continuations."""
        return likelihoods.score(self.model, [pair(self.spelling, *r.args) for r in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Log-probabilities of whole texts, each token behind as many as the model reads."""
        cut = lambda text: likelihoods.windows(
            self.spelling.whole(text), self.spelling.prefix, self.model.cfg.max_len
        )
        texts = [cut(*request.args) for request in requests]
        plain = dataclasses.replace(self.model, wide=0)
        scores = iter(likelihoods.score(plain, [each for some in texts for each in some]))
        return [sum(next(scores)[0] for _ in some) for some in texts]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers, cut before the first of a request's stop strings."""
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        found: dict[int, str] = {}
        for rows in groups.values():
            asked = [requests[i].args[0] for i in rows]
            found |= zip(rows, self._answers(asked, requests[rows[0]].args[1]), strict=True)
        return [found[i] for i in range(len(requests))]

    def _answers(self, contexts: Sequence[str], said: Mapping[str, Any]) -> list[str]:
        steps, until, sampling = generation(said)
        ids = [self.spelling.whole(text) or [self.spelling.prefix] for text in contexts]
        ends = tuple(e[0] for e in map(self.tokenizer.encode, until) if len(e) == 1)
        stop = (*self.tokenizer.stops, *ends)  # those of one token end an answer at once
        new = likelihoods.generate(self.model, ids, steps=steps, sampling=sampling, stop=stop)
        texts = (continuation(self.tokenizer, *each) for each in zip(ids, new, strict=True))
        return [before_first(text, until) for text in texts]


def before_first(text: str, until: Iterable[str]) -> str:
    """The text before the first of the stop strings in it."""
    return text[: min([len(text), *(at for s in until if s and (at := text.find(s)) >= 0)])]


def pair(spelling: Spelling, context: str, continuation: str) -> Pair:
    """The tokens of a context and of its continuation, at least one of each."""
    bare = context.rstrip()
    context, continuation = bare, context[len(bare) :] + continuation
    if not context:
        ids: Ids = spelling.encode(continuation)
        return (ids[:1], ids[1:]) if ids[:1] == [spelling.prefix] else ([spelling.prefix], ids)
    before = spelling.whole(context)
    return before, spelling.whole(context + continuation)[len(before) :]


def generation(said: Mapping[str, Any]) -> tuple[int, list[str], SamplingConfig]:
    """(tokens, stop strings, sampling) of a request; greedy unless it says otherwise.

    Raises UserError naming a setting that is not known.
    """
    unknown = sorted(set(said) - set(KNOWN))
    if unknown:
        raise UserError(f"generation_kwargs: {unknown[0]!r} is none of {', '.join(KNOWN)}")
    steps = next((int(said[name]) for name in LENGTHS if name in said), MOST)
    if steps < 1:
        raise UserError(f"generation_kwargs: {steps} tokens are to be generated")
    until = said["until"] if "until" in said else []
    given = lambda name, default: default if name not in said else said[name]
    drawn = given("do_sample", None)
    temperature = float(given("temperature", 1.0 if drawn else 0.0))
    sampling = SamplingConfig(
        0.0 if drawn is False else temperature, int(given("top_k", 0)), float(given("top_p", 1.0))
    )
    return steps, [until] if isinstance(until, str) else list(until or []), sampling


def adapter(directory: str, mesh, *, batch: int) -> Adapter:
    """The adapter of a checkpoint, a run's or Hugging Face's. Raises UserError."""
    found = loading.kept_tokenizer(directory)
    home = tokens.home(directory)
    spelled = spelling.published(found, home) if home else spelling.own(found)
    params, cfg = loading.load_params(directory, mesh)
    tokenizers.check_width(found, cfg.vocab_size)
    return Adapter(Model(params, cfg, mesh, batch), found, spelled)


@dataclass(frozen=True)
class Wanted:
    """Which tasks: names or patterns; files of tasks in `directory`, or lm_eval's own where it is
    empty; relative names of their data are looked for in `data`."""

    tasks: Sequence[str]
    directory: str = ""
    data: str = ""
    limit: int = 0  # documents of each task; 0: all
    fewshot: int = -1  # examples before each question; -1: as the task says


def library():
    """lm_eval, of the extra."""
    try:
        import lm_eval  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("--evals=lm_eval needs lm_eval: pip install 'sip-jax[eval]'") from None
    return lm_eval


def load(wanted: Wanted) -> tuple[Any, list[Any]]:
    """lm_eval's task manager, and its tasks and groups of tasks with their data.

    Raises UserError in one line naming the task, file or directory that is wrong.
    """
    library()
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    _check_files(wanted.directory)
    manager = TaskManager(
        include_path=wanted.directory or None, include_defaults=not wanted.directory
    )
    names: list[str] = []
    for name in wanted.tasks:  # all of them before any data are read
        some = manager.match_tasks([name])
        if not some:
            where = wanted.directory or "lm_eval"
            there = ", ".join(manager.all_tasks[:20]) or "none"
            raise UserError(f"--tasks {name!r}: no such task in {where}; there are {there}")
        names += [each for each in some if each not in names]
    with contextlib.chdir(wanted.data or "."):  # where lm_eval looks for relative names
        return manager, [each for name in names for each in _loaded(manager, name)]


def _loaded(manager, name: str) -> list[Any]:
    try:
        found = manager.load([name])
        return [found["groups"][name]] if name in found["groups"] else list(found["tasks"].values())
    except Exception as error:  # of several libraries: whatever it is, the task cannot be had
        raise UserError(f"--tasks {name}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What an error says, and what it came from."""
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    said = f"{type(first).__name__}: {first}"
    return said if first is error else f"{error} ({said})"


def _check_files(directory: str) -> None:
    """Every task file in the directory is one: lm_eval would leave it out without a word."""
    import yaml

    if not directory:
        return
    paths = sorted(Path(directory).rglob("*.yaml"))
    if not paths:
        raise UserError(f"--tasks_dir {directory}: holds no task file (*.yaml)")
    for path in paths:
        try:
            node = yaml.compose(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{path}: not a task file: {error}") from error
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{path}: not a task file: it holds no keys and values")


def run(model: Adapter, tasks: tuple[Any, list[Any]], wanted: Wanted) -> dict[str, Any]:
    """Results on tasks as `load` gives them, as lm_eval has them, samples left out.

    Raises UserError, also where a task's data do not have what the task asks for.
    """
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
    from lm_eval.evaluator import simple_evaluate  # pyright: ignore[reportMissingImports]

    LM.register(Adapter)
    asked: Any = model
    try:
        found = simple_evaluate(
            asked,
            tasks=tasks[1],
            task_manager=tasks[0],
            limit=wanted.limit or None,
            num_fewshot=None if wanted.fewshot < 0 else wanted.fewshot,
            log_samples=False,
        )
    except UserError:
        raise
    except Exception as error:  # a task's templates and metrics are code of others
        raise UserError(f"--tasks {','.join(wanted.tasks)}: {_reason(error)}") from error
    keep = ("results", "groups", "n-shot", "n-samples", "versions", "higher_is_better")
    return {key: found[key] for key in keep if found is not None and key in found}


def table(results: Mapping[str, Any]) -> str:
    """Results as lm_eval prints them."""
    from lm_eval.utils import make_table  # pyright: ignore[reportMissingImports]

    groups = [make_table(dict(results), "groups")] if "groups" in results else []
    return "\n".join([make_table(dict(results)), *groups])


def check_out(path: str) -> None:
    """Raises UserError where results could not be written there, before they are made."""
    try:
        epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {path}: {error}") from error
    if epath.Path(path).is_dir():
        raise UserError(f"--out {path}: is a directory")
