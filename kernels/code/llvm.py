"""What intrinsics are written with: LLVM's types, and small steps that several of them take.

Each function writes instructions where `builder` stands and returns the LLVM value that they give. `simd`,
`tiles` and `dot` make their intrinsics of these; a kernel uses the intrinsics, and none of this.
"""

from llvmlite import ir
from numba.core import cgutils

from mvlm_np.kernels.cpu import INSTRUCTION_SET
from mvlm_np.kernels.shapes import LANES

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
INTS, FLOATS = ir.VectorType(I32, LANES), ir.VectorType(F32, LANES)


# ---------------------------------------------------------------- values


def constant(value, vector_type=INTS):
    """A vector whose lanes are all this number."""
    return ir.Constant(vector_type, [value] * vector_type.count)


def shuffle(builder, index, v, w=None):
    """The lanes of v, or of v and w as if they were one vector, in the order of `index`."""
    w = ir.Constant(v.type, ir.Undefined) if w is None else w
    return builder.shuffle_vector(v, w, ir.Constant(ir.VectorType(I32, len(index)), list(index)))


def splat(builder, scalar, lanes=LANES):
    """A vector whose lanes are all this value."""
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return shuffle(builder, [0] * lanes, first)


def call(builder, name, result_type, *arguments):
    """What a function of this name returns: one of LLVM's own (`llvm.…`), or of the C library."""
    function = ir.FunctionType(result_type, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), arguments)


def multiply_add(builder, a, b, total):
    """a * b + total, of vectors or of numbers: rounded once, but with "generic" twice, for want of FMA.

    All rounding is written down: LLVM is not allowed to join a product and a sum by itself, or which ones it
    joins, and so the last bit, would differ from CPU to CPU.
    """
    if INSTRUCTION_SET == "generic":
        return builder.fadd(builder.fmul(a, b), total)
    lanes = f"v{a.type.count}" if isinstance(a.type, ir.VectorType) else ""
    element = a.type.element if lanes else a.type
    return call(builder, f"llvm.fma.{lanes}{'f32' if element == F32 else 'f64'}", a.type, a, b, total)


def pieces(builder, v, count):
    """A vector cut into `count` equal parts."""
    size = v.type.count // count
    return [shuffle(builder, range(i * size, (i + 1) * size), v) for i in range(count)]


def joined(builder, parts):
    """One vector made of equal parts; their number is a power of 2."""
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [shuffle(builder, range(2 * v.type.count), v, w) for v, w in pairs]
    return parts[0]


# ---------------------------------------------------------------- memory


def element(context, builder, array_type, array, *index):
    """A pointer to an element of an array; indices are LLVM values or plain numbers."""
    array = context.make_array(array_type)(context, builder, array)
    index = [i if isinstance(i, ir.Value) else ir.Constant(I64, i) for i in index]
    return cgutils.get_item_pointer(context, builder, array_type, array, index)


def offset(builder, address, *steps):
    """A pointer to the byte behind an address by index * stride, summed over steps (index, stride)."""
    for index, stride in steps:
        address = builder.add(address, builder.mul(index, ir.Constant(I64, stride)))
    return builder.inttoptr(address, I8.as_pointer())


def further(builder, pointer, count):
    """A pointer to what lies `count` elements behind a pointer; of bytes, one that points to bytes."""
    return builder.gep(pointer, [ir.Constant(I64, count)])


def prefetch(builder, pointer, distance):
    """Begins to bring what lies that many bytes behind a pointer into the cache, if there is anything."""
    read, keep, data = (ir.Constant(I32, number) for number in (0, 3, 1))
    pointer = further(builder, pointer, distance)
    call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, read, keep, data)


def load(builder, pointer, value_type, align=1, index=0):
    """The value of this type at a pointer, or `index` such values further on."""
    pointer = builder.bitcast(pointer, value_type.as_pointer())
    return builder.load(builder.gep(pointer, [ir.Constant(I64, index)]), align=align)
