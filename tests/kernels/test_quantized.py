"""The integer products: with every instruction set the integers of `ops.quantized_matmul`; sums are close."""

import hashlib
import os
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np import ops, quantize
from mvlm_np.errors import GenerationError, UserError
from mvlm_np.kernels import pack
from tests.conftest import ROOT
from tests.kernels.teams import threads

cpu = pytest.importorskip("mvlm_np.kernels.cpu")
quantized = pytest.importorskip("mvlm_np.kernels.quantized")

U = 2.0**-24
sizes = st.integers(1, 70)
kinds = st.sampled_from([*pack.KINDS])
# Magnitudes from denormals to what float16 scales can just hold.
magnitudes = st.sampled_from([1e-42, 1e-30, 1e-7, 1e-3, 1.0, 1e3, 1e5])


def case(
    seed: int, M: int, N: int, K: int, kind: str, size: float = 1.0
) -> tuple[np.ndarray, pack.Rounded, pack.Packed]:
    """Activations (M, K), rounded weights (N, K) and the same packed; all read-only."""
    rng = np.random.default_rng(seed)
    x = (size * rng.standard_normal((M, K))).astype(np.float32)
    x[rng.random(M) < 0.1] = 0
    w = rng.standard_normal((N, K)).astype(np.float32)
    w += 2 * rng.standard_normal((N, 1)).astype(np.float32)  # some rows are of one sign
    w[rng.random(N) < 0.1] = 0
    rounded = quantize.quantize(w, kind)
    factors = rounded[-1]  # float16 of either sign
    factors[rng.random(factors.shape) < 0.1] *= -1
    matrix = pack.pack(kind, *rounded)
    for array in (x, *rounded, *matrix.arrays):
        array.setflags(write=False)
    return x, rounded, matrix


def multiply(x: np.ndarray, matrix: pack.Packed) -> np.ndarray:
    return quantized.packed_product([matrix], [None])(x)[0]


def ones(kind: str, N: int, K: int) -> tuple[np.ndarray, ...]:
    """Factors of which every scale is 1; of uint4, every minimum is 8."""
    groups = -(-K // 32)
    if kind == "uint4":
        tops = np.ones((N, -(-groups // 8), 2), np.float16)
        return np.full((N, groups, 2), (1, 8), np.uint8), tops
    return (np.ones((N, groups), np.float16),)


@given(st.integers(0, 99), sizes, sizes, st.integers(1, 600), kinds)
def test_integers_are_exact(seed: int, M: int, N: int, K: int, kind: str) -> None:
    """With all scales 1, the result is the integer sum itself, which float32 holds exactly."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-127, 128, (M, K)).astype(np.float32)
    x[:, ::32] = 127  # so that each group's scale is 127 / 127
    least, most = quantize.LIMITS[kind]
    w = rng.integers(least, most + 1, (N, K)).astype(np.uint8 if kind == "uint4" else np.int8)
    found = multiply(x, pack.pack(kind, w, *ones(kind, N, K)))
    weights = w.astype(np.int64) - (8 if kind == "uint4" else 0)
    np.testing.assert_array_equal(found, x.astype(np.int64) @ weights.T)


@given(st.integers(0, 99), sizes, sizes, st.integers(1, 600), kinds, magnitudes)
def test_products_agree_with_their_definition(
    seed: int, M: int, N: int, K: int, kind: str, size: float
) -> None:
    x, rounded, matrix = case(seed, M, N, K, kind, size)
    found = multiply(x, matrix)
    expected = ops.quantized_matmul(x, *rounded)
    assert found.dtype == np.float32
    # Each group's term is rounded at most three times, and each sum of two terms once; twice that, for both.
    groups = -(-K // 32)
    xq, x_scales = ops.quantize_rows(x)
    scale, minimum = (
        None if f is None else np.repeat(np.abs(f), 32, 1)[:, :K] for f in ops.group_factors(*rounded[1:])
    )
    assert scale is not None
    moved = np.abs(xq * np.repeat(x_scales, 32, 1)[:, :K])
    terms = moved @ (scale * np.abs(rounded[0])).T
    if minimum is not None:  # twice as many terms
        terms = 2 * (terms + moved @ minimum.T)
    smallest = np.float32(1e-45) * groups * 8  # below float32's normal numbers, roundings are absolute
    np.testing.assert_array_less(np.abs(found - expected), 2 * (groups + 3) * U * terms + smallest + 1e-300)


@given(st.integers(0, 99), st.integers(2, 20), kinds)
def test_a_token_does_not_depend_on_the_others(seed: int, M: int, kind: str) -> None:
    x, _, matrix = case(seed, M, 33, 300, kind)
    together = multiply(x, matrix)
    for i in range(M):
        np.testing.assert_array_equal(multiply(x[i : i + 1], matrix)[0], together[i])


@given(st.integers(0, 99), st.integers(1, 14), st.lists(sizes, min_size=2, max_size=3), kinds)
def test_matrices_that_are_multiplied_together_give_what_each_gives_alone(
    seed: int, M: int, widths: list[int], kind: str
) -> None:
    x, matrices, biases = case(seed, M, 1, 270, kind)[0], [], []
    for i, N in enumerate(widths):
        matrices.append(case(seed + i, 1, N, 270, kind)[2])
        biases.append(None if i == seed % 3 else np.arange(N, dtype=np.float32))
    together = quantized.packed_product(matrices, biases)(x)
    for matrix, bias, found in zip(matrices, biases, together, strict=True):
        alone = multiply(x, matrix)
        np.testing.assert_array_equal(found, alone if bias is None else alone + bias)
        assert found.flags.c_contiguous or matrix.N % 32  # or it is copied further on


@pytest.mark.parametrize("kind", pack.KINDS)
@pytest.mark.parametrize("M", [1, 9])
def test_no_bit_depends_on_threads(M: int, kind: str) -> None:
    x, _, matrix = case(0, M, 2000, 500, kind)
    results = []
    for size in (1, 2, 3):
        with threads(size):
            results.append(multiply(x, matrix))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("module", [quantized, pack])
@pytest.mark.parametrize("M", [1, 5, 20])
@pytest.mark.parametrize("kind", pack.KINDS)
def test_activations_that_are_not_finite_are_refused(
    kind: str, M: int, bad: float, module: ModuleType
) -> None:
    x, _, matrix = case(0, M, 20, 70, kind)
    x = x.copy()
    x[M // 2, 69] = bad
    zeros = pack.Packed(kind, 20, 70, matrix.values, *(np.zeros_like(a) for a in matrix.arrays[1:]))
    with pytest.raises(GenerationError, match="activations"):
        module.packed_product([zeros], [None])(x)


# ---------------------------------------------------------------- instruction sets

PROGRAM = """
import hashlib, numpy as np
from tests.kernels.test_quantized import case, multiply, ones, pack, cpu
whole, all = hashlib.sha256(), hashlib.sha256()
for kind in pack.KINDS:
    for M, N, K in ((1, 40, 100), (6, 33, 257), (26, 40, 64), (13, 20, 540)):
        x, rounded, matrix = case(7, M, N, K, kind)
        all.update(multiply(x, matrix).tobytes())
        x = np.rint(40 * x).clip(-127, 127)
        x[:, ::32] = 127  # scales of 1, and so sums that are whole numbers
        whole.update(multiply(x, pack.pack(kind, rounded[0], *ones(kind, N, K))).tobytes())
print(cpu.INSTRUCTION_SET, whole.hexdigest(), all.hexdigest())
"""


def run_with(name: str) -> list[str]:
    environment = {**os.environ, "MVLM_SIMD": name}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


POSSIBLE = [name for name, needed in cpu.INSTRUCTION_SETS.items() if needed <= cpu.features()]


def test_every_instruction_set_of_this_cpu_gives_identical_results() -> None:
    results = {name: run_with(name) for name in POSSIBLE}
    assert {name: ran for name, (ran, *_) in results.items()} == {name: name for name in POSSIBLE}
    assert len({whole for _, whole, _ in results.values()}) == 1
    # "generic" rounds a product before it is added; the others do not.
    assert len({all for name, (_, _, all) in results.items() if name != "generic"}) <= 1
    assert hashlib.sha256().digest_size * 2 == len(results[POSSIBLE[0]][1])


def test_an_instruction_set_that_this_cpu_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {*cpu.INSTRUCTION_SETS} - {*POSSIBLE} | {"nonsense"}:
        monkeypatch.setenv("MVLM_SIMD", name)
        with pytest.raises(UserError, match=f"MVLM_SIMD: found '{name}', wanted one of .*generic"):
            cpu.choose_instruction_set()


def test_the_best_instruction_set_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MVLM_SIMD", raising=False)
    assert cpu.choose_instruction_set() == POSSIBLE[0]
