"""Attention, softmax and rotary positions.

Many queries are attended to block by block, on the same matrix product of tiles for scores and for values;
`cached` has a kernel for few. Neither asks BLAS, so no bit depends on threads. Keys and values are read where
they lie: float32, float16 or int8.
"""

import numpy as np
from numba import types
from numba.extending import intrinsic

from mvlm_np.kernels.code import llvm
from mvlm_np.kernels.code.activations import LN_2, LN_2_REST, LOG2_E, POWERS, ROUND
from mvlm_np.kernels.code.compile import inline
from mvlm_np.kernels.code.kernel import kernel, reads, writes
from mvlm_np.kernels.code.llvm import FLOATS, INTS
from mvlm_np.kernels.code.simd import (
    LANES,
    add,
    fma,
    larger,
    largest,
    load,
    multiply,
    multiply_add,
    splat,
    store,
    total,
    vector,
)
from mvlm_np.kernels.code.tiles import add_outer, store_tile, zeros
from mvlm_np.kernels.cpu import INSTRUCTION_SET

# Queries of a tile: their sums, 16 lanes each, fill most registers of AVX-512, or AVX2's and NEON's.
TILE = 12 if INSTRUCTION_SET == "avx512vnni" else 6
BLOCK = 24  # queries whose scores are in the cache together


@kernel(reads(3), reads(2), reads(2), writes(3))
def _rope(first, stop, x, cos, sin, out):
    _, H, d = x.shape
    half = d // 2
    for t in range(first, stop):
        for head in range(H):
            for i in range(half):
                left, right = x[t, head, i], x[t, head, i + half]
                out[head, t, i] = fma(left, cos[t, i], -(right * sin[t, i]))
                out[head, t, i + half] = fma(right, cos[t, i], left * sin[t, i])


# ---------------------------------------------------------------- softmax


@inline
def up(n):
    """The next multiple of 16."""
    return (n + LANES - 1) // LANES * LANES


@kernel(reads(2), writes(2))
def _softmax(first, stop, x, out):
    for i in range(first, stop):
        row = np.empty(up(x.shape[1]), np.float32)
        for j in range(x.shape[1]):
            row[j] = x[i, j]
        s = exponentials(row, x.shape[1])
        for j in range(x.shape[1]):
            out[i, j] = row[j] / s


@inline
def exponentials(row, n):
    """row[:n] becomes exp(row - its largest), the rest 0. Returns their sum.

    The row's length is a multiple of 16. What is below exp(-87), some 1e-38, is 0.
    """
    for j in range(n, len(row)):
        row[j] = -np.inf
    lanes = splat(np.float32(-np.inf))
    for j in range(0, len(row), LANES):
        lanes = larger(load(row, (j,)), lanes)
    down = splat(-largest(lanes))
    lanes = splat(np.float32(0))
    for j in range(0, len(row), LANES):
        e = _exp(add(load(row, (j,)), down))
        store(row, (j,), e)
        lanes = add(lanes, e)
    return total(lanes)


@inline
def _exp(x):
    """`activations.exp` of 16 numbers that are at most 0, but 0 below -87. NaN stays."""
    bounded = larger(splat(np.float32(-87)), x)
    shifted = multiply_add(bounded, splat(LOG2_E), splat(ROUND))
    n = add(shifted, splat(-ROUND))
    r = multiply_add(n, splat(-LN_2_REST), multiply_add(n, splat(-LN_2), bounded))
    polynomial = splat(POWERS[0])
    for c in POWERS[1:]:
        polynomial = multiply_add(polynomial, r, splat(c))
    e = add(splat(np.float32(1)), multiply_add(multiply(r, r), polynomial, r))
    return _times_power(e, shifted, bounded, x)


@intrinsic
def _times_power(typing, e, shifted, bounded, x):
    """e * 2^n, a normal number, or 0 where x is below its bound; n is in the last bits of `shifted`."""

    def generate(context, builder, signature, arguments):
        e, n = (builder.bitcast(v, INTS) for v in arguments[:2])
        power = builder.bitcast(builder.add(e, builder.shl(n, llvm.constant(23))), FLOATS)
        below = builder.fcmp_ordered("<", arguments[3], arguments[2])
        return builder.select(below, llvm.constant(0.0, FLOATS), power)

    return vector(e, shifted, bounded, x), generate


# ---------------------------------------------------------------- many queries


def _many_queries(dtype, scale_of):
    """The kernel for many queries of one sequence, whose keys and values are of some type."""

    @inline
    def _key_panels(k, scales, head, seen):
        """-> (seen / 16, d, 16): 16 positions side by side, for scores."""
        d = k.shape[2]
        panels = np.empty((up(seen) // LANES, d, LANES), np.float32)
        row = np.empty(d, np.float32)
        for s in range(seen):
            scale = splat(scale_of(scales, head, s))
            for i in range(0, d, LANES):
                store(row, (i,), multiply(load(k, (head, s, i)), scale))
            for i in range(d):
                panels[s // LANES, i, s % LANES] = row[i]
        return panels

    @inline
    def _value_panels(v, scales, head, seen):
        """-> (d / 16, seen, 16): 16 elements of each position, for their weighted sum."""
        d = v.shape[2]
        panels = np.empty((d // LANES, seen, LANES), np.float32)
        for s in range(seen):
            scale = splat(scale_of(scales, head, s))
            for i in range(0, d, LANES):
                store(panels, (i // LANES, s, 0), multiply(load(v, (head, s, i)), scale))
        return panels

    @kernel(
        reads(3, "A"), reads(3, "A", dtype), reads(3, "A"), reads(3, "A", dtype), reads(3, "A"),
        types.int64, types.int64, writes(3), name=f"_many_queries_{dtype}",
    )  # fmt: skip
    def body(first, stop, q, k, k_scales, v, v_scales, past, parts, out):
        """Query t sees min(S, past + t + 1) positions."""
        H, T, _ = q.shape
        group = H // len(k)
        length = (T + parts - 1) // parts
        for step in range(first, stop):
            head, query = step // parts, step % parts * length
            query_stop = min(T, query + length)
            seen = min(k.shape[1], past + query_stop)  # positions that any of these queries sees
            keys = _key_panels(k, k_scales, head // group, seen)
            values = _value_panels(v, v_scales, head // group, seen)
            _attend(q[head], keys, values, past, query, query_stop, out[head])

    return body


@inline
def _attend(q, keys, values, past, start, stop, out):
    """Queries start .. stop - 1 of one head. q and out (T, d)."""
    d, seen = keys.shape[1], values.shape[1]
    # Rows and lanes that are beyond an end hold anything. What is computed from them is left there.
    queries = np.empty((BLOCK, d), np.float32)
    scores = np.empty((BLOCK, len(keys) * LANES), np.float32)
    mixed = np.empty((BLOCK, d), np.float32)
    sums = np.empty(BLOCK, np.float32)
    scale = np.float32(1 / np.sqrt(d))
    for first in range(start, stop, BLOCK):
        n = min(BLOCK, stop - first)
        for r in range(n):
            for i in range(d):
                queries[r, i] = q[first + r, i] * scale
        width = min(seen, past + first + n)
        for column in range(0, width, LANES):
            for r in range(0, n, TILE):
                _tile(queries, r, keys[column // LANES], d, scores, column)
        for r in range(n):
            sums[r] = exponentials(scores[r, : up(width)], min(seen, past + first + r + 1))
        for column in range(0, d, LANES):
            for r in range(0, n, TILE):
                _tile(scores, r, values[column // LANES], width, mixed, column)
        for r in range(n):
            for i in range(d):
                out[first + r, i] = mixed[r, i] / sums[r]


@inline
def _tile(rows, first, panel, n, out, column):
    """out[first : first + TILE, column : column + 16] = rows[first : first + TILE, :n] @ panel[:n]"""
    sums = zeros(TILE, 1)
    for i in range(n):
        sums = add_outer(sums, rows, first, i, load(panel, (i, 0)))
    store_tile(sums, out, first, column)


@inline
def _one(scales, head, s):
    return np.float32(1)


@inline
def _stored(scales, head, s):
    return scales[head, s, 0]


_many_queries(types.float32, _one)
_many_queries(types.uint16, _one)  # the bits of float16, which Numba does not know
_many_queries(types.int8, _stored)
