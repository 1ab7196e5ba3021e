"""Conversion of config sections to frozen dataclasses; an error names the key that does not fit."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from sip.structs import UserError


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
    except UserError as e:  # raised by __post_init__, which does not know the section's name
        raise UserError(f"config {name}: {e}") from None


def _typed(value, hint, name: str):
    """Converts `value` to a field's type `hint`: sections to dataclasses, integers to float."""
    for cls in (hint, *typing.get_args(hint)):
        if dataclasses.is_dataclass(cls) and isinstance(value, Mapping):
            return section(cls, value, name)
    if not _is(value, hint):
        wanted = hint.__name__ if isinstance(hint, type) else str(hint)
        raise UserError(f"config {name}: {value!r} must be of type {wanted}")
    return float(value) if hint is float else value


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
