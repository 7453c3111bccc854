"""Products with int8 and int4 weights: `linear.packed_matmul`, compiled.

Two steps. First the activations are rounded to int8 and laid out for the product, in blocks of as many tokens as
a tile has, k-major: the tokens' bytes of columns 4 c .. 4 c + 3 lie side by side. What stands before the product
in the model, a norm or an activation function, is computed on the way, row by row. Then a product walks over
tiles of weights and blocks of tokens. A token's result depends neither on the other tokens nor on threads.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import types

from mvlm_np.errors import GenerationError
from mvlm_np.kernels import activations, norms
from mvlm_np.kernels.arrays import float32, rows_contiguous
from mvlm_np.kernels.compile import inline
from mvlm_np.kernels.dot import (
    FEW,
    OFFSET,
    SHAPE,
    add_rows,
    add_scaled,
    address,
    group_sums,
    largest_magnitude,
    store_rounded,
    store_tile,
    zeros,
)
from mvlm_np.kernels.kernel import kernel, reads, writes
from mvlm_np.kernels.pack import GROUP, ROWS, Packed
from mvlm_np.kernels.simd import LANES, load, store

CACHED = 1 << 18  # bytes of activations that stay in a core's cache while all weights pass by


def packed_matmul(
    op: Callable | None,
    args: tuple,
    matrices: Sequence[Packed],
    bias: np.ndarray | None = None,
    add_to: np.ndarray | None = None,
) -> list[np.ndarray]:
    """`linear.packed_matmul`: the integers are the same, their weighted sums up to rounding."""
    bits, K = matrices[0].bits, matrices[0].K
    acts, starts, act_scales, M = rounded(op, args, bits)
    blocks, _, _, rows, _ = acts.shape
    columns = SHAPE[1] if rows == SHAPE[0] else 1
    tiles = sum(len(matrix.values) for matrix in matrices)
    stripes = -(-tiles // columns)
    y = np.empty((blocks * rows, stripes * columns * ROWS), np.float32)
    span = max(1, min(blocks, CACHED // (rows * K)))
    weights = [a for matrix in matrices for a in (matrix.values, matrix.scales.view(np.uint16))]
    unused = _UNUSED[bits] * (3 - len(matrices))
    # A weight takes 1/20 ns from memory, and 1/200 ns for each token.
    cost = columns * ROWS * K * max(0.05, 0.005 * span * rows)
    product = PRODUCTS[bits, rows, columns]
    product(
        stripes * -(-blocks // span), cost, *weights, *unused, acts, starts, act_scales,
        _NO_BIAS if bias is None else _padded(bias, y.shape[1]), _NO_ROWS if add_to is None else rows_contiguous(add_to), span, y,
    )  # fmt: skip
    outputs, column = [], 0
    for matrix in matrices:
        outputs.append(y[:M, column : column + matrix.N])
        column += len(matrix.values) * ROWS
    return outputs


def _padded(bias, n):
    return bias if len(bias) == n else np.pad(bias, (0, n - len(bias)))


# ---------------------------------------------------------------- rounding


class Rounded(NamedTuple):
    """Activations in int8. A group's scale and sum belong to 32 columns of one token."""

    acts: np.ndarray  # int8 (blocks, groups, 8, rows, 4)
    starts: np.ndarray  # int32 (blocks, groups, rows): minus the sum, times what is added to the weights
    scales: np.ndarray  # float32 (blocks, groups, rows)
    tokens: int


def rounded(op: Callable | None, args: tuple, bits: int) -> Rounded:
    """`ops.quantize_rows(op(*args))`, laid out for a product with weights of `bits` bits. op None: args[0]."""
    fused = ROUNDED.get(op)
    if fused is None or not float32(*(a for a in args if isinstance(a, np.ndarray))):
        args = (args[0] if op is None else op(*args),)
        fused = ROUNDED[None]
    x = args[0]
    if not float32(x) or x.ndim != 2:
        raise GenerationError("activations", f"found {x.dtype} {x.shape}", "float32 with at least one row")
    M, K = x.shape
    rows = 1 if M == 1 else FEW if M <= 2 * FEW else SHAPE[0]
    blocks, groups = -(-M // rows), -(-K // GROUP)
    acts = np.empty((blocks, groups, GROUP // 4, rows, 4), np.int8)
    starts = np.empty((blocks, groups, rows), np.int32)
    scales = np.empty((blocks, groups, rows), np.float32)
    damaged = np.zeros(1, np.int64)
    body, order = fused
    body(blocks, rows * K, *order(*args), OFFSET[bits], acts, starts, scales, damaged)
    if damaged[0]:
        raise GenerationError(
            "activations", "found NaN or infinity", "finite numbers", "the checkpoint is damaged"
        )
    return Rounded(acts, starts, scales, M)


def _rounding(name, change):
    """A kernel that rounds rows of x, each after change(row, other's row, weight, bias, eps) in place."""

    @kernel(
        reads(2, "A"), reads(2, "A"), reads(1), reads(1), types.float64, types.int64,
        writes(5, dtype=types.int8), writes(3, dtype=types.int32), writes(3), writes(1, dtype=types.int64),
        name=f"rounded_{name}",
    )  # fmt: skip
    def body(first, last, x, other, weight, bias, eps, offset, acts, starts, scales, damaged):
        tokens, K = x.shape
        _, groups, _, rows, _ = acts.shape
        row = np.zeros(groups * GROUP, np.float32)
        for block in range(first, last):
            for m in range(rows):
                token = block * rows + m
                if token < tokens:
                    _copy_row(x, token, row)
                    change(row[:K], other, token, weight, bias, np.float32(eps))
                else:
                    row[:K] = np.float32(0)
                for g in range(groups):
                    largest = largest_magnitude(row, g * GROUP)
                    if not largest < np.inf:
                        damaged[0] = 1
                    # The scale may be denormal and so imprecise: what is rounded is clipped to -127 .. 127.
                    scale = largest / np.float32(127)
                    divisor = scale if scale > 0 else np.float32(1)
                    total = store_rounded(row, g * GROUP, divisor, acts, block, g, m)
                    starts[block, g, m] = -offset * total
                    scales[block, g, m] = scale

    return body


@inline
def _copy_row(x, i, row):
    n = x.shape[1]
    whole = n // LANES * LANES
    for j in range(0, whole, LANES):
        store(row, (j,), load(x, (i, j)))
    for j in range(whole, n):
        row[j] = x[i, j]


@inline
def _nothing(row, other, token, weight, bias, eps):
    pass


@inline
def _rms_norm(row, other, token, weight, bias, eps):
    norms.rms_norm_row(row, weight, eps, row)


@inline
def _layer_norm(row, other, token, weight, bias, eps):
    norms.layer_norm_row(row, weight, bias, eps, row)


@inline
def _quick_gelu(row, other, token, weight, bias, eps):
    for i in range(len(row)):
        row[i] = activations.quick_gelu_of(row[i])


@inline
def _gelu(row, other, token, weight, bias, eps):
    for i in range(len(row)):
        row[i] = activations.gelu_of(row[i])


@inline
def _swiglu(row, other, token, weight, bias, eps):
    up = np.empty(len(row), np.float32)
    _copy_row(other, token, up)
    for i in range(len(row)):
        row[i] = activations.silu_of(row[i]) * up[i]


_NO_ROWS, _NO_BIAS = np.empty((0, 0), np.float32), np.empty(0, np.float32)

# For each function that may stand before a product: its kernel, and (x, other, weight, bias, eps) for it.
ROUNDED: dict[Callable | None, tuple[Any, Callable]] = {
    None: (_rounding("alone", _nothing), lambda x: (rows_contiguous(x), _NO_ROWS, _NO_BIAS, _NO_BIAS, 0.0)),
    norms.rms_norm: (
        _rounding("rms_norm", _rms_norm),
        lambda x, weight, eps: (rows_contiguous(x), _NO_ROWS, weight, _NO_BIAS, eps),
    ),
    norms.layer_norm: (
        _rounding("layer_norm", _layer_norm),
        lambda x, weight, bias, eps: (rows_contiguous(x), _NO_ROWS, weight, bias, eps),
    ),
    activations.quick_gelu: (
        _rounding("quick_gelu", _quick_gelu),
        lambda x: (rows_contiguous(x), _NO_ROWS, _NO_BIAS, _NO_BIAS, 0.0),
    ),
    activations.gelu: (
        _rounding("gelu", _gelu),
        lambda x: (rows_contiguous(x), _NO_ROWS, _NO_BIAS, _NO_BIAS, 0.0),
    ),
    activations.swiglu: (
        _rounding("swiglu", _swiglu),
        lambda gate, up: (rows_contiguous(gate), rows_contiguous(up), _NO_BIAS, _NO_BIAS, 0.0),
    ),
}


# ---------------------------------------------------------------- products


def _product(bits, rows, columns):
    """The kernel for tiles of `rows` tokens x `columns` times 16 rows of weights of up to three matrices."""
    weights = reads(4, dtype={8: types.int8, 4: types.uint8}[bits]), reads(3, dtype=types.uint16)
    addresses = _one_tile if columns == 1 else _two_tiles

    @kernel(
        *weights, *weights, *weights, reads(5, dtype=types.int8), reads(3, dtype=types.int32), reads(3),
        reads(1), reads(2, "A"), types.int64, writes(2), name=f"int{bits}_{rows}x{columns}",
    )  # fmt: skip
    def body(first, last, v0, s0, v1, s1, v2, s2, acts, starts, act_scales, bias, add_to, span, y):
        blocks, groups = acts.shape[:2]
        stripes = y.shape[1] // (columns * ROWS)
        for step in range(first, last):
            start, stripe = step // stripes * span, step % stripes
            values, scales = addresses(stripe * columns, v0, s0, v1, s1, v2, s2)
            column = stripe * columns * ROWS
            for block in range(start, min(start + span, blocks)):
                totals = zeros(rows, columns)
                for g in range(groups):
                    sums = group_sums(rows, bits, values, acts, starts, block, g)
                    totals = add_scaled(totals, sums, scales, act_scales, block, g)
                token = block * rows
                if len(bias) > 0:
                    totals = add_rows(totals, bias, token, column)
                if token + rows <= len(add_to) and column + columns * ROWS <= add_to.shape[1]:
                    totals = add_rows(totals, add_to, token, column)
                    store_tile(totals, y, token, column)
                else:
                    store_tile(totals, y, token, column)
                    _add_ragged(y, token, rows, column, columns * ROWS, add_to)

    return body


@inline
def _add_ragged(y, token, rows, column, columns, x):
    """y += x where both have elements, in a tile of y."""
    for t in range(token, min(token + rows, len(x))):
        for i in range(column, min(column + columns, x.shape[1])):
            y[t, i] += x[t, i]


@inline
def _one_tile(tile, v0, s0, v1, s1, v2, s2):
    values, scales = _tile_at(tile, v0, s0, v1, s1, v2, s2)
    return (values,), (scales,)


@inline
def _two_tiles(tile, v0, s0, v1, s1, v2, s2):
    """An odd tile at the end is taken twice; its second product goes where nobody looks."""
    values0, scales0 = _tile_at(tile, v0, s0, v1, s1, v2, s2)
    last = len(v0) + len(v1) + len(v2) - 1
    values1, scales1 = _tile_at(min(tile + 1, last), v0, s0, v1, s1, v2, s2)
    return (values0, values1), (scales0, scales1)


@inline
def _tile_at(tile, v0, s0, v1, s1, v2, s2):
    """The addresses of a tile's values and scales, tiles being counted through the matrices.

    Numbers, not arrays: arrays count their references, over which threads would meet at every tile.
    """
    if tile < len(v0):
        return address(v0, tile), address(s0, tile)
    tile -= len(v0)
    if tile < len(v1):
        return address(v1, tile), address(s1, tile)
    return address(v2, tile - len(v1)), address(s2, tile - len(v1))


def _unused(bits):
    """In place of a second and third matrix."""
    return np.empty((0, 0, bits, 64), {8: np.int8, 4: np.uint8}[bits]), np.empty((0, 0, ROWS), np.uint16)


_UNUSED = {bits: _unused(bits) for bits in (8, 4)}
PRODUCTS = {
    (bits, *shape): _product(bits, *shape)
    for bits in (8, 4)
    for shape in dict.fromkeys([(1, 1), (FEW, 1), SHAPE])
}
