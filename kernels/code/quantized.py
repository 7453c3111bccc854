"""Products with packed weights: `pack.packed_product`, compiled.

Two steps. First the activations are rounded to int8 and laid out for the product, in blocks of tokens,
k-major: the tokens' bytes of columns 4 c .. 4 c + 3 lie side by side (`shapes` has the details).
Then a product walks over tiles of weights and blocks of tokens. A token's result depends neither on the other
tokens nor on threads.
"""

import numpy as np
from numba import carray, types

from mvlm_np.kernels.code.compile import inline
from mvlm_np.kernels.code.dot import SCALES, TOPS, VALUES, add_group, zero_totals
from mvlm_np.kernels.code.kernel import kernel, reads, writes
from mvlm_np.kernels.code.simd import LANES, load, pointer, store
from mvlm_np.kernels.code.tiles import add_rows, largest_magnitude, load_tile, store_rounded, store_tile
from mvlm_np.kernels.pack import KINDS, ROWS
from mvlm_np.kernels.shapes import COPIES, FEWER, MINIMA, PARTS, SHAPE, START, WORDS
from mvlm_np.ops import GROUP, SUPER

# ---------------------------------------------------------------- rounding


@kernel(reads(2, "A"), types.int64, types.int64, writes(1, dtype=types.int32))
def _rounded(first, stop, x, offset, tall, acts):
    """`ops.quantize_rows`, token by token. Blocks have `tall` tokens, or what is left."""
    _round(first, stop, x, offset, tall, acts)


@inline
def _round(first, stop, x, offset, tall, acts):
    tokens, K = x.shape
    groups = (K + GROUP - 1) // GROUP
    padded = len(acts) // (groups * WORDS)
    floats = acts.view(np.float32)
    row = np.zeros(groups * GROUP, np.float32)
    for token in range(first, stop):
        if token < tokens:
            _copy_row(x, token, row)
        else:  # fills up a block
            row[:K] = np.float32(0)
        m = token % tall
        block = token - m
        rows = min(tall, padded - block)
        for g in range(groups):
            largest = largest_magnitude(row, g * GROUP)
            # The scale may be denormal and so imprecise: what is rounded is clipped to -127 .. 127.
            scale = largest / np.float32(127)
            divisor = scale if scale > 0 else np.float32(1)
            word = (block * groups + g * rows) * WORDS
            total = store_rounded(row, g * GROUP, divisor, acts, word + m, rows)
            if offset == MINIMA:
                floats[word + 8 * rows + m] = -scale * np.float32(total)
            else:
                for copy in range(COPIES):
                    acts[word + 8 * rows + m * COPIES + copy] = START - offset * total
            floats[word + (8 + COPIES) * rows + m] = scale


@inline
def _copy_row(x, i, row):
    n = x.shape[1]
    whole = n // LANES * LANES
    for j in range(0, whole, LANES):
        store(row, (j,), load(x, (i, j)))
    for j in range(whole, n):
        row[j] = x[i, j]


# ---------------------------------------------------------------- products


def _block(kind, rows, columns):
    """The product of a block of `rows` tokens with `columns` tiles of weights.

    Where a tile of weights takes several registers, all of them times many tokens would be too many sums.
    Then the rows of one register are multiplied through a few groups, whose weights stay in the first cache,
    then those of the next one; in between, the totals wait in y.
    """
    tiles_at = _one_tile if columns == 1 else _two_tiles
    at_once, segment = (PARTS, 1 << 30) if PARTS == 1 or rows * PARTS <= 4 else (1, 8)
    registers, lanes = columns * at_once, ROWS // PARTS
    value_bytes = VALUES[kind]
    span = SUPER if kind == "uint4" else 1 << 30  # groups with the same tops

    @inline
    def block(matrix, tile, acts, word, groups, token):
        weights, (bias, own), y = matrix
        values, scales, tops = tiles_at(weights, tile, groups, value_bytes)
        for start in range(0, groups, segment):
            stop = min(start + segment, groups)
            for part in range(0, PARTS, at_once):
                column = tile * ROWS + part * lanes
                totals = zero_totals(rows, registers)
                if start > 0:
                    totals = load_tile(totals, y, token, column)
                for first in range(start, stop, span):
                    super_block = first // SUPER
                    for g in range(first, min(first + span, stop)):
                        at = word + g * (rows * WORDS)
                        totals = add_group(totals, kind, values, scales, tops, part, g, super_block, acts, at)
                if stop == groups and len(bias) > 0:
                    totals = add_rows(totals, bias, 0, own + column)
                store_tile(totals, y, token, column)

    return block


@inline
def _one_tile(weights, tile, groups, value_bytes):
    values, scales, tops = _tile_at(weights, tile, groups, value_bytes)
    return (values,), (scales,), (tops,)


@inline
def _two_tiles(weights, tile, groups, value_bytes):
    values0, scales0, tops0 = _tile_at(weights, tile, groups, value_bytes)
    values1, scales1, tops1 = _tile_at(weights, tile + 1, groups, value_bytes)
    return (values0, values1), (scales0, scales1), (tops0, tops1)


@inline
def _tile_at(weights, tile, groups, value_bytes):
    """The addresses of a tile's values, scales and tops. Beyond the last tile it is the last one: its product
    goes where nobody looks.
    """
    values, scales, tops, tiles = weights
    tile = min(tile, tiles - 1)
    supers = (groups + SUPER - 1) // SUPER
    return (
        values + tile * groups * value_bytes,
        scales + tile * groups * SCALES,
        tops + tile * supers * TOPS,
    )


@inline
def _matrix_of(stripe, columns, places, bias, results, tokens):
    """Stripes of `columns` tiles are counted through the matrices: -> the matrix of one, and its first tile.

    A matrix is its weights (the addresses of values, scales and tops, and how many tiles); all biases, which
    may be empty, and where its own begins; and its result, (tokens, columns).
    results: the address of all results, each of which lies behind the one before.
    """
    i = 0
    while stripe * columns >= places[i, 3]:
        stripe -= (places[i, 3] + columns - 1) // columns
        i += 1
    start, stop = places[i, 4], places[i, 5]
    result = carray(pointer(results + 4 * tokens * start), (tokens, stop - start), np.float32)
    weights = places[i, 0], places[i, 1], places[i, 2], places[i, 3]
    return (weights, (bias, start), result), stripe * columns


_PRODUCT = reads(2, dtype=types.int64), reads(1, dtype=types.int32), reads(1), types.int64, writes(2)


def _tokens(kind, tall, columns):
    """The kernel for several tokens, whose activations are rounded.

    A step is a stripe of so many `columns` of tiles with `span` tokens. Blocks have `tall` tokens; the last
    one may have fewer.
    """
    middle, short = FEWER
    tall_block, middle_block, short_block = (
        _block(kind, *shape) for shape in ((tall, columns), (middle, 1), (short, 1))
    )

    @kernel(*_PRODUCT, name=f"_{kind}_{tall}x{columns}")
    def body(first, stop, places, acts, bias, span, y):
        tokens, results = len(y), y.ctypes.data
        groups = len(acts) // (tokens * WORDS)
        stripes = y.shape[1] // (columns * ROWS)
        for step in range(first, stop):
            start = step // stripes * span
            matrix, tile = _matrix_of(step % stripes, columns, places, bias, results, tokens)
            for token in range(start, min(start + span, tokens), tall):
                word = token * groups * WORDS
                if tokens - token > middle:
                    tall_block(matrix, tile, acts, word, groups, token)
                else:
                    for t in range(tile, tile + columns):
                        if tokens - token > short:
                            middle_block(matrix, t, acts, word, groups, token)
                        else:
                            short_block(matrix, t, acts, word, groups, token)


def _one_token(kind):
    """The kernel for one token: the caller's thread rounds its activations, then all share the product."""
    block = _block(kind, 1, 1)

    @inline
    def round_first(x, offset, places, bias, y):
        acts = np.empty((x.shape[1] + GROUP - 1) // GROUP * WORDS, np.int32)
        _round(0, 1, x, offset, 1, acts)
        return places, acts, bias, 1, y

    @kernel(
        reads(2, "A"), types.int64, reads(2, dtype=types.int64), reads(1), writes(2),
        name=f"_{kind}_1x1", prepare=round_first, job=_PRODUCT,
    )  # fmt: skip
    def body(first, stop, places, acts, bias, span, y):
        results = y.ctypes.data
        for step in range(first, stop):
            matrix, tile = _matrix_of(step, 1, places, bias, results, 1)
            block(matrix, tile, acts, 0, len(acts) // WORDS, 0)


for _kind in KINDS:
    _one_token(_kind)
    _tokens(_kind, *SHAPE)
