"""Attention to stored keys and values, in float32, float16 and int8, against its definition in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np import kv_store
from mvlm_np.kv_cache import TYPES
from tests.arrays import frozen, seeds
from tests.kernels.teams import threads

attention = pytest.importorskip("mvlm_np.kernels.cached")
test_float = pytest.importorskip("tests.kernels.test_float")

HEADS = st.sampled_from([(1, 1), (4, 2), (6, 1)])
SIZES = st.sampled_from([16, 32, 80, 128, 20])  # for the last one, the definition is asked


def cache(rng, dtype, *shape):
    """As it is laid out: with room behind each head's positions, filled with anything."""
    room = (*shape[:-2], shape[-2] + 3, shape[-1])
    return kv_store.quantize(rng.standard_normal(room).astype(np.float32), dtype)


def copy(stored):
    return kv_store.Stored(*(a.copy() for a in stored))


def exact(stored):
    """In float64; what is stored in it stays as it is."""
    numbers = kv_store.dequantize(stored).astype(np.float64)
    return kv_store.Stored(numbers, np.empty((*numbers.shape[:-1], 0)))


def rounded(rows, dtype):
    """What a cache makes of rows."""
    return kv_store.dequantize(kv_store.quantize(rows, dtype))


def same(found, wanted):
    return all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


@given(seeds, st.sampled_from(TYPES), HEADS, st.sampled_from([1, 1, 2, 30]), st.integers(0, 70), SIZES)
def test_cached_attention(seed, dtype, heads, T, earlier, d):
    rng, (H, KV) = np.random.default_rng(seed), heads
    q, k, v = (rng.standard_normal((n, T, d)).astype(np.float32) for n in (H, KV, KV))
    stored = [cache(rng, dtype, KV, T + earlier, d) for _ in range(2)]
    wanted = [copy(s) for s in stored]
    for s, rows in zip(wanted, (k, v), strict=True):
        kv_store.store(s, np.s_[:, earlier : earlier + T], rows)
    now = [rounded(rows, dtype).astype(np.float64) for rows in (k, v)]
    truth = kv_store.cached_attention(q.astype(np.float64), *now, *map(exact, stored), earlier)
    seen = [kv_store.dequantize(s)[:, : earlier + T] for s in wanted]
    bound = test_float.attention_bound(q, *seen, True)
    results = []
    for size in (1, 2):
        with threads(size):
            own = [copy(s) for s in stored]
            results.append(attention.cached_attention(q, frozen(k), frozen(v), *own, earlier))
        assert all(map(same, own, wanted))
    assert results[0].dtype == np.float32
    assert (np.abs(results[0] - truth) <= bound).all()
    assert np.array_equal(*results)


@given(seeds, st.sampled_from(TYPES), HEADS, st.integers(1, 4), st.integers(1, 40), st.integers(0, 20), SIZES)
def test_beam_attention(seed, dtype, heads, beams, S, before, d):
    rng, (H, KV) = np.random.default_rng(seed), heads
    q, k, v = (rng.standard_normal((n, beams, d)).astype(np.float32) for n in (H, KV, KV))
    shared = [kv_store.Stored(*map(frozen, cache(rng, dtype, KV, S, d))) for _ in range(2)]
    owned = [cache(rng, dtype, beams, KV, before + 1, d) for _ in range(2)]
    wanted = [copy(s) for s in owned]
    now = [rounded(rows, dtype).astype(np.float64) for rows in (k, v)]
    truth = kv_store.beam_attention(q.astype(np.float64), *now, *map(exact, [*shared, *owned]), before)
    found = attention.beam_attention(q, k, v, *shared, *owned, before)
    for s, rows in zip(wanted, (k, v), strict=True):
        kv_store.store(s, np.s_[:, :, before], rows.swapaxes(0, 1))
    assert all(map(same, owned, wanted))
    for b in range(beams):
        seen = (
            np.concatenate([kv_store.dequantize(s), kv_store.dequantize(o)[b, :, : before + 1]], 1)
            for s, o in zip(shared, wanted, strict=True)
        )
        bound = test_float.attention_bound(q[:, b : b + 1], *seen, True)
        assert (np.abs(found - truth)[:, b : b + 1] <= bound).all()


def test_a_cache_without_room_and_one_that_may_not_be_written_are_errors():
    x = np.ones((1, 2, 16), np.float32)
    full, free = (kv_store.empty((1, n, 16), np.float32) for n in (2, 4))
    locked = kv_store.Stored(*map(frozen, kv_store.empty((1, 4, 16), np.float32)))
    for stored in ((full, free), (free, full), (locked, free), (free, locked)):
        with pytest.raises(ValueError):
            attention.cached_attention(x, x, x, *stored, 1)


NUMBERS = (
    st.floats(width=32, allow_nan=False)
    | st.floats(-(2.0**-13), 2.0**-13, width=32)
    | st.floats(width=16, allow_nan=False)
)


@given(st.lists(NUMBERS, min_size=16, max_size=16), st.sampled_from(TYPES))
def test_a_new_row_is_stored_as_narrow_stores_it(numbers, dtype):
    """With ties, denormals and what is beyond the range."""
    x = np.array(numbers, np.float32).clip(-1e30, 1e30).reshape(1, 1, 16)
    stored = [kv_store.quantize(np.zeros((1, 2, 16), np.float32), dtype) for _ in range(2)]
    attention.cached_attention(np.zeros_like(x), x, x, *stored, 1)
    for s in stored:
        assert same(kv_store.part(s, np.s_[:, 1:]), kv_store.quantize(x, dtype))


def test_nan_is_stored_as_nan():
    x = np.full((1, 1, 16), np.nan, np.float32)
    for dtype in ("float32", "float16"):
        stored = [kv_store.quantize(np.zeros((1, 1, 16), np.float32), dtype) for _ in range(2)]
        attention.cached_attention(x, x, x, *stored, 0)
        assert np.isnan(stored[0].numbers).all()
