"""Machine code by the name of a kernel: from a library that fits, else compiled by Numba, imported then."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from mvlm_np.kernels import library
from mvlm_np.kernels.library import Library
from mvlm_np.kernels.parameters import Parameter


def require() -> None:
    """ImportError: no machine code can be had, since no library fits and there is no Numba."""
    if library.choice().library is None:
        import_module("mvlm_np.kernels.code.compile")


@cache
def machine_code(name: str) -> Callable:
    """The compiled function `module.function` of `kernels.code`. ImportError: as above."""
    chosen = _library_with(name)
    return chosen.function(name) if chosen else definition(name).compiled


def parameters(name: str) -> list[Parameter]:
    """What it takes."""
    chosen = _library_with(name)
    return chosen.kernels[name] if chosen else definition(name).parameters


def _library_with(name: str) -> Library | None:
    chosen = library.choice().library
    return chosen if chosen and name in chosen.kernels else None


def definition(name: str) -> Any:
    """Its `code.kernel.Function`. ImportError: there is no Numba."""
    import_module(f"mvlm_np.kernels.code.{name.partition('.')[0]}")
    from mvlm_np.kernels.code.kernel import FUNCTIONS

    return FUNCTIONS[name]
