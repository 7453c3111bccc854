"""The products compile, on any machine, to the instructions that each set is named for, all in registers."""

import json
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT
from tools.parts.assembly import Instruction, of_kernel, with_instruction
from tools.parts.product_loops import TARGETS

pytest.importorskip("llvmlite")
cpu = pytest.importorskip("mvlm_np.kernels.cpu")
quantized = pytest.importorskip("mvlm_np.kernels.quantized")
cached = pytest.importorskip("mvlm_np.kernels.cached")

# Instruction set and weights -> instructions that must be there. uint4 differs from int4 in no integers.
EXPECTED = {
    ("avx512vnni", "int4"): ["vpdpbusd"],
    ("avx512vnni", "int8"): ["vpdpbusd"],
    ("avxvnni", "int4"): ["vpdpbusd"],
    ("avxvnni", "int8"): ["vpdpbusd"],
    ("avx2", "int4"): ["vpmaddubsw", "vpmaddwd"],
    ("avx2", "int8"): ["vpabsb", "vpsignb", "vpmaddubsw", "vpmaddwd"],
    ("neon_i8mm", "int4"): ["smmla", "sdot"],
    ("neon_i8mm", "int8"): ["smmla", "sdot"],
    ("neon_dotprod", "int4"): ["sdot"],
    ("neon_dotprod", "int8"): ["sdot"],
    ("neon", "int4"): ["smull", "smlal", "addp"],
    ("neon", "int8"): ["smull", "addp", "sadalp"],
}


@cache
def loops(name: str) -> dict[str, list[Instruction]]:
    """The innermost loop of each product with an instruction set."""
    command = [sys.executable, "-m", "tools.parts.product_loops", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout).items()
    return {loop: [Instruction(*pair) for pair in instructions] for loop, instructions in found}


def test_every_instruction_set_is_listed() -> None:
    assert {name for name, _ in EXPECTED} == TARGETS.keys() == cpu.INSTRUCTION_SETS.keys() - {"generic"}


@pytest.mark.parametrize(("name", "weights"), EXPECTED)
def test_a_set_compiles_to_its_instructions(name: str, weights: str) -> None:
    for kind in (weights, f"u{weights}") if weights == "int4" else (weights,):
        ops = {i.op for loop, body in loops(name).items() if loop.startswith(kind) for i in body}
        assert {*EXPECTED[name, weights]} <= ops


@pytest.mark.parametrize("name", TARGETS)
def test_a_product_keeps_everything_in_registers(name: str) -> None:
    assert {"int4_1x1", "uint4_1x1", "int8_1x1"} < loops(name).keys()
    for loop, body in loops(name).items():
        assert [str(i) for i in body if i.spills] == [], loop


@pytest.mark.skipif(cpu.INSTRUCTION_SET not in TARGETS, reason="generic code has no instruction of its own")
@pytest.mark.parametrize(
    "kernel", [*quantized.ONE_TOKEN.values(), *quantized.TOKENS.values()], ids=lambda kernel: kernel.name
)
def test_so_do_the_kernels_of_this_machine(kernel: Any) -> None:
    hot = with_instruction(of_kernel(kernel), TARGETS[cpu.INSTRUCTION_SET].product)
    assert hot
    for loop in hot:
        if not loop.inner and quantized.COLUMNS == 1:  # with two, some totals wait on the stack
            assert [str(i) for i in loop.spilled] == []


@pytest.mark.skipif("avx" not in cpu.INSTRUCTION_SET, reason="looks for x86's instructions")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_so_does_attention_of_one_row(dtype: str) -> None:
    """Its loops are those that ask for what comes next: scores, and the sum of values."""
    loops = with_instruction(of_kernel(cached.FEW_QUERIES[np.dtype(dtype)]), "prefetch.*")
    hot = [loop for loop in loops if loop.count("vfmadd.*") and not loop.inner]
    assert len(hot) >= 2
    for loop in hot:
        assert [str(i) for i in loop.spilled] == []
