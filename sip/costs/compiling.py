"""Compiles a jitted function for devices that this host need not have, and measures its costs."""

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
    """Costs of one compiled program.

    A program that does not fit in memory does not compile. It has only times, FLOPs and `needed`.
    """

    trace_seconds: float
    compile_seconds: float
    flops: Mapping[str, float]  # FLOPs by phase, over all devices
    argument_bytes: float  # per device
    temporary_bytes: float  # per device, with code and results that reuse no donated argument
    traffic: Traffic = field(default_factory=Traffic)  # per device
    needed: float = 0.0  # bytes per device that XLA needs; 0 if the program compiles


def measure(jitted: Any, args: tuple, mesh: jax.sharding.Mesh, loops: int) -> Compiled:
    """Traces and compiles a jitted function and measures its costs.

    Args:
        jitted: The function.
        args: Argument shapes (jax.ShapeDtypeStruct) with shardings on `mesh`.
        mesh: The mesh.
        loops: Iterations assumed for loops of unknown length (decoding).
    """
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
    # Output bytes that alias donated arguments are already in argument_bytes.
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
    """Parses the needed bytes from XLA's out-of-memory error; raises any other error again."""
    text = str(error)
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds", text) or re.search(
        r"[Uu]sed ([\d.]+)([KMGT]) of", text
    )
    if "RESOURCE_EXHAUSTED" not in text or not found:
        raise error
    return float(found[1]) * UNITS[found[2]]
