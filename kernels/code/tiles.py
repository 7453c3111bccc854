"""Tiles: vectors of 16 lanes, a lane to a row of weights, one for each token (and for twice 16 rows, two).

A kernel that is written with tiles serves any number of tokens; LLVM keeps each vector in a register. Here is
what all CPUs share: what a tile is, how it is added to and stored, and how activations are rounded for it.
The products of bytes, in which CPUs differ, are in `dot`. As in `simd`, indices are not checked.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from mvlm_np.kernels.code import llvm
from mvlm_np.kernels.code.llvm import F32, FLOATS, I8, I32, I64, INTS, LANES


class Tile(types.Type):
    """The Numba type of `rows` x `columns` vectors of int32 or float32 lanes: tokens x rows of weights, a
    lane for each. There are 16 lanes, or in the products of bytes as many as a register has.
    """

    def __init__(self, lanes, rows, columns):
        self.rows, self.columns = rows, columns
        self.llvm = ir.ArrayType(lanes, rows * columns)
        super().__init__(f"tile of {rows} x {columns} {lanes}")


@register_model(Tile)
class _TileModel(models.PrimitiveModel):
    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, numba_type.llvm)


# ---------------------------------------------------------------- tiles


@intrinsic(prefer_literal=True)
def zeros(typing, rows, columns):
    """A tile of float32 zeros; both sizes are constants."""
    tile = Tile(FLOATS, rows.literal_value, columns.literal_value)
    return tile(rows, columns), lambda *_: ir.Constant(tile.llvm, None)


@intrinsic
def add_outer(typing, totals, a, row, i, v):
    """totals[m] + a[row + m, i] * v for all m, of a tile of one column."""

    def generate(context, builder, signature, arguments):
        totals, a, row, i, v = arguments
        for m in range(signature.args[0].rows):
            index = builder.add(row, ir.Constant(I64, m)), i
            x = llvm.load(builder, llvm.element(context, builder, signature.args[1], a, *index), F32, 4)
            total = builder.extract_value(totals, m)
            total = llvm.multiply_add(builder, llvm.splat(builder, x), v, total)
            totals = builder.insert_value(totals, total, m)
        return totals

    return totals(totals, a, types.int64, types.int64, v), generate


@intrinsic
def load_tile(typing, like, x, row, column):
    """The tile that `store_tile` has stored; `like` is one of its type."""

    def generate(context, builder, signature, arguments):
        tile, x, row, column = arguments
        for i, pointer in enumerate(
            _tile_of(context, builder, signature.args[0], signature.args[1], x, row, column)
        ):
            tile = builder.insert_value(tile, builder.load(pointer, align=4), i)
        return tile

    return like(like, x, types.int64, types.int64), generate


@intrinsic
def add_rows(typing, totals, x, row, column):
    """totals + x[row + m, column + 16 c : … + 16] for all m and c; a vector x has one row, which all get."""

    def generate(context, builder, signature, arguments):
        totals, x, row, column = arguments
        for i, pointer in enumerate(
            _tile_of(context, builder, signature.args[0], signature.args[1], x, row, column)
        ):
            total = builder.fadd(builder.extract_value(totals, i), builder.load(pointer, align=4))
            totals = builder.insert_value(totals, total, i)
        return totals

    return totals(totals, x, types.int64, types.int64), generate


@intrinsic
def store_tile(typing, totals, y, row, column):
    """y[row + m, column + 16 c : … + 16] = totals[m, c], for all m and c."""

    def generate(context, builder, signature, arguments):
        totals, y, row, column = arguments
        for i, pointer in enumerate(
            _tile_of(context, builder, signature.args[0], signature.args[1], y, row, column)
        ):
            builder.store(builder.extract_value(totals, i), pointer, align=4)
        return context.get_dummy_value()

    return types.none(totals, y, types.int64, types.int64), generate


def _tile_of(context, builder, tile, array_type, array, row, column):
    """Pointers to the part of a float32 array that a tile covers, columns first."""
    vector = tile.llvm.element
    for c in range(tile.columns):
        for m in range(tile.rows):
            index = [builder.add(column, ir.Constant(I64, vector.count * c))]
            if array_type.ndim == 2:
                index.insert(0, builder.add(row, ir.Constant(I64, m)))
            pointer = llvm.element(context, builder, array_type, array, *index)
            yield builder.bitcast(pointer, vector.as_pointer())


# ---------------------------------------------------------------- rounding


@intrinsic
def largest_magnitude(typing, row, start):
    """The largest |row[i]| of 32 floats from `start` on. NaN if one of them is."""

    def generate(context, builder, signature, arguments):
        pointer = llvm.element(context, builder, signature.args[0], *arguments)
        # Without their sign, floats are ordered like integers of the same bits, and NaN is the largest.
        halves = (llvm.load(builder, pointer, INTS, 4, half) for half in range(2))
        low, high = (builder.and_(bits, llvm.constant(0x7FFFFFFF)) for bits in halves)
        largest = llvm.call(builder, "llvm.smax.v16i32", INTS, low, high)
        bits = llvm.call(builder, "llvm.vector.reduce.smax.v16i32", I32, largest)
        return builder.bitcast(bits, F32)

    return types.float32(row, types.int64), generate


@intrinsic
def store_rounded(typing, row, start, divisor, words, place, stride):
    """32 floats from `start` on, divided and rounded to int8, four to a word. Of the words, in the order of
    memory, they are those at place + stride * k for k = 0 .. 7. Returns their sum.
    """

    def generate(context, builder, signature, arguments):
        row, start, divisor, words, place, stride = arguments
        of_words = signature.args[3]
        pointer = llvm.element(context, builder, signature.args[0], row, start)
        total = llvm.constant(0)
        for half in range(2):
            floats = llvm.load(builder, pointer, FLOATS, 4, half)
            quotients = builder.fdiv(floats, llvm.splat(builder, divisor))
            rounded = builder.fptosi(llvm.call(builder, "llvm.rint.v16f32", FLOATS, quotients), INTS)
            for limit, pick in ((127, "llvm.smin.v16i32"), (-127, "llvm.smax.v16i32")):
                rounded = llvm.call(builder, pick, INTS, rounded, llvm.constant(limit))
            total = builder.add(total, rounded)
            four = builder.bitcast(builder.trunc(rounded, ir.VectorType(I8, LANES)), ir.VectorType(I32, 4))
            for k in range(4):
                to = llvm.element(context, builder, of_words, words, *[0] * (of_words.ndim - 1), place)
                builder.store(builder.extract_element(four, ir.Constant(I32, k)), to, align=4)
                place = builder.add(place, stride)
        return llvm.call(builder, "llvm.vector.reduce.add.v16i32", I32, total)

    index = types.int64
    return types.int32(row, index, types.float32, words, index, index), generate
