"""What a kernel is: a loop body, compiled for one signature, whose steps are shared by the threads.

    @kernel(reads(2), writes(2))
    def _double(first, stop, x, out):
        for i in range(first, stop):
            for j in range(x.shape[1]):
                out[i, j] = 2 * x[i, j]

The body computes the steps from `first` up to, but not including, `stop`. Which thread computes which is not
defined, and no step may depend on another. In the file example.py this is the kernel "example.double".
"""

from functools import cached_property
from inspect import getfullargspec

from numba import types

from mvlm_np.kernels.code.compile import compiled
from mvlm_np.kernels.code.threads import dismiss, job_of, pool_type, share_out, work
from mvlm_np.kernels.parameters import Parameter


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

    def define(body):
        own = name or body.__name__
        function = _runner(body, len(signature), prepare, job or signature)
        function.__module__, function.__qualname__ = body.__module__, f"run{own}"
        every = types.void(pool_type, types.int64, types.int64, *signature)
        given = getfullargspec(prepare.py_func).args if prepare else getfullargspec(body).args[2:]
        return _define(body, own, function, every, ("pool", "steps", "least", *given))

    return define


class Function:
    """A function of one signature, which returns nothing, compiled when it is first asked for."""

    def __init__(self, name, function, signature, names):
        self.name, self.function, self.signature = name, function, signature
        self.parameters = [_parameter(*pair) for pair in zip(names, signature.args, strict=True)]

    @cached_property
    def compiled(self):
        return compiled(self.function, self.signature)


def _parameter(name, numba_type):
    if isinstance(numba_type, types.Array):
        of = numba_type.dtype.name, numba_type.ndim, numba_type.layout == "C", numba_type.mutable
        return Parameter(name, *of)
    return Parameter(name, numba_type.name)


def _define(body, name, function, signature, names):
    name = f"{body.__module__.rpartition('.')[2]}.{name.lstrip('_')}"
    assert name not in FUNCTIONS, name
    FUNCTIONS[name] = Function(name, function, signature, names)
    return FUNCTIONS[name]


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


FUNCTIONS: dict[str, Function] = {}  # by name: all whose modules are imported, and what the threads run
for _function in (work, dismiss):
    _define(_function.py_func, _function.py_func.__name__, _function.py_func, types.void(pool_type), ["pool"])
