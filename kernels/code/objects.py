"""Compiles kernels for a target to object files, each with one plain C function.

    MVLM_BUILD=TARGET python -m mvlm_np.kernels.code.objects FOLDER [NAME...]

writes a file for each kernel, and kernels.json with what they take; `build` runs it. A kernel's function is

    int mvlm_MODULE_NAME(const int64_t *arguments)

The first of the words is the address of NumPy's array type. Then comes a word for each argument. An array's
is the address of its Python object, of which data, shape and strides are read: NumPy promises where they lie
(struct PyArrayObject, the same since 1.7). The function returns 0; or i if the i-th argument, counted from 1,
is not an array of its declared type, and then nothing has run; or -1 if there was no memory.

Numba makes the code as it does for itself, but for three things: it is not wrapped for Python, it may be for
another CPU than this one, and it goes to a file. That takes some of Numba's internals.
"""

import json
import sys
from itertools import count
from pathlib import Path
from struct import unpack_from

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils, compiler
from numba.core.bytecode import FunctionIdentity
from numba.core.codegen import AOTCodeLibrary, AOTCPUCodegen
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.core.runtime import nrtdynmod, rtsys

from mvlm_np.kernels.code.llvm import I8, I32, I64
from mvlm_np.kernels.cpu import BUILD

ADDRESS = I8.as_pointer()
# Where things lie in CPython's object header, in PyArrayObject, and in PyArray_Descr.
OB_TYPE, DATA, NDIM, DIMENSIONS, STRIDES, DESCR, FLAGS = 8, 16, 24, 32, 40, 56, 64
BYTE_ORDER, TYPE_NUMBER = 26, 28
C_CONTIGUOUS, ALIGNED, WRITEABLE = 0x1, 0x100, 0x400
TYPE_NUMBERS = {"int8": 1, "uint8": 2, "uint16": 4, "int32": 5, "int64": 7, "float32": 11, "float64": 12}

# What code may call: it is in every process, or in memory.c. Numba's other helpers are where Numba is.
THERE = {"malloc", "free", "memset", "memcpy", "memmove", "syscall", "sched_yield"}
THERE |= {"NRT_MemInfo_alloc_aligned", "NRT_MemInfo_call_dtor"}


class Library(AOTCodeLibrary):
    """Code that is tuned for the target's CPU, without using any feature more."""

    def add_ir_module(self, ir_module):
        for function in ir_module.functions:
            if BUILD.tuned_for and not function.is_declaration:
                # llvmlite's own `add` knows LLVM's plain attributes only, and this one is a text.
                set.add(function.attributes, f'"tune-cpu"="{BUILD.tuned_for}"')
        super().add_ir_module(ir_module)


class Codegen(AOTCPUCodegen):
    """Makes code for the target."""

    _library_class = Library

    def _init(self, llvm_module):
        self._tm_features = ",".join(sorted(f"+{name}" for name in BUILD.needs))
        self._tm = llvm.Target.from_triple(BUILD.triple).create_target_machine(
            cpu=BUILD.cpu, features=self._tm_features, opt=3, reloc="pic", codemodel="default"
        )
        self._target_data = self._tm.target_data
        self._data_layout = str(self._target_data)
        self._loopvect, self._opt_level = False, 0  # of the first, cheap pass; as Numba has it by default

    def _create_empty_module(self, name):
        module = super()._create_empty_module(name)
        module.triple = BUILD.triple
        return module

    def _get_host_cpu_name(self):
        return BUILD.cpu


def aim():
    """From now on, Numba compiles for the target. To be called before kernels are imported."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    context = cpu_target.target_context
    context.refresh()
    context._internal_codegen = Codegen("mvlm")
    # What would load the code into this process. Numba wants something that is built in, and tells functions
    # apart by it: a new one each time.
    type(context).get_executable = lambda self, library, description, environment: [].append
    # Numba's functions that count references are linked into each kernel, where they vanish. Those that it
    # has are for this CPU.
    rtsys._library = nrtdynmod.compile_nrt_functions(context)
    return context


def compile_object(context, function):
    """The bytes of an object file with the C function of a `code.kernel.Function`."""
    from mvlm_np.kernels.code.compile import OPTIONS

    flags = compiler.Flags()
    options = {
        "nogil": True,
        "nopython": True,
        "no_cpython_wrapper": True,
        "no_cfunc_wrapper": True,
        **OPTIONS,
    }
    cpu_target.options.parse_as_flags(flags, options)
    signature = function.signature
    result = compiler.compile_extra(
        cpu_target.typing_context,
        context,
        function.function,
        signature.args,
        signature.return_type,
        flags,
        {},
    )
    library = context.codegen().create_library(function.name)
    library.add_ir_module(_entry(context, library, function, result.fndesc))
    library.add_linking_library(result.library)
    library.add_linking_library(rtsys.library)
    library.finalize()
    module = library._final_module
    for symbol in [*module.functions, *module.global_variables]:
        if not symbol.is_declaration and symbol.name != entry_name(function.name):
            symbol.linkage = "internal"
    passes, builder = context.codegen()._module_pass_manager()
    passes.run(module, builder)  # drops what nothing calls any more
    content = library.emit_native_object()
    if missing := {*_undefined(content)} - THERE:
        raise RuntimeError(f"{function.name} calls {', '.join(sorted(missing))}")
    return content


def _undefined(content):
    """The functions that an object file (64-bit ELF, little-endian) calls and has not."""
    (start,), (count,) = unpack_from("<Q", content, 0x28), unpack_from("<H", content, 0x3C)
    sections = [unpack_from("<IIQQQQIIQQ", content, start + 64 * i) for i in range(count)]
    for _, kind, _, _, offset, size, names, *_ in sections:
        if kind == 2:  # a table of symbols; the first is none
            for at in range(offset + 24, offset + size, 24):
                name, _, _, section = unpack_from("<IBBH", content, at)
                if section == 0:
                    begin = sections[names][4] + name
                    yield content[begin : content.index(b"\0", begin)].decode()


def entry_name(name):
    return "mvlm_" + name.replace(".", "_")


def _entry(context, library, function, description):
    """The module of the C function."""
    module = library.create_ir_module(f"entry of {function.name}")
    entry = ir.Function(module, ir.FunctionType(I32, [I64.as_pointer()]), entry_name(function.name))
    builder = ir.IRBuilder(entry.append_basic_block())

    def word(i):
        return builder.load(builder.gep(entry.args[0], [ir.Constant(I64, i)]))

    array_type, values = word(0), []
    for i, numba_type in enumerate(function.signature.args, 1):
        if isinstance(numba_type, types.Array):
            place = builder.inttoptr(word(i), ADDRESS)
            for good in _conditions(builder, numba_type, place, array_type):
                with builder.if_then(builder.not_(good), likely=False):
                    builder.ret(ir.Constant(I32, i))
            values.append(_array(context, builder, numba_type, place))
        elif numba_type == types.float64:
            values.append(builder.bitcast(word(i), ir.DoubleType()))
        else:
            assert numba_type == types.int64, numba_type
            values.append(word(i))
    compiled = context.declare_function(module, description)
    status, _ = context.call_conv.call_function(
        builder, compiled, types.none, function.signature.args, values
    )
    builder.ret(builder.sext(status.is_error, I32))  # 0 or -1; a kernel raises nothing but MemoryError
    return module


def _at(builder, place, offset, value_type):
    """What lies this many bytes behind an address."""
    pointer = builder.gep(place, [ir.Constant(I64, offset)])
    return builder.load(builder.bitcast(pointer, value_type.as_pointer()))


def _conditions(builder, numba_type, place, array_type):
    """What must hold of an object, one after the other, for it to be an array of this type."""
    yield builder.icmp_signed("==", _at(builder, place, OB_TYPE, I64), array_type)
    yield builder.icmp_signed("==", _at(builder, place, NDIM, I32), ir.Constant(I32, numba_type.ndim))
    element = _at(builder, place, DESCR, ADDRESS)
    number = ir.Constant(I32, TYPE_NUMBERS[numba_type.dtype.name])
    yield builder.icmp_signed("==", _at(builder, element, TYPE_NUMBER, I32), number)
    yield builder.icmp_signed("!=", _at(builder, element, BYTE_ORDER, I8), ir.Constant(I8, ord(">")))
    needed = ALIGNED | C_CONTIGUOUS * (numba_type.layout == "C") | WRITEABLE * numba_type.mutable
    needed = ir.Constant(I32, needed)
    yield builder.icmp_signed("==", builder.and_(_at(builder, place, FLAGS, I32), needed), needed)


def _array(context, builder, numba_type, place):
    """An array as Numba keeps it, of an object that is one."""
    dims, strides = (_at(builder, place, offset, I64.as_pointer()) for offset in (DIMENSIONS, STRIDES))

    def each(pointer):
        return [_at(builder, builder.bitcast(pointer, ADDRESS), 8 * i, I64) for i in range(numba_type.ndim)]

    itemsize = ir.Constant(I64, numba_type.dtype.bitwidth // 8)
    shape, steps, size = each(dims), [], itemsize
    for n in reversed(shape):  # where an axis has one element, its stride may say anything
        steps.insert(0, size)
        size = builder.mul(size, n)
    if numba_type.layout != "C":
        steps = each(strides)
    count = ir.Constant(I64, 1)
    for n in shape:
        count = builder.mul(count, n)
    array = context.make_array(numba_type)(context, builder)
    array.meminfo = cgutils.get_null_value(array.meminfo.type)  # the caller owns the memory
    array.parent = cgutils.get_null_value(array.parent.type)
    array.nitems, array.itemsize = count, itemsize
    array.data = builder.bitcast(_at(builder, place, DATA, ADDRESS), array.data.type)
    array.shape, array.strides = (cgutils.pack_array(builder, values, I64) for values in (shape, steps))
    return array._getvalue()


def main(folder, wanted):
    """Compiles the kernels of these names, or all, and what the threads run."""
    with global_compiler_lock:
        context = aim()
        from mvlm_np.kernels import all_kernels
        from mvlm_np.kernels.machine_code import definition

        FunctionIdentity._unique_ids = count(1)  # else names, and so bytes, change from build to build
        names = wanted or [kernel.name for kernel in all_kernels()]
        taken = {}
        for name in (*names, "threads.work", "threads.dismiss"):
            function = definition(name)
            taken[name] = function.parameters
            (folder / f"{entry_name(name)}.o").write_bytes(compile_object(context, function))
            print(name, flush=True)
        (folder / "kernels.json").write_text(json.dumps(taken), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
