"""Which instruction set the kernels use: it follows from the features that Numba compiles for.

    avx512vnni   vpdpbusd on 64 bytes           neon_i8mm      smmla, sdot for one token (Cortex-A710)
    avxvnni      vpdpbusd on 32 bytes           neon_dotprod   sdot (Cortex-A76)
    avx2         vpmaddubsw, vpmaddwd           neon           smull, smlal, sadalp (Cortex-A72)
                                                generic        whatever LLVM makes of plain products

MVLM_SIMD names another one to use, of those that the CPU has.
"""

import os

from numba.core.registry import cpu_target

from mvlm_np.errors import UserError

# Each instruction set and the features it needs, best first. The last one needs none.
INSTRUCTION_SETS = {
    "avx512vnni": {"avx512vnni", "avx512bw", "avx512vl", "f16c"},
    "avxvnni": {"avxvnni", "avx2", "f16c"},
    "avx2": {"avx2", "f16c"},
    "neon_i8mm": {"neon", "dotprod", "i8mm"},
    "neon_dotprod": {"neon", "dotprod"},
    "neon": {"neon"},
    "generic": set[str](),
}


def target() -> tuple[str, str, str]:
    """What Numba compiles for: the machine, the CPU's name, its features with a sign before each."""
    return cpu_target.target_context.codegen().magic_tuple()


def features() -> set[str]:
    """The CPU features that Numba compiles for."""
    triple, _, listed = target()
    found = {name[1:] for name in listed.split(",") if name.startswith("+")}
    return found | ({"neon"} if triple.startswith("aarch64") else set())  # part of the architecture


def choose_instruction_set() -> str:
    """The best one, or the one that MVLM_SIMD names. UserError: it is unknown, or the CPU lacks it."""
    possible = [name for name, needed in INSTRUCTION_SETS.items() if needed <= features()]
    wanted = os.environ.get("MVLM_SIMD")
    if wanted and wanted not in possible:
        raise UserError(
            "MVLM_SIMD", f"found {wanted!r}", f"one of {', '.join(possible)}, which this CPU can run"
        )
    return wanted or possible[0]


INSTRUCTION_SET = choose_instruction_set()
