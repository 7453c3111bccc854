"""The innermost loops of the products, compiled on any machine for any instruction set.

    python -m tools.parts.product_loops neon_dotprod

They consist of `kernels.code.dot.group_products`, which is in LLVM's language alone, so that no Numba for
that machine is needed. Printed as JSON: the instructions of each product's loop. One process knows one
instruction set.
"""

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout

from tools.parts.assembly import Instruction, with_instruction


class Target(NamedTuple):
    """What LLVM is to compile for, the features by which the instruction set is chosen, and its product."""

    machine: str
    cpu: str
    features: str
    product: str


TARGETS = {
    "avx512vnni": Target("x86_64", "znver4", "+avx512vnni,+avx512bw,+avx512vl,+f16c,+fma,+sse4a", "vpdpbusd"),
    "avxvnni": Target("x86_64", "alderlake", "+avxvnni,+avx2,+f16c,+fma", "vpdpbusd"),
    "avx2": Target("x86_64", "znver3", "+avx2,+f16c,+fma", "vpmaddubsw"),
    "neon_i8mm": Target("aarch64", "cortex-a710", "+neon,+dotprod,+fullfp16,+i8mm", "smmla|sdot"),
    "neon_dotprod": Target("aarch64", "cortex-a76", "+neon,+dotprod,+fullfp16", "sdot"),
    "neon": Target("aarch64", "cortex-a72", "+neon", "smull2?"),
}


def loops(name: str) -> dict[str, list[Instruction]]:
    """The loops of all products, by their names, with the instruction set of this process."""
    from mvlm_np.kernels.code.dot import FLOATS_READY
    from mvlm_np.kernels.pack import KINDS
    from mvlm_np.kernels.shapes import FEWER, PARTS, SHAPE

    found = {}
    for kind in (*KINDS, FLOATS_READY):
        for rows, tiles in (SHAPE, *((rows, 1) for rows in (*FEWER, 1))):
            registers = PARTS if rows * PARTS <= 4 else 1
            code = compiled(TARGETS[name], kind, rows, tiles, registers)
            (loop,) = with_instruction(code, TARGETS[name].product)
            found[f"{kind}_{rows}x{tiles}"] = loop.instructions
    return found


def compiled(target: Target, kind: str, rows: int, tiles: int, registers: int) -> str:
    """The assembly of a function that adds up the products of groups, one after the other."""
    from llvmlite import binding, ir

    from mvlm_np.kernels.code import dot, llvm
    from mvlm_np.kernels.shapes import LANES, PARTS, WORDS

    number = ir.IntType(64)
    vector = ir.VectorType(llvm.F32, LANES // PARTS)
    arguments = [number, number, number, number, number, llvm.I32.as_pointer(), vector.as_pointer()]
    function = ir.Function(ir.Module(), ir.FunctionType(ir.VoidType(), arguments), "product")
    values, scales, tops, part, groups, acts, out = function.args
    blocks = [function.append_basic_block() for _ in range(3)]

    def addresses(first: Any) -> list[Any]:
        return [builder.add(first, builder.mul(part, ir.Constant(number, i))) for i in range(tiles)]

    first = ir.Constant(number, 0) if registers == PARTS else part
    ir.IRBuilder(blocks[0]).branch(blocks[1])

    builder = ir.IRBuilder(blocks[1])
    group, *totals = (builder.phi(t) for t in [number, *[vector] * (rows * tiles * registers)])
    word = builder.gep(acts, [builder.mul(group, ir.Constant(number, rows * WORDS))])
    columns = addresses(values), addresses(scales), addresses(tops)
    after = list(
        dot.group_products(builder, totals, rows, kind, *columns, first, group, ir.Constant(number, 0), word)
    )
    following = builder.add(group, ir.Constant(number, 1))
    for phi, changed in zip((group, *totals), (following, *after), strict=True):
        phi.add_incoming(ir.Constant(phi.type, None if phi in totals else 0), blocks[0])
        phi.add_incoming(changed, blocks[1])
    builder.cbranch(builder.icmp_signed("<", following, groups), blocks[1], blocks[2])

    builder = ir.IRBuilder(blocks[2])
    for i, total in enumerate(after):
        builder.store(total, builder.gep(out, [ir.Constant(number, i)]), align=4)
    builder.ret_void()

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    function.module.triple = f"{target.machine}-unknown-linux-gnu"
    chosen = binding.Target.from_triple(function.module.triple)
    features = target.features + (",+64bit" if target.machine == "x86_64" else "")
    machine = chosen.create_target_machine(cpu=target.cpu, features=features, opt=3)
    module = binding.parse_assembly(str(function.module))
    passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(module, passes)
    return machine.emit_assembly(module)


if __name__ == "__main__":
    chosen = sys.argv[1]
    os.environ |= {"NUMBA_CPU_FEATURES": TARGETS[chosen].features, "MVLM_SIMD": chosen}
    platform.machine = lambda: TARGETS[chosen].machine
    import mvlm_np.kernels.cpu  # noqa: F401 - chooses the instruction set

    del os.environ["NUMBA_CPU_FEATURES"]  # Numba itself runs on this machine
    print(json.dumps(loops(chosen)))
