"""Tiles: vectors of 16 lanes, a lane to a row of weights, one for each token (and for twice 16 rows, two).

A kernel that is written with tiles serves any number of tokens; LLVM keeps each vector in a register. Here is
what all CPUs share: what a tile is, how it is added to and stored, and how activations are rounded for it.
The products of bytes, in which CPUs differ, are in `dot`. As in `simd`, indices are not checked.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from mvlm_np.kernels.simd import LANES

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_BYTES, _INTS = ir.VectorType(_I8, 64), ir.VectorType(_I32, LANES)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)


class Tile(types.Type):
    """The Numba type of `rows` x `columns` vectors of 16 int32 or float32 lanes: tokens x 16 rows of
    weights.
    """

    def __init__(self, lanes, rows, columns):
        self.rows, self.columns = rows, columns
        self.llvm = ir.ArrayType(lanes, rows * columns)
        super().__init__(f"tile of {rows} x {columns} {lanes}")


@register_model(Tile)
class _TileModel(models.PrimitiveModel):
    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, numba_type.llvm)


# ---------------------------------------------------------------- values


def _constant(value, llvm_type=_INTS):
    return ir.Constant(llvm_type, [value] * llvm_type.count)


def _splat(builder, scalar, lanes=LANES):
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, _constant(0, ir.VectorType(_I32, lanes)))


def _call(builder, name, result, *arguments):
    function = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), arguments)


def _pieces(builder, v, count):
    """A vector cut into `count` equal parts."""
    lanes = v.type.count // count
    index = ir.VectorType(_I32, lanes)
    undefined = ir.Constant(v.type, ir.Undefined)
    return [
        builder.shuffle_vector(v, undefined, ir.Constant(index, list(range(i * lanes, (i + 1) * lanes))))
        for i in range(count)
    ]


def _joined(builder, parts):
    while len(parts) > 1:
        lanes = 2 * parts[0].type.count
        index = ir.Constant(ir.VectorType(_I32, lanes), list(range(lanes)))
        parts = [builder.shuffle_vector(v, w, index) for v, w in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


# ---------------------------------------------------------------- memory


def _at(context, builder, array_type, array, *index):
    """The address of an element; indices are LLVM values or plain numbers."""
    array = context.make_array(array_type)(context, builder, array)
    index = [i if isinstance(i, ir.Value) else ir.Constant(_I64, i) for i in index]
    return cgutils.get_item_pointer(context, builder, array_type, array, index)


def _offset(builder, address, index, stride):
    """A pointer to the byte index * stride behind an address."""
    moved = builder.add(address, builder.mul(index, ir.Constant(_I64, stride)))
    return builder.inttoptr(moved, _I8.as_pointer())


def _load(builder, pointer, llvm_type, align=1, index=0):
    """The value of this type at a pointer, or `index` such values further on."""
    pointer = builder.bitcast(pointer, llvm_type.as_pointer())
    return builder.load(builder.gep(pointer, [ir.Constant(_I64, index)]), align=align)


# ---------------------------------------------------------------- tiles


@intrinsic(prefer_literal=True)
def zeros(typing, rows, columns):
    """A tile of float32 zeros; both sizes are constants."""
    tile = Tile(_FLOATS, rows.literal_value, columns.literal_value)
    return tile(rows, columns), lambda *_: ir.Constant(tile.llvm, None)


@intrinsic
def add_outer(typing, totals, a, row, i, v):
    """totals[m] + a[row + m, i] * v for all m, of a tile of one column."""

    def generate(context, builder, signature, arguments):
        totals, a, row, i, v = arguments
        for m in range(signature.args[0].rows):
            index = builder.add(row, ir.Constant(_I64, m)), i
            x = _splat(builder, builder.load(_at(context, builder, signature.args[1], a, *index), align=4))
            product = builder.fmul(x, v, flags=("contract",))
            total = builder.fadd(product, builder.extract_value(totals, m), flags=("contract",))
            totals = builder.insert_value(totals, total, m)
        return totals

    return totals(totals, a, types.int64, types.int64, v), generate


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
    for c in range(tile.columns):
        for m in range(tile.rows):
            index = [builder.add(column, ir.Constant(_I64, LANES * c))]
            if array_type.ndim == 2:
                index.insert(0, builder.add(row, ir.Constant(_I64, m)))
            yield builder.bitcast(_at(context, builder, array_type, array, *index), _FLOATS.as_pointer())


# ---------------------------------------------------------------- rounding


@intrinsic
def largest_magnitude(typing, row, start):
    """The largest |row[i]| of 32 floats from `start` on. NaN if one of them is."""

    def generate(context, builder, signature, arguments):
        pointer = _at(context, builder, signature.args[0], *arguments)
        # Without their sign, floats are ordered like integers of the same bits, and NaN is the largest.
        low, high = (
            builder.and_(_load(builder, pointer, _INTS, 4, half), _constant(0x7FFFFFFF)) for half in range(2)
        )
        largest = _call(builder, "llvm.smax.v16i32", _INTS, low, high)
        bits = _call(builder, "llvm.vector.reduce.smax.v16i32", _I32, largest)
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(row, types.int64), generate


@intrinsic
def store_rounded(typing, row, start, divisor, acts, block, group, token):
    """32 floats from `start` on, divided and rounded to int8, into their places in `acts`. Returns their
    sum.
    """

    def generate(context, builder, signature, arguments):
        row, start, divisor, acts, block, group, token = arguments
        pointer = _at(context, builder, signature.args[0], row, start)
        total = _constant(0)
        for half in range(2):
            quotients = builder.fdiv(_load(builder, pointer, _FLOATS, 4, half), _splat(builder, divisor))
            rounded = builder.fptosi(_call(builder, "llvm.rint.v16f32", _FLOATS, quotients), _INTS)
            for limit, pick in ((127, "llvm.smin.v16i32"), (-127, "llvm.smax.v16i32")):
                rounded = _call(builder, pick, _INTS, rounded, _constant(limit))
            total = builder.add(total, rounded)
            words = builder.bitcast(builder.trunc(rounded, ir.VectorType(_I8, LANES)), ir.VectorType(_I32, 4))
            for k in range(4):
                place = _at(context, builder, signature.args[3], acts, block, group, 4 * half + k, token, 0)
                word = builder.extract_element(words, ir.Constant(_I32, k))
                builder.store(word, builder.bitcast(place, _I32.as_pointer()), align=4)
        return _call(builder, "llvm.vector.reduce.add.v16i32", _I32, total)

    index = types.int64
    return types.int32(row, index, types.float32, acts, index, index, index), generate
