"""Counts the floating point operations (FLOPs) of matrix products in a jaxpr.

The body of a scan counts once per iteration; XLA's own analysis counts it once in total. Other
operations of a decoder do not count: they overlap with the products and are bound by memory.
"""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from jax.interpreters import partial_eval

# Phases: code outside and inside a decoding loop (a `while` loop that may stop early).
READ, WRITTEN = "read", "decode"


def count(jaxpr: Any, loops: int = 1) -> Counter:
    """Counts FLOPs over all devices, by phase.

    Code that no output depends on does not count, because XLA removes it too.

    Args:
        jaxpr: A ClosedJaxpr.
        loops: Number of iterations assumed for each `while` loop.
    """
    live = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))[0]
    found: Counter = Counter()
    _walk(live, 1, READ, loops, found)
    return found


def _walk(jaxpr, times: int, phase: str, loops: int, found: Counter) -> None:
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            found[phase] += times * _product(equation)
        elif name == "scan":
            _walk(params["jaxpr"], times * params["length"], phase, loops, found)
        elif name == "while":
            _walk(params["body_jaxpr"], times * loops, WRITTEN, loops, found)
        elif name == "cond":  # an upper bound: the most expensive branch
            found += _dearest(params["branches"], times, phase, loops)
        else:
            for inner in _inside(tuple(params.values())):
                _walk(inner, times, phase, loops, found)


def _dearest(branches, times: int, phase: str, loops: int) -> Counter:
    costs = [Counter() for _ in branches]
    for branch, cost in zip(branches, costs, strict=True):
        _walk(branch, times, phase, loops, cost)
    return max(costs, key=Counter.total)


def _product(equation) -> int:
    """Returns the FLOPs of a dot_general: 2 x batch x rows x columns x contracted."""
    contracted, batch = equation.params["dimension_numbers"]
    left, right = (v.aval.shape for v in equation.invars)
    size = lambda shape, axes: math.prod(shape[i] for i in axes)
    # Contracted and batch dimensions are in both operands, but count once.
    inner, outer = size(left, contracted[0]), size(left, batch[0])
    return 2 * math.prod(left) * math.prod(right) // (inner * outer)


def _inside(value) -> Iterator:
    if hasattr(value, "eqns"):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _inside(item)
