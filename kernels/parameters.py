"""What a kernel takes: the type of each argument, and what is wrong with one that is not of it."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np


class Parameter(NamedTuple):
    """An array of `ndim` dimensions, aligned and of the machine's byte order; or, if ndim is 0, a number."""

    name: str
    dtype: str
    ndim: int = 0
    contiguous: bool = False
    writable: bool = False

    def __str__(self) -> str:
        if not self.ndim:
            return "a whole number" if self.dtype == "int64" else "a number"
        qualities = ["aligned", "contiguous"][: 1 + self.contiguous] + ["writable"] * self.writable
        return f"{self.dtype} in {self.ndim} dimensions, {', '.join(qualities)}"

    def takes(self, value: Any) -> bool:
        if not self.ndim:
            return isinstance(value, int | np.integer | (float if self.dtype == "float64" else int))
        if type(value) is not np.ndarray:
            return False
        fits = value.dtype == self.dtype and value.ndim == self.ndim and value.flags.aligned
        return fits and value.flags.c_contiguous >= self.contiguous and value.flags.writeable >= self.writable


def check(kernel: str, parameters: Iterable[Parameter], arguments: Iterable[Any]) -> None:
    """TypeError: an argument is not what the kernel takes; it says which, what was found and wanted."""
    for parameter, value in zip(parameters, arguments, strict=False):
        if not parameter.takes(value):
            raise TypeError(f"{kernel}: {parameter.name}: found {_described(value)}, wanted {parameter}")


def _described(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return f"a {type(value).__name__}"
    flags, kind = value.flags, "" if type(value) is np.ndarray else f"a {type(value).__name__} of "
    lacking = {
        "not aligned": flags.aligned,
        "not contiguous": flags.c_contiguous,
        "read-only": flags.writeable,
    }
    return ", ".join(
        [f"{kind}{value.dtype} {value.shape}", *(text for text, has in lacking.items() if not has)]
    )
