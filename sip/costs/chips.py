"""TPU chips: peak FLOPs, bandwidths, and the memory available to a program."""

from dataclasses import dataclass

from sip.structs import UserError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """Peak figures of one chip."""

    name: str
    flops: float  # bfloat16 FLOPs per second
    hbm: float  # bytes available to a program; below the nominal memory size
    hbm_bandwidth: float  # bytes per second
    ici: float  # interconnect bytes per second into the chip, over all its links
    torus: int  # number of dimensions of the interconnect


# Sources. Peaks and bandwidths: section "System architecture" of the pages "TPU v5e", "TPU v5p" and
# "TPU v6e" in Google Cloud's documentation. Its interconnect figures count both directions for v5e
# and v6e (400 and 800 GB/s), and one direction for v5p (4800 Gbit/s); here it is one direction for
# all. Memory: the available bytes in libtpu 0.0.42's error message for a program that needs more.
CHIPS = {
    "v5e": Chip("v5e", 197e12, 15.75 * GIB, 819e9, 200e9, 2),
    "v5p": Chip("v5p", 459e12, 95.74 * GIB, 2765e9, 600e9, 3),
    "v6e": Chip("v6e", 918e12, 31.25 * GIB, 1638e9, 400e9, 2),
}


def chip_of(topology: str) -> Chip:
    """Returns the chip of a topology such as "v5e:16x16"; raises UserError for an unknown one."""
    name, colon, shape = topology.partition(":")
    if name not in CHIPS or not (colon and all(n.isdigit() for n in shape.split("x"))):
        raise UserError(
            f"--topology={topology}: must be CHIP:SHAPE, such as v5e:16x16, of {', '.join(CHIPS)}"
        )
    return CHIPS[name]
