"""Products with int8 and int4 weights: `pack.packed_product`, compiled.

Two steps. First the activations are rounded to int8 and laid out for the product, in blocks of as many
tokens as a tile has, k-major: the tokens' bytes of columns 4 c .. 4 c + 3 lie side by side. Then a product
walks over tiles of weights and blocks of tokens. A token's result depends neither on the other tokens nor on
threads.
"""

from collections.abc import Callable, Sequence
from math import isfinite

import numpy as np
from numba import types

from mvlm_np.errors import GenerationError
from mvlm_np.kernels.arrays import FLOAT32, rows_contiguous
from mvlm_np.kernels.compile import inline
from mvlm_np.kernels.dot import FEW, OFFSET, SHAPE, add_group
from mvlm_np.kernels.kernel import kernel, reads, writes
from mvlm_np.kernels.pack import ROWS, Packed
from mvlm_np.kernels.simd import LANES, load, store
from mvlm_np.kernels.tiles import add_rows, largest_magnitude, store_rounded, store_tile, zeros
from mvlm_np.ops import GROUP

CACHED = 1 << 18  # bytes of activations that stay in a core's cache while all weights pass by
NO_BIAS = np.zeros(0, np.float32)


def packed_product(
    matrices: Sequence[Packed], biases: Sequence[np.ndarray | None]
) -> Callable[[np.ndarray], list[np.ndarray]]:
    """`pack.packed_product`: the integers are the same, their weighted sums up to rounding."""
    return Product(matrices, biases)


class Product:
    """The product with some matrices. What does not change from call to call is found out once:

    places   int64 (3, 3): addresses of a matrix's values and scales, and its tiles; zeros where there is none
    tiles    of all matrices
    columns  of the product that belong to each
    bias     float32 (16 * tiles,), or empty
    """

    def __init__(self, matrices: Sequence[Packed], biases: Sequence[np.ndarray | None]):
        self.matrices = tuple(matrices)  # keeps what `places` points to
        self.bits, self.K = matrices[0].bits, matrices[0].K
        self.places, self.columns, self.tiles = np.zeros((3, 3), np.int64), list[slice](), 0
        for place, (_, values, scales, N, _) in zip(self.places, matrices, strict=False):
            assert values.flags.c_contiguous and scales.flags.c_contiguous
            place[:] = values.ctypes.data, scales.ctypes.data, len(values)
            self.columns.append(slice(self.tiles * ROWS, self.tiles * ROWS + N))
            self.tiles += len(values)
        self.bias = NO_BIAS
        if any(bias is not None for bias in biases):
            # An odd tile at the end may be computed twice, hence one more.
            self.bias = np.zeros((self.tiles + 1) * ROWS, np.float32)
            for columns, bias in zip(self.columns, biases, strict=True):
                self.bias[columns] = 0 if bias is None else bias

    def __call__(self, x: np.ndarray) -> list[np.ndarray]:
        x = rows_contiguous(x)
        M, K = x.shape
        if x.dtype != FLOAT32 or M == 0:
            raise GenerationError(
                "activations", f"found {x.dtype} {x.shape}", "float32 with at least one row"
            )
        assert self.K == K, (self.K, K)
        y = self._one_token(x) if M == 1 else self._tokens(x)
        if not (isfinite(y[0, 0]) if M == 1 else np.isfinite(y[:M, 0]).all()):
            # A scale that is not finite leaves no sum finite.
            raise GenerationError(
                "activations", "found NaN or infinity", "finite numbers", "the checkpoint is damaged"
            )
        return [y[:M, columns] for columns in self.columns]

    def _one_token(self, x: np.ndarray) -> np.ndarray:
        y = np.empty((1, self.tiles * ROWS), np.float32)
        cost = ROWS * self.K / 20  # 20 weights a nanosecond come from memory
        ONE_TOKEN[self.bits](self.tiles, cost, x, OFFSET[self.bits], self.places, self.bias, y)
        return y

    def _tokens(self, x: np.ndarray) -> np.ndarray:
        (M, K), bits = x.shape, self.bits
        rows, width = (FEW, 1) if M <= 2 * FEW else SHAPE
        blocks, groups = -(-M // rows), -(-K // GROUP)
        acts = np.empty((blocks, groups, GROUP // 4, rows, 4), np.int8)
        starts = np.empty((blocks, groups, rows), np.int32)
        act_scales = np.empty((blocks, groups, rows), np.float32)
        _rounded(blocks, rows * K, x, OFFSET[bits], acts, starts, act_scales)
        stripes = -(-self.tiles // width)
        y = np.empty((blocks * rows, stripes * width * ROWS), np.float32)
        span = max(1, min(blocks, CACHED // (rows * K)))
        cost = width * ROWS * K * span * rows / 200  # 200 products a nanosecond
        steps = stripes * -(-blocks // span)
        TOKENS[bits, rows, width](steps, cost, self.places, acts, starts, act_scales, self.bias, span, y)
        return y


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


ONE_TOKEN = {bits: _one_token(bits) for bits in (8, 4)}
TOKENS = {
    (bits, *shape): _tokens(bits, *shape) for bits in (8, 4) for shape in dict.fromkeys([(FEW, 1), SHAPE])
}
