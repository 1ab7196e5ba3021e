"""Compiles a jitted function for devices that need not be here, and says what it costs on them."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from sip.costs import flops, traffic
from sip.costs.chips import GIB
from sip.costs.traffic import Traffic


@dataclass(frozen=True)
class Compiled:
    """Of one program: seconds, flops by phase on all devices together, the rest of one device.

    `needed`: bytes without which it does not compile; it then has no temporaries, and moves
    nothing that is known.
    """

    trace_seconds: float
    compile_seconds: float
    flops: Mapping[str, float]
    argument_bytes: float
    temporary_bytes: float  # results that are not donated arguments, and code, included
    traffic: Traffic = field(default_factory=Traffic)
    needed: float = 0.0


def measure(jitted: Any, args: tuple, mesh: jax.sharding.Mesh, loops: int) -> Compiled:
    """Traces and compiles `jitted` for the shapes `args`, which carry shardings on `mesh`."""
    with jax.set_mesh(mesh):
        start = time.monotonic()
        traced = jitted.trace(*args)
        counted = flops.count(traced.jaxpr, loops)
        lowered = traced.lower()
        middle = time.monotonic()
        try:
            compiled, needed = lowered.compile(), 0.0
        except jax.errors.JaxRuntimeError as error:
            compiled, needed = None, _needed(error)
        times = middle - start, time.monotonic() - middle
    if compiled is None:
        return Compiled(*times, counted, 0.0, 0.0, needed=needed)
    memory = compiled.memory_analysis()
    beside = (
        memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    moved = traffic.count(compiled.as_text(), mesh.size, loops)
    return Compiled(*times, counted, memory.argument_size_in_bytes, beside, moved)


UNITS = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}


def _needed(error: Exception) -> float:
    """The bytes that a compiler says it lacks memory for; any other error is raised again."""
    text = str(error)
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds", text) or re.search(
        r"[Uu]sed ([\d.]+)([KMGT]) of", text
    )
    if "RESOURCE_EXHAUSTED" not in text or not found:
        raise error
    return float(found[1]) * UNITS[found[2]]
