"""Attention, softmax and rotary positions.

Many queries are attended to tile by tile, on the same 6 x 16 matrix product for scores and for values; one
query, a decoding step, is a single pass over the cache. Neither asks BLAS, so no bit depends on threads.
"""

import numpy as np
from numba import types

from mvlm_np import ops
from mvlm_np.kernels.activations import exp
from mvlm_np.kernels.arrays import contiguous, float32, rows_contiguous
from mvlm_np.kernels.compile import inline
from mvlm_np.kernels.kernel import kernel, reads, writes
from mvlm_np.kernels.simd import LANES, add, larger, largest, load, multiply_add, splat, store, total

TILE = 6  # queries. 6 x 16 sums fill the registers of AVX2, and half of those of NEON and AVX-512
BLOCK = 4 * TILE  # queries whose scores are in the cache together
SHARE = 256  # at most so many queries share one packing of keys and values


def softmax(x: np.ndarray) -> np.ndarray:
    """`ops.softmax`."""
    if not float32(x):
        return ops.softmax(x)
    rows = contiguous(x).reshape(-1, x.shape[-1])
    out = np.empty_like(rows)
    _softmax(len(rows), rows.shape[1], rows, out)
    return out.reshape(x.shape)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> np.ndarray:
    """`ops.attention`, up to the rounding of its sums. Keys and values are read where they lie."""
    if not (float32(q, k, v) and _fit(q, k, v, causal)):
        return ops.attention(q, k, v, causal)
    (H, T, d), (K, S, _) = q.shape, k.shape
    out = np.empty((H, T, d), np.float32)
    keys, values = rows_contiguous(k), rows_contiguous(v)
    if T == 1:
        grouped = contiguous(q).reshape(K, H // K, d)
        _one_query(K, H // K * S * d / 8, grouped, keys, values, out.reshape(grouped.shape))
    else:
        before = S - T if causal else S
        parts = -(-T // SHARE)
        _many_queries(
            H * parts, T / parts * S * (d / 16 + 1), rows_contiguous(q), keys, values, before, parts, out
        )
    return out


def _fit(q, k, v, causal):
    """Whether the shapes are those that attention is defined for."""
    if not (q.ndim == k.ndim == 3 and k.shape == v.shape and q.shape[2] == k.shape[2]):
        return False
    return q.shape[0] % k.shape[0] == 0 and (q.shape[1] <= k.shape[1] or not causal)


def rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """`ops.rope`."""
    if not (float32(x, cos, sin) and x.ndim == 3 and cos.shape == sin.shape == (x.shape[1], x.shape[2] / 2)):
        return ops.rope(x, cos, sin)
    out = np.empty(x.shape, np.float32)
    tokens = contiguous(x.transpose(1, 0, 2))  # (T, H, d): so it comes out of a linear layer
    _rope(len(tokens), x[:, 0].size / 2, tokens, contiguous(cos), contiguous(sin), out)
    return out


@kernel(reads(3), reads(2), reads(2), writes(3))
def _rope(first, last, x, cos, sin, out):
    _, H, d = x.shape
    half = d // 2
    for t in range(first, last):
        for head in range(H):
            for i in range(half):
                first, second = x[t, head, i], x[t, head, i + half]
                out[head, t, i] = first * cos[t, i] - second * sin[t, i]
                out[head, t, i + half] = second * cos[t, i] + first * sin[t, i]


# ---------------------------------------------------------------- softmax


@kernel(reads(2), writes(2))
def _softmax(first, last, x, out):
    for i in range(first, last):
        row = np.empty((x.shape[1] + LANES - 1) // LANES * LANES, np.float32)
        for j in range(x.shape[1]):
            row[j] = x[i, j]
        _, s = exponentials(row, x.shape[1])
        for j in range(x.shape[1]):
            out[i, j] = row[j] / s


@inline
def exponentials(row, n):
    """row[:n] becomes exp(row - its largest), the rest 0. Returns the largest and the sum.

    The row's length is a multiple of 16.
    """
    for j in range(n, len(row)):
        row[j] = -np.inf
    lanes = splat(np.float32(-np.inf))
    for j in range(0, len(row), LANES):
        lanes = larger(load(row, (j,)), lanes)
    top = largest(lanes)
    for j in range(len(row)):
        row[j] = exp(row[j] - top)
    lanes = splat(np.float32(0))
    for j in range(0, len(row), LANES):
        lanes = add(lanes, load(row, (j,)))
    return top, total(lanes)


# ---------------------------------------------------------------- many queries


@kernel(reads(3, "A"), reads(3, "A"), reads(3, "A"), types.int64, types.int64, writes(3))
def _many_queries(first, last, q, k, v, before, parts, out):
    """Query t sees min(S, before + t + 1) positions."""
    H, T, _ = q.shape
    group = H // len(k)
    length = (T + parts - 1) // parts
    for step in range(first, last):
        head, start = step // parts, step % parts * length
        _attend(q[head], k[head // group], v[head // group], before, start, min(T, start + length), out[head])


@inline
def _attend(q, k, v, before, start, stop, out):
    """Queries start..stop of one head. q and out (T, d), k and v (S, d)."""
    S, d = k.shape
    seen = min(S, before + stop)  # positions that any of these queries sees
    keys, values = _key_panels(k, seen), _value_panels(v, seen)
    # Rows and lanes that are beyond an end hold anything. What is computed from them is left there.
    queries = np.empty((BLOCK, d), np.float32)
    scores = np.empty((BLOCK, len(keys) * LANES), np.float32)
    mixed = np.empty((BLOCK, len(values) * LANES), np.float32)
    sums = np.empty(BLOCK, np.float32)
    scale = np.float32(1 / np.sqrt(d))
    for first in range(start, stop, BLOCK):
        n = min(BLOCK, stop - first)
        for r in range(n):
            for i in range(d):
                queries[r, i] = q[first + r, i] * scale
        seen = min(S, before + first + n)
        width = (seen + LANES - 1) // LANES * LANES
        for column in range(0, width, LANES):
            for r in range(0, n, TILE):
                _tile(queries, r, keys[column // LANES], d, scores, column)
        for r in range(n):
            _, sums[r] = exponentials(scores[r, :width], min(S, before + first + r + 1))
        for column in range(0, d, LANES):
            for r in range(0, n, TILE):
                _tile(scores, r, values[column // LANES], seen, mixed, column)
        for r in range(n):
            for i in range(d):
                out[first + r, i] = mixed[r, i] / sums[r]


@inline
def _key_panels(k, seen):
    """(seen, d) -> (seen / 16, d, 16): 16 positions side by side, for scores."""
    panels = np.empty(((seen + LANES - 1) // LANES, k.shape[1], LANES), np.float32)
    for s in range(seen):
        for i in range(k.shape[1]):
            panels[s // LANES, i, s % LANES] = k[s, i]
    return panels


@inline
def _value_panels(v, seen):
    """(seen, d) -> (d / 16, seen, 16): 16 elements of each position, for their weighted sum."""
    panels = np.empty(((v.shape[1] + LANES - 1) // LANES, seen, LANES), np.float32)
    for s in range(seen):
        for i in range(v.shape[1]):
            panels[i // LANES, s, i % LANES] = v[s, i]
    return panels


@inline
def _tile(rows, first, panel, n, out, column):
    """out[first : first + 6, column : column + 16] = rows[first : first + 6, :n] @ panel[:n]"""
    a = b = c = d = e = f = splat(np.float32(0))
    for i in range(n):
        lanes = load(panel, (i, 0))
        a = multiply_add(splat(rows[first, i]), lanes, a)
        b = multiply_add(splat(rows[first + 1, i]), lanes, b)
        c = multiply_add(splat(rows[first + 2, i]), lanes, c)
        d = multiply_add(splat(rows[first + 3, i]), lanes, d)
        e = multiply_add(splat(rows[first + 4, i]), lanes, e)
        f = multiply_add(splat(rows[first + 5, i]), lanes, f)
    store(out, (first, column), a)
    store(out, (first + 1, column), b)
    store(out, (first + 2, column), c)
    store(out, (first + 3, column), d)
    store(out, (first + 4, column), e)
    store(out, (first + 5, column), f)


# ---------------------------------------------------------------- one query


@kernel(reads(3), reads(3, "A"), reads(3, "A"), writes(3))
def _one_query(first, last, q, k, v, out):
    """The queries that share a key-value head: q and out (K, G, d), k and v (K, S, d)."""
    for head in range(first, last):
        _attend_once(q[head], k[head], v[head], out[head])


@inline
def _attend_once(q, k, v, out):
    n, d = k.shape
    whole = d // LANES * LANES
    scale = np.float32(1 / np.sqrt(d))
    scores = np.empty((len(q), (n + LANES - 1) // LANES * LANES), np.float32)
    for s in range(n):
        for g in range(len(q)):
            lanes = splat(np.float32(0))
            for i in range(0, whole, LANES):
                lanes = multiply_add(load(q, (g, i)), load(k, (s, i)), lanes)
            dot = total(lanes)
            for i in range(whole, d):
                dot += q[g, i] * k[s, i]
            scores[g, s] = dot * scale
    out[:] = np.float32(0)
    for g in range(len(q)):
        _, norm = exponentials(scores[g], n)
        for s in range(n):
            weight = splat(scores[g, s])
            for i in range(0, whole, LANES):
                store(out, (g, i), multiply_add(weight, load(v, (s, i)), load(out, (g, i))))
            for i in range(whole, d):
                out[g, i] += scores[g, s] * v[s, i]
        for i in range(d):
            out[g, i] /= norm
