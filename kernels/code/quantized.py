"""Products with packed weights: `pack.packed_product`, compiled.

Two steps. First the activations are rounded to int8 and laid out for the product, in blocks of tokens,
k-major: the tokens' bytes of columns 4 c .. 4 c + 3 lie side by side (`shapes` has the details).
Then a product walks over tiles of weights and blocks of tokens. A token's result depends neither on the other
tokens nor on threads.
"""

import numpy as np
from numba import carray, types

from mvlm_np.kernels.code.compile import inline
from mvlm_np.kernels.code.dot import FLOATS_READY, SCALES, TOPS, VALUES, add_group, zero_totals
from mvlm_np.kernels.code.kernel import kernel, reads, writes
from mvlm_np.kernels.code.simd import LANES, load, multiply, pointer, store
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
    sizes = VALUES[kind], SCALES[kind]
    span = SUPER if kind == "uint4" else 1 << 30  # groups with the same tops

    @inline
    def block(matrix, tile, acts, word, groups, token):
        weights, (bias, own), y = matrix
        values, scales, tops = tiles_at(weights, tile, groups, sizes)
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
def _one_tile(weights, tile, groups, sizes):
    values, scales, tops = _tile_at(weights, tile, groups, sizes)
    return (values,), (scales,), (tops,)


@inline
def _two_tiles(weights, tile, groups, sizes):
    values0, scales0, tops0 = _tile_at(weights, tile, groups, sizes)
    values1, scales1, tops1 = _tile_at(weights, tile + 1, groups, sizes)
    return (values0, values1), (scales0, scales1), (tops0, tops1)


@inline
def _tile_at(weights, tile, groups, sizes):
    """The addresses of a tile's values, scales and tops; sizes: bytes of a group's values and of its scales.
    Beyond the last tile it is the last one: its product goes where nobody looks.
    """
    values, scales, tops, tiles = weights
    tile = min(tile, tiles - 1)
    supers = (groups + SUPER - 1) // SUPER
    return (
        values + tile * groups * sizes[0],
        scales + tile * groups * sizes[1],
        tops + tile * supers * TOPS,
    )


WHOLE_BYTES, FLOAT_BYTES = SCALES["uint4"], SCALES[FLOATS_READY]


@inline
def _with_floats(matrix, tile, columns, groups, floats):
    """The matrix with scales and minima of some tiles from `tile` on as float32: what many blocks of tokens
    multiply with is computed once. floats: room for them, (columns * groups, 2, 16).
    """
    (values, scales, tops, tiles), own, y = matrix
    supers = (groups + SUPER - 1) // SUPER
    for t in range(tile, min(tile + columns, tiles)):
        whole = carray(pointer(scales + t * groups * WHOLE_BYTES), (groups, 2, LANES), np.uint8)
        counted_in = carray(pointer(tops + t * supers * TOPS), (supers, 2, LANES), np.uint16)
        for g in range(groups):
            for i in range(2):
                both = multiply(load(whole, (g, i, 0)), load(counted_in, (g // SUPER, i, 0)))
                store(floats, ((t - tile) * groups + g, i, 0), both)
    # Tiles are counted through the matrix, and only these are there.
    first = np.int64(floats.ctypes.data) - tile * groups * FLOAT_BYTES
    return (values, first, tops, tiles), own, y


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
    in_floats = kind == "uint4"
    tall_block_of_many = _block(FLOATS_READY, tall, columns) if in_floats else tall_block

    @kernel(*_PRODUCT, name=f"_{kind}_{tall}x{columns}")
    def body(first, stop, places, acts, bias, span, y):
        tokens, results = len(y), y.ctypes.data
        groups = len(acts) // (tokens * WORDS)
        stripes = y.shape[1] // (columns * ROWS)
        floats = np.empty((columns * groups if in_floats else 0, 2, LANES), np.float32)
        for step in range(first, stop):
            start = step // stripes * span
            matrix, tile = _matrix_of(step % stripes, columns, places, bias, results, tokens)
            many = in_floats and min(start + span, tokens) - start > 2 * tall  # two would not pay it back
            ready = _with_floats(matrix, tile, columns, groups, floats) if many else matrix
            for token in range(start, min(start + span, tokens), tall):
                word = token * groups * WORDS
                if tokens - token > middle:
                    if many:
                        tall_block_of_many(ready, tile, acts, word, groups, token)
                    else:
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
