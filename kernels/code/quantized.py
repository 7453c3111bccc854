"""Products with int8 and int4 weights: `pack.packed_product`, compiled.

Two steps. First the activations are rounded to int8 and laid out for the product, in blocks of as many
tokens as a tile has, k-major: the tokens' bytes of columns 4 c .. 4 c + 3 lie side by side. Then a product
walks over tiles of weights and blocks of tokens. A token's result depends neither on the other tokens nor on
threads.
"""

import numpy as np
from numba import types

from mvlm_np.kernels.code.compile import inline
from mvlm_np.kernels.code.dot import add_group
from mvlm_np.kernels.code.kernel import kernel, reads, writes
from mvlm_np.kernels.code.simd import LANES, load, store
from mvlm_np.kernels.code.tiles import add_rows, largest_magnitude, store_rounded, store_tile, zeros
from mvlm_np.kernels.pack import ROWS
from mvlm_np.kernels.shapes import TILES
from mvlm_np.ops import GROUP

# ---------------------------------------------------------------- rounding

# What rounding reads and writes:
#     x             float32 (tokens, K)
#     offset        what is added to the weights
#     acts          int8 (blocks, groups, 8, rows, 4)
#     starts        int32 (blocks, groups, rows): minus a group's sum times the offset
#     scales        float32 (blocks, groups, rows)
_TO_ROUND = reads(2, "A"), types.int64
_ROUNDED = writes(5, dtype=types.int8), writes(3, dtype=types.int32), writes(3)


@kernel(*_TO_ROUND, *_ROUNDED)
def _rounded(first, stop, x, offset, acts, starts, scales):
    """`ops.quantize_rows`, block by block."""
    _round_blocks(first, stop, x, offset, acts, starts, scales)


@inline
def _round_blocks(first, stop, x, offset, acts, starts, scales):
    tokens, K = x.shape
    _, groups, _, rows, _ = acts.shape
    row = np.zeros(groups * GROUP, np.float32)
    for block in range(first, stop):
        for m in range(rows):
            token = block * rows + m
            if token < tokens:
                _copy_row(x, token, row)
            else:
                row[:K] = np.float32(0)
            for g in range(groups):
                largest = largest_magnitude(row, g * GROUP)
                # The scale may be denormal and so imprecise: what is rounded is clipped to -127 .. 127.
                scale = largest / np.float32(127)
                divisor = scale if scale > 0 else np.float32(1)
                total = store_rounded(row, g * GROUP, divisor, acts, block, g, m)
                starts[block, g, m] = -offset * total
                scales[block, g, m] = scale


@inline
def _copy_row(x, i, row):
    n = x.shape[1]
    whole = n // LANES * LANES
    for j in range(0, whole, LANES):
        store(row, (j,), load(x, (i, j)))
    for j in range(whole, n):
        row[j] = x[i, j]


# ---------------------------------------------------------------- products


def _stripes(bits, rows, columns):
    """The steps of a product for tiles of `rows` tokens x `columns` times 16 rows of weights.

    A step is a stripe of tiles of weights with `span` blocks of tokens.
    """
    tiles_at = _one_tile if columns == 1 else _two_tiles

    @inline
    def steps(first, stop, places, acts, starts, act_scales, bias, span, y):
        blocks, groups = acts.shape[:2]
        width = columns * ROWS
        stripes = y.shape[1] // width
        for step in range(first, stop):
            start, column = step // stripes * span, step % stripes * width
            values, scales = tiles_at(places, step % stripes * columns, groups, bits)
            for block in range(start, min(start + span, blocks)):
                totals = zeros(rows, columns)
                for g in range(groups):
                    totals = add_group(totals, bits, values, scales, acts, starts, act_scales, block, g)
                if len(bias) > 0:
                    totals = add_rows(totals, bias, 0, column)
                store_tile(totals, y, block * rows, column)

    return steps


@inline
def _one_tile(places, tile, groups, bits):
    values, scales = _tile_at(places, tile, groups, bits)
    return (values,), (scales,)


@inline
def _two_tiles(places, tile, groups, bits):
    """An odd tile at the end is taken twice; its second product goes where nobody looks."""
    values0, scales0 = _tile_at(places, tile, groups, bits)
    last = places[0, 2] + places[1, 2] + places[2, 2] - 1
    values1, scales1 = _tile_at(places, min(tile + 1, last), groups, bits)
    return (values0, values1), (scales0, scales1)


@inline
def _tile_at(places, tile, groups, bits):
    """The addresses of a tile's values and scales, tiles being counted through the matrices."""
    matrix = 0
    while tile >= places[matrix, 2]:
        tile -= places[matrix, 2]
        matrix += 1
    return places[matrix, 0] + tile * groups * bits * 64, places[matrix, 1] + tile * groups * ROWS * 2


def _tokens(bits, rows, columns):
    """The kernel for several tokens, whose activations are rounded."""
    steps = _stripes(bits, rows, columns)

    @kernel(
        reads(2, dtype=types.int64), *_ROUNDED, reads(1), types.int64, writes(2),
        name=f"_int{bits}_{rows}x{columns}",
    )  # fmt: skip
    def body(first, stop, places, acts, starts, act_scales, bias, span, y):
        steps(first, stop, places, acts, starts, act_scales, bias, span, y)

    return body


def _one_token(bits):
    """The kernel for one token: the caller's thread rounds its activations, then all share the product."""
    steps = _stripes(bits, 1, 1)

    @inline
    def round_first(x, offset, places, bias, y):
        groups = (x.shape[1] + GROUP - 1) // GROUP
        acts = np.empty((1, groups, GROUP // 4, 1, 4), np.int8)
        starts, scales = np.empty((1, groups, 1), np.int32), np.empty((1, groups, 1), np.float32)
        _round_blocks(0, 1, x, offset, acts, starts, scales)
        return places, acts, starts, scales, bias, 1, y

    job = reads(2, dtype=types.int64), *_ROUNDED, reads(1), types.int64, writes(2)

    @kernel(
        *_TO_ROUND, reads(2, dtype=types.int64), reads(1), writes(2),
        name=f"_int{bits}_1x1", prepare=round_first, job=job,
    )  # fmt: skip
    def body(first, stop, places, acts, starts, act_scales, bias, span, y):
        steps(first, stop, places, acts, starts, act_scales, bias, span, y)

    return body


for _bits in (8, 4):
    _one_token(_bits)
    for _shape in TILES:
        _tokens(_bits, *_shape)
