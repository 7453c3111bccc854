"""GPTQ against its definition, and where its result is known beforehand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np.calibrating.gptq import best_rows, cholesky_of_inverse, damped, gptq, output_error
from mvlm_np.errors import CheckpointError
from mvlm_np.kernels.pack import GROUP
from mvlm_np.quantize import dequantize, quantize

DAMPING = 0.01


def second_moments(rng: np.random.Generator, T: int, K: int) -> np.ndarray:
    x = rng.standard_normal((T, K)) @ rng.normal(0, 0.3, (K, K)) * np.exp(rng.normal(0, 1, K))
    return x.T @ x / T


@given(st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_the_factor_is_that_of_the_inverse(K: int, seed: int) -> None:
    H = damped(second_moments(np.random.default_rng(seed), 2 * K, K), DAMPING)
    U = cholesky_of_inverse(H)
    assert (np.tril(U, -1) == 0).all() and (np.diagonal(U) > 0).all()
    # The condition of H bounds how exactly its inverse can be known.
    bound = 100 * K * 2.0**-53 * np.linalg.cond(H)
    np.testing.assert_allclose(U.T @ U @ H, np.eye(K), atol=bound)


def by_definition(w: np.ndarray, H: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Column by column, with the inverse of what is left of H computed anew each time: the paper's equations
    (2) and (3), for columns in the order of H's diagonal, and scales that are known."""
    w, left = w.astype(np.float64), list(np.argsort(-np.diagonal(H), kind="stable"))
    H, q = damped(H, DAMPING), np.zeros(w.shape, np.int8)
    while left:
        j, inverse = left[0], np.linalg.inv(H[np.ix_(left, left)])
        scale = scales[:, j // GROUP].astype(np.float64)
        q[:, j] = np.clip(np.rint(w[:, j] / scale), -8, 7)
        error = (w[:, j] - q[:, j] * scale) / inverse[0, 0]
        w[:, left] -= error[:, None] * inverse[0]
        left.pop(0)
    return q


@pytest.mark.parametrize("K", [20, 32, 72, 128])
def test_the_integers_are_those_of_the_definition(K: int) -> None:
    rng = np.random.default_rng(K)
    w, H = rng.standard_normal((24, K)).astype(np.float32), second_moments(rng, 3 * K, K)
    q, scales = gptq(w, H, "int4", DAMPING)
    expected = by_definition(w, H, scales)
    # Where float32 and float64 fall on different sides of a half, all later columns of that row differ.
    same = (q == expected).all(axis=1)
    assert same.mean() > 0.9, same
    assert np.abs(q - expected).max() <= 15


KINDS = pytest.mark.parametrize("kind", ["int4", "uint4"])


@KINDS
@given(N=st.integers(1, 40), K=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
def test_what_is_put_out_changes_less_than_by_rounding_to_nearest(
    kind: str, N: int, K: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    w, H = rng.standard_normal((N, K)).astype(np.float32), second_moments(rng, 4 * K, K)
    both = gptq(w, H, kind, DAMPING), quantize(w, kind)
    errors = [output_error(w - dequantize(*rounded), H).sum() for rounded in both]
    assert [(part.shape, part.dtype) for part in both[0]] == [(part.shape, part.dtype) for part in both[1]]
    if K > 48 and N > 8:
        assert errors[0] < errors[1]
    found, error, to_nearest = best_rows(w, H, *both)
    np.testing.assert_array_equal(found, dequantize(*both[0]))
    np.testing.assert_allclose(error, output_error(w - found, H), rtol=1e-5, atol=1e-12)
    assert (error <= to_nearest).all() and error.sum() <= errors[0]
    assert to_nearest.sum() == errors[1]


@KINDS
def test_columns_that_do_not_depend_on_each_other_are_rounded_to_nearest(kind: str) -> None:
    w = np.random.default_rng(0).standard_normal((16, 300)).astype(np.float32)
    for found, expected in zip(gptq(w, np.eye(300) * 3, kind, DAMPING), quantize(w, kind), strict=True):
        np.testing.assert_array_equal(found, expected)


@KINDS
@pytest.mark.parametrize("H", [np.zeros((40, 40)), np.ones((40, 40)), np.diag([1.0] + [0.0] * 39)])
def test_inputs_that_are_zero_or_all_the_same(H: np.ndarray, kind: str) -> None:
    w = np.random.default_rng(0).standard_normal((8, 40)).astype(np.float32)
    found = dequantize(*gptq(w, H, kind, DAMPING))
    assert np.abs(w - found).max() < 3


@KINDS
def test_zeros_stay_zeros(kind: str) -> None:
    w = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    w[:, 32:] = 0
    w[3] = 0
    found = dequantize(*gptq(w, np.eye(64), kind, DAMPING))
    assert not found[:, 32:].any() and not found[3].any()


@KINDS
@pytest.mark.parametrize("value", [np.nan, np.inf, 2e7])
def test_weights_that_cannot_be_stored_are_refused(value: float, kind: str) -> None:
    w = np.ones((4, 64), np.float32)
    w[2, 40] = value
    with pytest.raises(CheckpointError, match="somewhere"):
        gptq(w, np.eye(64), kind, DAMPING, where="somewhere")
