"""Attention of the next positions of sequences, each on its own cache: a few of each, in one pass over it.

A few means that queries wait for keys and values, which come from memory: each block of 16 positions is read
once for all queries of a sequence that share it. Every sum is that of `attention.many_queries`, in the same
order, so no bit of a result depends on how many positions are computed together.
"""

import numpy as np
from numba import carray, types

from mvlm_np.kernels.code.attention import exponentials, up
from mvlm_np.kernels.code.columns import add_columns, count_of, load_columns, load_lanes, multiply_columns
from mvlm_np.kernels.code.compile import inline
from mvlm_np.kernels.code.kernel import kernel, reads, writes
from mvlm_np.kernels.code.simd import LANES, load, multiply, multiply_add, pointer, prefetch, splat, store
from mvlm_np.kernels.code.tiles import add_outer, load_tile, store_tile, zeros
from mvlm_np.kernels.shapes import CAPACITY, COUNT, FILLED, KEYS, OWN, ROW, SHARED, VALUES

TILE = 4  # queries of a tile: with fewer, additions wait for each other; more are in no CPU's way
AHEAD = 16  # positions further on whose keys or values are asked for meanwhile


def _kernels(dtype, number, has_scales, scaled, scale_of, put):
    """The kernels for caches of a type; see the end of the file.

    places  int64 (sequences, 14), as `shapes` says
    """
    itemsize, columns = dtype.bitwidth // 8, count_of(dtype)
    turned, vector, four_vectors = 256, LANES * itemsize, 4 * LANES * itemsize  # bytes
    new, table = reads(3, "A"), reads(2, dtype=types.int64)

    @inline
    def rows_at(place, what, head, d):
        """Keys or values of a head, (capacity, d), and their scales."""
        room = place[CAPACITY]
        rows = carray(pointer(place[what] + head * room * d * itemsize), (room, d), number)
        room = room if has_scales else 0
        return rows, carray(pointer(place[what + 1] + head * room * 4), (room,), np.float32)

    @inline
    def address_of(place, what, head, d):
        """Where the keys or values begin that a head attends to first."""
        part = place[SHARED:] if place[SHARED + FILLED] > 0 else place[OWN:]
        return part[what] + head * part[CAPACITY] * d * itemsize

    @inline
    def store_rows(x, head, place, what):
        own = place[OWN:]
        rows, scales = rows_at(own, what, head, x.shape[2])
        for t in range(place[COUNT]):
            put(x[head, place[ROW] + t], rows, scales, own[FILLED] + t)

    @kernel(new, new, table, name=f"_store_{dtype}")
    def _store(first, stop, k, v, places):
        """Keys and values (KV, rows, d) go behind what is there."""
        for step in range(first, stop):
            place, head = places[step // len(k)], step % len(k)
            store_rows(k, head, place, KEYS)
            store_rows(v, head, place, VALUES)

    @inline
    def score(q, n, keys, scales, seen, panel, scores, start, following):
        """scores[:n, start : start + seen] = q[:n] @ keys[:seen]; what is behind them holds anything.

        following: the address of what will be read next.
        """
        d, last = q.shape[1], seen - 1
        keys_address = keys.ctypes.data
        for s in range(0, seen, LANES):
            ahead = following if s + AHEAD >= seen else keys_address + (s + AHEAD) * d * itemsize
            if n == 1:
                total = splat(np.float32(0))
                for i in range(0, d, columns):
                    prefetch(ahead + i * LANES * itemsize, turned)
                    part = scaled(load_columns(keys, s, last, i), scales, s, last)
                    total = add_columns(total, q, 0, i, part)
                store(scores, (0, start + s), total)
            else:
                for i in range(0, d, columns):
                    prefetch(ahead + i * LANES * itemsize, turned)
                    store_tile(scaled(load_columns(keys, s, last, i), scales, s, last), panel, i, 0)
                for r in range(0, n, TILE):
                    sums = zeros(TILE, 1)
                    for i in range(d):
                        sums = add_outer(sums, q, r, i, load(panel, (i, 0)))
                    store_tile(sums, scores, r, start + s)

    @inline
    def mix(scores, n, start, values, scales, seen, block, mixed, following):
        """mixed[:n] += scores[:n, start : start + seen] @ values[:seen]; following: as above."""
        d = mixed.shape[1]
        values_address = values.ctypes.data
        for s in range(0, seen, LANES):
            stop = min(s + LANES, seen)
            ahead = following if s + AHEAD >= seen else values_address + (s + AHEAD) * d * itemsize
            if n == 1:
                mix_one(scores, start, values, scales, s, stop, mixed, ahead)
            else:
                for t in range(s, stop):
                    scale = splat(scale_of(scales, t))
                    for i in range(0, d, LANES):
                        prefetch(ahead + ((t - s) * d + i) * itemsize, vector)
                        store(block, (t - s, i), multiply(load(values, (t, i)), scale))
                for column in range(0, d, LANES):
                    for r in range(0, n, TILE):
                        sums = load_tile(zeros(TILE, 1), mixed, r, column)
                        for t in range(s, stop):
                            sums = add_outer(sums, scores, r, start + t, load(block, (t - s, column)))
                        store_tile(sums, mixed, r, column)

    @inline
    def mix_one(scores, start, values, scales, s, stop, mixed, ahead):
        """The same for one query and positions s .. stop - 1."""
        d = mixed.shape[1]
        fours = d // (4 * LANES) * (4 * LANES)
        for i in range(0, fours, 4 * LANES):
            a, b = load(mixed, (0, i)), load(mixed, (0, i + LANES))
            c, e = load(mixed, (0, i + 2 * LANES)), load(mixed, (0, i + 3 * LANES))
            for t in range(s, stop):
                prefetch(ahead + ((t - s) * d + i) * itemsize, four_vectors)
                weight, scale = splat(scores[0, start + t]), splat(scale_of(scales, t))
                a = multiply_add(weight, multiply(load(values, (t, i)), scale), a)
                b = multiply_add(weight, multiply(load(values, (t, i + LANES)), scale), b)
                c = multiply_add(weight, multiply(load(values, (t, i + 2 * LANES)), scale), c)
                e = multiply_add(weight, multiply(load(values, (t, i + 3 * LANES)), scale), e)
            store(mixed, (0, i), a)
            store(mixed, (0, i + LANES), b)
            store(mixed, (0, i + 2 * LANES), c)
            store(mixed, (0, i + 3 * LANES), e)
        for i in range(fours, d, LANES):
            a = load(mixed, (0, i))
            for t in range(s, stop):
                weight, scale = splat(scores[0, start + t]), splat(scale_of(scales, t))
                a = multiply_add(weight, multiply(load(values, (t, i)), scale), a)
            store(mixed, (0, i), a)

    @kernel(new, new, new, table, types.float64, writes(3, "A"), name=f"_few_queries_{dtype}")
    def _few_queries(first, stop, q, k, v, places, scale, out):
        """Stores keys and values (KV, rows, d), then attends: q and out (H, rows, d); scale: 1 / sqrt(d)."""
        d, KV = q.shape[2], len(k)
        group = len(q) // KV
        panel, block = np.empty((d, LANES), np.float32), np.empty((LANES, d), np.float32)
        for step in range(first, stop):
            place, head = places[step // KV], step % KV
            shared, own, row, count = place[SHARED:], place[OWN:], place[ROW], place[COUNT]
            store_rows(k, head, place, KEYS)
            store_rows(v, head, place, VALUES)
            n, before, filled = group * count, shared[FILLED], own[FILLED] + count
            seen = before + filled
            # Rows and lanes that are beyond an end hold anything. What is computed from them is left there.
            padded = (n + TILE - 1) // TILE * TILE
            queries, mixed = np.empty((padded, d), np.float32), np.zeros((padded, d), np.float32)
            scores, sums = np.empty((padded, up(seen) + LANES), np.float32), np.empty(n, np.float32)
            for r in range(n):
                for i in range(d):
                    queries[r, i] = q[head * group + r % group, row + r // group, i] * np.float32(scale)
            following = address_of(place, VALUES, head, d)
            for part, length, start in ((shared, before, 0), (own, filled, before)):
                rows, scales = rows_at(part, KEYS, head, d)
                score(queries, n, rows, scales, length, panel, scores, start, following)
            for r in range(n):
                sums[r] = exponentials(scores[r, : up(seen)], seen - count + r // group + 1)
            after = min(step + 1, len(places) * KV - 1)
            following = address_of(places[after // KV], KEYS, after % KV, d)
            for part, length, start in ((shared, before, 0), (own, filled, before)):
                rows, scales = rows_at(part, VALUES, head, d)
                mix(scores, n, start, rows, scales, length, block, mixed, following)
            for r in range(n):
                for i in range(d):
                    out[head * group + r % group, row + r // group, i] = mixed[r, i] / sums[r]


@inline
def _as_they_are(columns, scales, row, last):
    return columns


@inline
def _scaled(columns, scales, row, last):
    return multiply_columns(columns, load_lanes(scales, row, last))


@inline
def _one(scales, s):
    return np.float32(1)


@inline
def _stored(scales, s):
    return scales[s]


@inline
def _put_floats(x, rows, scales, s):
    for i in range(0, len(x), LANES):
        store(rows, (s, i), load(x, (i,)))


@inline
def _put_int8(x, rows, scales, s):
    largest = np.float32(0)
    for number in x:
        largest = max(largest, abs(number))
    scale = largest / np.float32(127)
    scales[s] = scale
    divisor = scale if scale > 0 else np.float32(1)
    for i in range(len(x)):  # clipped, since a denormal scale is imprecise
        rows[s, i] = np.int8(min(max(np.rint(x[i] / divisor), np.float32(-127)), np.float32(127)))


_kernels(types.float32, np.float32, False, _as_they_are, _one, _put_floats)
_kernels(types.uint16, np.uint16, False, _as_they_are, _one, _put_floats)  # the bits of float16
_kernels(types.int8, np.int8, True, _scaled, _stored, _put_int8)
