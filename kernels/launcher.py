"""Calling a compiled kernel through its C function; `code.objects` says what that takes and returns."""

import ctypes
from collections.abc import Callable
from struct import Struct
from typing import Any

import numpy as np

from mvlm_np.kernels.parameters import Parameter, check


def of(function: Any, name: str, parameters: list[Parameter]) -> Callable:
    """A Python function of these parameters. It is called some 150 times a token, hence written for each."""
    function.argtypes, function.restype = [ctypes.c_char_p], ctypes.c_int

    def fail(status: int, arguments: tuple) -> None:
        if status < 0:
            raise MemoryError(f"{name}: no memory for what it computes with")
        check(name, parameters, arguments)
        raise TypeError(f"{name}: {parameters[status - 1].name} is not {parameters[status - 1]}")

    names = [f"a{i}" for i in range(len(parameters))]
    words = [f"id({n})" if p.ndim else n for n, p in zip(names, parameters, strict=True)]
    formats = ["d" if p.dtype == "float64" and not p.ndim else "q" for p in parameters]
    every = ", ".join(names)
    scope = {
        "function": function,
        "pack": Struct("=q" + "".join(formats)).pack,
        "array": id(np.ndarray),
        "fail": fail,
    }
    source = f"""
def call({every}):
    if status := function(pack(array, {", ".join(words)})):
        fail(status, ({every},))
"""
    exec(source, scope)
    return scope["call"]
