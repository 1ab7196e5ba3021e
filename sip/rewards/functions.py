"""Rewards by a Python function of your own, `path/to/file.py:function`.

It is called with lists of one length, an entry per answer, by keyword:

    def brevity(prompts, answers, **fields):
        return [-len(answer) / 100 for answer in answers]

`prompts` are as in the file of prompts: texts or lists of messages. The other fields of the
examples come under their own names; a field that an example lacks is None. A function without
`**fields` gets the ones that it names. It returns a number per answer, or None to skip an answer.
Modules beside the file can be imported, in the function too.
"""

import contextlib
import functools
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sip import processes
from sip.sections import is_finite
from sip.structs import UserError
from sip.workdir import place

SPEC = re.compile(r"(.+\.py):(\w+)")
SHOWN = 60  # characters of a prompt in an error
OWN = ("prompts", "answers")  # arguments that are no fields of the examples


@dataclass(frozen=True)
class Function:
    """A reward function, its name, FILE.py:FUNCTION, for errors, and the folder of its file."""

    name: str
    call: Callable[..., Any]
    folder: str

    def reward(
        self,
        prompts: Sequence[Any],
        answers: Sequence[Sequence[str]],
        fields: Sequence[Mapping[str, Any]],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rewards K answers to each of B prompts. Returns (reward_BK, valid_BK); None is invalid.

        `fields` are the other fields of the B examples. Raises UserError, naming the function and
        the example, if the function raises, or returns something else than a finite number or None
        for each answer. With several processes only process 0 calls it.
        """
        K = len(answers[0])
        rows = [(b, k) for b in range(len(prompts)) for k in range(K)]
        known = sorted({name for row in fields for name in row})
        if taken := [name for name in OWN if name in known]:
            raise UserError(
                f"{self.name}: the examples have a field {taken[0]!r}, which is also the name of "
                "an argument; rename the field"
            )
        given = {name: [_field(fields[b], name) for b, _ in rows] for name in known}
        given |= {"prompts": [prompts[b] for b, _ in rows]}
        given |= {"answers": [answers[b][k] for b, k in rows]}
        with _importable(self.folder):
            values = processes.broadcast(lambda: self._checked(given))
        valid_BK = np.array([x is not None for x in values]).reshape(len(prompts), K)
        reward_BK = np.array([0.0 if x is None else x for x in values], np.float32)
        return reward_BK.reshape(valid_BK.shape), valid_BK

    def _checked(self, given: Mapping[str, Sequence[Any]]) -> list[float | None]:
        count = len(given["answers"])
        given = self._wanted(given)
        try:
            found = self.call(**given)
        except Exception as error:
            raise UserError(f"{self.name} raised {_said(error)}{self._culprit(given)}") from None
        if not isinstance(found, Sequence | np.ndarray) or isinstance(found, str):
            raise UserError(
                f"{self.name} returned {type(found).__name__}; must be a list of {count} numbers"
            )
        if len(found) != count:
            raise UserError(
                f"{self.name} returned {len(found)} rewards for {count} answers; it must return "
                "one for each, or None"
            )
        return [self._number(x, given, i) for i, x in enumerate(found)]

    def _number(self, value: Any, given, i: int) -> float | None:
        if value is None:
            return None
        try:
            number = float(value) if not isinstance(value, str) else math.nan
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not is_finite(number):
            raise UserError(
                f"{self.name} returned {value!r:.40} for {_example(given, i)}; must be a finite "
                "number, or None to skip the answer"
            )
        return number

    def _wanted(self, given: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        """Returns the arguments that the function takes. Raises UserError if one is missing."""
        parameters = inspect.signature(self.call).parameters.values()
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return dict(given)
        for p in parameters:
            if p.default is p.empty and p.name not in given:
                raise UserError(
                    f"{self.name} needs {p.name!r}, which the examples do not have; they have "
                    f"{', '.join(given)}"
                )
        return {p.name: given[p.name] for p in parameters if p.name in given}

    def _culprit(self, given: Mapping[str, Sequence[Any]]) -> str:
        """Names the first example for which the function raises when it is called with it alone."""
        for i in range(len(next(iter(given.values()), ()))):
            try:
                self.call(**{name: [values[i]] for name, values in given.items()})
            except Exception:
                return f" for {_example(given, i)}"
        return f", called with {len(next(iter(given.values()), ()))} answers"


def _field(row: Mapping[str, Any], name: str) -> Any:
    return row[name] if name in row else None


def _said(error: Exception) -> str:
    """The error and the line of the file that raised it."""
    last, lines = error.__traceback__, [0]
    while last is not None:
        lines.append(last.tb_lineno)
        last = last.tb_next
    message = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {message} (line {lines[-1]})"


def _example(given: Mapping[str, Sequence[Any]], i: int) -> str:
    """Names an example by its prompt and answer, as far as the function takes them."""
    shown = [
        f"{key[:-1]} {given[key][i]!r:.{SHOWN}}" for key in ("prompts", "answers") if key in given
    ]
    return " and ".join(shown) or f"answer {i}"


def is_function(name: str) -> bool:
    """True if `name` has the form FILE.py:FUNCTION."""
    return SPEC.fullmatch(name) is not None


def file_of(name: str) -> str:
    """Returns the path of the file in FILE.py:FUNCTION. Raises UserError for another form."""
    found = SPEC.fullmatch(name)
    if not found:
        raise UserError(f"{name!r}: must be FILE.py:FUNCTION")
    return place(found[1])


def load(name: str) -> Function:
    """Loads FILE.py:FUNCTION; a file is imported once, and again when it has changed.

    Raises UserError if there is no such file or function, or if the file cannot be imported.
    """
    path, function = Path(file_of(name)), name.rpartition(":")[2]
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of rewards")
    found = path.stat()
    module = _module(path.absolute(), found.st_mtime_ns, found.st_size)
    if not callable(getattr(module, function, None)):
        known = [key for key, x in vars(module).items() if inspect.isfunction(x)]
        raise UserError(
            f"{path}: has no function {function!r}; it has {', '.join(known) or 'none'}"
        )
    return Function(name, getattr(module, function), str(path.absolute().parent))


@functools.lru_cache(maxsize=64)
def _module(path: Path, *version: int) -> Any:
    """Imports a file; `version` tells a changed one from the one that is cached."""
    del version
    name = f"rewards {path}"  # unlike that of any other module
    spec: Any = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their modules up
    try:
        with _importable(str(path.parent)):
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"{path}: cannot be imported: {_said(error)}") from None
    return module


@contextlib.contextmanager
def _importable(folder: str) -> Iterator[None]:
    """Makes the modules in a folder importable."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
