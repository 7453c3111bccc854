"""Which instruction set the kernels use: it follows from the features of the CPU.

    avx512vnni   vpdpbusd on 64 bytes           neon_i8mm      smmla, sdot for one token (Cortex-A710)
    avxvnni      vpdpbusd on 32 bytes           neon_dotprod   sdot (Cortex-A76)
    avx2         vpmaddubsw, vpmaddwd           neon           smull, smlal, sadalp (Cortex-A72)
                                                generic        whatever LLVM makes of plain products

MVLM_SIMD names another one to use, of those that the CPU has. NUMBA_CPU_NAME and NUMBA_CPU_FEATURES stand for
another CPU than this one, as they do for Numba.
"""

import ctypes
import os
import platform
from functools import cache
from pathlib import Path

from mvlm_np.errors import UserError
from mvlm_np.kernels.targets import TARGETS

# What is built for (in TARGETS), where that is not this CPU: the builder says so to its own process.
BUILD = TARGETS.get(os.environ.get("MVLM_BUILD", ""))
MACHINE = BUILD.machine if BUILD else platform.machine()  # x86_64 or aarch64

# Each instruction set and the features it needs, best first. The last one needs none.
INSTRUCTION_SETS = {
    "avx512vnni": {"avx512vnni", "avx512bw", "avx512vl", "f16c", "fma"},
    "avxvnni": {"avxvnni", "avx2", "f16c", "fma"},
    "avx2": {"avx2", "f16c", "fma"},
    "neon_i8mm": {"neon", "dotprod", "i8mm"},
    "neon_dotprod": {"neon", "dotprod"},
    "neon": {"neon"},
    "generic": set[str](),
}

CPUINFO = Path("/proc/cpuinfo")

# Features that Linux calls otherwise than LLVM, whose names are used here.
_LLVM_NAMES = {
    "pni": "sse3", "sse4_1": "sse4.1", "sse4_2": "sse4.2", "lahf_lm": "sahf", "abm": "lzcnt", "bmi1": "bmi",
    "avx512_vnni": "avx512vnni", "avx_vnni": "avxvnni",
}  # fmt: skip

# On ARM the kernel tells each program in two words of bits (arch/arm64/include/uapi/asm/hwcap.h): word, bit.
_HWCAP, _HWCAP2 = 16, 26
_ARM_FEATURES = {
    "fp-armv8": (_HWCAP, 0), "neon": (_HWCAP, 1), "aes": (_HWCAP, 3), "crc": (_HWCAP, 7), "lse": (_HWCAP, 8),
    "fullfp16": (_HWCAP, 10), "rdm": (_HWCAP, 12), "rcpc": (_HWCAP, 15), "dotprod": (_HWCAP, 20),
    "i8mm": (_HWCAP2, 13),
}  # fmt: skip


@cache
def features() -> frozenset[str]:
    """The CPU's features, by LLVM's names; of those with a name of their own, all that kernels may need."""
    if BUILD:
        return BUILD.needs
    listed = os.environ.get("NUMBA_CPU_FEATURES")
    if listed is None and os.environ.get("NUMBA_CPU_NAME", "").lower() == "generic":
        listed = ""  # so Numba takes it
    if listed is not None:
        found = {name[1:] for name in listed.split(",") if name.startswith("+")}
    else:
        found = _arm_features() if MACHINE == "aarch64" else _x86_features()
    return frozenset(found | ({"neon"} if MACHINE == "aarch64" else set()))  # part of the architecture


def _x86_features() -> set[str]:
    """The flags of the first processor. Linux leaves out what it does not support."""
    try:
        lines = CPUINFO.read_text("utf-8", "replace").splitlines()
    except OSError:
        return set()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return {_LLVM_NAMES.get(flag, flag) for flag in flags}


def _arm_features() -> set[str]:
    """From getauxval, which knows the CPU even where /proc shows another machine's, as under emulation."""
    ask = ctypes.CDLL(None).getauxval
    ask.argtypes, ask.restype = [ctypes.c_ulong], ctypes.c_ulong
    return {name for name, (word, bit) in _ARM_FEATURES.items() if ask(word) >> bit & 1}


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
