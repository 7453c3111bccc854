"""What `mvlm bench` compares with does what it says it does; how fast, no test can tell."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT

pytest.importorskip("numba")
limits = pytest.importorskip("mvlm_np.kernels.limits")


def test_reading_reads_everything() -> None:
    x = np.arange(5 * limits.BLOCK, dtype=np.float32) % 7
    x.setflags(write=False)
    assert np.array_equal(limits.read(x), x.reshape(5, -1).sum(1))


COUNT = """
from mvlm_np.kernels import cpu, limits, shapes
from mvlm_np.kernels.kernel import KERNELS
from tools.parts.assembly import of_kernel
code = of_kernel(next(kernel for kernel in KERNELS if kernel.name == "limits.multiply"))
names = {"avx512vnni": "vpdpbusd", "avxvnni": "vpdpbusd", "avx2": "vpmaddubsw", "neon_dotprod": "sdot"}
found = sum(line.split()[:1] == [names[cpu.INSTRUCTION_SET]] for line in code.splitlines())
print(found, 8 * shapes.SHAPE[0] * shapes.SHAPE[1])
"""


@pytest.mark.parametrize("name", ["avx512vnni", "avxvnni", "avx2", "neon_dotprod"])
def test_multiplying_leaves_no_product_out(name: str) -> None:
    """LLVM must find nothing that it could compute once for many."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT],
        cwd=ROOT,
        env=os.environ | {"MVLM_SIMD": name},
        capture_output=True,
        text=True,
    )
    if "MVLM_SIMD: found" in done.stderr:
        pytest.skip(f"this CPU has no {name}")
    found, wanted = map(int, done.stdout.split())
    assert found % wanted == 0 and found > 0


def test_operations_grow_with_the_groups() -> None:
    limits.multiply(2)
    assert limits.operations(2) == 2 * limits.operations(1) > 0
