"""Every path of the integer dot product compiles, on any machine, to the instructions it is named for."""

import re

import pytest

ir = pytest.importorskip("llvmlite.ir")
llvm = pytest.importorskip("llvmlite.binding")
dot = pytest.importorskip("mvlm_np.kernels.dot")

# Path, small weights or not -> the CPU to compile for, its features, and instructions that must be there.
EXPECTED = {
    ("avx512vnni", True): ("x86_64", "cascadelake", "", ["vpdpbusd"]),
    ("avx512vnni", False): ("x86_64", "cascadelake", "", ["vpdpbusd"]),
    ("avxvnni", True): ("x86_64", "alderlake", "", ["vpdpbusd"]),
    ("avxvnni", False): ("x86_64", "alderlake", "", ["vpdpbusd"]),
    ("avx2", True): ("x86_64", "haswell", "", ["vpmaddubsw", "vpmaddwd"]),
    ("avx2", False): ("x86_64", "haswell", "", ["vpabsb", "vpsignb", "vpmaddubsw", "vpmaddwd"]),
    ("neon_dotprod", True): ("aarch64", "cortex-a76", "+dotprod", ["sdot"]),
    ("neon_dotprod", False): ("aarch64", "cortex-a76", "+dotprod", ["sdot"]),
    ("neon", True): ("aarch64", "cortex-a72", "", ["smull", "addp", r"sadalp|saddlp"]),
    ("neon", False): ("aarch64", "cortex-a72", "", ["smull", "addp", r"sadalp|saddlp"]),
    ("generic", True): ("x86_64", "x86-64", "", []),
    ("generic", False): ("aarch64", "generic", "", []),
}


def assembly(machine: str, cpu: str, features: str, small: bool) -> str:
    """The code of a function that adds the dot product of weights and activations to a sum in memory."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = ir.Module()
    arguments = [t.as_pointer() for t in (dot._INTS, dot._BYTES, dot._BYTES)]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), "add_dot")
    builder = ir.IRBuilder(function.append_basic_block())
    total, w, x = (builder.load(argument, align=1) for argument in function.args)
    builder.store(dot._dot4(builder, total, w, x, small), function.args[0], align=1)
    builder.ret_void()
    target = llvm.Target.from_triple(f"{machine}-unknown-linux-gnu")
    compiler = target.create_target_machine(cpu=cpu, features=features, opt=3)
    return compiler.emit_assembly(llvm.parse_assembly(str(module)))


@pytest.mark.parametrize(("path", "small"), EXPECTED)
def test_a_path_compiles_to_its_instructions(path: str, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, cpu, features, instructions = EXPECTED[path, small]
    monkeypatch.setattr(dot, "PATH", path)
    code = assembly(machine, cpu, features, small)
    for instruction in instructions:
        assert re.search(rf"\s({instruction})\s", code), f"no {instruction} in\n{code}"


def test_every_path_is_listed() -> None:
    assert {path for path, _ in EXPECTED} == dot.PATHS.keys()
