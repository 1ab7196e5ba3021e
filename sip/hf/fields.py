"""Reads single fields of config.json. Each is removed when it is read; what is left is refused."""

from typing import Any

from sip.structs import UserError

NEEDED = object()


def take(left, key: str, kind, default: Any = NEEDED):
    """Removes a field from `left` and returns its value as `kind`.

    Raises UserError if it is missing without a default, or has another type.
    """
    value = left.pop(key, default)
    if value is NEEDED:
        raise UserError(f"{key} is missing")
    numbers = (int, float) if kind is float else (kind,)  # bool is a subclass of int: checked below
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, numbers):
        raise UserError(f"{key} is {value!r}; must be of type {kind.__name__}")
    return kind(value)


def same(left, key, other) -> int:
    """Reads a field that has two names; raises UserError if both are given and differ."""
    if key not in left and other in left:
        key, other = other, key
    value = take(left, key, int)
    if take(left, other, int, value) != value:
        raise UserError(f"{key} and {other} differ")
    return value


def cap(left, key: str, default: float | None) -> float:
    """Reads a soft cap; null means none, which is 0 in ModelConfig."""
    if left.setdefault(key, default) is None:
        del left[key]
        return 0.0
    value = take(left, key, float)
    if value <= 0:
        raise UserError(f"{key} is {value}; must be positive, or null for none")
    return value
