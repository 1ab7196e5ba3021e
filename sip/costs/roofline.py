"""Minimum seconds of a program from its FLOPs and traffic (roofline model, Williams et al. 2009).

The time of a phase is the longest of compute, memory and interconnect time. This assumes that the
three overlap perfectly, so times are lower bounds and utilisations are upper bounds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sip.costs.chips import Chip
from sip.costs.traffic import Traffic

RESOURCES = ("compute", "memory", "interconnect")


@dataclass(frozen=True)
class Bound:
    """Minimum seconds of each resource in one phase."""

    compute: float
    memory: float
    interconnect: float

    @property
    def seconds(self) -> float:
        """Minimum seconds of the phase."""
        return max(self.compute, self.memory, self.interconnect)

    @property
    def by(self) -> str:
        """The bottleneck: the resource that takes longest."""
        return max(RESOURCES, key=lambda name: getattr(self, name))


def bounds(flops: Mapping[str, float], traffic: Traffic, chip: Chip, devices: int):
    """Returns a Bound per phase.

    Args:
        flops: FLOPs by phase, over all devices.
        traffic: Traffic of one device.
        chip: The chip.
        devices: Number of devices.
    """
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
