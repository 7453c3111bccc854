"""The one table that says which functions compute the model's vocabulary.

"numpy" is `ops`, the reference, and the products of `linear`. "numba" is the same vocabulary with the
functions that `kernels` has in their place. Both are namespaces: `ops.rms_norm(...)` in the model is
whichever was chosen at loading.
"""

from types import ModuleType, SimpleNamespace
from typing import Any

from mvlm_np import ops
from mvlm_np.errors import UserError
from mvlm_np.linear import packed_matmul, prepare

NAMES = ("auto", "numba", "numpy")


def check(name: str) -> None:
    """UserError: there is no backend of this name."""
    if name not in NAMES:
        raise UserError("backend", f"found {name!r}", " or ".join(NAMES))


def choose(name: str = "auto") -> SimpleNamespace:
    """The vocabulary of a backend. "auto" is numba where it can be imported, else numpy."""
    check(name)
    reference = {**vars(ops), "packed_matmul": packed_matmul, "prepare": prepare}
    if name == "numpy":
        return SimpleNamespace(**reference)
    try:
        from mvlm_np import kernels

        fast = kernels.vocabulary()
    except ImportError as error:
        if name == "auto":
            return SimpleNamespace(**reference)
        found = f"numba cannot be imported ({error})"
        raise UserError("backend", found, fix="install numba, or take numpy") from None
    return SimpleNamespace(**{**reference, **fast})


def about_kernels() -> dict[str, Any]:
    """`kernels.about`. ImportError: there is no Numba; UserError: MVLM_SIMD names what this CPU lacks."""
    from mvlm_np import kernels

    return kernels.about()


def limits() -> ModuleType | None:
    """`kernels.limits`, which measures what the machine can do; None where there is no Numba."""
    try:
        from mvlm_np.kernels import limits
    except ImportError:
        return None
    return limits


def all_kernels() -> list[Any]:
    """`kernels.all_kernels`. UserError: there is no Numba."""
    try:
        from mvlm_np import kernels

        return kernels.all_kernels()
    except ImportError as error:
        raise UserError("kernels", f"numba cannot be imported ({error})", fix="install numba") from None


def limit_threads(threads: int) -> None:
    """Sets the threads of BLAS and of the kernels, for the whole process."""
    from threadpoolctl import threadpool_limits

    if not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise UserError("threads", f"found {threads!r}", "a whole number from 1 to 1024")
    threadpool_limits(threads)
    try:
        from mvlm_np.kernels.threads import TEAM
    except ImportError:
        return
    TEAM.resize(threads)
