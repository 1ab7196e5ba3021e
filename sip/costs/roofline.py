"""Seconds that a program takes at the least, from what it computes and moves (the roofline model,
Williams et al. 2009): in each phase the longest of products, memory and interconnect.

That all three run beside each other is what no program reaches: times are lower bounds, and
utilisations upper ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sip.costs.chips import Chip
from sip.costs.traffic import Traffic

RESOURCES = ("compute", "memory", "interconnect")


@dataclass(frozen=True)
class Bound:
    """Seconds of each resource in one phase."""

    compute: float
    memory: float
    interconnect: float

    @property
    def seconds(self) -> float:
        """At the least."""
        return max(self.compute, self.memory, self.interconnect)

    @property
    def by(self) -> str:
        """The resource that takes longest."""
        return max(RESOURCES, key=lambda name: getattr(self, name))


def bounds(flops: Mapping[str, float], traffic: Traffic, chip: Chip, devices: int):
    """A Bound by phase. `flops` are of all devices together, `traffic` of one."""
    phases = dict.fromkeys([*flops, *traffic.bytes])
    ici = {p: 0.0 for p in phases}
    for one in traffic.collectives:
        ici[one.phase] = ici.setdefault(one.phase, 0.0) + one.seconds(chip, devices)
    return {
        p: Bound(
            flops[p] / devices / chip.flops if p in flops else 0.0,
            traffic.bytes[p] / chip.hbm_bandwidth,
            ici[p],
        )
        for p in ici
    }
