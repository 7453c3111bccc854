"""What a kernel is: a loop body, compiled for one signature, whose steps are shared by the threads.

    @kernel(reads(2), writes(2))
    def _double(first, stop, x, out):
        for i in range(first, stop):
            for j in range(x.shape[1]):
                out[i, j] = 2 * x[i, j]

    _double(len(x), x.shape[1], x, out)         # steps, nanoseconds that a step takes, and the arguments

The body computes the steps from `first` up to, but not including, `stop`. Which thread computes which is not
defined, and no step may depend on another. It is compiled on its first call.
"""

from functools import cached_property

from numba import types

from mvlm_np.kernels.compile import compiled
from mvlm_np.kernels.threads import TEAM, job_of, pool_type, share_out

# Nanoseconds of work below which a thread is not given steps: handing them over costs about one microsecond.
WORTH_SHARING = 5_000

KERNELS: list["Kernel"] = []  # all there are, in the order of their definition


def reads(ndim, layout="C", dtype=types.float32):
    """The type of an array that a kernel reads; it may be read-only. Layout "A": any strides."""
    return types.Array(dtype, ndim, layout, readonly=True)


def writes(ndim, layout="C", dtype=types.float32):
    """The type of an array that a kernel writes."""
    return types.Array(dtype, ndim, layout)


def kernel(*signature, name=None, prepare=None, job=None):
    """Decorates the body of a kernel with the types of its arguments. It returns nothing.

    prepare(*args), an inline function, runs once, ahead of the steps: it returns the arguments of the body,
    whose types are `job`.
    """
    return lambda body: Kernel(body, signature, name or body.__name__, prepare, job or signature)


class Kernel:
    def __init__(self, body, signature, name, prepare, job):
        self.signature = types.void(pool_type, types.int64, types.int64, *signature)
        self.name = f"{body.__module__.rpartition('.')[2]}.{name.lstrip('_')}"
        self.function = _runner(body, len(signature), prepare, job)
        self.function.__module__, self.function.__qualname__ = body.__module__, f"run{name}"
        KERNELS.append(self)

    @cached_property
    def compiled(self):
        return compiled(self.function, self.signature)

    def __call__(self, steps, cost, *args):
        """Runs steps 0 .. steps - 1 on `args`. cost: nanoseconds that a step takes, about."""
        TEAM.run(self.compiled, steps, max(1, int(WORTH_SHARING // cost)), args)


def _runner(body, count, prepare, signature):
    """run(pool, steps, least, *args), with as many arguments by name: a declared signature knows no *args."""
    args = "".join(f"a{i}, " for i in range(count))
    source = f"""
def run(pool, steps, least, {args}):
    function, data = job({f"prepare({args})" if prepare else f"({args})"})
    share_out(pool, steps, least, function, data)
"""
    scope = {"job": job_of(body, signature), "share_out": share_out, "prepare": prepare}
    exec(source, scope)
    return scope["run"]
