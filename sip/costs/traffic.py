"""Counts the traffic of a compiled program on each device: memory bytes and collectives.

Every instruction reads its operands and writes its result. If a fusion only slices an array or
updates it in place, only the slice counts. The body of a loop counts once per iteration.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, field

from sip.costs import hlo
from sip.costs.chips import Chip
from sip.costs.flops import READ, WRITTEN
from sip.costs.hlo import Instruction, Module, size

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Instructions without memory traffic.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
FREE |= {"partition-id", "replica-id", "opt-barrier", "iota"}
SLICES = {"dynamic-slice", "slice", "gather"}


@dataclass(frozen=True)
class Collective:
    """A collective operation."""

    phase: str
    kind: str  # one of COLLECTIVES
    devices: int  # size of a group
    bytes: float  # bytes of the whole array: the larger of input and output
    times: int  # number of executions

    def seconds(self, chip: Chip, of: int) -> float:
        """Returns the minimum seconds of all executions, with every link in use, without latency.

        A device receives everything except its own share, and twice that for an all-reduce. A group
        inside one dimension of the torus has only that dimension's links.

        Args:
            chip: The chip.
            of: Number of devices of the whole program.
        """
        if self.devices < 2:
            return 0.0
        moved = self.bytes * (self.devices - 1) / self.devices
        if self.kind == "collective-permute":
            moved = self.bytes
        if self.kind == "all-reduce":
            moved *= 2
        within = self.devices <= round(of ** (1 / chip.torus)) and self.devices < of
        return self.times * moved / (chip.ici / chip.torus if within else chip.ici)


@dataclass
class Traffic:
    """Memory bytes by phase and collectives of one device."""

    bytes: Counter = field(default_factory=Counter)  # bytes read and written, by phase
    collectives: list[Collective] = field(default_factory=list)


def count(text: str, devices: int, loops: int = 1) -> Traffic:
    """Counts the traffic of a compiled program.

    Args:
        text: HLO text of the program.
        devices: Number of devices.
        loops: Iterations assumed for loops of unknown length.
    """
    module, found = hlo.parse(text), Traffic()
    _walk(module, module.entry, 1, READ, loops, devices, found)
    return found


def _walk(module: Module, name: str, times, phase, loops, devices, found: Traffic) -> None:
    inside = module.computations[name].instructions
    for one in inside.values():
        go = lambda name, n=times, at=phase: _walk(module, name, n, at, loops, devices, found)
        if one.op == "while":
            repeats = hlo.trips(module, one, loops)
            go(one.called("body"), times * repeats, WRITTEN if "decode" in one.path else phase)
        elif one.op == "conditional":
            for branch in _branches(one):
                go(branch)
        elif one.op == "call":
            go(one.called("to_apply"))
        elif one.op == "async-start":
            go(one.called("calls"))
        elif one.op not in FREE and not one.op.endswith("-done"):
            found.bytes[phase] += times * _bytes(module, inside, one)
            found.collectives += _collectives(module, inside, one, times, phase, devices)


def _branches(one: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", one.rest)
    names = hlo.NAME.findall(listed[1]) if listed else []
    return names or [one.called(f"{which}_computation") for which in ("true", "false")]


def _bytes(module: Module, inside, one: Instruction) -> float:
    """Returns the bytes that an instruction reads and writes."""
    shapes = [inside[o].shape for o in one.operands if o in inside]
    if one.op in SLICES:
        return 2 * size(one.shape)
    if one.op == "dynamic-update-slice":
        return 2 * size(shapes[1])
    if one.op == "fusion" and one.called("calls") in module.computations:
        return _fused(module, module.computations[one.called("calls")], shapes)
    return size(one.shape) + sum(map(size, shapes))


def _fused(module: Module, computation: hlo.Computation, shapes: list[str]) -> float:
    inside = computation.instructions
    total = sum(_written(inside, inside[o]) for o in _results(inside, computation.root))
    for one in inside.values():
        if one.op == "parameter":
            total += min(size(shapes[one.number]), _read(module, inside, one))
    return total


def _results(inside, root: Instruction) -> tuple[str, ...]:
    return root.operands if root.op == "tuple" else (root.name,)


def _written(inside, one: Instruction) -> float:
    """Returns the bytes that a result writes: for an in-place update only the update."""
    while one.op == "bitcast" and one.operands[0] in inside:
        one = inside[one.operands[0]]
    if one.op == "dynamic-update-slice":
        return size(inside[one.operands[1]].shape)
    return size(one.shape)


def _read(module: Module, inside, one: Instruction) -> float:
    """Returns the bytes of an array that a fusion reads.

    Only slices count if all users slice the array. An in-place update reads nothing. Any other user
    reads the whole array (math.inf; the caller takes the minimum with the array's size).
    """
    total = 0.0
    for user in (x for x in inside.values() if one.name in x.operands):
        if user.op in SLICES and user.operands[0] == one.name:
            total += size(user.shape)
        elif user.op == "bitcast":
            total += _read(module, inside, user)
        elif user.op == "fusion" and user.called("calls") in module.computations:
            total += _read_within(module, user, one.name)
        elif not (user.op == "dynamic-update-slice" and user.operands[0] == one.name):
            return math.inf
    return total


def _read_within(module: Module, fusion: Instruction, name: str) -> float:
    """Returns the bytes of an operand that a nested fusion reads."""
    inside = module.computations[fusion.called("calls")].instructions
    places = [at for at, operand in enumerate(fusion.operands) if operand == name]
    used = [x for x in inside.values() if x.op == "parameter" and x.number in places]
    return sum(_read(module, inside, x) for x in used)


def _collectives(module, inside, one: Instruction, times, phase, devices) -> list[Collective]:
    """Returns the collectives of an instruction: itself, or those inside a fusion."""
    if one.op == "fusion" and one.called("calls") in module.computations:
        within = module.computations[one.called("calls")].instructions
        held = [i for i in within.values() if i.op.removesuffix("-start") in COLLECTIVES]
        return [_collective(within, i, times, phase, devices) for i in held]
    if one.op.removesuffix("-start") not in COLLECTIVES:
        return []
    return [_collective(inside, one, times, phase, devices)]


def _collective(inside, one: Instruction, times, phase, devices) -> Collective:
    whole = lambda shape: size(shape, everywhere=True)
    given = sum(whole(inside[o].shape) for o in one.operands if o in inside)
    made = whole(one.shape)
    if one.op.endswith("-start") and one.op != "all-reduce-start":
        made -= given  # the type of a -start instruction also lists the operands
    kind = one.op.removesuffix("-start")
    group = 2 if kind == "collective-permute" else group_size(one.rest, devices)
    return Collective(phase, kind, group, max(given, made), times)


def group_size(rest: str, devices: int) -> int:
    """Returns the number of devices per group from the attribute replica_groups.

    Reads its three notations: mesh axes, iota ([groups,size]<=...), and explicit lists. Without the
    attribute all devices form one group.
    """
    mesh = re.search(r"replica_groups=\w*\[([^\]]*)\] ?\{([^}]*)\}", rest)
    if mesh and "=" in mesh[1]:
        sizes = {k: int(n) for k, n in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        used = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in used)
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", rest)
    if iota:
        return int(iota[2])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    return len(listed[1].split(",")) if listed else devices
