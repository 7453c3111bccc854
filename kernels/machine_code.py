"""Machine code by the name of a kernel: compiled by Numba, which is imported when it is first needed."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any


def require() -> None:
    """ImportError: no machine code can be had, since there is no Numba."""
    import_module("mvlm_np.kernels.code.compile")


@cache
def machine_code(name: str) -> Callable:
    """The compiled function `module.function` of `kernels.code`. ImportError: there is no Numba."""
    return definition(name).compiled


def definition(name: str) -> Any:
    """Its `code.kernel.Function`."""
    import_module(f"mvlm_np.kernels.code.{name.partition('.')[0]}")
    from mvlm_np.kernels.code.kernel import FUNCTIONS

    return FUNCTIONS[name]
