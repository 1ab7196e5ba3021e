"""Reads MXFP4 tensors (OCP Microscaling Formats, 2023), the format of gpt-oss's experts.

A number has a sign, two exponent bits and one mantissa bit. Groups of 32 numbers share a scale, a
power of two. All values are exact in bfloat16 and float32, so an export as dense tensors is
lossless. Writing MXFP4 is not supported.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sip.structs import UserError

GROUP = 32  # numbers per scale; two numbers per byte
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
VALUES = np.concatenate([VALUES, -VALUES])
BIAS = 127  # exponent bias of a scale


def dequantise(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Returns float32 [.., 32 * n] from uint8 blocks [.., n, 16] and uint8 scales [.., n].

    The low half of a byte is the first number.
    """
    halves = np.stack([blocks & 15, blocks >> 4], -1).reshape(*scales.shape, GROUP)
    scale = np.ldexp(np.float32(1), scales.astype(np.int32) - BIAS)
    return (VALUES[halves] * scale[..., None]).reshape(*scales.shape[:-1], -1)


@dataclass(frozen=True)
class Packed:
    """A lazy dense tensor [E, I, O], dequantised when it is sliced.

    Has the interface of a safetensors slice.
    """

    blocks: Any  # safetensors slice [E, O, I/32, 16]
    scales: Any  # safetensors slice [E, O, I/32]
    where: str  # file and tensor, for error messages

    def get_shape(self) -> tuple[int, ...]:
        """Returns the dense shape [E, I, O]; raises UserError if blocks and scales do not fit."""
        blocks, scales = tuple(self.blocks.get_shape()), tuple(self.scales.get_shape())
        if len(scales) != 3 or blocks != (*scales, GROUP // 2):
            raise UserError(f"{self.where}: blocks {blocks} and scales {scales} do not fit")
        E, O, groups = scales
        return E, groups * GROUP, O

    def get_dtype(self) -> str:
        """Returns "MXFP4", or the stored dtypes in safetensors' names if they are not bytes."""
        kinds = {self.blocks.get_dtype(), self.scales.get_dtype()}
        return "MXFP4" if kinds == {"U8"} else "/".join(sorted(kinds))

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        e, i, o = index
        # Whole groups are read, then cut to the slice. Stored order is [E, O, I], ours [E, I, O].
        groups = slice(i.start // GROUP, -(-i.stop // GROUP))
        found = dequantise(self.blocks[e, o, groups], self.scales[e, o, groups])
        first = groups.start * GROUP
        return found[..., i.start - first : i.stop - first].transpose(0, 2, 1)
