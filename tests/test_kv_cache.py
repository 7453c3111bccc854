"""How a cache stores keys and values, and attention to what is stored."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np import kv_store
from mvlm_np.config import DecoderConfig
from mvlm_np.kv_cache import TYPES, KVCache, bytes_per_position
from tests.models import U
from tests.test_ops import TINY, floats32, seeds


@given(st.data(), st.integers(1, 20), st.sampled_from(["float16", "int8"]))
def test_what_is_stored_is_close_to_what_was_given(data, d, dtype):
    x = data.draw(floats32(3, d, largest=6e4))
    stored = kv_store.quantize(x, dtype)
    found = kv_store.dequantize(stored)
    assert stored.numbers.dtype == dtype
    assert found.dtype == np.float32
    largest = np.abs(x).max(-1, keepdims=True)
    # float16 has 11 bits, and 2^-24 as its smallest step; int8 steps are 1/127 of the largest number of a
    # row.
    bound = (
        np.maximum(2.0**-11 * np.abs(x), 2.0**-25) if dtype == "float16" else (0.5 + 4 * U) * largest / 127
    )
    assert (np.abs(found - x) <= bound * (1 + 1e-6) + TINY).all()


def test_ends_of_the_ranges():
    x = np.array([[1e5, -1e9, 65504.0, 65519.0]], np.float32)
    assert kv_store.dequantize(kv_store.quantize(x, "float16")).tolist() == [[65504, -65504, 65504, 65504]]
    zeros = kv_store.quantize(np.zeros((2, 3), np.float32), np.int8)
    assert not zeros.numbers.any()
    assert not zeros.scales.any()
    denormals = kv_store.quantize(np.full((1, 4), 2e-45, np.float32), np.int8)
    assert (np.abs(denormals.numbers) <= 127).all()  # not 143, which would wrap round


def test_float32_and_float64_are_stored_as_they_are():
    for dtype in (np.float32, np.float64):
        x = np.random.default_rng(0).standard_normal((2, 5)).astype(dtype)
        assert np.array_equal(kv_store.dequantize(kv_store.quantize(x, dtype)), x)


@given(seeds, st.sampled_from(TYPES), st.integers(1, 3), st.integers(0, 3))
def test_beams_attend_to_the_prompt_and_to_their_own(seed, dtype, beams, before):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((n, beams, 8)).astype(np.float32) for n in (4, 2, 2))
    shared = [kv_store.quantize(rng.standard_normal((2, 5, 8)).astype(np.float32), dtype) for _ in range(2)]
    own = [
        kv_store.quantize(rng.standard_normal((beams, 2, 4, 8)).astype(np.float32), dtype) for _ in range(2)
    ]
    found = kv_store.beam_attention(q, k, v, *shared, *own, before)
    for b in range(beams):
        row = np.s_[:, b : b + 1]
        one = [
            kv_store.Stored(*(np.concatenate([s, o[b]], 1) for s, o in zip(*pair, strict=True)))
            for pair in zip(shared, own, strict=True)
        ]
        assert np.array_equal(found[row], kv_store.cached_attention(q[row], k[row], v[row], *one, 5 + before))


@given(seeds, st.sampled_from(TYPES), st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3)), min_size=1))
def test_several_sequences_attend_as_each_of_them_alone(seed, dtype, sizes):
    rng, (L, H, KV, d) = np.random.default_rng(seed), (2, 4, 2, 8)
    pasts, counts = zip(*sizes, strict=True)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    q, k, v = (normal(n, sum(counts), d) for n in (H, KV, KV))
    keys, values = (
        [kv_store.quantize(normal(L, KV, sum(size) + 2, d), dtype) for size in sizes] for _ in range(2)
    )
    alone = [[kv_store.Stored(*(a.copy() for a in stored)) for stored in pair] for pair in (keys, values)]
    found = kv_store.several_attention(q, k, v, kv_store.Sequences(keys, values, pasts, counts), 1)
    start = 0
    for past, count, *pair in zip(pasts, counts, *alone, strict=True):
        rows = np.s_[:, start : start + count]
        layer = [kv_store.part(stored, (1,)) for stored in pair]
        assert np.array_equal(found[rows], kv_store.cached_attention(q[rows], k[rows], v[rows], *layer, past))
        start += count
    for ours, theirs in zip((*keys, *values), (*alone[0], *alone[1]), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", TYPES)
def test_a_position_takes_as_many_bytes_as_we_say(dtype):
    config = DecoderConfig(64, 96, 3, 4, 2)
    cache = KVCache(config, 10, np.dtype(dtype))
    arrays = (*cache.keys, *cache.values)
    assert sum(array.nbytes for array in arrays) == 10 * bytes_per_position(config, np.dtype(dtype))
