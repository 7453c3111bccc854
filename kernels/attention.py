"""Attention, softmax and rotary positions. No bit depends on threads."""

import numpy as np

from mvlm_np import ops
from mvlm_np.kernels.arrays import contiguous, float32, rows_contiguous
from mvlm_np.kernels.kernel import Kernel
from mvlm_np.kernels.shapes import LANES
from mvlm_np.kv_store import Stored

SHARE = 1024  # at most so many queries share one packing of keys and values

_rope = Kernel("attention.rope")
_softmax = Kernel("attention.softmax")

# How the kernels see each type of the cache, in which keys and values are read where they lie.
KINDS: dict[np.dtype, str] = {
    np.dtype(np.float32): "float32",
    np.dtype(np.float16): "uint16",
    np.dtype(np.int8): "int8",
}
_MANY = {dtype: Kernel(f"attention.many_queries_{kind}") for dtype, kind in KINDS.items()}
_NO_SCALES = np.empty((0, 0, 0), np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    """`ops.softmax`."""
    if not float32(x):
        return ops.softmax(x)
    rows = contiguous(x).reshape(-1, x.shape[-1])
    out = np.empty_like(rows)
    _softmax(len(rows), rows.shape[1], rows, out)
    return out.reshape(x.shape)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> np.ndarray:
    """`ops.attention`, up to the rounding of its sums."""
    if not (float32(q, k, v) and _fit(q, k, v, causal) and q.shape[2] % LANES == 0):
        return ops.attention(q, k, v, causal)
    keys, values = (Stored(rows_contiguous(a), _NO_SCALES) for a in (k, v))
    return many_queries(q, keys, values, causal)


def _fit(q, k, v, causal):
    """Whether the shapes are those that attention is defined for."""
    if not (q.ndim == k.ndim == 3 and k.shape == v.shape and q.shape[2] == k.shape[2]):
        return False
    return q.shape[0] % k.shape[0] == 0 and (q.shape[1] <= k.shape[1] or not causal)


def many_queries(q: np.ndarray, keys: Stored, values: Stored, causal: bool) -> np.ndarray:
    """`ops.attention` to stored keys and values (KV, S, d); d is a multiple of 16."""
    (H, T, d), S = q.shape, keys.numbers.shape[1]
    out, parts = np.empty((H, T, d), np.float32), -(-T // SHARE)
    past = S - T if causal else S
    arrays = *_bits(keys), *_bits(values)
    work = T / parts * S * (d / 16 + 1)
    _MANY[keys.numbers.dtype](H * parts, work, rows_contiguous(q), *arrays, past, parts, out)
    return out


def _bits(rows):
    """Numbers as the kernels take them, which see float16 as uint16, and scales."""
    numbers, scales = rows
    return numbers.view(np.uint16) if numbers.dtype == np.float16 else numbers, scales


def rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """`ops.rope`."""
    if not (float32(x, cos, sin) and x.ndim == 3 and cos.shape == sin.shape == (x.shape[1], x.shape[2] / 2)):
        return ops.rope(x, cos, sin)
    out = np.empty(x.shape, np.float32)
    tokens = contiguous(x.transpose(1, 0, 2))  # (T, H, d): so it comes out of a linear layer
    _rope(len(tokens), x[:, 0].size / 2, tokens, contiguous(cos), contiguous(sin), out)
    return out
