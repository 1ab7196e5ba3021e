"""Floating point operations of matrix products, counted from a jaxpr.

A scan's body counts as often as it runs; XLA's own analysis counts it once. Products alone are
counted: what else a decoder computes runs beside them, and is bound by memory.
"""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from jax.interpreters import partial_eval

READ, WRITTEN = "read", "decode"  # what runs once, and what runs in a loop that may stop early


def count(jaxpr: Any, loops: int = 1) -> Counter:
    """Operations on all devices together, by phase; a `while` loop is taken to run `loops` times.

    `jaxpr` is a ClosedJaxpr. What no output needs is not counted: XLA drops it too.
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
        elif name == "cond":
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
    """2 x batch x rows x columns x contracted."""
    contracted, batch = equation.params["dimension_numbers"]
    left, right = (v.aval.shape for v in equation.invars)
    size = lambda shape, axes: math.prod(shape[i] for i in axes)
    inner, outer = size(left, contracted[0]), size(left, batch[0])
    return 2 * math.prod(left) * math.prod(right) // (inner * outer)


def _inside(value) -> Iterator:
    if hasattr(value, "eqns"):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _inside(item)
