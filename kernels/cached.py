"""Attention of sequences to their caches, which are read where they lie.

The next positions of any number of sequences are one launch, whose steps are sequences x KV heads; those
with many positions, pieces of a prompt, have one of their own. Both kernels add up in the same order: what
comes out for a position depends, to the bit, on its own sequence alone.
"""

from ctypes import addressof, c_char
from math import sqrt

import numpy as np

from mvlm_np import kv_store
from mvlm_np.kernels.arrays import FLOAT32, rows_contiguous
from mvlm_np.kernels.attention import KINDS, many_queries
from mvlm_np.kernels.kernel import Kernel
from mvlm_np.kernels.shapes import LANES, OWN, PLACE
from mvlm_np.kv_store import Sequences, Stored, part

FEW = 32  # queries for a KV head; for more it is worth while to pack what they attend to

FEW_QUERIES = {dtype: Kernel(f"cached.few_queries_{kind}") for dtype, kind in KINDS.items()}
_STORE = {dtype: Kernel(f"cached.store_{kind}") for dtype, kind in KINDS.items()}
_NOTHING_SHARED = [0] * 6


def cached_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, keys: Stored, values: Stored, past: int
) -> np.ndarray:
    """`kv_store.cached_attention`, up to the rounding of its sums."""
    count = q.shape[1]
    if not (_known(q, k, v) and _fits(keys, values, k, past + count)):
        return kv_store.cached_attention(q, k, v, keys, values, past)
    places = np.array([[0, count, *_NOTHING_SHARED, *_place(keys, values, past)]])
    dtype, stop = keys.numbers.dtype, past + count
    if _are_few(q, k, count):
        return _few_queries(q, k, v, dtype, places, stop, _empty(q))
    _STORE[dtype](len(k), k[0].size / 2, rows_contiguous(k), rows_contiguous(v), places)
    return many_queries(q, part(keys, np.s_[:, :stop]), part(values, np.s_[:, :stop]), causal=True)


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
    beams, S, dtype = q.shape[1], keys.numbers.shape[1], keys.numbers.dtype
    each = [(part(own_keys, (b,)), part(own_values, (b,))) for b in range(beams)]
    known = _known(q, k, v) and _fits(keys, values, k, S, written=False) and own_keys.numbers.dtype == dtype
    if not (known and all(_fits(*own, k, past + 1) for own in each)):
        return kv_store.beam_attention(q, k, v, keys, values, own_keys, own_values, past)
    shared = _place(keys, values, S)
    places = np.array([[b, 1, *shared, *_place(*own, past)] for b, own in enumerate(each)])
    return _few_queries(q, k, v, dtype, places, S + past + 1, _empty(q))


def several_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, sequences: Sequences, layer: int
) -> np.ndarray:
    """`kv_store.several_attention`, up to the rounding of its sums."""
    if sequences.plan is None:
        sequences.plan = _plan(q, k, v, sequences)
    out, (together, places) = _empty(q), sequences.plan
    if len(together):
        stop = sum(sequences.pasts) // len(sequences.pasts) + 1
        _few_queries(q, k, v, sequences.keys[together[0]].numbers.dtype, places[layer], stop, out)
    for i, rows in enumerate(sequences.rows):
        if i not in together:
            stored = part(sequences.keys[i], (layer,)), part(sequences.values[i], (layer,))
            out[:, rows] = cached_attention(q[:, rows], k[:, rows], v[:, rows], *stored, sequences.pasts[i])
    return out


def _plan(q, k, v, sequences):
    """The sequences of one launch, and their `places` in each layer, int64 (L, sequences, PLACE)."""
    together, firsts, strides = [], [], []
    each = zip(
        sequences.keys, sequences.values, sequences.rows, sequences.pasts, sequences.counts, strict=True
    )
    for i, (keys, values, rows, past, count) in enumerate(each):
        stored = part(keys, (0,)), part(values, (0,))
        same_type = keys.numbers.dtype == sequences.keys[0].numbers.dtype
        if same_type and _known(q, k, v) and _are_few(q, k, count) and _fits(*stored, k, past + count):
            together.append(i)
            firsts.append([rows.start, count, *_NOTHING_SHARED, *_place(*stored, past)])
            strides.append([a.strides[0] for s in (keys, values) for a in s])
    places = np.tile(np.array(firsts, np.int64).reshape(-1, PLACE), (len(sequences.keys[0].numbers), 1, 1))
    layers = np.arange(len(places))[:, None, None]
    places[:, :, OWN : OWN + 4] += layers * np.array(strides, np.int64).reshape(-1, 4)
    return together, places


def _few_queries(q, k, v, dtype, places, positions, out):
    """Stores and attends where `places` says; positions: about how many a query sees."""
    steps = len(places) * len(k)
    cost = q.size / steps * positions / 8
    new = rows_contiguous(q), rows_contiguous(k), rows_contiguous(v)
    FEW_QUERIES[dtype](steps, cost, *new, places, 1 / sqrt(q.shape[2]), out)
    return out


def _are_few(q, k, count):
    return count * len(q) <= FEW * len(k)


def _empty(q):
    """(H, T, d) that lies in memory as (T, H * d), as the next linear layer takes it."""
    H, T, d = q.shape
    return np.empty((T, H, d), np.float32).transpose(1, 0, 2)


def _known(q, k, v):
    """Whether these are arrays that the kernels are made for."""
    return (
        q.dtype == k.dtype == v.dtype == FLOAT32
        and q.ndim == 3
        and q.size > 0
        and q.shape[2] % LANES == 0
        and k.shape == v.shape == (len(k), *q.shape[1:])
        and len(q) % len(k) == 0
    )


def _fits(keys, values, k, stop, written=True):
    """Whether the first `stop` positions can be read by address and, if asked, written."""
    return all(_lies(s, len(k), k.shape[2], stop, written) for s in (keys, values)) and (
        keys.numbers.dtype == values.numbers.dtype and keys.numbers.strides == values.numbers.strides
    )


def _lies(stored, KV, d, stop, written):
    numbers, scales = stored
    size = numbers.itemsize
    heads, room, width = numbers.shape
    if not (heads == KV and width == d and stop <= room and numbers.strides[1:] == (d * size, size)):
        return False
    if numbers.dtype == np.int8 and not (
        scales.dtype == FLOAT32
        and scales.shape == (heads, room, 1)
        and scales.strides[1] == 4
        and scales.strides[0] * d == numbers.strides[0] * 4
    ):
        return False
    aligned = numbers.flags.aligned and scales.flags.aligned
    return numbers.dtype in KINDS and aligned and (numbers.flags.writeable or not written)


def _place(keys, values, filled):
    """What a kernel has to know of stored keys and values, of which so many positions count; see `shapes`."""
    addresses = (_address(a) for s in (keys, values) for a in s)
    _, _, width = keys.numbers.shape
    return *addresses, keys.numbers.strides[0] // (width * keys.numbers.itemsize), filled


def _address(a):
    """Where an array begins; 0 where it is empty, as scales of floats are."""
    if not a.size:
        return 0
    try:  # for each layer of each token, and NumPy's own ways take three times as long
        return addressof(c_char.from_buffer(a))
    except (TypeError, ValueError, BufferError):  # read-only, or not contiguous
        return a.__array_interface__["data"][0]
