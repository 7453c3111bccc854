"""Attention to stored keys and values, in float32, float16 and int8, against its definition in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np import ops
from mvlm_np.cache import TYPES
from tests.arrays import frozen, seeds
from tests.kernels.teams import threads

attention = pytest.importorskip("mvlm_np.kernels.attention")
test_float = pytest.importorskip("tests.kernels.test_float")

HEADS = st.sampled_from([(1, 1), (4, 2), (6, 1)])
SIZES = st.sampled_from([16, 32, 80, 128, 20])  # for the last one, the definition is asked


def stored(rng, dtype, *shape):
    """Read-only, and laid out as in the cache: with room behind each head's positions."""
    room = (*shape[:-2], shape[-2] + 3, shape[-1])
    numbers, scales = ops.narrow(rng.standard_normal(room).astype(np.float32), dtype)
    return ops.Stored(frozen(numbers)[..., : shape[-2], :], frozen(scales)[..., : shape[-2], :])


def exact(x):
    return ops.Stored(ops.widen(x).astype(np.float64), np.empty((*x.numbers.shape[:-1], 0)))


@given(seeds, st.sampled_from(TYPES), HEADS, st.sampled_from([1, 1, 2, 30]), st.integers(0, 70), SIZES)
def test_cached_attention(seed, dtype, heads, T, earlier, d):
    rng, (H, K) = np.random.default_rng(seed), heads
    q = rng.standard_normal((H, T, d)).astype(np.float32)
    keys, values = (stored(rng, dtype, K, T + earlier, d) for _ in range(2))
    truth = ops.cached_attention(q.astype(np.float64), exact(keys), exact(values))
    bound = test_float.attention_bound(q, ops.widen(keys), ops.widen(values), True)
    results = []
    for size in (1, 2):
        with threads(size):
            results.append(attention.cached_attention(q, keys, values))
    assert results[0].dtype == np.float32
    assert (np.abs(results[0] - truth) <= bound).all()
    assert np.array_equal(*results)


@given(seeds, st.sampled_from(TYPES), HEADS, st.integers(1, 4), st.integers(1, 40), st.integers(1, 20), SIZES)
def test_beam_attention(seed, dtype, heads, beams, S, own, d):
    rng, (H, K) = np.random.default_rng(seed), heads
    q = rng.standard_normal((H, beams, d)).astype(np.float32)
    shared = [stored(rng, dtype, K, S, d) for _ in range(2)]
    owned = [stored(rng, dtype, beams, K, own, d) for _ in range(2)]
    found = attention.beam_attention(q, *shared, *owned)
    truth = ops.beam_attention(q.astype(np.float64), *map(exact, shared), *map(exact, owned))
    for b in range(beams):
        k, v = (
            np.concatenate([ops.widen(s), ops.widen(o)[b]], 1) for s, o in zip(shared, owned, strict=True)
        )
        bound = test_float.attention_bound(q[:, b : b + 1], k, v, True)
        assert (np.abs(found - truth)[:, b : b + 1] <= bound).all()
