"""Attention, softmax and rotary positions.

Keys and values are read where they lie: float32, float16 or int8. No bit depends on threads.
"""

import numpy as np

from mvlm_np import kv_store, ops
from mvlm_np.kernels.arrays import FLOAT32, contiguous, float32, rows_contiguous
from mvlm_np.kernels.kernel import Kernel
from mvlm_np.kernels.shapes import LANES
from mvlm_np.kv_store import Stored, part

SHARE = 1024  # at most so many queries share one packing of keys and values

_rope = Kernel("attention.rope")
_softmax = Kernel("attention.softmax")

# How the kernels see each type of the cache.
_KINDS: dict[np.dtype, str] = {
    np.dtype(np.float32): "float32",
    np.dtype(np.float16): "uint16",
    np.dtype(np.int8): "int8",
}
_MANY = {dtype: Kernel(f"attention.many_queries_{kind}") for dtype, kind in _KINDS.items()}
_LAST = {dtype: Kernel(f"attention.last_query_{kind}") for dtype, kind in _KINDS.items()}
_NOTHING_SHARED = {
    dtype: Stored(np.empty((1, 0, LANES), dtype), np.empty((1, 0, 0), np.float32)) for dtype in _KINDS
}
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
    return _attention(q, keys, values, causal)


def cached_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, keys: Stored, values: Stored, past: int
) -> np.ndarray:
    """`kv_store.cached_attention`, up to the rounding of its sums."""
    if not _known(q, k, v, keys):
        return kv_store.cached_attention(q, k, v, keys, values, past)
    if q.shape[1] == 1:
        nothing, as_beam = _NOTHING_SHARED[keys.numbers.dtype], (None,)
        return _last_queries(q, k, v, nothing, nothing, part(keys, as_beam), part(values, as_beam), past)
    stop = past + q.shape[1]
    for cached, rows in ((keys, k), (values, v)):
        kv_store.store(cached, np.s_[:, past:stop], rows)
    return _attention(q, part(keys, np.s_[:, :stop]), part(values, np.s_[:, :stop]), True)


def beam_attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    keys: Stored,
    values: Stored,
    own_keys: Stored,
    own_values: Stored,
    past: int,
) -> np.ndarray:
    """`kv_store.beam_attention`, up to the rounding of its sums."""
    if not _known(q, k, v, keys):
        return kv_store.beam_attention(q, k, v, keys, values, own_keys, own_values, past)
    return _last_queries(q, k, v, keys, values, own_keys, own_values, past)


def _fit(q, k, v, causal):
    """Whether the shapes are those that attention is defined for."""
    if not (q.ndim == k.ndim == 3 and k.shape == v.shape and q.shape[2] == k.shape[2]):
        return False
    return q.shape[0] % k.shape[0] == 0 and (q.shape[1] <= k.shape[1] or not causal)


def _known(q, k, v, keys):
    """Whether the types and the head size are those that the kernels are made for."""
    floats = q.dtype == k.dtype == v.dtype == FLOAT32
    return floats and q.shape[2] % LANES == 0 and keys.numbers.dtype in _MANY


def _attention(q, keys, values, causal):
    (H, T, d), S = q.shape, keys.numbers.shape[1]
    out, parts = np.empty((H, T, d), np.float32), -(-T // SHARE)
    past = S - T if causal else S
    arrays = *_bits(keys), *_bits(values)
    work = T / parts * S * (d / 16 + 1)
    _MANY[keys.numbers.dtype](H * parts, work, rows_contiguous(q), *arrays, past, parts, out)
    return out


def _last_queries(q, k, v, keys, values, own_keys, own_values, past):
    (H, beams, d), KV, S = q.shape, len(k), keys.numbers.shape[1]
    out = np.empty((H, beams, d), np.float32)
    work = H // KV * (S + past + 1) * d / 8
    arrays = *_bits(keys), *_bits(values), *_bits(own_keys), *_bits(own_values)
    new = rows_contiguous(q), rows_contiguous(k), rows_contiguous(v)
    _LAST[keys.numbers.dtype](beams * KV, work, *new, *arrays, past, out)
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
