"""Attention in int8, for a vision tower whose weights are int8: `ops.int8_attention`.

Head by head, keys and transposed values are rounded and laid out as `pack` lays out int8 weights, 16 rows to
a tile; queries, and the exponentials of their scores, as activations are, in blocks of a few tokens. So both
products run on the dot products of bytes that the linear layers have. Integer sums are exact; the rest is
added up in one order, on every CPU.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mvlm_np.kernels.code import llvm
from mvlm_np.kernels.code.attention import exponentials
from mvlm_np.kernels.code.compile import inline
from mvlm_np.kernels.code.dot import group_sums, sums_of_positive, token_words
from mvlm_np.kernels.code.kernel import kernel, reads, writes
from mvlm_np.kernels.code.llvm import F32, I8, I32, I64, LANES
from mvlm_np.kernels.code.tiles import Tile, largest_magnitude, store_rounded
from mvlm_np.kernels.cpu import INSTRUCTION_SET
from mvlm_np.kernels.shapes import OFFSET, PARTS
from mvlm_np.ops import GROUP

ROWS = 16  # keys, or elements of a value, of a tile
TOKENS = {"avx512vnni": 12, "avxvnni": 6, "avx2": 6}.get(INSTRUCTION_SET, 4)  # whose sums registers hold
UP = OFFSET["int8"]  # what is added to keys, where they have to be unsigned
BLOCK = 24  # queries whose scores are in the cache together


@kernel(reads(3, "A"), reads(3, "A"), reads(3, "A"), writes(3))
def _int8_attention(first, stop, q, k, v, out):
    """A step is a head. q and out (H, T, d), k and v (H, S, d)."""
    _, T, d = q.shape
    S = k.shape[1]
    keys, values = _room(S, d, ROWS), _room(d, S, ROWS)
    queries, weights = _room(BLOCK, d, TOKENS), _room(BLOCK, S, TOKENS)
    key_rows, value_rows = _zero_rows(_up(S, ROWS), d), _zero_rows(_up(d, ROWS), S)
    query_rows, scores = _zero_rows(BLOCK, d), _zero_rows(BLOCK, S)
    mixed = np.empty((BLOCK, _up(d, ROWS)), np.float32)
    sums = np.empty(BLOCK, np.float32)
    scale = np.float32(1 / np.sqrt(d))
    for head in range(first, stop):
        for s in range(S):
            for i in range(d):
                key_rows[s, i] = k[head, s, i]
                value_rows[i, s] = v[head, s, i]
        _round(key_rows, _up(S, ROWS), keys, 0)
        _round(value_rows, _up(d, ROWS), values, 0)
        for t in range(0, T, BLOCK):
            n = min(BLOCK, T - t)
            for r in range(n):
                for i in range(d):
                    query_rows[r, i] = q[head, t + r, i] * scale
            _round(query_rows, _up(n, TOKENS), queries, UP)
            _multiply(queries, keys, n, scores)
            for r in range(n):
                sums[r] = exponentials(scores[r], S)
            _round(scores, _up(n, TOKENS), weights, 0)
            _multiply_positive(weights, values, n, mixed)
            for r in range(n):
                for i in range(d):
                    out[head, t + r, i] = mixed[r, i] / sums[r]


@inline
def _up(n, step):
    """The next multiple of a step."""
    return (n + step - 1) // step * step


@inline
def _zero_rows(rows, columns):
    """Room for what is to be rounded: whole groups of columns, zeros beyond the last."""
    return np.zeros((rows, _up(columns, GROUP)), np.float32)


# ---------------------------------------------------------------- rounding


@inline
def _room(rows, columns, tall):
    """For a rounded matrix, `tall` rows to a block: int32 words of four int8 (blocks, groups, 8, tall), and
    scales and starts of integer sums (blocks, groups, tall).
    """
    blocks, groups = _up(rows, tall) // tall, _up(columns, GROUP) // GROUP
    words = np.empty((blocks, groups, GROUP // 4, tall), np.int32)
    scales, starts = np.empty((blocks, groups, tall), np.float32), np.empty((blocks, groups, tall), np.int32)
    return words, scales, starts


@inline
def _round(x, rows, room, offset):
    """`ops.quantize_rows` of x[:rows], whose columns are whole groups.

    offset: what is added to the numbers that they will be multiplied with; 0: starts are left alone.
    """
    words, scales, starts = room
    _, groups, _, tall = words.shape
    for i in range(rows):
        block, m = i // tall, i % tall
        for g in range(groups):
            # The scale may be denormal and so imprecise: what is rounded is clipped to -127 .. 127.
            scale = largest_magnitude(x[i], g * GROUP) / np.float32(127)
            divisor = scale if scale > 0 else np.float32(1)
            place = (block * groups + g) * (GROUP // 4) * tall + m
            whole = store_rounded(x[i], g * GROUP, divisor, words, place, tall)
            scales[block, g, m] = scale
            if offset > 0:
                starts[block, g, m] = -offset * whole


# ---------------------------------------------------------------- products


def _product(positive):
    """The product of rounded tokens, which may be known to be positive, with rounded rows."""

    @inline
    def product(tokens, rows, n, y):
        """y[token, row] for the first n tokens, and for what fills up their last block."""
        words, scales, _ = rows
        acts, act_scales, starts = tokens
        for tile in range(len(words)):
            for part in range(PARTS):
                for block in range(_up(n, TOKENS) // TOKENS):
                    totals = _zeros(TOKENS)
                    for g in range(words.shape[1]):
                        totals = _add_group(
                            totals, positive, words, scales, tile, part, acts, act_scales, starts, block, g
                        )
                    _store(totals, y, block * TOKENS, tile * ROWS + part * (LANES // PARTS))

    return product


@intrinsic(prefer_literal=True)
def _zeros(typing, tokens):
    """A tile of float32 zeros: a register for each token."""
    tile = Tile(ir.VectorType(F32, LANES // PARTS), tokens.literal_value, 1)
    return tile(tokens), lambda *_: ir.Constant(tile.llvm, None)


@intrinsic
def _store(typing, totals, y, row, column):
    """y[row + m, column : …] = totals[m], for all tokens m."""

    def generate(context, builder, signature, arguments):
        totals, y, row, column = arguments
        for m in range(signature.args[0].rows):
            at = builder.add(row, ir.Constant(I64, m))
            pointer = llvm.element(context, builder, signature.args[1], y, at, column)
            lanes = builder.extract_value(totals, m)
            builder.store(lanes, builder.bitcast(pointer, lanes.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.none(totals, y, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def _add_group(
    typing, totals, positive, words, scales, tile, part, act_words, act_scales, starts, block, group
):
    """totals + the products of one group of 32 columns, each times the scales of its two sides.

    totals    a tile of float32: a register of rows for each token
    positive  a constant: whether the activations are 0 to 127; they need no starts then
    words, scales, tile, part; act_words, act_scales, starts, block
              a register of a tile of 16 rows, and a block of tokens, as `_room` has them
    """
    rows, unsigned = totals.rows, positive.literal_value

    def generate(context, builder, signature, arguments):
        totals, _, words, scales, tile, part, act_words, act_scales, starts, block, group = arguments
        _, _, of_words, of_floats, _, _, of_acts, of_act_scales, of_starts, *_ = signature.args

        def at(kind, array, *index):
            return llvm.element(context, builder, kind, array, *index)

        lanes = LANES // PARTS
        register, floats = ir.VectorType(I8, 4 * lanes), ir.VectorType(F32, lanes)
        row = builder.mul(part, ir.Constant(I64, lanes))

        def steps():
            for k in range(GROUP // 4):
                chunk = llvm.load(builder, at(of_words, words, tile, group, k, row), register, 4)
                if UP and not unsigned:
                    chunk = builder.xor(chunk, llvm.constant(-128, register))
                acts = at(of_acts, act_words, block, group, k, 0)
                yield [chunk], token_words(builder, acts, rows, False)

        if unsigned:
            sums = sums_of_positive(builder, steps(), rows)
        else:
            first = at(of_starts, starts, block, group, 0)
            begin = [
                llvm.splat(builder, llvm.load(builder, first, I32, 4, m), lanes)
                if UP
                else ir.Constant(ir.VectorType(I32, lanes), None)
                for m in range(rows)
            ]
            sums = group_sums(builder, begin, steps(), rows, 1, False)
        scale = llvm.load(builder, at(of_floats, scales, tile, group, row), floats, 4)
        for m, exact in enumerate(sums):
            own = llvm.load(builder, at(of_act_scales, act_scales, block, group, 0), F32, 4, m)
            both = builder.fmul(llvm.splat(builder, own, lanes), scale)
            number, before = builder.sitofp(exact, floats), builder.extract_value(totals, m)
            total = llvm.multiply_add(builder, number, both, before)
            totals = builder.insert_value(totals, total, m)
        return totals

    i = types.int64
    return (
        totals(totals, positive, words, scales, i, i, act_words, act_scales, starts, i, i),
        generate,
    )


_multiply, _multiply_positive = _product(False), _product(True)
