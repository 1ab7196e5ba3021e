"""Conversion of config sections to frozen dataclasses; an error names the key that does not fit.

A dataclass checks its values in `__post_init__`:

    check("optim", self, lr=above(0, most=1), steps=at_least(1), name=one_of(NAMES))
"""

import contextlib
import dataclasses
import math
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sip.structs import UserError

MOST = 3.4028234e38  # of numbers: the largest of float32; a larger one would be infinite in it
LARGEST = 2**31 - 1  # of integers: sizes, steps and seeds; JAX would silently drop higher bits


class FieldError(UserError):
    """A wrong value of a field. `section` puts the section's full name before `problem`."""

    def __init__(self, owner: str, problem: str):
        super().__init__(f"{owner}.{problem}".lstrip("."))
        self.problem = problem


@contextlib.contextmanager
def named(key: str) -> Iterator[None]:
    """Puts `key`, of a config or a flag, before the message of a UserError raised inside."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


@dataclass(frozen=True)
class Rule:
    """A condition on a value, and its text after "must be"."""

    holds: Callable[[Any], bool]
    text: str


def is_finite(x: float) -> bool:
    """Returns True for a number that is finite in float32; False for NaN."""
    return -MOST <= x <= MOST


def at_least(low: float, most: float = math.inf) -> Rule:
    """A number in low..most that is finite in float32."""
    text = f">= {_said(low)}" if most == math.inf else f"in {_said(low)}..{_said(most)}"
    return Rule(lambda x: is_finite(x) and low <= x <= most, text)


def above(low: float, most: float = math.inf) -> Rule:
    """A number above low and at most `most` that is finite in float32."""
    text = f"> {_said(low)}" + ("" if most == math.inf else f" and <= {_said(most)}")
    return Rule(lambda x: is_finite(x) and low < x <= most, text)


def _said(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def fraction() -> Rule:
    """A number of [0, 1), such as the decay of an average."""
    return Rule(lambda x: 0 <= x < 1, ">= 0 and < 1")


def one_of(known: Collection) -> Rule:
    """One of the known values."""
    return Rule(lambda x: x in known, f"one of {', '.join(map(repr, known))}")


def check(owner: str, config, **rules: Rule) -> None:
    """Raises FieldError naming the first field of the dataclass that breaks its rule.

    `owner` is the section's usual name, for a dataclass that is not built from a config file.
    """
    for name, rule in rules.items():
        value = getattr(config, name)
        if not rule.holds(value):
            finite = "finite and " if isinstance(value, float) else ""
            if finite and MOST < abs(value) < math.inf:
                finite = "finite in float32 and "
            raise FieldError(owner, f"{name}={value!r}: must be {finite}{rule.text}")


def plain(value: Any) -> Any:
    """Converts ConfigDicts to dicts and lists to tuples, recursively."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    return tuple(plain(v) for v in value) if isinstance(value, list | tuple) else value


def section(cls, values, name: str):
    """Builds the frozen dataclass `cls` from a config section, including nested sections.

    `name` is the section's dotted name, for errors. Raises UserError naming an unknown or missing
    key, a wrong type or an invalid value.
    """
    values, hints = plain(values), typing.get_type_hints(cls)
    if not isinstance(values, Mapping):
        raise UserError(f"config {name}={values!r:.80}: must be a section")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    at = lambda key: f"{name}.{key}".lstrip(".")
    for key in values:
        if key not in fields:
            raise UserError(f"config {at(key)}: unknown key; there are {', '.join(sorted(fields))}")
    for key, field in fields.items():
        if key not in values and field.default is dataclasses.MISSING:
            raise UserError(f"config {at(key)}: missing; it has no default")
    found = {key: _typed(value, hints[key], at(key)) for key, value in values.items()}
    try:
        return cls(**found)
    # Raised by __post_init__, which does not know the section's name.
    except FieldError as e:
        raise UserError(f"config {at(e.problem)}") from None
    except UserError as e:
        full = str(e).startswith("config ")  # of a section that it has read itself
        raise UserError(str(e) if full else f"config {name}: {e}") from None


def _typed(value, hint, name: str):
    """Converts `value` to a field's type `hint`: sections to dataclasses, integers to float."""
    for cls in (hint, *typing.get_args(hint)):
        if dataclasses.is_dataclass(cls) and isinstance(value, Mapping):
            return section(cls, value, name)
    if not _is(value, hint):
        wanted = hint.__name__ if isinstance(hint, type) else str(hint)
        raise UserError(f"config {name}: {value!r} must be of type {wanted}")
    _check_numbers(value, name)
    return float(value) if hint is float else value


def _check_numbers(value, name: str) -> None:
    """Raises UserError if a number in `value` is not finite, or an integer beyond int32."""
    if isinstance(value, Mapping | tuple):
        for key, one in value.items() if isinstance(value, Mapping) else enumerate(value):
            _check_numbers(one, f"{name}.{key}")
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise UserError(f"config {name}={value}: must be at most {LARGEST}")
    elif isinstance(value, float) and not is_finite(value):
        raise UserError(f"config {name}={value}: must be finite in float32")


def _is(value, hint) -> bool:
    """Checks `value` against a field's type. Unlike in isinstance, a bool is not a number."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or origin is types.UnionType:
        return hint is Any or any(_is(value, a) for a in args)
    if origin is tuple:
        wanted = args[:1] * len(value) if args[-1] is ... and isinstance(value, tuple) else args
        return (
            isinstance(value, tuple) and len(value) == len(wanted) and all(map(_is, value, wanted))
        )
    if origin is dict:
        return isinstance(value, dict) and all(
            _is(k, args[0]) and _is(v, args[1]) for k, v in value.items()
        )
    if isinstance(value, bool) and hint is not bool:  # Python's bool is a subclass of int
        return False
    return isinstance(value, (int, float) if hint is float else hint)
