"""The packed layouts of rounded weights: defined here, once, the same on every CPU. Free of Numba.

A matrix (N, K) is cut into tiles of 16 rows, and each row into groups of 32 columns that share a scale. There
are three kinds of weights:

    int8    -127 .. 127   weight = scale * q                   scale float16
    int4    -8 .. 7       weight = scale * q                   the same
    uint4   0 .. 15       weight = (d * s) * q - (dmin * m)    s, m uint8; d, dmin float16

float16 may have either sign. s and m, the scale and the minimum, belong to a group; d and dmin are what a
super-block of 8 groups, 256 columns, counts them in. GGUF's Q8_0, Q4_0 and Q4_K, in this order, repack
without loss. In float32 the products with s and with m, and with q after that, are exact: a weight of uint4
is rounded once, when its minimum is taken off.

Within a group, 64 bytes hold 16 rows times 4 (int8) or 8 columns: one AVX-512 register, two AVX2 registers or
four NEON registers. Byte 4 r + j of them belongs to row r:

    values  int8   (tiles, groups, 8, 64) int8    64 bytes c:  q[r, 4 c + j]
            int4   (tiles, groups, 4, 64) uint8   64 bytes c:  q[r, 8 c + j] + 8 in the low nibble,
                                                               q[r, 8 c + 4 + j] + 8 in the high one
            uint4  (tiles, groups, 4, 64) uint8   the same, with nothing added
    scales  int8, int4  (tiles, groups, 16)     float16
            uint4       (tiles, groups, 2, 16)  uint8     s of the 16 rows, then m
    tops    uint4       (tiles, supers, 2, 16)  float16   d of the 16 rows, then dmin

A last group may have fewer columns, and a last super-block fewer groups. Rows past N are zeros throughout.
Columns past K weigh nothing: they are 0 in int8 and int4, and whatever they are, activations are 0 there.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mvlm_np import ops
from mvlm_np.ops import GROUP, SUPER

ROWS = 16  # rows of a tile
KINDS = {"int8": 8.5, "int4": 4.5, "uint4": 4.625}  # bits a weight, scales included, in whole super-blocks

Rounded = tuple[np.ndarray, ...]  # q (N, K), scales (N, groups) or (N, groups, 2), tops (N, supers, 2)


class Packed(NamedTuple):
    """A matrix (N, K) of one of the `KINDS`."""

    kind: str
    N: int
    K: int
    values: np.ndarray
    scales: np.ndarray
    tops: np.ndarray | None = None

    @property
    def arrays(self) -> list[np.ndarray]:
        """Values, scales and, where the kind has them, tops."""
        return [self.values, self.scales] if self.tops is None else [self.values, self.scales, self.tops]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


def parts(kind: str, N: int, K: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The arrays of a packed (N, K) matrix, in the order of `Packed.arrays`: type and shape by name."""
    tiles, groups = -(-N // ROWS), -(-K // GROUP)
    if kind == "uint4":
        return {
            "values": ("uint8", (tiles, groups, 4, 64)),
            "scales": ("uint8", (tiles, groups, 2, ROWS)),
            "tops": ("float16", (tiles, -(-groups // SUPER), 2, ROWS)),
        }
    values = ("int8", (tiles, groups, 8, 64)) if kind == "int8" else ("uint8", (tiles, groups, 4, 64))
    return {"values": values, "scales": ("float16", (tiles, groups, ROWS))}


def pack(kind: str, q: np.ndarray, *factors: np.ndarray) -> Packed:
    """q (N, K), int8 or for uint4 uint8, and its scales and tops: see `Rounded`."""
    (N, K), sizes = q.shape, parts(kind, *q.shape)
    tiles, groups, chunks, _ = sizes["values"][1]
    full = np.zeros((tiles * ROWS, groups * GROUP), q.dtype)
    full[:N, :K] = q
    # (tile, row, group, chunk, nibble, column) -> (tile, group, chunk, row, column, nibble)
    split = full.reshape(tiles, ROWS, groups, chunks, 8 // chunks, 4).transpose(0, 2, 3, 1, 5, 4)
    if kind == "int8":
        values = split[..., 0]
    else:
        nibbles = (split + 8 if kind == "int4" else split).astype(np.uint8)
        values = nibbles[..., 0] | nibbles[..., 1] << 4
    packed = [np.ascontiguousarray(values).reshape(tiles, groups, chunks, 64)]
    for rows in factors:
        full = np.zeros((tiles * ROWS, *rows.shape[1:]), rows.dtype)
        full[:N] = rows
        packed.append(np.ascontiguousarray(np.moveaxis(full.reshape(tiles, ROWS, *rows.shape[1:]), 1, -1)))
    assert [(a.dtype.name, a.shape) for a in packed] == [*sizes.values()], (kind, sizes)
    return Packed(kind, N, K, *packed)


def unpack(packed: Packed) -> Rounded:
    """The inverse of `pack`: q and its factors."""
    kind, N, K, values, *_ = packed
    tiles, groups, chunks, _ = values.shape
    by_row = values.reshape(tiles, groups, chunks, ROWS, 4).transpose(0, 3, 1, 2, 4)
    q = _unpacked_groups(kind, by_row).reshape(tiles * ROWS, groups * GROUP)
    factors = (np.moveaxis(a, -1, 1).reshape(tiles * ROWS, *a.shape[1:-1]) for a in packed.arrays[1:])
    return q[:N, :K], *(rows[:N] for rows in factors)


def unpack_rows(packed: Packed, ids: np.ndarray | slice) -> Rounded:
    """What `unpack` gives, of the rows `ids` alone."""
    kind, N, K, values, *_ = packed
    tile, row = np.divmod(np.arange(N)[ids], ROWS)
    own = values.reshape(*values.shape[:3], ROWS, 4)[tile, :, :, row]  # (T, groups, chunks, 4)
    q = _unpacked_groups(kind, own).reshape(len(tile), values.shape[1] * GROUP)
    return q[:, :K], *(a[tile, ..., row] for a in packed.arrays[1:])


def _unpacked_groups(kind: str, values: np.ndarray) -> np.ndarray:
    """The bytes of groups of one row, (..., chunks, 4) -> their weights q (..., 32)."""
    if kind != "int8":
        values = np.stack([values & 15, values >> 4], axis=-2)  # low nibbles go first
        values = values.reshape(*values.shape[:-3], 8, 4)
    if kind == "int4":
        values = values.view(np.int8) - 8
    return values.reshape(*values.shape[:-2], GROUP)


def packed_product(
    matrices: Sequence[Packed], biases: Sequence[np.ndarray | None]
) -> Callable[[np.ndarray], list[np.ndarray]]:
    """The product with up to three matrices that have the same input and agree in K and in kind.

    Returns a function: x float32 (M, K) -> for each matrix `ops.quantized_matmul` of x with it, plus its bias
    (N,) where it has one: float32 (M, N).
    """

    def product(x: np.ndarray) -> list[np.ndarray]:
        outputs = []
        for matrix, bias in zip(matrices, biases, strict=True):
            y = ops.quantized_matmul(x, *unpack(matrix))
            outputs.append(y if bias is None else y + bias)
        return outputs

    return product
