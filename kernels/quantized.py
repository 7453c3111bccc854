"""Products with int8 and int4 weights: `ops.quantize_rows` and `linear.packed_matmul`, compiled.

Activations are rounded to int8 and laid out for the product in blocks of 4 tokens, k-major: the 4 tokens'
bytes of columns 4 c .. 4 c + 3 lie side by side. One step of the inner loop meets 16 rows of weights (see
`pack`) with 4 columns of 4 tokens. Nibbles are stored with 8 added; instead of taking it off again, the
integer sum starts from -8 times the sum of the activations. A token's result does not depend on the others,
nor on threads.
"""

import numpy as np
from numba import prange, types

from mvlm_np.errors import GenerationError
from mvlm_np.kernels.arrays import contiguous
from mvlm_np.kernels.compile import inline, kernel, reads, writes
from mvlm_np.kernels.dot import (
    SIGNED_OFFSET,
    dot4_signed,
    dot4_unsigned,
    high_nibbles,
    load_bytes,
    load_halves,
    low_nibbles,
    multiply,
    repeat4,
    splat_int,
    to_float,
)
from mvlm_np.kernels.pack import GROUP, ROWS
from mvlm_np.kernels.simd import multiply_add, splat, store

MR = 4  # tokens of a block

bytes_type = {8: types.int8, 4: types.uint8}


def integers(ndim, dtype, readonly=True):
    """The type of an array of integers that a kernel reads (or writes)."""
    return types.Array(dtype, ndim, "C", readonly=readonly)


def packed_matmul(
    x: np.ndarray, bits: int, values: np.ndarray, scales: np.ndarray, N: int, K: int
) -> np.ndarray:
    """`linear.packed_matmul`: the integers are the same, their weighted sums up to rounding."""
    assert x.shape[1] == K
    if x.dtype != np.float32 or len(x) == 0:
        raise GenerationError("activations", f"found {x.dtype} {x.shape}", "float32 with at least one row")
    M, (tiles, groups) = len(x), values.shape[:2]
    mr = 1 if M == 1 else MR
    blocks = -(-M // mr)
    acts = np.empty((blocks, groups, GROUP // 4, mr, 4), np.int8)
    starts = np.empty((blocks, groups, mr), np.int32)
    act_scales = np.empty((blocks, groups, mr), np.float32)
    offset = 8 if bits == 4 else SIGNED_OFFSET
    _quantize(4 * x.size, contiguous(x), offset, acts, starts, act_scales)
    if not np.isfinite(act_scales).all():
        raise GenerationError(
            "activations", "found NaN or infinity", "finite numbers", "the checkpoint is damaged"
        )
    y = np.empty((blocks * mr, tiles * ROWS), np.float32)
    product = _PRODUCTS[bits, mr]
    product(2 * M * N * K // 16, values, scales.view(np.uint16), acts, starts, act_scales, y)
    return y[:M, :N]


@kernel(reads(2), types.int64, integers(5, types.int8, False), integers(3, types.int32, False), writes(3))
def _quantize(x, offset, acts, starts, scales):
    blocks, groups, _, mr, _ = acts.shape
    for block in prange(blocks):
        for m in range(mr):
            for g in range(groups):
                _quantize_group(
                    x,
                    block * mr + m,
                    g,
                    m,
                    np.int32(offset),
                    acts[block, g],
                    starts[block, g],
                    scales[block, g],
                )


@inline
def _quantize_group(x, row, g, m, offset, acts, starts, scales):
    """Columns 32 g .. 32 g + 31 of x[row]; rows and columns past x's end are zeros."""
    group = np.zeros(GROUP, np.float32)
    if row < len(x):
        for i in range(min(GROUP, x.shape[1] - GROUP * g)):
            group[i] = x[row, GROUP * g + i]
    largest = np.float32(0)
    for i in range(GROUP):
        largest = max(largest, abs(group[i]))
        if group[i] != group[i]:
            largest = np.float32(np.inf)  # the caller refuses it
            break
    scale = largest / np.float32(127)
    divisor = scale if scale > 0 else np.float32(1)
    total = np.int32(0)
    for i in range(GROUP):
        q = np.rint(group[i] / divisor)
        q8 = np.int32(min(max(q, np.float32(-127)), np.float32(127)))
        acts[i // 4, m, i % 4] = q8
        total += q8
    scales[m] = scale
    starts[m] = -offset * total


def _signature(bits):
    return (
        integers(4, bytes_type[bits]),
        integers(3, types.uint16),
        integers(5, types.int8),
        integers(3, types.int32),
        reads(3),
        writes(2),
    )


@kernel(*_signature(4))
def _int4_one(values, scales, acts, starts, act_scales, y):
    """One token, as in decoding: the weights stream through once."""
    tiles, groups = values.shape[:2]
    for tile in prange(tiles):
        total = splat(np.float32(0))
        for g in range(groups):
            sums = splat_int(starts[0, g, 0])
            for c in range(4):
                w = load_bytes(values, (tile, g, c, 0))
                sums = dot4_unsigned(sums, low_nibbles(w), repeat4(acts, (0, g, 2 * c, 0, 0)))
                sums = dot4_unsigned(sums, high_nibbles(w), repeat4(acts, (0, g, 2 * c + 1, 0, 0)))
            scale = multiply(load_halves(scales, (tile, g, 0)), splat(act_scales[0, g, 0]))
            total = multiply_add(to_float(sums), scale, total)
        store(y, (0, tile * ROWS), total)


@kernel(*_signature(8))
def _int8_one(values, scales, acts, starts, act_scales, y):
    tiles, groups = values.shape[:2]
    for tile in prange(tiles):
        total = splat(np.float32(0))
        for g in range(groups):
            sums = splat_int(starts[0, g, 0])
            for c in range(8):
                w = load_bytes(values, (tile, g, c, 0))
                sums = dot4_signed(sums, w, repeat4(acts, (0, g, c, 0, 0)))
            scale = multiply(load_halves(scales, (tile, g, 0)), splat(act_scales[0, g, 0]))
            total = multiply_add(to_float(sums), scale, total)
        store(y, (0, tile * ROWS), total)


@kernel(*_signature(4))
def _int4_four(values, scales, acts, starts, act_scales, y):
    """Blocks of 4 tokens: each 64 bytes of weights, once unpacked, meet all four."""
    tiles, groups = values.shape[:2]
    for tile in prange(tiles):
        for block in range(len(acts)):
            total0 = total1 = total2 = total3 = splat(np.float32(0))
            for g in range(groups):
                sums0, sums1 = splat_int(starts[block, g, 0]), splat_int(starts[block, g, 1])
                sums2, sums3 = splat_int(starts[block, g, 2]), splat_int(starts[block, g, 3])
                for c in range(4):
                    w = load_bytes(values, (tile, g, c, 0))
                    low, high = low_nibbles(w), high_nibbles(w)
                    sums0 = dot4_unsigned(sums0, low, repeat4(acts, (block, g, 2 * c, 0, 0)))
                    sums1 = dot4_unsigned(sums1, low, repeat4(acts, (block, g, 2 * c, 1, 0)))
                    sums2 = dot4_unsigned(sums2, low, repeat4(acts, (block, g, 2 * c, 2, 0)))
                    sums3 = dot4_unsigned(sums3, low, repeat4(acts, (block, g, 2 * c, 3, 0)))
                    sums0 = dot4_unsigned(sums0, high, repeat4(acts, (block, g, 2 * c + 1, 0, 0)))
                    sums1 = dot4_unsigned(sums1, high, repeat4(acts, (block, g, 2 * c + 1, 1, 0)))
                    sums2 = dot4_unsigned(sums2, high, repeat4(acts, (block, g, 2 * c + 1, 2, 0)))
                    sums3 = dot4_unsigned(sums3, high, repeat4(acts, (block, g, 2 * c + 1, 3, 0)))
                scale = load_halves(scales, (tile, g, 0))
                total0 = _scaled(sums0, scale, act_scales[block, g, 0], total0)
                total1 = _scaled(sums1, scale, act_scales[block, g, 1], total1)
                total2 = _scaled(sums2, scale, act_scales[block, g, 2], total2)
                total3 = _scaled(sums3, scale, act_scales[block, g, 3], total3)
            store(y, (4 * block, tile * ROWS), total0)
            store(y, (4 * block + 1, tile * ROWS), total1)
            store(y, (4 * block + 2, tile * ROWS), total2)
            store(y, (4 * block + 3, tile * ROWS), total3)


@kernel(*_signature(8))
def _int8_four(values, scales, acts, starts, act_scales, y):
    tiles, groups = values.shape[:2]
    for tile in prange(tiles):
        for block in range(len(acts)):
            total0 = total1 = total2 = total3 = splat(np.float32(0))
            for g in range(groups):
                sums0, sums1 = splat_int(starts[block, g, 0]), splat_int(starts[block, g, 1])
                sums2, sums3 = splat_int(starts[block, g, 2]), splat_int(starts[block, g, 3])
                for c in range(8):
                    w = load_bytes(values, (tile, g, c, 0))
                    sums0 = dot4_signed(sums0, w, repeat4(acts, (block, g, c, 0, 0)))
                    sums1 = dot4_signed(sums1, w, repeat4(acts, (block, g, c, 1, 0)))
                    sums2 = dot4_signed(sums2, w, repeat4(acts, (block, g, c, 2, 0)))
                    sums3 = dot4_signed(sums3, w, repeat4(acts, (block, g, c, 3, 0)))
                scale = load_halves(scales, (tile, g, 0))
                total0 = _scaled(sums0, scale, act_scales[block, g, 0], total0)
                total1 = _scaled(sums1, scale, act_scales[block, g, 1], total1)
                total2 = _scaled(sums2, scale, act_scales[block, g, 2], total2)
                total3 = _scaled(sums3, scale, act_scales[block, g, 3], total3)
            store(y, (4 * block, tile * ROWS), total0)
            store(y, (4 * block + 1, tile * ROWS), total1)
            store(y, (4 * block + 2, tile * ROWS), total2)
            store(y, (4 * block + 3, tile * ROWS), total3)


@inline
def _scaled(sums, scale, act_scale, total):
    """total + a group's integer sums, times the weights' scales and the activations'."""
    return multiply_add(to_float(sums), multiply(scale, splat(act_scale)), total)


_PRODUCTS = {(4, 1): _int4_one, (8, 1): _int8_one, (4, MR): _int4_four, (8, MR): _int8_four}
