"""Dot products of bytes: the one place where CPUs differ.

`add_group` multiplies a group of 32 columns of packed weights with the same columns of several tokens.
How depends on the instruction set (`cpu`); all of them give identical integers. The 16 rows of a tile of
weights take one register or several, a lane for each row; a product may take some of these at a time. As in
`simd`, indices are not checked.
"""

from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from mvlm_np.kernels.code import llvm
from mvlm_np.kernels.code.llvm import F32, I8, I16, I32, INTS, LANES
from mvlm_np.kernels.code.simd import load_halves
from mvlm_np.kernels.code.tiles import Tile
from mvlm_np.kernels.cpu import INSTRUCTION_SET
from mvlm_np.kernels.shapes import COPIES, OFFSET, PARTS, START

AHEAD = 4096  # bytes of values by which what is fetched from memory is ahead of its use
FLOATS_READY = "uint4 with floats"  # uint4 with its scales and minima as float32: of 16 rows, then of 16 rows
VALUES = {"int8": 512, "int4": 256, "uint4": 256, FLOATS_READY: 256}  # bytes of a group's values in a tile
SCALES = {"int8": 32, "int4": 32, "uint4": 32, FLOATS_READY: 128}  # bytes of a group's scales in a tile
TOPS = 64  # bytes of a super-block's tops in a tile


@intrinsic(prefer_literal=True)
def zero_totals(typing, rows, columns):
    """A tile of rows x columns registers of float32 zeros; both sizes are constants."""
    tile = Tile(ir.VectorType(F32, LANES // PARTS), rows.literal_value, columns.literal_value)
    return tile(rows, columns), lambda *_: ir.Constant(tile.llvm, None)


@intrinsic(prefer_literal=True)
def add_group(typing, totals, kind, values, scales, tops, part, group, super_block, acts, word):
    """totals + the products of one group of 32 columns, each times its weights' and its activations' scale.
    Where weights have minima, what these make of the activations is then taken off.

    totals  a tile of float32: tokens x registers
    kind    one of `pack.KINDS`, or FLOATS_READY, a constant
    values  the addresses of one tile of weights or more, as `pack` defines them
    scales  the addresses of their scales
    tops    the addresses of their tops, if the kind has them
    part    the first register of each tile that is taken; how many follows from `totals`
    acts    int32: rounded activations
    word    where in `acts` those of the block's group begin
    """
    count = totals.rows * totals.columns

    def generate(context, builder, signature, arguments):
        tile, _, *addresses, part, group, super_block, acts, word = arguments
        addresses = [cgutils.unpack_tuple(builder, of_tiles) for of_tiles in addresses]
        acts = llvm.element(context, builder, signature.args[8], acts, word)
        before = [builder.extract_value(tile, i) for i in range(count)]
        after = group_products(
            builder, before, totals.rows, kind.literal_value, *addresses, part, group, super_block, acts
        )
        for i, total in enumerate(after):
            tile = builder.insert_value(tile, total, i)
        return tile

    return totals(totals, kind, values, scales, tops, part, group, super_block, acts, word), generate


def group_products(builder, totals, rows, kind, values, scales, tops, part, group, super_block, acts):
    """`add_group` for LLVM values: lists of totals and of addresses, and a pointer to the activations."""
    tiles, size, scale_bytes = len(values), VALUES[kind], SCALES[kind]
    has_minima = kind in ("uint4", FLOATS_READY)
    columns, lanes = len(totals) // rows, ir.VectorType(F32, LANES // PARTS)
    taken = range(columns // tiles)  # registers of each tile
    for address in values:  # a pass over a part of the rows fetches as large a part of the lines
        ahead = llvm.offset(builder, address, (group, size), (part, size // PARTS))
        for line in range(0, size // PARTS * len(taken), 64):
            llvm.prefetch(builder, ahead, AHEAD + line)
    for address in scales if kind != FLOATS_READY else ():
        first = llvm.offset(builder, address, (group, scale_bytes))
        llvm.prefetch(builder, first, AHEAD // size * scale_bytes)

    def registers(addresses, which, which_size, register_size):
        """For each column, where the part of a group (or super-block) begins that belongs to its rows."""
        for address in addresses:
            first = llvm.offset(builder, address, (which, which_size), (part, register_size))
            yield from (llvm.further(builder, first, r * register_size) for r in taken)

    def of_tokens(word):
        return llvm.further(builder, acts, word * rows)

    if has_minima:
        starts = [llvm.constant(START, ir.VectorType(I32, LANES // PARTS))] * rows
    else:
        starts = _starts(builder, of_tokens(8), rows)
    chunks = [_chunks(builder, pointer, kind) for pointer in registers(values, group, size, 64 // PARTS)]
    words = (token_words(builder, of_tokens(k), rows, tiles > 1) for k in range(8))
    # Generators, so that what is loaded stands beside its use: LLVM keeps that order.
    steps = zip(zip(*chunks, strict=True), words, strict=True)
    sums = group_sums(builder, starts, steps, rows, columns, kind != "int8")
    if kind == "uint4":
        whole = registers(scales, group, scale_bytes, LANES // PARTS)
        counted_in = registers(tops, super_block, TOPS, 2 * LANES // PARTS)
        pairs = [*zip(whole, counted_in, strict=True)]
        scales, minima = ([_counted(builder, *pair, i) for pair in pairs] for i in (0, 1))
    elif kind == FLOATS_READY:
        pointers = [*registers(scales, group, scale_bytes, 4 * LANES // PARTS)]
        scales, minima = ([llvm.load(builder, p, lanes, 4, i * PARTS) for p in pointers] for i in (0, 1))
    else:
        halves = registers(scales, group, scale_bytes, 2 * LANES // PARTS)
        scales = [load_halves(builder, pointer, LANES // PARTS) for pointer in halves]
    act_scales = list(_in_all_lanes(builder, of_tokens(8 + COPIES), F32, rows))
    pairs = [(scale, act_scale) for scale in scales for act_scale in act_scales]
    totals = [
        llvm.multiply_add(builder, _floats(builder, exact), builder.fmul(*pair), total)
        for total, exact, pair in zip(totals, sums, pairs, strict=True)
    ]
    if has_minima:
        act_sums = list(_in_all_lanes(builder, of_tokens(8), F32, rows))
        pairs = [(minimum, act_sum) for minimum in minima for act_sum in act_sums]
        totals = [llvm.multiply_add(builder, *pair, t) for t, pair in zip(totals, pairs, strict=True)]
    return totals


def _counted(builder, whole, tops, which):
    """The scales (0) or the minima (1) of a register's rows: whole numbers times what they are counted in."""
    stored = ir.VectorType(I8, LANES // PARTS)
    stored = llvm.load(builder, llvm.further(builder, whole, which * LANES), stored)
    top = load_halves(builder, llvm.further(builder, tops, which * 2 * LANES), LANES // PARTS)
    return builder.fmul(builder.uitofp(stored, top.type), top)


def _chunks(builder, pointer, kind):
    """A group's weights: 8 vectors of 4 columns of a register's rows."""
    register = ir.VectorType(I8, 64 // PARTS)
    for c in range(VALUES[kind] // 64):
        loaded = llvm.load(builder, pointer, register, 1, c * PARTS)
        if kind != "int8":
            yield builder.and_(loaded, llvm.constant(15, register))
            yield builder.lshr(loaded, llvm.constant(4, register))
        else:
            yield builder.xor(loaded, llvm.constant(-128, register)) if OFFSET["int8"] else loaded


def _in_all_lanes(builder, pointer, kind, rows):
    """Each of `rows` numbers, in all lanes of a register."""
    lanes = LANES // PARTS
    if INSTRUCTION_SET.startswith("neon") and rows % 4 == 0:  # many instructions take an operand from a lane
        for quarter in range(rows // 4):
            numbers = llvm.load(builder, pointer, ir.VectorType(kind, 4), 4, quarter)
            yield from (llvm.shuffle(builder, [m] * lanes, numbers) for m in range(4))
    else:
        yield from (llvm.splat(builder, llvm.load(builder, pointer, kind, 4, m), lanes) for m in range(rows))


def token_words(builder, pointer, rows, shared):
    """For each token, its 4 bytes of activations, in all lanes of a register."""
    register = ir.VectorType(I8, 64 // PARTS)
    if INSTRUCTION_SET == "neon_i8mm" and rows % 4 == 0:  # as `_sums_in_squares` wants it: 4 in a register
        return [llvm.load(builder, pointer, register, 4, quarter) for quarter in range(rows // 4)]
    words = list(_in_all_lanes(builder, pointer, I32, rows))
    if shared:  # or LLVM loads a word again for each of the products that share it
        keep = ir.FunctionType(words[0].type, [words[0].type])
        words = [builder.asm(keep, "", "=v,0", [word], False) for word in words]
    return [builder.bitcast(word, register) for word in words]


def _starts(builder, pointer, rows):
    """What each token's sums start from, in all lanes of a register."""
    if COPIES == 1:
        yield from _in_all_lanes(builder, pointer, I32, rows)
    else:
        for m in range(rows):
            yield llvm.load(builder, pointer, ir.VectorType(I32, COPIES), 4, m)


def _floats(builder, sums):
    """Integer sums, which began with START, as float32."""
    floats = ir.VectorType(F32, LANES // PARTS)
    if START == 0:
        return builder.sitofp(sums, floats)
    return builder.fsub(builder.bitcast(sums, floats), llvm.constant(3 * 2.0**22, floats))


# ---------------------------------------------------------------- products


def group_sums(builder, starts, steps, rows, columns, small):
    """starts[m] + the products of 8 chunks of weights with token m's 8 words, for each column and token m.

    starts  a register for each of `rows` tokens, given when it is asked for
    steps   8 times (a chunk for each column, a word for each token), a register each
    small   the weights are below 16 and unsigned; otherwise neither they nor the activations are -128, and
            they have OFFSET["int8"] added
    """
    if INSTRUCTION_SET in ("avx2", "neon") and small:
        return _in_16_bits(builder, starts, steps, rows, columns)
    sums = [*starts] * columns  # columns first
    if INSTRUCTION_SET == "neon_i8mm" and rows % 4 == 0:
        return _sums_in_squares(builder, sums[:rows], steps, columns)
    dot4 = _dot4_avx2_signed if INSTRUCTION_SET == "avx2" else _DOT4[INSTRUCTION_SET]
    for chunks, words in steps:
        pairs = ((w, x) for w in chunks for x in words)
        sums = [dot4(builder, total, w, x) for total, (w, x) in zip(sums, pairs, strict=True)]
        if (INSTRUCTION_SET in ("avx512vnni", "avx2", "neon") or columns > 1) and len(sums) > 1:
            sums = _in_step(builder, sums)
    return sums


def sums_of_positive(builder, steps, rows):
    """`group_sums` of one column from zero, where no activation is below 0 and neither side has an OFFSET.

    x86's instructions take one operand unsigned: here the activations, so the weights may have any sign.
    """
    zero = ir.Constant(ir.VectorType(I32, LANES // PARTS), None)
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
    side_effect = PARTS > 1  # or LLVM, where it begins the next rows early, moves it too
    register = "=w" if INSTRUCTION_SET.startswith("neon") else "=v"
    constraints = ",".join([register] * count + [str(i) for i in range(count)])
    each = [v.type for v in vectors]
    if count == 1:
        return [builder.asm(ir.FunctionType(*each, each), "", constraints, vectors, side_effect)]
    changed = builder.asm(ir.FunctionType(both, both.elements), "", constraints, vectors, side_effect)
    return [builder.extract_value(changed, i) for i in range(count)]


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
    """`group_sums` of 4 rows and tokens in fours with smmla, which takes 8 columns of 2 rows and of 2 tokens.

    It adds to 4 lanes: row 0 and token 0, row 0 and token 1, row 1 and token 0, row 1 and token 1.
    """
    pairs = [
        llvm.shuffle(builder, [0, 4, 0, 4], *pair) for pair in zip(starts[::2], starts[1::2], strict=True)
    ]
    sums = [[[pair, pair] for pair in pairs] for _ in range(columns)]  # column, pair of tokens, pair of rows
    steps = iter(steps)
    for (chunks, words), (next_chunks, next_words) in zip(steps, steps, strict=True):
        fours = zip(words, next_words, strict=True)
        tokens = [pair for four in fours for pair in _alternating(builder, *four)]
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
