"""A few kernels on an emulated Cortex-A76, if tools/arm.py has built one; `make test-arm` runs them all."""

import pytest

from tools.parts import emulated_arm as arm

PROGRAM = """
import numpy as np
from mvlm_np import ops
from mvlm_np.kernels import cpu, norms
from tests.kernels import test_quantized as products

products.test_integers_are_exact.hypothesis.inner_test(seed=1, M=1, N=40, K=100, kind="int4")
products.test_integers_are_exact.hypothesis.inner_test(seed=2, M=7, N=33, K=200, kind="uint4")
x, weight = np.random.default_rng(0).standard_normal((2, 3, 70)).astype(np.float32)
np.testing.assert_allclose(norms.rms_norm(x, weight[0], 1e-6), ops.rms_norm(x, weight[0], 1e-6), rtol=1e-5)
print(cpu.INSTRUCTION_SET)
"""


def test_a_few_kernels_on_a_cortex_a76() -> None:
    if reason := arm.missing():
        pytest.skip(f"no emulated ARM: {reason}")
    done = arm.python("cortex-a76", "-c", PROGRAM)
    assert (done.returncode, done.stdout.strip()) == (0, arm.CPUS["cortex-a76"].instruction_set), done.stderr
