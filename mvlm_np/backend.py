"""The one table that says which functions compute the model's operations.

`Ops` is what the model asks of a backend. "numpy" is the definitions themselves: `ops`, `kv_store`, and the
product of `kernels.pack`. "numba" is the same with the functions that `kernels` has in their place.
`ops.rms_norm(...)` in the model is whichever was chosen at loading.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Protocol, cast

import numpy as np

from mvlm_np import kv_store, ops
from mvlm_np.errors import UserError
from mvlm_np.kernels import pack
from mvlm_np.kernels.pack import Packed
from mvlm_np.kv_store import Sequences, Stored

NAMES = ("auto", "numba", "numpy")
Array = np.ndarray


class Ops(Protocol):
    """The operations of a backend. `ops` defines and explains them; three say where else to look."""

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array: ...
    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array: ...
    def quick_gelu(self, x: Array) -> Array: ...
    def silu(self, x: Array) -> Array: ...
    def swiglu(self, gate: Array, up: Array) -> Array: ...
    def gelu(self, x: Array) -> Array: ...
    def relu(self, x: Array) -> Array: ...
    def hardsigmoid(self, x: Array) -> Array: ...
    def hardswish(self, x: Array) -> Array: ...
    def softmax(self, x: Array) -> Array: ...
    def split_heads(self, x: Array, heads: int) -> Array: ...
    def merge_heads(self, x: Array) -> Array: ...
    def attention(self, q: Array, k: Array, v: Array, causal: bool) -> Array: ...
    def int8_attention(self, q: Array, k: Array, v: Array, causal: bool) -> Array: ...
    def rope_angles(self, positions: Array, d: int, theta: float) -> tuple[Array, Array]: ...
    def rope(self, x: Array, cos: Array, sin: Array) -> Array: ...
    def matmul(self, x: Array, w: Array) -> Array: ...
    def patches(self, pixels: Array, size: int) -> Array: ...
    def depthwise_conv(self, x: Array, weight: Array, bias: Array | None, stride: int) -> Array: ...
    def adaptive_avg_pool(self, x: Array, rows: int, cols: int) -> Array: ...

    def cached_attention(
        self, q: Array, k: Array, v: Array, keys: Stored, values: Stored, past: int
    ) -> Array:
        """`kv_store.cached_attention`"""

    def several_attention(self, q: Array, k: Array, v: Array, sequences: Sequences, layer: int) -> Array:
        """`kv_store.several_attention`"""

    def beam_attention(
        self, q: Array, k: Array, v: Array,
        keys: Stored, values: Stored, own_keys: Stored, own_values: Stored, past: int,
    ) -> Array:  # fmt: skip
        """`kv_store.beam_attention`"""

    def packed_product(
        self, matrices: Sequence[Packed], biases: Sequence[Array | None]
    ) -> Callable[[Array], list[Array]]:
        """`kernels.pack.packed_product`"""


def check(name: str) -> None:
    """UserError: there is no backend of this name."""
    if name not in NAMES:
        raise UserError("backend", f"found {name!r}", " or ".join(NAMES))


def choose(name: str = "auto") -> Ops:
    """The operations of a backend. "auto" is numba where its kernels' machine code can be had, else numpy."""
    check(name)
    if name == "numpy":
        return _namespace(REFERENCE)
    try:
        from mvlm_np import kernels

        fast = kernels.operations()
    except ImportError as error:
        if name == "auto":
            return _namespace(REFERENCE)
        raise UserError("backend", _no_code(error), fix="install numba, or take numpy") from None
    return _namespace({**REFERENCE, **fast})


def with_int8_attention(chosen: Ops) -> Ops:
    """The same operations for a model whose vision tower is int8. Nothing but the tower uses `attention`."""
    return replaced(chosen, attention=chosen.int8_attention)


def is_exact(chosen: Ops) -> bool:
    """Whether a decoder with packed weights gets the same bits from these on every machine, for any number of
    rows at a time: the compiled ones alone, on a CPU with fused multiply-add.
    """
    try:
        from mvlm_np import kernels

        fast = kernels.operations()
    except ImportError:
        return False
    from mvlm_np.kernels import cpu

    fused = cpu.INSTRUCTION_SET != "generic" and not {"fma", "neon"}.isdisjoint(cpu.features())
    own = {**REFERENCE, **fast}
    others = {name for name, function in vars(chosen).items() if function != own.get(name)}
    return fused and others <= {"attention"}  # which only the tower uses


def replaced(chosen: Ops, **functions: Callable) -> Ops:
    """The same operations with some of them replaced, to watch them or to change what they compute."""
    return _namespace({**vars(chosen), **functions})


def _namespace(functions: dict[str, Callable]) -> Ops:
    return cast(Ops, SimpleNamespace(**functions))


_OPERATIONS = {name for name in vars(Ops) if not name.startswith("_")}
REFERENCE: dict[str, Callable] = {
    name: function
    for module in (ops, kv_store, pack)
    for name, function in vars(module).items()
    if name in _OPERATIONS
}


def compiled(chosen: Ops) -> bool:
    """Whether products with packed weights are computed by a kernel."""
    return chosen.packed_product is not pack.packed_product


def about_kernels() -> dict[str, Any]:
    """`kernels.about`. UserError: MVLM_SIMD names what this CPU lacks."""
    from mvlm_np import kernels

    return kernels.about()


def prebuilt() -> bool:
    """Whether the kernels are compiled already, so that nothing waits for Numba."""
    from mvlm_np.kernels import library

    return library.choice().library is not None


def build_library(kernels: Sequence[str], compiled: Callable[[str], object]) -> Path:
    """`kernels.code.build.build_for_this_cpu`"""
    from mvlm_np.kernels.code import build

    return build.build_for_this_cpu(kernels, compiled)


def limits() -> ModuleType | None:
    """`kernels.limits`, which measures what the machine can do; None where no kernel can run."""
    try:
        from mvlm_np.kernels import limits, machine_code

        machine_code.require()
    except ImportError:
        return None
    return limits


def all_kernels() -> list[Any]:
    """`kernels.all_kernels`. UserError: their machine code cannot be had."""
    try:
        from mvlm_np import kernels

        return kernels.all_kernels()
    except ImportError as error:
        raise UserError("kernels", _no_code(error), fix="install numba") from None


def _no_code(error: ImportError) -> str:
    why = "".join(f"; {path}: {reason}" for path, reason in about_kernels()["passed_over"].items())
    return f"numba cannot be imported ({error}), and no library of compiled kernels is there{why}"


def limit_threads(threads: int, blas: int | None = None) -> None:
    """Sets the threads of BLAS and of the kernels, for the whole process.

    blas  of BLAS, if it is to have another number: its results depend on that, those of the kernels do not
    """
    from threadpoolctl import threadpool_limits

    whole = isinstance(threads, int | np.integer) and not isinstance(threads, bool)
    if not whole or not 1 <= threads <= 1024:
        raise UserError("threads", f"found {threads!r}", "a whole number from 1 to 1024")
    threads = int(threads)
    threadpool_limits(threads if blas is None else blas)
    from mvlm_np.kernels.threads import TEAM

    TEAM.resize(threads)
