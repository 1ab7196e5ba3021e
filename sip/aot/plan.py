"""Compile plan: a run's jitted programs, argument shapes, and model bytes on each device."""

import math
from dataclasses import dataclass
from typing import Any

import jax

POLICY = "policy"  # key of the policy in Plan.models


@dataclass(frozen=True)
class Lengths:
    """Lengths of texts in files. The files are not read, so the lengths are assumed."""

    prompt: int = 512  # tokens of the longest prompt or problem, with its chat template
    answer: int = 512  # tokens of the longest answer of a pair
    problems: int = 0  # problems that a model answers before the first step; 0: not counted


ASSUMED = Lengths()


@dataclass(frozen=True)
class Program:
    """A jitted function and the argument shapes of one call."""

    name: str
    mesh: jax.sharding.Mesh
    jitted: Any
    args: tuple  # of jax.ShapeDtypeStruct, with shardings
    calls: float  # calls per step, averaged over the run
    loops: int  # most iterations of a decoding loop, tokens; 1 if the program does not decode
    holds: float  # bytes per device of the models among the arguments
    useful: float  # FLOPs per call: 6 per parameter and trained token, 2 per token only read
    remedy: str  # config changes that help if the program does not fit


@dataclass(frozen=True)
class Plan:
    """A run's programs and the model bytes on each device while they run."""

    name: str
    steps: int
    tokens: float  # tokens per update, trunks and branches, padding included
    mesh: jax.sharding.Mesh  # mesh of the policy
    programs: tuple[Program, ...]
    models: dict[str, float]  # bytes per device; "policy" includes optimiser state and reference
    notes: tuple[str, ...]  # assumptions to show to the user
    devices: int  # number of devices over all meshes
    apart: bool  # judge and rewriter run on their own devices
    ahead: bool  # they also run at the same time as the policy's next rollouts

    def beside(self, program: Program) -> float:
        """Returns the bytes per device of models that are not arguments of `program`.

        Counts the models on the program's devices only.
        """
        ours = lambda name: (name == POLICY) == (program.mesh == self.mesh)
        here = {k: v for k, v in self.models.items() if not self.apart or ours(k)}
        return sum(here.values()) - program.holds


def device_bytes(tree) -> float:
    """Sums the bytes per device of the arrays in `tree`."""
    part = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return sum(map(part, jax.tree.leaves(tree)))
