"""Vectors of 64 bytes and of 16 int32, and the one instruction that CPUs differ in: the dot product of bytes.

`dot4_unsigned` and `dot4_signed` add to each of 16 int32 lanes the sum of four products of bytes. How
depends on the path, which follows from the features that Numba compiles for; every path gives identical
integers:

    avx512vnni   vpdpbusd on 64 bytes           neon_dotprod   sdot (Cortex-A76 and later)
    avxvnni      vpdpbusd on 32 bytes           neon           smull, addp, sadalp (Cortex-A72)
    avx2         vpmaddubsw, vpmaddwd           generic        whatever LLVM makes of plain products

MVLM_SIMD names a path to take instead, of those that the CPU has. As in `simd`, indices are not checked.
"""

import os

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, register_model

from mvlm_np.errors import UserError
from mvlm_np.kernels.simd import LANES, _pointer, vector

# Each path and the features it needs, best first. The last one needs none.
PATHS = {
    "avx512vnni": {"avx512vnni", "avx512bw", "avx512vl", "f16c"},
    "avxvnni": {"avxvnni", "avx2", "f16c"},
    "avx2": {"avx2", "f16c"},
    "neon_dotprod": {"neon", "dotprod"},
    "neon": {"neon"},
    "generic": set[str](),
}


def features() -> set[str]:
    """The CPU features that Numba compiles for."""
    triple, _, listed = cpu_target.target_context.codegen().magic_tuple()
    found = {name[1:] for name in listed.split(",") if name.startswith("+")}
    return found | ({"neon"} if triple.startswith("aarch64") else set())  # part of the architecture


def choose_path() -> str:
    """The best path, or the one that MVLM_SIMD names. UserError: it is unknown, or the CPU lacks it."""
    possible = [path for path, needed in PATHS.items() if needed <= features()]
    wanted = os.environ.get("MVLM_SIMD")
    if wanted and wanted not in possible:
        raise UserError(
            "MVLM_SIMD", f"found {wanted!r}", f"one of {', '.join(possible)}, which this CPU can run"
        )
    return wanted or possible[0]


PATH = choose_path()

_I8, _I16, _I32 = (ir.IntType(bits) for bits in (8, 16, 32))
_BYTES, _INTS = ir.VectorType(_I8, 64), ir.VectorType(_I32, LANES)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)


class Bytes(types.Type):
    """The Numba type of 64 bytes."""

    def __init__(self):
        super().__init__("bytes64")


class Ints(types.Type):
    """The Numba type of 16 int32 lanes."""

    def __init__(self):
        super().__init__("int32x16")


@register_model(Bytes)
class _BytesModel(models.PrimitiveModel):
    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, _BYTES)


@register_model(Ints)
class _IntsModel(models.PrimitiveModel):
    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, _INTS)


bytes64, ints = Bytes(), Ints()


# ---------------------------------------------------------------- memory


def _load(context, builder, signature, arguments, llvm_type, align=1):
    pointer = _pointer(context, builder, signature.args[0], *arguments)
    return builder.load(builder.bitcast(pointer, llvm_type.as_pointer()), align=align)


@intrinsic
def load_bytes(typing, a, index):
    """64 bytes from `index` on, of an int8 or uint8 array."""
    return bytes64(a, index), lambda *given: _load(*given, _BYTES)


@intrinsic
def repeat4(typing, a, index):
    """The 4 bytes from `index` on, 16 times."""

    def generate(context, builder, signature, arguments):
        word = _load(context, builder, signature, arguments, _I32)
        return builder.bitcast(_splat(builder, word), _BYTES)

    return bytes64(a, index), generate


@intrinsic
def load_halves(typing, a, index):
    """16 float16 from `index` on, of an array that sees them as uint16, as float32 lanes."""

    def generate(context, builder, signature, arguments):
        if PATH == "generic":
            return _widen(builder, _load(context, builder, signature, arguments, ir.VectorType(_I16, LANES)))
        halves = _load(context, builder, signature, arguments, ir.VectorType(ir.HalfType(), LANES))
        return builder.fpext(halves, _FLOATS)

    return vector(a, index), generate


def _widen(builder, halves):
    """float16 bit patterns -> float32 by integer operations: LLVM's own way crashes on x86 without F16C."""
    bits = builder.zext(halves, _INTS)
    sign = builder.shl(builder.and_(bits, _constant(0x8000)), _constant(16))
    # Exponent and fraction in float32's places, 112 too small in the exponent: multiplying by 2^112 mends
    # that, and makes a float16 denormal normal. Infinities and NaN cannot occur: packed scales are finite.
    magnitude = builder.shl(builder.and_(bits, _constant(0x7FFF)), _constant(13))
    scaled = builder.fmul(builder.bitcast(magnitude, _FLOATS), _constant(2.0**112, _FLOATS))
    return builder.bitcast(builder.or_(builder.bitcast(scaled, _INTS), sign), _FLOATS)


# ---------------------------------------------------------------- arithmetic


def _constant(value, llvm_type=_INTS):
    return ir.Constant(llvm_type, [value] * llvm_type.count)


def _splat(builder, scalar):
    undefined = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, _constant(0))


@intrinsic
def low_nibbles(typing, v):
    """The low 4 bits of each byte."""
    return bytes64(v), lambda context, builder, signature, args: builder.and_(args[0], _constant(15, _BYTES))


@intrinsic
def high_nibbles(typing, v):
    """The high 4 bits of each byte."""
    return bytes64(v), lambda context, builder, signature, args: builder.lshr(args[0], _constant(4, _BYTES))


@intrinsic
def splat_int(typing, x):
    """All lanes are the int32 x."""
    return ints(types.int32), lambda context, builder, signature, args: _splat(builder, args[0])


@intrinsic
def to_float(typing, v):
    """int32 lanes as float32 lanes."""
    return vector(v), lambda context, builder, signature, args: builder.sitofp(args[0], _FLOATS)


@intrinsic
def multiply(typing, v, w):
    """v * w, float32 lanes."""
    return vector(v, w), lambda context, builder, signature, args: builder.fmul(*args)


@intrinsic
def dot4_unsigned(typing, total, w, x):
    """total[i] += the sum over j = 0 .. 3 of w[4 i + j] * x[4 i + j]; w unsigned and below 16, x signed."""
    return ints(total, w, x), lambda context, builder, signature, args: _dot4(builder, *args, small=True)


@intrinsic
def dot4_signed(typing, total, w, x):
    """The same for signed w; neither w nor x is -128.

    On the two VNNI paths, w[i] + 128 takes the place of w[i]: start there from -128 * the sum of x, which is
    what `SIGNED_OFFSET` is for.
    """
    return ints(total, w, x), lambda context, builder, signature, args: _dot4(builder, *args, small=False)


# vpdpbusd takes one operand unsigned, so weights are moved up by this much.
SIGNED_OFFSET = 128 if PATH.endswith("vnni") else 0


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


def _dot4(builder, total, w, x, small):
    if PATH.endswith("vnni") and not small:
        w = builder.xor(w, _constant(-128, _BYTES))
    if PATH == "avx512vnni":
        return _call(builder, "llvm.x86.avx512.vpdpbusd.512", _INTS, total, w, x)
    if PATH == "generic":
        return _dot4_generic(builder, total, w, x)
    if PATH == "avx2" and not small:
        # Products of |w| and x * sign(w): the same, with one operand unsigned.
        x = _joined(builder, [
            _call(builder, "llvm.x86.avx2.psign.b", ir.VectorType(_I8, 32), xs, ws)
            for xs, ws in zip(_pieces(builder, x, 2), _pieces(builder, w, 2), strict=True)
        ])  # fmt: skip
        w = _call(builder, "llvm.abs.v64i8", _BYTES, w, ir.Constant(ir.IntType(1), 0))
    one_part = {"avxvnni": _dot4_avxvnni, "avx2": _dot4_avx2, "neon_dotprod": _dot4_sdot, "neon": _dot4_neon}[
        PATH
    ]
    count = 2 if PATH.startswith("avx") else 4
    parts = zip(*(_pieces(builder, v, count) for v in (total, w, x)), strict=True)
    return _joined(builder, [one_part(builder, *part) for part in parts])


def _dot4_avxvnni(builder, total, w, x):
    return _call(builder, "llvm.x86.avx512.vpdpbusd.256", total.type, total, w, x)


def _dot4_avx2(builder, total, w, x):
    # Sums of two products fit into int16: |w| <= 127 and |x| <= 127.
    pairs = _call(builder, "llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(_I16, 16), w, x)
    ones = ir.Constant(pairs.type, [1] * 16)
    return builder.add(total, _call(builder, "llvm.x86.avx2.pmadd.wd", total.type, pairs, ones))


def _dot4_sdot(builder, total, w, x):
    return _call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", total.type, total, w, x)


def _dot4_neon(builder, total, w, x):
    halves = zip(_pieces(builder, w, 2), _pieces(builder, x, 2), strict=True)
    products = [
        _call(builder, "llvm.aarch64.neon.smull.v8i16", ir.VectorType(_I16, 8), *half) for half in halves
    ]
    pairs = _call(builder, "llvm.aarch64.neon.addp.v8i16", ir.VectorType(_I16, 8), *products)
    return builder.add(total, _call(builder, "llvm.aarch64.neon.saddlp.v4i32.v8i16", total.type, pairs))


def _dot4_generic(builder, total, w, x):
    for j in range(4):
        index = ir.Constant(_INTS, list(range(j, 64, 4)))
        w_j, x_j = (
            builder.sext(builder.shuffle_vector(v, ir.Constant(_BYTES, ir.Undefined), index), _INTS)
            for v in (w, x)
        )
        total = builder.add(total, builder.mul(w_j, x_j))
    return total
