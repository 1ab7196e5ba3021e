"""MXFP4 (OCP Microscaling Formats, 2023), as gpt-oss's experts are published: read, not written.

32 numbers share a scale, a power of two; each is a sign, two bits of exponent and one of mantissa.
All are exact in bfloat16 and float32, so an export of them as dense tensors loses nothing.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sip.structs import UserError

GROUP = 32  # numbers of a scale, two in a byte
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
VALUES = np.concatenate([VALUES, -VALUES])
BIAS = 127  # of a scale's exponent


def dequantise(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """[.., 32 * n] float32 of blocks [.., n, 16] and scales [.., n], bytes; low halves first."""
    halves = np.stack([blocks & 15, blocks >> 4], -1).reshape(*scales.shape, GROUP)
    scale = np.ldexp(np.float32(1), scales.astype(np.int32) - BIAS)
    return (VALUES[halves] * scale[..., None]).reshape(*scales.shape[:-1], -1)


@dataclass(frozen=True)
class Packed:
    """A tensor [E, I, O], read where it is sliced, of blocks [E, O, I/32, 16] and their scales."""

    blocks: Any
    scales: Any
    where: str  # for an error

    def get_shape(self) -> tuple[int, ...]:
        """The dense tensor's. Raises UserError where blocks and scales do not fit."""
        blocks, scales = tuple(self.blocks.get_shape()), tuple(self.scales.get_shape())
        if len(scales) != 3 or blocks != (*scales, GROUP // 2):
            raise UserError(f"{self.where} is {blocks}, its scales {scales}: they do not fit")
        E, O, groups = scales
        return E, groups * GROUP, O

    def get_dtype(self) -> str:
        """As safetensors names dtypes."""
        kinds = {self.blocks.get_dtype(), self.scales.get_dtype()}
        return "MXFP4" if kinds == {"U8"} else "/".join(sorted(kinds))

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        e, i, o = index
        groups = slice(i.start // GROUP, -(-i.stop // GROUP))
        found = dequantise(self.blocks[e, o, groups], self.scales[e, o, groups])
        first = groups.start * GROUP
        return found[..., i.start - first : i.stop - first].transpose(0, 2, 1)
