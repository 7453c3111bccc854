"""Dot products of bytes: the one place where CPUs differ.

`add_group` multiplies a group of 32 columns of int8 or int4 weights, 16 rows of them or twice 16, with the
same columns of several tokens. How depends on the instruction set (`cpu`); all of them give identical
integers. As in `simd`, indices are not checked.
"""

from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from mvlm_np.kernels.code import llvm
from mvlm_np.kernels.code.llvm import F32, I8, I16, I32, I64, INTS, LANES
from mvlm_np.kernels.code.simd import load_halves
from mvlm_np.kernels.cpu import INSTRUCTION_SET
from mvlm_np.kernels.shapes import OFFSET


@intrinsic(prefer_literal=True)
def add_group(typing, totals, bits, values, scales, acts, starts, act_scales, block, group):
    """totals + the products of one group of 32 columns, each times its weights' and its activations' scale.

    totals      a tile of float32: tokens x 16 rows of weights for each column of the tile
    bits        4 or 8, a constant
    values      for each column, the address of 16 rows of weights as `pack` defines them
    scales      for each column, the address of their float16 scales
    acts        (blocks, groups, 8, tokens, 4) int8
    starts      (blocks, groups, tokens) int32: what each token's integer sums start from
    act_scales  (blocks, groups, tokens) float32
    """
    R, C, small = totals.rows, totals.columns, bits.literal_value == 4

    def generate(context, builder, signature, arguments):
        totals, _, values, scales, acts, starts, act_scales, block, group = arguments
        values, scales = (cgutils.unpack_tuple(builder, addresses, C) for addresses in (values, scales))
        values = [llvm.offset(builder, address, group, 256 if small else 512) for address in values]
        scales = [llvm.offset(builder, address, group, 2 * LANES) for address in scales]
        _, _, _, _, of_acts, of_starts, of_act_scales, *_ = signature.args
        acts = [llvm.element(context, builder, of_acts, acts, block, group, k, 0, 0) for k in range(8)]
        start = llvm.element(context, builder, of_starts, starts, block, group, 0)
        act_scale = llvm.element(context, builder, of_act_scales, act_scales, block, group, 0)
        totals = [builder.extract_value(totals, i) for i in range(R * C)]
        # The rows of one register at a time: sums and totals of all 16 rows are too many registers.
        parts = REGISTERS[INSTRUCTION_SET]
        done = []
        for part, before in enumerate(
            zip(*(llvm.pieces(builder, total, parts) for total in totals), strict=True)
        ):
            columns = [_chunks(builder, pointer, small, part) for pointer in values]
            words = (token_words(builder, pointer, R, C > 1) for pointer in acts)
            # Generators, so that what is loaded stands beside its use: LLVM keeps that order.
            steps = zip(zip(*columns, strict=True), words, strict=True)
            first = _starts(builder, start, R, LANES // parts)
            sums = group_sums(builder, first, steps, R, C, small)
            after = _add_scaled(builder, before, sums, scales, act_scale, part)
            done.append(_in_step(builder, after) if parts > 1 else after)
        tile = ir.Constant(signature.return_type.llvm, ir.Undefined)
        for i, pieces in enumerate(zip(*done, strict=True)):
            tile = builder.insert_value(tile, llvm.joined(builder, pieces), i)
        return tile

    return totals(totals, bits, values, scales, acts, starts, act_scales, block, group), generate


def _starts(builder, pointer, rows, lanes):
    """What each token's sums start from, in all lanes of a register."""
    for m in range(rows):
        yield llvm.splat(builder, llvm.load(builder, pointer, I32, 4, m), lanes)


def _chunks(builder, pointer, small, part):
    """A group's weights: 8 vectors of 4 columns of a register's rows."""
    parts = REGISTERS[INSTRUCTION_SET]
    register = ir.VectorType(I8, 64 // parts)
    for c in range(4 if small else 8):
        loaded = llvm.load(builder, pointer, register, 1, c * parts + part)
        if small:
            yield builder.and_(loaded, llvm.constant(15, register))
            yield builder.lshr(loaded, llvm.constant(4, register))
        else:
            yield builder.xor(loaded, llvm.constant(-128, register)) if OFFSET[8] else loaded


def token_words(builder, pointer, rows, shared):
    """For each token, its 4 bytes of activations, in all lanes of a register."""
    lanes = LANES // REGISTERS[INSTRUCTION_SET]
    register = ir.VectorType(I8, 4 * lanes)
    if INSTRUCTION_SET == "neon_i8mm" and rows == 4:  # as `_sums_in_squares` wants it: one register for all
        return [llvm.load(builder, pointer, register, 4)]
    if INSTRUCTION_SET == "neon_dotprod" and rows == 4:  # sdot takes its operand from a lane of one register
        vector = llvm.load(builder, pointer, ir.VectorType(I32, 4), 4)
        words = [llvm.shuffle(builder, [m] * 4, vector) for m in range(rows)]
    else:
        words = [llvm.splat(builder, llvm.load(builder, pointer, I32, 4, m), lanes) for m in range(rows)]
    if shared:  # or LLVM loads a word again for each of the products that share it
        keep = ir.FunctionType(words[0].type, [words[0].type])
        words = [builder.asm(keep, "", "=v,0", [word], False) for word in words]
    return [builder.bitcast(word, register) for word in words]


def _add_scaled(builder, totals, sums, scales, act_scale, part):
    """totals + sums, each times the scale of its row of weights and of its token's activations."""
    lanes = LANES // REGISTERS[INSTRUCTION_SET]
    floats = ir.VectorType(F32, lanes)
    tokens = len(sums) // len(scales)
    first = ir.Constant(I64, 2 * lanes * part)
    halves = [load_halves(builder, builder.gep(pointer, [first]), lanes) for pointer in scales]
    done = []
    for i, (total, exact) in enumerate(zip(totals, sums, strict=True)):
        column, token = divmod(i, tokens)
        scale = llvm.splat(builder, llvm.load(builder, act_scale, F32, 4, token), lanes)
        scale = builder.fmul(halves[column], scale)
        done.append(llvm.multiply_add(builder, builder.sitofp(exact, floats), scale, total))
    return done


# ---------------------------------------------------------------- products


def group_sums(builder, starts, steps, rows, columns, small):
    """starts[m] + the products of 8 chunks of weights with token m's 8 words, for each column and token m.

    starts  a register for each of `rows` tokens, given when it is asked for
    steps   8 times (a chunk for each column, a word for each token), a register each
    small   the weights are below 16 and unsigned; otherwise neither they nor the activations are -128, and
            they have OFFSET[8] added
    """
    if INSTRUCTION_SET in ("avx2", "neon") and small:
        return _in_16_bits(builder, starts, steps, rows, columns)
    sums = [*starts] * columns  # columns first
    if INSTRUCTION_SET == "neon_i8mm" and rows == 4:
        return _sums_in_squares(builder, sums[:rows], steps, columns)
    dot4 = _dot4_avx2_signed if INSTRUCTION_SET == "avx2" else _DOT4[INSTRUCTION_SET]
    for chunks, words in steps:
        pairs = ((w, x) for w in chunks for x in words)
        sums = [dot4(builder, total, w, x) for total, (w, x) in zip(sums, pairs, strict=True)]
        if INSTRUCTION_SET in ("avx512vnni", "avx2", "neon") and len(sums) > 1:
            sums = _in_step(builder, sums)
    return sums


def sums_of_positive(builder, steps, rows):
    """`group_sums` of one column from zero, where no activation is below 0 and neither side has an OFFSET.

    x86's instructions take one operand unsigned: here the activations, so the weights may have any sign.
    """
    zero = ir.Constant(ir.VectorType(I32, LANES // REGISTERS[INSTRUCTION_SET]), None)
    if "avx" not in INSTRUCTION_SET:
        return group_sums(builder, [zero] * rows, steps, rows, 1, False)
    dot4 = _dot4_avx2 if INSTRUCTION_SET == "avx2" else _DOT4[INSTRUCTION_SET]
    sums = [zero] * rows
    for (chunk,), words in steps:
        sums = [dot4(builder, total, x, chunk) for total, x in zip(sums, words, strict=True)]
        sums = _in_step(builder, sums)
    return sums


def _in_step(builder, vectors):
    """The same vectors, computed before anything that follows.

    Left to itself, LLVM finishes one sum after the other, so that each product waits for the one before; or
    it begins the next rows early and runs out of registers. This is an instruction of no length that seems
    to change all these vectors.
    """
    count, both = len(vectors), ir.LiteralStructType([v.type for v in vectors])
    side_effect = REGISTERS[INSTRUCTION_SET] > 1  # or LLVM, where it begins the next rows early, moves it too
    register = "=w" if INSTRUCTION_SET.startswith("neon") else "=v"
    constraints = ",".join([register] * count + [str(i) for i in range(count)])
    each = [v.type for v in vectors]
    if count == 1:
        return [builder.asm(ir.FunctionType(*each, each), "", constraints, vectors, side_effect)]
    changed = builder.asm(ir.FunctionType(both, both.elements), "", constraints, vectors, side_effect)
    return [builder.extract_value(changed, i) for i in range(count)]


# Registers that a vector of 64 bytes takes in each instruction set.
REGISTERS = {
    "avx512vnni": 1,
    "avxvnni": 2,
    "avx2": 2,
    "neon_i8mm": 4,
    "neon_dotprod": 4,
    "neon": 4,
    "generic": 1,
}


def _dot4_avx512vnni(builder, total, w, x):
    return llvm.call(builder, "llvm.x86.avx512.vpdpbusd.512", total.type, total, w, x)


def _dot4_avxvnni(builder, total, w, x):
    return llvm.call(builder, "llvm.x86.avx512.vpdpbusd.256", total.type, total, w, x)


def _dot4_avx2_signed(builder, total, w, x):
    # Products of |w| and x * sign(w): the same, with one operand unsigned.
    x = llvm.call(builder, "llvm.x86.avx2.psign.b", x.type, x, w)
    w = llvm.call(builder, "llvm.abs.v32i8", w.type, w, ir.Constant(ir.IntType(1), 0))
    return _dot4_avx2(builder, total, w, x)


def _dot4_avx2(builder, total, w, x):
    return _add_pairs_avx2(builder, total, _products_avx2(builder, w, x))


def _products_avx2(builder, w, x):
    """Sums of two products in int16, in one vector. They fit: |w| <= 127 and |x| <= 127."""
    return [llvm.call(builder, "llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(I16, 16), w, x)]


def _add_pairs_avx2(builder, total, products):
    (pairs,) = products
    ones = ir.Constant(pairs.type, [1] * 16)
    return builder.add(total, llvm.call(builder, "llvm.x86.avx2.pmadd.wd", total.type, pairs, ones))


def _dot4_sdot(builder, total, w, x):
    return llvm.call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", total.type, total, w, x)


def _dot4_neon(builder, total, w, x):
    return _add_pairs_neon(builder, total, _products_neon(builder, w, x))


def _products_neon(builder, w, x):
    """16 products in int16, in two vectors."""
    halves = zip(llvm.pieces(builder, w, 2), llvm.pieces(builder, x, 2), strict=True)
    name, products = "llvm.aarch64.neon.smull.v8i16", ir.VectorType(I16, 8)
    return [llvm.call(builder, name, products, *half) for half in halves]


def _add_pairs_neon(builder, total, products):
    pairs = llvm.call(builder, "llvm.aarch64.neon.addp.v8i16", ir.VectorType(I16, 8), *products)
    return builder.add(total, llvm.call(builder, "llvm.aarch64.neon.saddlp.v4i32.v8i16", total.type, pairs))


def _dot4_generic(builder, total, w, x):
    for j in range(4):
        w_j, x_j = (builder.sext(llvm.shuffle(builder, range(j, 64, 4), v), INTS) for v in (w, x))
        total = builder.add(total, builder.mul(w_j, x_j))
    return total


_DOT4 = {
    "avx512vnni": _dot4_avx512vnni,
    "avxvnni": _dot4_avxvnni,
    "neon_i8mm": _dot4_sdot,
    "neon_dotprod": _dot4_sdot,
    "neon": _dot4_neon,
    "generic": _dot4_generic,
}


def _in_16_bits(builder, starts, steps, rows, columns):
    """`group_sums` for small weights where there is no dot product in 32 bits: a group fits into int16.

    A lane adds up at most two products of each of 8 chunks, and 16 * 15 * 127 is below 2^15; so does a sum of
    two neighbouring lanes of one product each.
    """
    products, add_pairs = {
        "avx2": (_products_avx2, _add_pairs_avx2),
        "neon": (_products_neon, _add_pairs_neon),
    }[INSTRUCTION_SET]
    zero = ir.Constant(ir.VectorType(I16, 16 if INSTRUCTION_SET == "avx2" else 8), None)
    each = 1 if INSTRUCTION_SET == "avx2" else 2  # registers of int16 for one of int32
    totals = [zero] * (rows * columns * each)
    for chunks, words in steps:
        found = [v for w in chunks for x in words for v in products(builder, w, x)]
        totals = [builder.add(total, v) for total, v in zip(totals, found, strict=True)]
        if rows * columns > 1:
            totals = _in_step(builder, totals)
    sums = [*starts] * columns  # asked for here, where there are registers for them
    return [add_pairs(builder, total, totals[i * each : (i + 1) * each]) for i, total in enumerate(sums)]


def _sums_in_squares(builder, starts, steps, columns):
    """`group_sums` of 4 rows and 4 tokens with smmla, which takes 8 columns of 2 rows and of 2 tokens.

    It adds to 4 lanes: row 0 and token 0, row 0 and token 1, row 1 and token 0, row 1 and token 1.
    """
    pairs = [llvm.shuffle(builder, [0, 4, 0, 4], *starts[t : t + 2]) for t in (0, 2)]
    sums = [[[pair, pair] for pair in pairs] for _ in range(columns)]  # column, pair of tokens, pair of rows
    steps = iter(steps)
    for (chunks, words), (next_chunks, next_words) in zip(steps, steps, strict=True):
        tokens = _alternating(builder, *words, *next_words)
        for column, low, high in zip(sums, chunks, next_chunks, strict=True):
            rows = _alternating(builder, low, high)
            for totals, token in zip(column, tokens, strict=True):
                totals[:] = [
                    llvm.call(builder, "llvm.aarch64.neon.smmla.v4i32.v16i8", total.type, total, row, token)
                    for total, row in zip(totals, rows, strict=True)
                ]
    every_second = [0, 2, 4, 6], [1, 3, 5, 7]
    return [llvm.shuffle(builder, i, *totals) for column in sums for totals in column for i in every_second]


def _alternating(builder, v, w):
    """Lanes of 4 bytes of two registers, taken in turn: two registers."""
    lanes = [builder.bitcast(x, ir.VectorType(I32, 4)) for x in (v, w)]
    mixed = [llvm.shuffle(builder, index, *lanes) for index in ([0, 4, 1, 5], [2, 6, 3, 7])]
    return [builder.bitcast(x, v.type) for x in mixed]
