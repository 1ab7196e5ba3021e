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
    config: str = ""  # libtpu's chip configuration; "": its default


# Sources. Peaks and bandwidths: section "System architecture" of the pages "TPU v4", "TPU v5e",
# "TPU v5p" and "TPU v6e" in Google Cloud's documentation. Its interconnect figures count both
# directions for v5e and v6e (400 and 800 GB/s), and one direction for v4 and v5p (2400 and 4800
# Gbit/s); here it is one direction for all. Memory: the available bytes in libtpu 0.0.42's error
# message for a program that needs more. The two cores of a v4 chip are one device, as JAX sees them
# on a TPU VM; libtpu's default would list them as two.
CHIPS = {
    "v4": Chip("v4", 275e12, 30.75 * GIB, 1200e9, 300e9, 3, config="megacore"),
    "v5e": Chip("v5e", 197e12, 15.75 * GIB, 819e9, 200e9, 2),
    "v5p": Chip("v5p", 459e12, 95.74 * GIB, 2765e9, 600e9, 3),
    "v6e": Chip("v6e", 918e12, 31.25 * GIB, 1638e9, 400e9, 2),
}

# Chips that libtpu knows and sip refuses, with the reason.
OLD = {
    name: f"TPU {name} is not supported: each of its two cores is a device of its own with {gib} "
    "GiB of memory, and no config was made or compiled for it; use v4 or later"
    for name, gib in (("v2", 8), ("v3", 16))
}


def chip_of(topology: str) -> Chip:
    """Returns the chip of a topology such as "v5e:16x16"; raises UserError for an unknown one."""
    name, colon, shape = topology.partition(":")
    if name in OLD:
        raise UserError(f"--topology={topology}: {OLD[name]}")
    if name not in CHIPS or not (colon and all(n.isdigit() for n in shape.split("x"))):
        raise UserError(
            f"--topology={topology}: must be CHIP:SHAPE, such as v5e:16x16, of {', '.join(CHIPS)}"
        )
    return CHIPS[name]
