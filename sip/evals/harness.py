"""Adapter that lets lm-evaluation-harness (extra `eval`) evaluate our decoder.

It follows the conventions of the harness's own adapter for transformers, so that results can be
compared. A context and its continuation are encoded together and split after the context's tokens.
Trailing spaces of the context belong to the continuation. Too long inputs are cut from the left. A
rolling likelihood also scores a BOS that the tokenizer puts before a text.
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
MOST = 256  # most tokens of an answer if a task sets no limit


@dataclass(frozen=True, eq=False)
class Adapter:
    """The model interface of lm_eval.

    A request's `args` are (context, continuation), (text,) or (context, generation settings).
    """

    model: Model
    tokenizer: Tokenizer
    spelling: Spelling
    rank: int = 0  # read by lm_eval: this process sees all requests
    world_size: int = 1

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Scores continuations: (log-probability in nats, True if greedy decoding gives it)."""
        return likelihoods.score(self.model, [pair(self.spelling, *r.args) for r in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Log-probabilities (nats) of whole texts, each token after as much context as fits."""
        cut = lambda text: likelihoods.windows(
            self.spelling.whole(text), self.spelling.prefix, self.model.cfg.max_len
        )
        texts = [cut(*request.args) for request in requests]
        plain = dataclasses.replace(self.model, wide=0)  # scores all as plain sequences
        scores = iter(likelihoods.score(plain, [each for some in texts for each in some]))
        return [sum(next(scores)[0] for _ in some) for some in texts]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Generates answers, cut before the first of a request's stop strings."""
        # One batch has one set of generation settings.
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
        stop = (*self.tokenizer.stops, *ends)  # one-token stop strings end sampling at once
        new = likelihoods.generate(self.model, ids, steps=steps, sampling=sampling, stop=stop)
        texts = (continuation(self.tokenizer, *each) for each in zip(ids, new, strict=True))
        return [before_first(text, until) for text in texts]


def before_first(text: str, until: Iterable[str]) -> str:
    """Cuts a text before the first stop string in it."""
    return text[: min([len(text), *(at for s in until if s and (at := text.find(s)) >= 0)])]


def pair(spelling: Spelling, context: str, continuation: str) -> Pair:
    """Encodes a context and its continuation; the context has at least one token."""
    bare = context.rstrip()
    context, continuation = bare, context[len(bare) :] + continuation
    if not context:  # the BOS of the continuation, or one before it, is the context
        ids: Ids = spelling.encode(continuation)
        return (ids[:1], ids[1:]) if ids[:1] == [spelling.prefix] else ([spelling.prefix], ids)
    before = spelling.whole(context)
    return before, spelling.whole(context + continuation)[len(before) :]


def generation(said: Mapping[str, Any]) -> tuple[int, list[str], SamplingConfig]:
    """Parses generation settings: (most tokens, stop strings, sampling). Greedy by default.

    Raises UserError for an unknown setting or a limit below 1.
    """
    unknown = sorted(set(said) - set(KNOWN))
    if unknown:
        raise UserError(
            f"generation_kwargs: unknown {unknown[0]!r}; choose from {', '.join(KNOWN)}"
        )
    given = lambda name, kind, default: _number(said, name, kind, default)
    steps = next((given(name, int, MOST) for name in LENGTHS if name in said), MOST)
    if steps < 1:
        raise UserError(f"generation_kwargs: the number of tokens must be at least 1, not {steps}")
    until = said["until"] if "until" in said else []
    ends = [until] if isinstance(until, str) else until or []
    if not isinstance(ends, list | tuple) or not all(isinstance(end, str) for end in ends):
        raise UserError(f"generation_kwargs: until is {until!r}; must be texts")
    drawn = said["do_sample"] if "do_sample" in said else None
    temperature = given("temperature", float, 1.0 if drawn else 0.0)
    sampling = SamplingConfig(
        0.0 if drawn is False else temperature, given("top_k", int, 0), given("top_p", float, 1.0)
    )
    return steps, list(ends), sampling


def _number(said: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    """Returns a generation setting as `kind`, int or float; null means the default."""
    value = said[name] if name in said else None
    try:
        return default if value is None else kind(value)
    except (ValueError, TypeError, OverflowError):
        raise UserError(f"generation_kwargs: {name} is {value!r}; must be a number") from None


def adapter(directory: str, mesh, *, batch: int) -> Adapter:
    """Loads a checkpoint, of a run or in Hugging Face format, into an adapter. Raises UserError."""
    found = loading.kept_tokenizer(directory)
    home = tokens.home(directory)
    spelled = spelling.published(found, home) if home else spelling.own(found)
    params, cfg = loading.load_params(directory, mesh)
    tokenizers.check_width(found, cfg.vocab_size)
    return Adapter(Model(params, cfg, mesh, batch), found, spelled)


@dataclass(frozen=True)
class Wanted:
    """The tasks to evaluate on."""

    tasks: Sequence[str]  # names or patterns
    directory: str = ""  # directory of task files; empty: lm_eval's own tasks
    data: str = ""  # directory that relative names of data files refer to
    limit: int = 0  # documents of each task; 0: all
    fewshot: int = -1  # examples before each question; -1: the task's own number


def library():
    """Imports lm_eval. Raises UserError if the extra is not installed."""
    try:
        import lm_eval  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("--evals=lm_eval needs lm_eval: pip install 'sip-jax[eval]'") from None
    return lm_eval


def load(wanted: Wanted) -> tuple[Any, list[Any]]:
    """Loads tasks with their data. Returns (lm_eval's task manager, tasks and groups of tasks).

    Raises UserError naming the task, file or directory that is wrong.
    """
    library()
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    _check_files(wanted.directory)
    manager = TaskManager(
        include_path=wanted.directory or None, include_defaults=not wanted.directory
    )
    names: list[str] = []
    for name in wanted.tasks:  # check all names before data is read
        some = manager.match_tasks([name])
        if not some:
            where = wanted.directory or "lm_eval"
            there = ", ".join(manager.all_tasks[:20]) or "none"
            raise UserError(f"--tasks {name!r}: no such task in {where}; available: {there}")
        names += [each for each in some if each not in names]
    with contextlib.chdir(wanted.data or "."):  # lm_eval opens relative names here
        return manager, [each for name in names for each in _loaded(manager, name)]


def _loaded(manager, name: str) -> list[Any]:
    """The task or group of one name. Raises UserError for any failure of lm_eval."""
    try:
        found = manager.load([name])
        return [found["groups"][name]] if name in found["groups"] else list(found["tasks"].values())
    except Exception as error:  # several libraries raise here, each its own types
        raise UserError(f"--tasks {name}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The message of an error, with the error that caused it."""
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    said = f"{type(first).__name__}: {first}"
    return said if first is error else f"{error} ({said})"


def _check_files(directory: str) -> None:
    """Raises UserError for a bad task file: lm_eval would skip it silently."""
    import yaml

    if not directory:
        return
    paths = sorted(Path(directory).rglob("*.yaml"))
    if not paths:
        raise UserError(f"--tasks_dir {directory}: no task file (*.yaml) in this directory")
    for path in paths:
        try:
            node = yaml.compose(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{path}: not a task file: {error}") from error
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{path}: not a task file: the YAML must be a mapping")


def run(model: Adapter, tasks: tuple[Any, list[Any]], wanted: Wanted) -> dict[str, Any]:
    """Evaluates on tasks from `load`. Returns lm_eval's results without the samples.

    Raises UserError, also if a task's data lacks a field that the task uses.
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
    except Exception as error:  # a task's templates and metrics are foreign code
        raise UserError(f"--tasks {','.join(wanted.tasks)}: {_reason(error)}") from error
    keep = ("results", "groups", "n-shot", "n-samples", "versions", "higher_is_better")
    return {key: found[key] for key in keep if found is not None and key in found}


def table(results: Mapping[str, Any]) -> str:
    """Formats results as lm_eval's table."""
    from lm_eval.utils import make_table  # pyright: ignore[reportMissingImports]

    groups = [make_table(dict(results), "groups")] if "groups" in results else []
    return "\n".join([make_table(dict(results)), *groups])


def check_out(path: str) -> None:
    """Creates the directory of an output file. Raises UserError if it cannot be written.

    Called before the evaluation, so that its results are not lost.
    """
    try:
        epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {path}: {error}") from error
    if epath.Path(path).is_dir():
        raise UserError(f"--out {path} is a directory; name a file")
