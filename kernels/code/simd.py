"""Vectors of 16 float32 for kernels: one variable, one LLVM instruction.

LLVM turns a loop whose steps are independent into vector code by itself. It may not do so with a sum, whose
order of addition would change, and it cannot keep a tile of a matrix product in registers. Here the order
is written down: a sum runs in 16 lanes, which are added up pairwise at the end, and that on every CPU.
16 lanes are one AVX-512 register, two AVX2 or four NEON ones.

`a` is an array whose last axis is contiguous; `load` and `store` take the index of the first of 16
elements as a tuple, and check nothing.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from mvlm_np.kernels.code import llvm
from mvlm_np.kernels.code.llvm import F32, FLOATS, I8, I16, I32, INTS, LANES
from mvlm_np.kernels.cpu import INSTRUCTION_SET


class Vector(types.Type):
    """The Numba type of 16 float32 lanes."""

    def __init__(self):
        super().__init__("float32x16")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, FLOATS)


vector = Vector()


def _pointer(context, builder, array_type, array, index):
    """Where 16 lanes at `index` lie in memory."""
    where = cgutils.unpack_tuple(builder, index)
    return builder.bitcast(llvm.element(context, builder, array_type, array, *where), FLOATS.as_pointer())


@intrinsic
def pointer(typing, address):
    """The pointer to an address, for `numba.carray`."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], I8.as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic
def load(typing, a, index):
    """a[index : index + 16] as float32; `a` holds float32, int8, uint8, or float16 that it sees as uint16."""
    stored = I8 if a.dtype in (types.int8, types.uint8) else F32

    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature.args[0], *arguments)
        if a.dtype == types.uint16:
            return load_halves(builder, pointer)
        lanes = llvm.load(builder, pointer, ir.VectorType(stored, LANES))
        if a.dtype == types.float32:
            return lanes
        return (builder.uitofp if a.dtype == types.uint8 else builder.sitofp)(lanes, FLOATS)

    return vector(a, index), generate


def load_halves(builder, pointer, lanes=LANES):
    """16 float16 at a pointer, or with any instruction set but "generic" fewer, as float32 lanes."""
    return floats_of_halves(builder, llvm.load(builder, pointer, ir.VectorType(I16, lanes), 2))


def floats_of_halves(builder, bits):
    """The bits of float16 lanes, 16 of them if the instruction set is "generic", as float32 lanes."""
    if INSTRUCTION_SET != "generic":
        lanes = bits.type.count
        halves = builder.bitcast(bits, ir.VectorType(ir.HalfType(), lanes))
        return builder.fpext(halves, ir.VectorType(F32, lanes))
    # By integer operations: LLVM's own way crashes on x86 without F16C.
    bits = builder.zext(bits, INTS)
    sign = builder.shl(builder.and_(bits, llvm.constant(0x8000)), llvm.constant(16))
    # Exponent and fraction in float32's places, 112 too small in the exponent: multiplying by 2^112 mends
    # that, and makes a float16 denormal normal. Infinities and NaN cannot occur: what is stored is finite.
    magnitude = builder.shl(builder.and_(bits, llvm.constant(0x7FFF)), llvm.constant(13))
    scaled = builder.fmul(builder.bitcast(magnitude, FLOATS), llvm.constant(2.0**112, FLOATS))
    return builder.bitcast(builder.or_(builder.bitcast(scaled, INTS), sign), FLOATS)


@intrinsic
def store(typing, a, index, v):
    """a[index : index + 16] = v; where `a` holds float16 as uint16, `kv_store.quantize` of v."""

    def generate(context, builder, signature, arguments):
        pointer, v = _pointer(context, builder, signature.args[0], *arguments[:2]), arguments[2]
        if a.dtype == types.uint16:
            v = _halves(builder, v)
            pointer = builder.bitcast(pointer, v.type.as_pointer())
        builder.store(v, pointer, align=a.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(a, index, v), generate


def _halves(builder, v):
    """The bits of the nearest float16, +-65504 for what is larger; NaN stays NaN.

    By integer operations, like `load_halves` for "generic": they are the same on every CPU.
    """

    def integers(operation, x, number):
        return operation(x, llvm.constant(number))

    bits = builder.bitcast(v, INTS)
    sign = integers(builder.and_, integers(builder.lshr, bits, 16), 0x8000)
    magnitude = integers(builder.and_, bits, 0x7FFFFFFF)
    is_nan = builder.icmp_signed(">", magnitude, llvm.constant(0x7F800000))
    largest = llvm.constant(0x477FE000)  # 65504
    magnitude = builder.select(builder.icmp_signed("<", magnitude, largest), magnitude, largest)
    # 13 bits less, rounded to even, and an exponent that is 112 less.
    odd = integers(builder.and_, integers(builder.lshr, magnitude, 13), 1)
    rounded = integers(builder.add, builder.add(magnitude, odd), 0xFFF)
    normal = integers(builder.sub, integers(builder.lshr, rounded, 13), 112 << 10)
    # Below 2^-14 a float16 counts steps of 2^-24, and so does a float32 between 1/2 and 1.
    half = llvm.constant(0.5, FLOATS)
    moved = builder.bitcast(builder.fadd(builder.bitcast(magnitude, FLOATS), half), INTS)
    denormal = integers(builder.sub, moved, 0x3F000000)
    is_denormal = builder.icmp_signed("<", magnitude, llvm.constant(0x38800000))
    found = builder.select(is_denormal, denormal, normal)
    found = builder.select(is_nan, llvm.constant(0x7E00), found)
    return builder.trunc(builder.or_(found, sign), ir.VectorType(I16, LANES))


@intrinsic
def splat(typing, x):
    """All lanes are the float32 x."""
    return vector(types.float32), lambda context, builder, _, arguments: llvm.splat(builder, *arguments)


@intrinsic
def add(typing, v, w):
    """v + w"""
    return vector(v, w), lambda context, builder, signature, arguments: builder.fadd(*arguments)


@intrinsic
def multiply(typing, v, w):
    """v * w"""
    return vector(v, w), lambda context, builder, signature, arguments: builder.fmul(*arguments)


@intrinsic
def multiply_add(typing, v, w, total):
    """v * w + total, rounded as `fma` is."""
    return vector(v, w, total), lambda context, builder, _, arguments: llvm.multiply_add(builder, *arguments)


@intrinsic
def fma(typing, a, b, total):
    """a * b + total of three float32 or three float64; rounded once, but with "generic" twice.

    A loop that uses it becomes vector code like any other.
    """
    assert a == b == total, (a, b, total)
    return a(a, b, total), lambda context, builder, _, arguments: llvm.multiply_add(builder, *arguments)


@intrinsic
def larger(typing, v, w):
    """The larger one in each lane; w where v is NaN."""

    return vector(v, w), lambda context, builder, signature, arguments: _larger(builder, *arguments)


def _larger(builder, v, w):
    return builder.select(builder.fcmp_ordered(">", v, w), v, w)


def _folded(builder, v, combine):
    """The lanes combined pairwise: i with i + 8, then i with i + 4, and so on."""
    lanes = LANES
    while lanes > 1:
        lanes //= 2
        v = combine(*llvm.pieces(builder, v, 2))
    return builder.extract_element(v, ir.Constant(I32, 0))


@intrinsic
def total(typing, v):
    """The sum of the lanes, added pairwise."""

    def generate(context, builder, signature, arguments):
        return _folded(builder, arguments[0], builder.fadd)

    return types.float32(v), generate


@intrinsic
def largest(typing, v):
    """The largest lane. NaN lanes may or may not count."""

    def generate(context, builder, signature, arguments):
        return _folded(builder, arguments[0], lambda v, w: _larger(builder, v, w))

    return types.float32(v), generate


@intrinsic(prefer_literal=True)
def prefetch(typing, address, count):
    """Asks for `count` bytes, a constant, from an address on, if there is anything."""
    lines = range(0, count.literal_value, 64)

    def generate(context, builder, signature, arguments):
        first = builder.inttoptr(arguments[0], I8.as_pointer())
        for line in lines:
            llvm.prefetch(builder, first, line)
        return context.get_dummy_value()

    return types.none(types.int64, count), generate
