"""Products in integers, the definition of the fast ones: against plain Python, int64 and float64."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np import ops
from mvlm_np.errors import GenerationError
from tests.arrays import U


@st.composite
def activations(draw: st.DrawFn, K: int | None = None) -> np.ndarray:
    """(M, K), each row with a magnitude of its own."""
    M, K = draw(st.integers(1, 4)), K or draw(st.integers(1, 100))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    x = rng.standard_normal((M, K)) * 2.0 ** rng.integers(-60, 60, (M, 1))
    return (x * (rng.random(x.shape) < 0.9)).astype(np.float32)


@given(activations())
def test_activations_become_the_nearest_multiples_of_their_groups_scale(x: np.ndarray) -> None:
    q, scales = ops.quantize_rows(x)
    assert q.dtype == np.int8 and q.shape == x.shape
    assert scales.dtype == np.float32 and scales.shape == (len(x), -(-x.shape[1] // 32))
    for row, group in np.ndindex(scales.shape):
        part = x[row, 32 * group : 32 * group + 32]
        scale = np.float32(float(np.abs(part).max()) / 127)  # a quotient rounded to float64 first is the same
        assert scales[row, group] == scale
        for value, found in zip(part, q[row, 32 * group : 32 * group + 32], strict=True):
            # Python's round takes exact numbers, and ties to the even one; the quotient itself is a float32.
            assert found == (round(Fraction(float(np.float32(float(value) / float(scale))))) if scale else 0)


def test_ties_go_to_the_even_number() -> None:
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]], np.float32)
    for power in (-100, 0, 100):
        q, scales = ops.quantize_rows(x * np.float32(2.0**power))
        assert q.tolist() == [[127, 0, 2, 2, 0, -2, -2]]
        assert scales == 2.0**power


def test_denormal_groups_stay_within_the_range() -> None:
    # 190 times the smallest float32: its scale should be 1.5 times that, and can only be once or twice that.
    smallest = np.float32(2.0**-149)
    for n in (1, 63, 64, 126, 190, 191, 200):
        q, scales = ops.quantize_rows(np.array([[n, -n]], np.float32) * smallest)
        assert abs(q.astype(int)).max() <= 127
        assert scales.max() > 0 or not q.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    x = np.ones((3, 70), np.float32)
    x[1, 69] = value
    with pytest.raises(GenerationError, match="activations: found NaN or infinity"):
        ops.quantize_rows(x)


@given(st.data(), st.integers(1, 100), st.integers(1, 9))
def test_the_product_is_that_of_the_integers(data: st.DataObject, K: int, N: int) -> None:
    x = data.draw(activations(K))
    rng = np.random.default_rng(N)
    w = rng.integers(-127, 128, (N, K)).astype(np.int8)
    scales = (rng.standard_normal((N, -(-K // 32))) * 2.0 ** rng.integers(-9, 5)).astype(np.float16)
    found = ops.quantized_matmul(x, w, scales)
    assert found.dtype == np.float32 and found.shape == (len(x), N)
    q, x_scales = ops.quantize_rows(x)
    exact, size = np.zeros(found.shape), np.zeros(found.shape)
    for g in range(scales.shape[1]):
        columns = slice(32 * g, 32 * g + 32)
        sums = q[:, columns].astype(np.int64) @ w[:, columns].astype(np.int64).T
        terms = sums * (x_scales[:, g, None].astype(np.float64) * scales[:, g].astype(np.float64))
        exact += terms
        size += np.abs(terms)
    # Each term is rounded twice and each of the sums that it is in once.
    assert (np.abs(found - exact) <= (len(scales[0]) + 3) * U * size).all()


@given(activations(K=64), st.integers(0, 99))
def test_a_product_with_one_group_is_rounded_twice_and_no_more(x: np.ndarray, seed: int) -> None:
    x = x[:, :32]
    w = np.random.default_rng(seed).integers(-127, 128, (3, 32)).astype(np.int8)
    scales = np.array([[1], [0.5], [-3]], np.float16)
    q, x_scales = ops.quantize_rows(x)
    sums = (q.astype(np.int64) @ w.astype(np.int64).T).astype(np.float32)  # exact: below 2^24
    expected = sums * (x_scales * scales[:, 0].astype(np.float32))
    np.testing.assert_array_equal(ops.quantized_matmul(x, w, scales), expected)


# ---------------------------------------------------------------- attention


def test_int8_attention_of_numbers_that_rounding_leaves_alone_is_attention() -> None:
    rng = np.random.default_rng(1)
    q, k, v = (rng.integers(-126, 127, (2, n, 64)).astype(np.float32) for n in (9, 40, 40))
    q[..., ::32], k[..., ::32], v[:, ::32] = 127, -127, 127  # each group's largest
    k[:, 7] *= 2  # a scale of its own
    out = ops.int8_attention(q, k, v, False)
    exact = ops.attention(q, k, v, False)
    assert np.isin(exact, v).all()  # scores lie so far apart that each query takes the value of one position
    assert np.allclose(out, exact, rtol=1e-6, atol=0)


def half_steps(x: np.ndarray) -> np.ndarray:
    """How far rounding may move each number of float64 (..., K), whose groups of 32 share a scale."""
    K = x.shape[-1]
    groups = np.abs(np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -K % 32)])).reshape(*x.shape[:-1], -1, 32)
    return np.repeat(groups.max(-1) / 254, 32, axis=-1)[..., :K]


@given(
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([0.1, 1, 3]),
    st.integers(0, 1 << 16),
)
def test_int8_attention_is_attention_up_to_what_it_rounds(
    H: int, T: int, S: int, d: int, size: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    q, k, v = (size * rng.standard_normal((H, n, d)) for n in (T, S, S))
    q[:, :, rng.random(d) < 0.2] *= 10  # channels that stand out, as CLIP has them
    narrow_q, narrow_k, narrow_v = (a.astype(np.float32) for a in (q, k, v))
    found = ops.int8_attention(narrow_q, narrow_k, narrow_v, False)
    exact = ops.attention(q, k, v, False)
    q /= d**0.5
    weights = ops.softmax(q @ k.swapaxes(1, 2))
    moved_q, moved_k, moved_v = half_steps(q), half_steps(k), half_steps(v.swapaxes(1, 2)).swapaxes(1, 2)
    scores = np.abs(q) @ moved_k.swapaxes(1, 2) + moved_q @ (np.abs(k) + moved_k).swapaxes(1, 2)
    grow = np.exp(2 * scores.max(-1, keepdims=True))  # of a weight, at most
    moved_weights = (grow - 1) * weights + grow * half_steps(weights)
    bound = moved_weights @ np.abs(v) + (weights + moved_weights) @ moved_v
    assert (np.abs(found - exact) <= 1.001 * bound + 1e-5 * size).all()
