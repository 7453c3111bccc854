"""Reading memory and multiplying bytes as fast as the machine can; see `kernels.limits`."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mvlm_np.kernels.code import llvm
from mvlm_np.kernels.code.dot import group_sums
from mvlm_np.kernels.code.kernel import kernel, reads, writes
from mvlm_np.kernels.code.llvm import I8, I32, LANES
from mvlm_np.kernels.code.simd import add, load, splat, total
from mvlm_np.kernels.code.tiles import Tile
from mvlm_np.kernels.cpu import INSTRUCTION_SET
from mvlm_np.kernels.shapes import PARTS, SHAPE
from mvlm_np.kernels.shapes import READ as BLOCK


@kernel(reads(1), writes(1))
def _read(first, stop, x, sums):
    for block in range(first, stop):
        a = b = c = d = splat(np.float32(0))
        for i in range(block * BLOCK, (block + 1) * BLOCK, 4 * LANES):
            a, b = add(a, load(x, (i,))), add(b, load(x, (i + LANES,)))
            c, d = add(c, load(x, (i + 2 * LANES,))), add(d, load(x, (i + 3 * LANES,)))
        sums[block] = total(add(add(a, b), add(c, d)))


@kernel(reads(2, dtype=types.int8), types.int64, writes(1, dtype=types.int32))
def _multiply(first, stop, x, groups, sums):
    for step in range(first, stop):
        state = _begin(x)
        for _ in range(groups):
            state = _more(state, x)
        sums[step] = _fold(state)


ONE_INSTRUCTION = INSTRUCTION_SET in ("avx512vnni", "avxvnni", "neon_i8mm", "neon_dotprod")

# A register of sums for each token and tile, and one of weights, which change with each use lest LLVM
# multiply them once and for all.
_SUMS = SHAPE[0] * SHAPE[1]
_REGISTER = ir.VectorType(I32, LANES // PARTS)
_STATE = Tile(_REGISTER, _SUMS + 1, 1)


@intrinsic
def _begin(typing, x):
    """Zeros."""
    return _STATE(x), lambda *_: ir.Constant(_STATE.llvm, None)


@intrinsic
def _more(typing, state, x):
    """The products of one group: 8 times 4 columns of weights with each token's 4 bytes of x."""

    def generate(context, builder, signature, arguments):
        state, x = arguments
        rows, _ = SHAPE
        data = context.make_array(signature.args[1])(context, builder, x).data
        # Where a sum takes two instructions, LLVM would multiply once for all tokens if they were the same.
        row = ir.VectorType(I8, 64)
        loaded = [llvm.load(builder, data, row, 1, 0 if ONE_INSTRUCTION else m) for m in range(rows)]
        words = [llvm.pieces(builder, v, PARTS)[0] for v in loaded]
        sums = [builder.extract_value(state, i) for i in range(_SUMS)]
        weights = builder.bitcast(builder.extract_value(state, _SUMS), words[0].type)
        chunks = [weights := builder.add(weights, words[0]) for _ in range(8)]
        if INSTRUCTION_SET == "neon_i8mm":  # a register for four tokens
            words = words[::4]
        for column in range(0, _SUMS, rows):
            tokens = slice(column, column + rows)
            steps = [([chunk], words) for chunk in chunks]
            sums[tokens] = group_sums(builder, sums[tokens], steps, rows, 1, True)
        for i, lanes in enumerate([*sums, builder.bitcast(weights, _REGISTER)]):
            state = builder.insert_value(state, lanes, i)
        return state

    return _STATE(state, x), generate


@intrinsic
def _fold(typing, state):
    """The sum of all lanes."""

    def generate(context, builder, signature, arguments):
        result = llvm.constant(0, _REGISTER)
        for i in range(_STATE.rows):
            result = builder.add(result, builder.extract_value(arguments[0], i))
        return llvm.call(builder, f"llvm.vector.reduce.add.v{_REGISTER.count}i32", I32, result)

    return types.int32(state), generate
