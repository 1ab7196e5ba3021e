"""Inspects traced programs: lists all intermediate arrays, at any depth of nesting."""

import math
from collections.abc import Iterator

from jax.interpreters import partial_eval


def live(jaxpr):
    """Removes code that no output depends on, as XLA does."""
    return partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))[0]


def equations(jaxpr) -> Iterator:
    """Yields all equations, also inside scans, loops, conditionals, remat and custom rules."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in _inside(tuple(equation.params.values())):
            yield from equations(inner)


def _inside(value) -> Iterator:
    if hasattr(value, "eqns"):  # Jaxpr or ClosedJaxpr; later versions of jax merge the two
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _inside(item)


def shapes(jaxpr, primitive: str = "") -> set[tuple[int, ...]]:
    """Returns the shapes of all equations' outputs, or of those of one primitive."""
    return {
        v.aval.shape
        for e in equations(jaxpr)
        for v in e.outvars
        if primitive in ("", e.primitive.name)
    }


def rows_of(found: set, size: int) -> dict[tuple[int, ...], int]:
    """Returns {shape: elements // size} of shapes with an axis that is a multiple of `size`."""
    return {s: math.prod(s) // size for s in found if any(n and n % size == 0 for n in s)}
