"""The integer dot product compiles, on any machine, to the instructions that each set is named for.

And the products themselves, with this machine's set, keep all their vectors in registers.
"""

import re
from typing import Any

import pytest

from tools.parts.assembly import of_kernel, with_instruction

ir = pytest.importorskip("llvmlite.ir")
binding = pytest.importorskip("llvmlite.binding")
dot = pytest.importorskip("mvlm_np.kernels.code.dot")
quantized = pytest.importorskip("mvlm_np.kernels.quantized")

# Path, small weights or not -> the CPU to compile for, its features, and instructions that must be there.
EXPECTED = {
    ("avx512vnni", True): ("x86_64", "cascadelake", "", ["vpdpbusd"]),
    ("avx512vnni", False): ("x86_64", "cascadelake", "", ["vpdpbusd"]),
    ("avxvnni", True): ("x86_64", "alderlake", "", ["vpdpbusd"]),
    ("avxvnni", False): ("x86_64", "alderlake", "", ["vpdpbusd"]),
    ("avx2", True): ("x86_64", "haswell", "", ["vpmaddubsw", "vpmaddwd"]),
    ("avx2", False): ("x86_64", "haswell", "", ["vpabsb", "vpsignb", "vpmaddubsw", "vpmaddwd"]),
    ("neon_i8mm", True): ("aarch64", "cortex-a710", "", ["smmla"]),
    ("neon_i8mm", False): ("aarch64", "cortex-a710", "", ["smmla"]),
    ("neon_dotprod", True): ("aarch64", "cortex-a76", "+dotprod", ["sdot"]),
    ("neon_dotprod", False): ("aarch64", "cortex-a76", "+dotprod", ["sdot"]),
    ("neon", True): ("aarch64", "cortex-a72", "", ["smull", "addp", r"sadalp|saddlp"]),
    ("neon", False): ("aarch64", "cortex-a72", "", ["smull", "addp", r"sadalp|saddlp"]),
    ("generic", True): ("x86_64", "x86-64", "", []),
    ("generic", False): ("aarch64", "generic", "", []),
}


def assembly(machine: str, cpu: str, features: str, small: bool) -> str:
    """The code of a function that adds a group's products, of 4 tokens, to sums in memory."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = ir.Module()
    byte, lanes = ir.IntType(8), dot.LANES // dot.REGISTERS[dot.INSTRUCTION_SET]
    register = ir.VectorType(byte, 4 * lanes)
    arguments = [t.as_pointer() for t in (ir.VectorType(ir.IntType(32), lanes), register, byte)]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), "add_group")
    builder = ir.IRBuilder(function.append_basic_block())
    sums, w, x = function.args

    def place(pointer: Any, index: int) -> Any:
        return builder.gep(pointer, [ir.Constant(ir.IntType(64), index)])

    chunks = (builder.load(place(w, k), align=1) for k in range(8))
    words = (dot.token_words(builder, place(x, 16 * k), 4, False) for k in range(8))
    steps = zip(((chunk,) for chunk in chunks), words, strict=True)
    places = [place(sums, m) for m in range(4)]
    starts = [builder.load(pointer, align=4) for pointer in places]
    for pointer, total in zip(places, dot.group_sums(builder, starts, steps, 4, 1, small), strict=True):
        builder.store(total, pointer, align=4)
    builder.ret_void()
    target = binding.Target.from_triple(f"{machine}-unknown-linux-gnu")
    compiler = target.create_target_machine(cpu=cpu, features=features, opt=3)
    return compiler.emit_assembly(binding.parse_assembly(str(module)))


@pytest.mark.parametrize(("name", "small"), EXPECTED)
def test_a_set_compiles_to_its_instructions(name: str, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, cpu, features, instructions = EXPECTED[name, small]
    monkeypatch.setattr(dot, "INSTRUCTION_SET", name)
    code = assembly(machine, cpu, features, small)
    for instruction in instructions:
        assert re.search(rf"\s({instruction})\s", code), f"no {instruction} in\n{code}"


def test_every_instruction_set_is_listed() -> None:
    assert {name for name, _ in EXPECTED} == pytest.importorskip(
        "mvlm_np.kernels.cpu"
    ).INSTRUCTION_SETS.keys()


# What stands in the innermost loop of a product.
PRODUCT = {
    "avx512vnni": "vpdpbusd",
    "avxvnni": "vpdpbusd",
    "avx2": "vpmaddubsw",
    "neon_i8mm": "smmla|sdot",
    "neon_dotprod": "sdot",
    "neon": "smull2?",
}
PRODUCTS = [*quantized.ONE_TOKEN.values(), *quantized.TOKENS.values()]


@pytest.mark.skipif(dot.INSTRUCTION_SET == "generic", reason="generic code has no instruction of its own")
@pytest.mark.parametrize("kernel", PRODUCTS, ids=lambda kernel: kernel.name)
def test_the_loop_of_a_product_has_its_instruction_and_spills_nothing(kernel: Any) -> None:
    hot = with_instruction(of_kernel(kernel), PRODUCT[dot.INSTRUCTION_SET])
    assert hot
    for loop in hot:
        if not loop.inner:
            assert [str(i) for i in loop.own if i.spills] == []
