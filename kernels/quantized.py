"""Products with int8 and int4 weights: `linear.packed_matmul`, compiled.

Two steps. First the activations are rounded to int8 and laid out for the product, in blocks of as many
tokens as a tile has, k-major: the tokens' bytes of columns 4 c .. 4 c + 3 lie side by side. What stands
before the product in the model, a norm or an activation function, is computed on the way, row by row. Then a
product walks over tiles of weights and blocks of tokens. A token's result depends neither on the other
tokens nor on threads.
"""

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
from numba import types

from mvlm_np.errors import GenerationError
from mvlm_np.kernels import activations, norms
from mvlm_np.kernels.arrays import FLOAT32, rows_contiguous
from mvlm_np.kernels.compile import inline
from mvlm_np.kernels.dot import FEW, OFFSET, SHAPE, add_group
from mvlm_np.kernels.kernel import kernel, reads, writes
from mvlm_np.kernels.pack import GROUP, ROWS, Packed
from mvlm_np.kernels.simd import LANES, load, store
from mvlm_np.kernels.tiles import add_rows, largest_magnitude, store_rounded, store_tile, zeros

CACHED = 1 << 18  # bytes of activations that stay in a core's cache while all weights pass by


class Matrices(NamedTuple):
    """Up to three packed matrices with the same input, as the kernels want them.

    places   int64 (3, 3): addresses of a matrix's values and scales, and its tiles; zeros where there is none
    tiles    of all of them
    columns  of the product that belong to each
    packed   keeps what `places` points to
    """

    bits: int
    K: int
    places: np.ndarray
    tiles: int
    columns: list[tuple[int, int]]
    packed: tuple[Packed, ...]


def prepare(matrices: Sequence[Packed]) -> Any:
    """`linear.prepare`: finds out what does not change from product to product."""
    places, columns, tiles = np.zeros((3, 3), np.int64), [], 0
    for place, (_, values, scales, N, _) in zip(places, matrices, strict=False):
        assert values.flags.c_contiguous and scales.flags.c_contiguous
        place[:] = values.ctypes.data, scales.ctypes.data, len(values)
        columns.append((tiles * ROWS, tiles * ROWS + N))
        tiles += len(values)
    return Matrices(matrices[0].bits, matrices[0].K, places, tiles, columns, tuple(matrices))


def packed_matmul(
    op: Callable | None,
    args: tuple,
    matrices: Any,
    bias: np.ndarray | None = None,
    add_to: np.ndarray | None = None,
) -> list[np.ndarray]:
    """`linear.packed_matmul`: the integers are the same, their weighted sums up to rounding."""
    before = BEFORE.get(op)
    if before is None:  # a function that is not compiled together with the rounding
        assert op is not None
        before, args = BEFORE[None], (op(*args),)
    change, arrange = before
    x, other, gain, shift, eps = arrange(*args)
    M, K = x.shape
    if x.dtype != FLOAT32 or M == 0:
        raise GenerationError("activations", f"found {x.dtype} {x.shape}", "float32 with at least one row")
    bits, inputs, places, tiles, columns, _ = matrices
    assert inputs == K and len(gain) in (0, K), (K, inputs, len(gain))
    rounding = change, x, other, gain, shift, eps, OFFSET[bits]
    added = _NO_ROWS if add_to is None else rows_contiguous(add_to)
    if M == 1:
        y = np.empty((1, tiles * ROWS), np.float32)
        bias = _NO_ROW if bias is None else bias
        ONE_TOKEN[bits](tiles, ROWS * K / 20, *rounding, places, bias, added, y)
        finite = isfinite(y[0, 0])
    else:
        rows, width = (FEW, 1) if M <= 2 * FEW else SHAPE
        blocks, groups = -(-M // rows), -(-K // GROUP)
        acts = np.empty((blocks, groups, GROUP // 4, rows, 4), np.int8)
        starts = np.empty((blocks, groups, rows), np.int32)
        act_scales = np.empty((blocks, groups, rows), np.float32)
        _rounded(blocks, rows * K, *rounding, acts, starts, act_scales)
        stripes = -(-tiles // width)
        y = np.empty((blocks * rows, stripes * width * ROWS), np.float32)
        bias = _NO_ROW if bias is None else np.pad(bias, (0, y.shape[1] - len(bias)))
        span = max(1, min(blocks, CACHED // (rows * K)))
        cost = (
            width * ROWS * K * span * rows / 200
        )  # 200 products a nanosecond; above, 20 weights from memory
        product = TOKENS[bits, rows, width]
        product(stripes * -(-blocks // span), cost, places, acts, starts, act_scales, bias, added, span, y)
        finite = bool(np.isfinite(y[:M, 0]).all())
    if not finite:  # a scale that is not finite leaves no sum finite
        raise GenerationError(
            "activations", "found NaN or infinity", "finite numbers", "the checkpoint is damaged"
        )
    return [y[:M, start:stop] for start, stop in columns]


# ---------------------------------------------------------------- rounding

_NO_ROWS, _NO_ROW = np.zeros((1, 0), np.float32), np.zeros(0, np.float32)

# The functions that are computed together with the rounding, by number, and their arguments as (x, a second
# array of rows, gain, shift, eps).
NOTHING, RMS_NORM, LAYER_NORM, QUICK_GELU, GELU, SWIGLU = range(6)
BEFORE: dict[Callable | None, tuple[int, Callable]] = {
    None: (NOTHING, lambda x: (rows_contiguous(x), _NO_ROWS, _NO_ROW, _NO_ROW, 0.0)),
    norms.rms_norm: (RMS_NORM, lambda x, gain, eps: (rows_contiguous(x), _NO_ROWS, gain, _NO_ROW, eps)),
    norms.layer_norm: (
        LAYER_NORM,
        lambda x, gain, shift, eps: (rows_contiguous(x), _NO_ROWS, gain, shift, eps),
    ),
    activations.quick_gelu: (QUICK_GELU, lambda x: (rows_contiguous(x), _NO_ROWS, _NO_ROW, _NO_ROW, 0.0)),
    activations.gelu: (GELU, lambda x: (rows_contiguous(x), _NO_ROWS, _NO_ROW, _NO_ROW, 0.0)),
    activations.swiglu: (
        SWIGLU,
        lambda gate, up: (rows_contiguous(gate), rows_contiguous(up), _NO_ROW, _NO_ROW, 0.0),
    ),
}

# What rounding reads and writes:
#     change, x, other, gain, shift, eps    one of the functions above, and its arguments
#     offset                                what is added to the weights
#     acts                                  int8 (blocks, groups, 8, rows, 4)
#     starts                                int32 (blocks, groups, rows): minus a group's sum times the offset
#     scales                                float32 (blocks, groups, rows)
_TO_ROUND = types.int64, reads(2, "A"), reads(2, "A"), reads(1), reads(1), types.float64, types.int64
_ROUNDED = writes(5, dtype=types.int8), writes(3, dtype=types.int32), writes(3)


@kernel(*_TO_ROUND, *_ROUNDED)
def _rounded(first, last, change, x, other, gain, shift, eps, offset, acts, starts, scales):
    """`ops.quantize_rows` after a function, block by block."""
    _round_blocks(first, last, change, x, other, gain, shift, eps, offset, acts, starts, scales)


@inline
def _round_blocks(first, last, change, x, other, gain, shift, eps, offset, acts, starts, scales):
    tokens, K = x.shape
    _, groups, _, rows, _ = acts.shape
    row, second = np.zeros(groups * GROUP, np.float32), np.empty(other.shape[1], np.float32)
    for block in range(first, last):
        for m in range(rows):
            token = block * rows + m
            if token < tokens:
                _copy_row(x, token, row)
                _change(change, row[:K], other, token, second, gain, shift, np.float32(eps))
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


@inline
def _change(change, row, other, token, second, gain, shift, eps):
    """Computes the function in place."""
    if change == RMS_NORM:
        norms.rms_norm_row(row, gain, eps, row)
    elif change == LAYER_NORM:
        norms.layer_norm_row(row, gain, shift, eps, row)
    elif change == QUICK_GELU:
        for i in range(len(row)):
            row[i] = activations.quick_gelu_of(row[i])
    elif change == GELU:
        for i in range(len(row)):
            row[i] = activations.gelu_of(row[i])
    elif change == SWIGLU:
        _copy_row(other, token, second)
        for i in range(len(row)):
            row[i] = activations.silu_of(row[i]) * second[i]


# ---------------------------------------------------------------- products


def _stripes(bits, rows, columns):
    """The steps of a product for tiles of `rows` tokens x `columns` times 16 rows of weights.

    A step is a stripe of tiles of weights with `span` blocks of tokens.
    """
    tiles_at = _one_tile if columns == 1 else _two_tiles

    @inline
    def steps(first, last, places, acts, starts, act_scales, bias, add_to, span, y):
        blocks, groups = acts.shape[:2]
        width = columns * ROWS
        stripes = y.shape[1] // width
        for step in range(first, last):
            start, column = step // stripes * span, step % stripes * width
            values, scales = tiles_at(places, step % stripes * columns, groups, bits)
            for block in range(start, min(start + span, blocks)):
                totals = zeros(rows, columns)
                for g in range(groups):
                    totals = add_group(totals, bits, values, scales, acts, starts, act_scales, block, g)
                if len(bias) > 0:
                    totals = add_rows(totals, bias, 0, column)
                token = block * rows
                if token + rows <= len(add_to) and column + width <= add_to.shape[1]:
                    totals = add_rows(totals, add_to, token, column)
                    store_tile(totals, y, token, column)
                else:
                    store_tile(totals, y, token, column)
                    _add_ragged(y, token, rows, column, width, add_to)

    return steps


@inline
def _add_ragged(y, token, rows, column, columns, x):
    """y += x where both have elements, in a tile of y."""
    for t in range(token, min(token + rows, len(x))):
        for i in range(column, min(column + columns, x.shape[1])):
            y[t, i] += x[t, i]


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
        reads(2, dtype=types.int64), *_ROUNDED, reads(1), reads(2, "A"), types.int64, writes(2),
        name=f"_int{bits}_{rows}x{columns}",
    )  # fmt: skip
    def body(first, last, places, acts, starts, act_scales, bias, add_to, span, y):
        steps(first, last, places, acts, starts, act_scales, bias, add_to, span, y)

    return body


def _one_token(bits):
    """The kernel for one token: the caller's thread rounds its activations, then all share the product."""
    steps = _stripes(bits, 1, 1)

    @inline
    def round_first(change, x, other, gain, shift, eps, offset, places, bias, add_to, y):
        groups = (x.shape[1] + GROUP - 1) // GROUP
        acts = np.empty((1, groups, GROUP // 4, 1, 4), np.int8)
        starts, scales = np.empty((1, groups, 1), np.int32), np.empty((1, groups, 1), np.float32)
        _round_blocks(0, 1, change, x, other, gain, shift, eps, offset, acts, starts, scales)
        return places, acts, starts, scales, bias, add_to, 1, y

    job = reads(2, dtype=types.int64), *_ROUNDED, reads(1), reads(2, "A"), types.int64, writes(2)

    @kernel(
        *_TO_ROUND, reads(2, dtype=types.int64), reads(1), reads(2, "A"), writes(2),
        name=f"_int{bits}_1x1", before=round_first, job=job,
    )  # fmt: skip
    def body(first, last, places, acts, starts, act_scales, bias, add_to, span, y):
        steps(first, last, places, acts, starts, act_scales, bias, add_to, span, y)

    return body


ONE_TOKEN = {bits: _one_token(bits) for bits in (8, 4)}
TOKENS = {
    (bits, *shape): _tokens(bits, *shape) for bits in (8, 4) for shape in dict.fromkeys([(FEW, 1), SHAPE])
}
