"""The protocol by which threads share out the steps of a kernel; see `kernels.threads`.

The protocol, on an array of int64 (`new_pool`), whose every access is sequentially consistent:

    caller    writes the job, opens it, counts EPOCH up, wakes sleepers; works; closes it, waits until ACTIVE
              is 0
    worker    waits until EPOCH changes; counts itself into ACTIVE; works if the job is open; counts itself
              out

A worker that comes late finds the job closed and touches nothing. Nobody waits for a worker that has not
begun.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mvlm_np.kernels.code import llvm
from mvlm_np.kernels.code.compile import inline
from mvlm_np.kernels.code.llvm import I32, I64
from mvlm_np.kernels.cpu import MACHINE
from mvlm_np.kernels.pool import (
    ACTIVE,
    DATA,
    EPOCH,
    FUNCTION,
    LEAST,
    NEXT,
    OPEN,
    QUIT,
    SLEEPING,
    STEPS,
    THREADS,
)  # fmt: skip

SPINS = 2000  # turns of a waiting worker before it sleeps: some 50 microseconds
PIECES = 2  # a thread takes this part of its share of the steps that are left

_ARM = MACHINE == "aarch64"
_FUTEX = 98 if _ARM else 202  # the number of Linux' system call
_FUTEX_WAIT, _FUTEX_WAKE = 128, 129  # among the threads of one process

_BODY = ir.FunctionType(ir.VoidType(), [I64, I64, I64])  # data, first step, the step after the last

pool_type = types.Array(types.int64, 1, "C")


# ---------------------------------------------------------------- instructions


def _place(context, builder, pool, index):
    return llvm.element(context, builder, pool_type, pool, index)


@intrinsic
def _get(typing, pool, place):
    """pool[place]"""

    def generate(context, builder, signature, arguments):
        return builder.load_atomic(_place(context, builder, *arguments), "seq_cst", 8)

    return types.int64(pool_type, types.int64), generate


@intrinsic
def _set(typing, pool, place, value):
    """pool[place] = value"""

    def generate(context, builder, signature, arguments):
        builder.store_atomic(arguments[2], _place(context, builder, *arguments[:2]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.none(pool_type, types.int64, types.int64), generate


@intrinsic
def _count(typing, pool, place, value):
    """pool[place] += value"""

    def generate(context, builder, signature, arguments):
        builder.atomic_rmw("add", _place(context, builder, *arguments[:2]), arguments[2], "seq_cst")
        return context.get_dummy_value()

    return types.none(pool_type, types.int64, types.int64), generate


@intrinsic
def _exchange(typing, pool, place, old, new):
    """If pool[place] is `old`, it becomes `new`. Returns whether it did."""

    def generate(context, builder, signature, arguments):
        place = _place(context, builder, *arguments[:2])
        result = builder.cmpxchg(place, *arguments[2:], "seq_cst", "seq_cst")
        return builder.extract_value(result, 1)

    return types.boolean(pool_type, types.int64, types.int64, types.int64), generate


@intrinsic
def _pause(typing):
    """Waits for a moment without taking the other thread of the core its turn."""

    def generate(context, builder, signature, arguments):
        # On ARM, `isb sy`: its `yield` waits for no time at all.
        pause = ("llvm.aarch64.isb", ir.Constant(I32, 15)) if _ARM else ("llvm.x86.sse2.pause",)
        llvm.call(builder, pause[0], ir.VoidType(), *pause[1:])
        return context.get_dummy_value()

    return types.none(), generate


@intrinsic
def _futex(typing, pool, operation, value):
    """Sleeps while EPOCH's lower half is `value`, or wakes that many sleepers."""

    def generate(context, builder, signature, arguments):
        pool, operation, value = arguments
        word = _place(context, builder, pool, EPOCH)  # little-endian
        call = ir.FunctionType(I64, [I64], var_arg=True)
        system = cgutils.get_or_insert_function(builder.module, call, "syscall")
        none = ir.Constant(I64, 0)
        builder.call(system, [ir.Constant(I64, _FUTEX), word, operation, value, none, none, none])
        return context.get_dummy_value()

    return types.none(pool_type, types.int64, types.int64), generate


@intrinsic
def _give_way(typing):
    """Lets other programs have the core, if any wants it."""

    def generate(context, builder, signature, arguments):
        llvm.call(builder, "sched_yield", I32)
        return context.get_dummy_value()

    return types.none(), generate


@intrinsic
def _run(typing, function, data, first, stop):
    """Steps first .. stop - 1 of a job."""

    def generate(context, builder, signature, arguments):
        builder.call(builder.inttoptr(arguments[0], _BODY.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.none(*[types.int64] * 4), generate


def job_of(body, signature):
    """An intrinsic that turns (args,), a tuple of types `signature`, into a job: the addresses of code and
    data.

    body(first, stop, *args) is compiled into the function that calls the intrinsic; the data live as long
    as that function runs.
    """

    @intrinsic
    def job(typing, args):
        body_signature = types.none(types.int64, types.int64, *signature)

        def generate(context, builder, _, arguments):
            compiled = context.compile_subroutine(builder, body, body_signature)
            data = cgutils.alloca_once_value(builder, arguments[0])
            steps = ir.Function(builder.module, _BODY, builder.module.get_unique_name("steps"))
            steps.linkage = "internal"
            inner = ir.IRBuilder(steps.append_basic_block())
            address, first, stop = steps.args
            values = inner.load(inner.inttoptr(address, data.type))
            context.call_internal_no_propagate(
                inner,
                compiled.fndesc,
                body_signature,
                [first, stop, *cgutils.unpack_tuple(inner, values, len(signature))],
            )
            inner.ret_void()
            addresses = [builder.ptrtoint(pointer, I64) for pointer in (steps, data)]
            return context.make_tuple(builder, types.UniTuple(types.int64, 2), addresses)

        return types.UniTuple(types.int64, 2)(types.Tuple(signature)), generate

    return job


# ---------------------------------------------------------------- caller and worker


@inline
def share_out(pool, steps, least, function, data):
    """Runs all steps of a job, with whichever workers of the pool are free. At least `least` at a time."""
    if steps <= least or pool[THREADS] == 1:
        _run(function, data, 0, steps)
        return
    pool[FUNCTION], pool[DATA], pool[STEPS], pool[LEAST] = function, data, steps, least
    _set(pool, NEXT, 0)
    _set(pool, OPEN, 1)
    _count(pool, EPOCH, 1)
    if _get(pool, SLEEPING) > 0:
        _futex(pool, _FUTEX_WAKE, pool[THREADS])
    take_steps(pool)
    _set(pool, OPEN, 0)
    turns = 0
    while _get(pool, ACTIVE) > 0:
        _pause()
        turns += 1
        if turns > SPINS:
            _give_way()


@inline
def take_steps(pool):
    """Runs steps of the open job until none is left."""
    function, data, steps, least = pool[FUNCTION], pool[DATA], pool[STEPS], pool[LEAST]
    while True:
        first = _get(pool, NEXT)
        if first >= steps:
            return
        stop = min(steps, first + max(least, (steps - first) // (PIECES * pool[THREADS])))
        if _exchange(pool, NEXT, first, stop):
            _run(function, data, first, stop)


@inline
def work(pool):
    """What a worker does until the pool is told to quit."""
    seen = 0
    while True:
        turns = 0
        while _get(pool, EPOCH) == seen:
            _pause()
            turns += 1
            if turns > SPINS:
                _count(pool, SLEEPING, 1)
                _futex(pool, _FUTEX_WAIT, seen)
                _count(pool, SLEEPING, -1)
        seen = _get(pool, EPOCH)
        if _get(pool, QUIT) > 0:
            return
        _count(pool, ACTIVE, 1)
        if _get(pool, OPEN) > 0:
            take_steps(pool)
        _count(pool, ACTIVE, -1)


@inline
def dismiss(pool):
    """Tells the workers to quit."""
    _set(pool, QUIT, 1)
    _count(pool, EPOCH, 1)
    _futex(pool, _FUTEX_WAKE, pool[THREADS])
