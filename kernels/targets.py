"""For which CPUs there can be libraries of compiled kernels, and what each demands of the CPU that loads it.

LLVM may use every feature that it is told of, so a library needs all of them. Its code is tuned for one kind
of CPU, which changes the order of instructions and nothing else.
"""

from typing import NamedTuple


class Target(NamedTuple):
    """A library is built for one of these.

    machine          as `platform.machine` names it
    instruction_set  of `cpu`
    cpu              LLVM's name of one that has the features and no others
    needs            the features, by LLVM's names
    tuned_for        LLVM's name of the CPU that it is to be fast on; "": `cpu` itself
    """

    machine: str
    instruction_set: str
    cpu: str
    needs: frozenset[str]
    tuned_for: str = ""

    @property
    def triple(self) -> str:
        return f"{self.machine}-unknown-linux-gnu"


# x86-64-v2, -v3 and -v4, as the architecture's binary interface defines them; every 64-bit CPU has the rest.
_V2 = frozenset("cx16 popcnt sahf sse3 sse4.1 sse4.2 ssse3".split())
_V3 = _V2 | set("avx avx2 bmi bmi2 f16c fma lzcnt movbe xsave".split())
_V4 = _V3 | set("avx512f avx512bw avx512cd avx512dq avx512vl".split())

# By the name that its file begins with. AMD's cores and Intel's want other tiles (`shapes`).
TARGETS = {
    "avx512vnni-amd": Target("x86_64", "avx512vnni", "x86-64-v4", _V4 | {"avx512vnni", "sse4a"}, "znver4"),
    "avx512vnni": Target("x86_64", "avx512vnni", "x86-64-v4", _V4 | {"avx512vnni"}, "icelake-server"),
    "avxvnni": Target("x86_64", "avxvnni", "x86-64-v3", _V3 | {"avxvnni"}, "alderlake"),
    "avx2": Target("x86_64", "avx2", "x86-64-v3", _V3),
    "generic": Target("x86_64", "generic", "x86-64-v2", _V2),
    "neon_i8mm": Target(
        "aarch64", "neon_i8mm", "generic", frozenset({"neon", "dotprod", "i8mm", "lse"}), "cortex-a710"
    ),
    "neon_dotprod": Target(
        "aarch64", "neon_dotprod", "generic", frozenset({"neon", "dotprod", "lse"}), "cortex-a76"
    ),
    "neon": Target("aarch64", "neon", "generic", frozenset({"neon"}), "cortex-a72"),
}
