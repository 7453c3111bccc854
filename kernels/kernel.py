"""Kernels as NumPy's side sees them: functions whose steps are shared by the threads.

    _double = Kernel("example.double")          # `double` of kernels/code/example.py

    _double(len(x), x.shape[1], x, out)         # steps, nanoseconds that a step takes, and the arguments

Which thread computes which step is not defined, and no step may depend on another. What a kernel does is in
`code`; it is compiled on its first call. Arrays must be of the types and the layout that it declares there.
"""

from collections.abc import Callable
from functools import cached_property
from struct import error as StructError
from typing import Any

from mvlm_np.kernels.machine_code import machine_code, parameters
from mvlm_np.kernels.parameters import check
from mvlm_np.kernels.threads import TEAM

# Nanoseconds of work below which a thread is not given steps: handing them over costs about one microsecond.
WORTH_SHARING = 5_000

KERNELS: list["Kernel"] = []  # all there are, in the order of their definition


class Kernel:
    """A kernel by its name, `module.function` of `kernels.code`; see above."""

    def __init__(self, name: str):
        self.name = name
        KERNELS.append(self)

    @cached_property
    def compiled(self) -> Callable:
        """Its machine code: call(pool, steps, least, *arguments). ImportError: none can be had."""
        return machine_code(self.name)

    def __call__(self, steps: int, cost: float, *args: Any) -> None:
        """Runs steps 0 .. steps - 1 on `args`. cost: nanoseconds that a step takes, about.

        TypeError: an argument is not of its declared type, and nothing has been computed.
        """
        try:
            TEAM.run(self.compiled, steps, max(1, int(WORTH_SHARING // cost)), args)
        except (TypeError, StructError):
            check(self.name, parameters(self.name)[3:], args)
            raise
