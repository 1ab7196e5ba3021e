"""Accelerators: peaks, bandwidths and the memory that a compiler lets a program have."""

from dataclasses import dataclass

from sip.structs import UserError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One device. Bandwidths in bytes per second, `ici` into a chip over all its links."""

    name: str
    flops: float  # bfloat16, per second
    hbm: float  # bytes that XLA gives out, less than the chip's name says
    hbm_bandwidth: float
    ici: float
    torus: int  # dimensions of its interconnect


# Peaks and bandwidths: "System architecture" of the pages "TPU v5e", "TPU v5p" and "TPU v6e" of
# Google Cloud's documentation, whose interconnect figures count both directions of v5e and v6e
# (400 and 800 GB/s), and one of v5p (4800 Gbit/s). Memory: what libtpu 0.0.42 says is available
# when a program needs more.
CHIPS = {
    "v5e": Chip("v5e", 197e12, 15.75 * GIB, 819e9, 200e9, 2),
    "v5p": Chip("v5p", 459e12, 95.74 * GIB, 2765e9, 600e9, 3),
    "v6e": Chip("v6e", 918e12, 31.25 * GIB, 1638e9, 400e9, 2),
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as "v5e:16x16". Raises UserError for one that is not known."""
    name, colon, shape = topology.partition(":")
    if name not in CHIPS or not (colon and all(n.isdigit() for n in shape.split("x"))):
        raise UserError(
            f"--topology={topology}: must be CHIP:SHAPE such as v5e:16x16, of {', '.join(CHIPS)}"
        )
    return CHIPS[name]
