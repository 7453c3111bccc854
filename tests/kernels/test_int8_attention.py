"""Attention in int8 against its definition.

The two add up scores in another order. What comes after is rounded to int8, so now and then an exponential
that lies in the middle between two integers becomes the one here and the other there: that moves one row of
the result by a part of a step.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvlm_np import ops
from tests.arrays import frozen, seeds
from tests.conftest import ROOT
from tests.kernels.teams import threads

pytest.importorskip("numba")

from mvlm_np.kernels import cpu
from mvlm_np.kernels.int8_attention import int8_attention


def case(seed: int, H: int, T: int, S: int, d: int, size: float = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [frozen((size * rng.standard_normal((H, n, d))).astype(np.float32)) for n in (T, S, S)]


def agree(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
    wanted = ops.int8_attention(q, k, v, False)
    with threads(1):
        found = int8_attention(q, k, v, False)
    assert found.dtype == np.float32 and found.shape == wanted.shape
    error = np.abs(found - wanted).max(-1) / max(np.abs(v).max(), 1e-30)  # (H, T)
    assert error.max() <= 2 / 127
    assert (error > 1e-5).sum() <= max(2, 0.02 * error.size)
    for size in (2, 3):
        with threads(size):
            assert np.array_equal(int8_attention(q, k, v, False), found)


@given(
    seeds,
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([0, 1e-25, 0.3, 1]),
)
def test_it_is_its_definition(seed: int, H: int, T: int, S: int, d: int, size: float) -> None:
    agree(*case(seed, H, T, S, d, size))


@pytest.mark.parametrize(("H", "T", "S", "d"), [(2, 577, 577, 64), (3, 50, 257, 80), (1, 1, 33, 16)])
def test_at_the_sizes_of_towers(H: int, T: int, S: int, d: int) -> None:
    q, k, v = (a.transpose(1, 0, 2) for a in case(5, max(T, S), H, H, d))  # laid out as in the model
    agree(q[:, :T], k[:, :S], v[:, :S])


@pytest.mark.parametrize("which", [0, 1, 2], ids=["q", "k", "v"])
def test_nan_is_passed_on_to_the_product_that_refuses_it(which: int) -> None:
    q, k, v = (a.copy() for a in case(1, 2, 30, 40, 24))
    (q, k, v)[which][1, 3, 5] = np.nan
    out = int8_attention(q, k, v, False)
    assert np.isfinite(out[0]).all()
    touched = out[1, 3] if which == 0 else out[1, :, 5] if which == 2 else out[1]
    assert np.isnan(touched).all()


PROGRAM = """
import hashlib
from tests.kernels.test_int8_attention import agree, case, cpu, int8_attention
seen = hashlib.sha256()
for shape in ((2, 70, 70, 64), (1, 5, 33, 20)):
    agree(*case(7, *shape))
    seen.update(int8_attention(*case(7, *shape), False).tobytes())
print(cpu.INSTRUCTION_SET, seen.hexdigest())
"""


def test_every_instruction_set_of_this_cpu_that_has_fma_gives_identical_results() -> None:
    possible = [name for name, needed in cpu.INSTRUCTION_SETS.items() if needed <= cpu.features()]
    told = []
    for name in possible:
        environment = {**os.environ, "MVLM_SIMD": name}
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        told.append(done.stdout.split())
    assert [name for name, _ in told] == possible
    assert len({digest for name, digest in told if name != "generic"}) <= 1
