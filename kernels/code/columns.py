"""Columns of sixteen rows: number i of each of them, side by side, as one vector with a lane for each row.

Rows of keys lie one after another. Whoever adds up their products number by number, 16 keys at a time, needs
them the other way round, and on the fly: they come from memory as fast as they are turned. Here a tile is
several neighbouring columns.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mvlm_np.kernels.code import llvm
from mvlm_np.kernels.code.llvm import F32, FLOATS, I8, I32, I64, LANES
from mvlm_np.kernels.code.simd import floats_of_halves, vector
from mvlm_np.kernels.code.tiles import Tile

REGISTER = 16  # bytes of a row that are turned together: all CPUs have instructions for that


def count_of(dtype):
    """How many columns of this type are turned together."""
    return 8 * REGISTER // dtype.bitwidth


@intrinsic
def load_columns(typing, a, row, last, i):
    """Columns i, i + 1 ... of 16 rows of `a` from `row` on, as float32: as many as 16 bytes of a row hold.

    The row `last` stands in for those behind it.
    """
    number = ir.IntType(a.dtype.bitwidth)
    count = count_of(a.dtype)
    tile = Tile(FLOATS, count, 1)
    # A vector holds `count` numbers each of rows r, r + deep, r + 2 deep ...
    deep = min(8, count)
    starts = range(0, LANES // deep * count, count)

    def generate(context, builder, signature, arguments):
        a, row, last, i = arguments

        def numbers(r):
            place = llvm.element(context, builder, signature.args[0], a, _row(builder, row, r, last), i)
            return llvm.load(builder, place, ir.VectorType(number, count), number.width // 8)

        turned = [llvm.joined(builder, [numbers(r) for r in range(r, LANES, deep)]) for r in range(deep)]
        # Each pass interleaves the first half of the vectors with the second. As many passes as `deep` has
        # bits put the rows of a column side by side.
        size, half = LANES // deep * count, count // 2
        for _ in range(deep.bit_length() - 1):
            pairs = zip(turned[: deep // 2], turned[deep // 2 :], strict=True)
            turned = [
                llvm.shuffle(
                    builder,
                    [x for p in starts for j in range(half) for x in (p + at + j, size + p + at + j)],
                    v,
                    w,
                )
                for v, w in pairs
                for at in (0, half)
            ]
        columns = (
            llvm.shuffle(builder, [p + c * deep + r for p in starts for r in range(deep)], v)
            for v in turned
            for c in range(count // deep)
        )
        result = ir.Constant(tile.llvm, ir.Undefined)
        for c, column in enumerate(columns):
            result = builder.insert_value(result, _floats(builder, column), c)
        return result

    return tile(a, types.int64, types.int64, types.int64), generate


def _row(builder, row, r, last):
    """min(row + r, last)"""
    row = builder.add(row, ir.Constant(I64, r))
    return builder.select(builder.icmp_signed("<", row, last), row, last)


def _floats(builder, v):
    if v.type.element == I8:
        return builder.sitofp(v, FLOATS)
    return builder.bitcast(v, FLOATS) if v.type.element == I32 else floats_of_halves(builder, v)


@intrinsic
def load_lanes(typing, a, row, last):
    """a[row : row + 16], where a[last] stands in for what is behind it."""

    def generate(context, builder, signature, arguments):
        a, row, last = arguments
        lanes = ir.Constant(FLOATS, ir.Undefined)
        for r in range(LANES):
            place = llvm.element(context, builder, signature.args[0], a, _row(builder, row, r, last))
            lanes = builder.insert_element(lanes, llvm.load(builder, place, F32, 4), ir.Constant(I32, r))
        return lanes

    return vector(a, types.int64, types.int64), generate


@intrinsic
def multiply_columns(typing, columns, v):
    """Each column times v."""

    def generate(context, builder, signature, arguments):
        tile, v = arguments
        for c in range(columns.rows):
            tile = builder.insert_value(tile, builder.fmul(builder.extract_value(tile, c), v), c)
        return tile

    return columns(columns, v), generate


@intrinsic
def add_columns(typing, total, a, row, i, columns):
    """total + a[row, i] * the first column + a[row, i + 1] * the second ..., in this order; a vector."""

    def generate(context, builder, signature, arguments):
        total, a, row, i, tile = arguments
        for c in range(columns.rows):
            index = row, builder.add(i, ir.Constant(I64, c))
            x = llvm.load(builder, llvm.element(context, builder, signature.args[1], a, *index), F32, 4)
            column = builder.extract_value(tile, c)
            total = llvm.multiply_add(builder, llvm.splat(builder, x), column, total)
        return total

    return total(total, a, types.int64, types.int64, columns), generate
