"""What a traced program holds: every intermediate array, however deep it is nested."""

import math
from collections.abc import Iterator

from jax.interpreters import partial_eval


def live(jaxpr):
    """Without what no output needs, which XLA drops too."""
    return partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))[0]


def equations(jaxpr) -> Iterator:
    """All equations, those inside scans, loops, conditionals, remats and custom rules included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in _inside(tuple(equation.params.values())):
            yield from equations(inner)


def _inside(value) -> Iterator:
    if hasattr(value, "eqns"):  # Jaxpr or ClosedJaxpr, which later versions of jax merge
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _inside(item)


def shapes(jaxpr, primitive: str = "") -> set[tuple[int, ...]]:
    """The shapes of all intermediates (an equation's outputs), or of those one operation makes."""
    return {
        v.aval.shape
        for e in equations(jaxpr)
        for v in e.outvars
        if primitive in ("", e.primitive.name)
    }


def rows_of(found: set, size: int) -> dict[tuple[int, ...], int]:
    """Shapes with an axis of `size`, or of its multiple (flattened) -> elements per `size`."""
    return {s: math.prod(s) // size for s in found if any(n and n % size == 0 for n in s)}
