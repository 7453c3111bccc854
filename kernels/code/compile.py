"""How kernels are compiled: nothing else configures Numba.

A kernel is compiled on its first call, for the one signature that it declares; `code_cache` keeps its machine
code.
"""

import logging
from functools import cache

import numba
from numba import njit

from mvlm_np.kernels.code.code_cache import DiskCache, cache_folder, can_keep, target
from mvlm_np.kernels.cpu import INSTRUCTION_SET, INSTRUCTION_SETS, MACHINE

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")
_lacking = {f"+{name}" for name in INSTRUCTION_SETS[INSTRUCTION_SET]} - {*target()[2].split(",")}
if _lacking - ({"+neon"} if MACHINE == "aarch64" else set()):  # which is part of the architecture
    raise ImportError(
        f"Numba compiles for a CPU without {', '.join(sorted(_lacking))}; set MVLM_SIMD=generic"
    )

# LLVM has no licence with floats: every operation is rounded as it is written, on every CPU; see `simd.fma`.
# Division by zero gives what IEEE 754 says, not an exception.
OPTIONS = {"error_model": "numpy"}

LOG = logging.getLogger(__name__)  # of what is compiled, just before it is, and of whether it can be kept

# For functions that become part of the kernels which call them.
inline = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)


@cache
def compiled(body, signature):
    """The machine code of a function for one signature, from the disk if it is there. It runs without the
    GIL.
    """
    body = getattr(body, "py_func", body)
    function = njit(nogil=True, **OPTIONS)(body)
    if folder := cache_folder():
        function._cache = DiskCache(folder / f"{body.__module__}.{body.__qualname__}")
    if not (folder and function._cache.path.exists()):
        LOG.info("%s.%s", body.__module__, body.__qualname__, extra={"kept": can_keep()})
    function.compile(signature)
    function.disable_compile()  # from now on, arguments are converted to the signature: none is added
    return function
