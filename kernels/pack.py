"""The packed layouts of int8 and int4 weights: defined here, once, the same on every CPU. Free of Numba.

A matrix (N, K) is cut into tiles of 16 rows, and each row into groups of 32 columns that share a float16
scale, as in GGUF's Q8_0 and Q4_0, whose blocks repack without loss. Within a group, 64 bytes hold 16 rows
times 4 (int8) or 8 (int4) columns: one AVX-512 register, two AVX2 registers or four NEON registers. Byte
4 r + j of them belongs to row r:

    int8   values (tiles, groups, 8, 64) int8    64 bytes c:  w[r, 4 c + j]
    int4   values (tiles, groups, 4, 64) uint8   64 bytes c:  w[r, 8 c + j] + 8 in the low nibble,
                                                              w[r, 8 c + 4 + j] + 8 in the high one
    both   scales (tiles, groups, 16)   float16  weight = w * scale; scales may be negative

int8 values are -127 .. 127, int4 values -8 .. 7. Rows past N and columns past K are zeros, and scales of
rows past N are 0.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mvlm_np import ops
from mvlm_np.ops import GROUP

ROWS = 16  # rows of a tile
BITS = {"int8": 8, "int4": 4}


class Packed(NamedTuple):
    """A matrix (N, K) of `bits` 8 or 4."""

    bits: int
    values: np.ndarray
    scales: np.ndarray
    N: int
    K: int


def shapes(bits: int, N: int, K: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the packed values and scales of an (N, K) matrix."""
    tiles, groups = -(-N // ROWS), -(-K // GROUP)
    return (tiles, groups, bits, 64), (tiles, groups, ROWS)


def pack(bits: int, w: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 (N, K) and float16 (N, groups) -> packed values and scales. bits: 8 or 4."""
    (N, K), ((tiles, groups, _, _), _) = w.shape, shapes(bits, *w.shape)
    full = np.zeros((tiles * ROWS, groups * GROUP), np.int8)
    full[:N, :K] = w
    full_scales = np.zeros((tiles * ROWS, groups), np.float16)
    full_scales[:N] = scales
    columns = 32 // bits  # of 64 bytes: 4 or 8
    # (tile, row, group, chunk, nibble, column) -> (tile, group, chunk, row, column, nibble)
    split = full.reshape(tiles, ROWS, groups, bits, columns // 4, 4).transpose(0, 2, 3, 1, 5, 4)
    if bits == 4:
        nibbles = (split + 8).astype(np.uint8)
        values = nibbles[..., 0] | nibbles[..., 1] << 4
    else:
        values = split[..., 0]
    return (
        np.ascontiguousarray(values).reshape(tiles, groups, bits, 64),
        np.ascontiguousarray(full_scales.reshape(tiles, ROWS, groups).transpose(0, 2, 1)),
    )


def unpack(
    bits: int, values: np.ndarray, scales: np.ndarray, N: int, K: int
) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `pack`: int8 (N, K) and float16 (N, groups)."""
    tiles, groups = values.shape[:2]
    by_row = values.reshape(tiles, groups, bits, ROWS, 4).transpose(0, 3, 1, 2, 4)
    q = unpack_groups(bits, by_row).reshape(tiles * ROWS, groups * GROUP)
    return q[:N, :K], scales.transpose(0, 2, 1).reshape(tiles * ROWS, groups)[:N]


def unpack_groups(bits: int, values: np.ndarray) -> np.ndarray:
    """The bytes of groups of one row, (..., bits, 4) -> their int8 weights (..., 32)."""
    if bits == 4:
        values = np.stack([values & 15, values >> 4], axis=-2).view(np.int8) - 8  # low nibbles go first
    return values.reshape(*values.shape[: -2 - (bits == 4)], GROUP)


def packed_product(
    matrices: Sequence[Packed], biases: Sequence[np.ndarray | None]
) -> Callable[[np.ndarray], list[np.ndarray]]:
    """The product with up to three matrices that have the same input and agree in K and in bits.

    Returns a function: x float32 (M, K) -> for each matrix `ops.quantized_matmul` of x with it, plus its bias
    (N,) where it has one: float32 (M, N).
    """

    def product(x: np.ndarray) -> list[np.ndarray]:
        outputs = []
        for (bits, values, scales, N, K), bias in zip(matrices, biases, strict=True):
            y = ops.quantized_matmul(x, *unpack(bits, values, scales, N, K))
            outputs.append(y if bias is None else y + bias)
        return outputs

    return product
