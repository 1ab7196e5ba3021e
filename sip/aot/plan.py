"""What is known of a run before it runs: its jitted programs, and what lies where they run."""

import math
from dataclasses import dataclass
from typing import Any

import jax

POLICY = "policy"  # among a plan's models


@dataclass(frozen=True)
class Program:
    """A jitted function and the shapes of one call."""

    name: str
    mesh: jax.sharding.Mesh
    jitted: Any
    args: tuple
    calls: float  # per step, averaged over the run
    loops: int  # tokens that its decoding loop writes; 1 where there is none
    holds: float  # bytes of the run's models that are among its arguments, on each device
    useful: float  # operations of a call: 6 per parameter and token learned from, 2 per one read
    remedy: str  # what to change where it does not fit


@dataclass(frozen=True)
class Plan:
    """A run's programs, and what lies on each device while they run."""

    name: str
    steps: int
    tokens: float  # that an update learns from, in trunk and branches
    mesh: jax.sharding.Mesh  # the policy's
    programs: tuple[Program, ...]
    models: dict[str, float]  # bytes on each device: policy (with optimiser and reference), ...
    notes: tuple[str, ...]
    devices: int  # of all meshes
    apart: bool  # judge and rewriter have devices of their own
    ahead: bool  # and work while the policy writes the next rollouts

    def beside(self, program: Program) -> float:
        """Bytes of models that lie where a program runs and are not among its arguments."""
        ours = lambda name: (name == POLICY) == (program.mesh == self.mesh)
        here = {k: v for k, v in self.models.items() if not self.apart or ours(k)}
        return sum(here.values()) - program.holds


def device_bytes(tree) -> float:
    """Bytes of arrays on each device."""
    part = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return sum(map(part, jax.tree.leaves(tree)))
