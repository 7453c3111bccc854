"""How kernels are compiled, and where the machine code is kept: nothing else configures Numba.

A kernel is compiled on its first call, for the one signature that it declares. The machine code goes to
`$XDG_CACHE_HOME/mvlm-np` (or `~/.cache/mvlm-np`), into a folder whose name is a hash of all that the code
depends on; where nothing can be written, every process loads what is there and compiles the rest for itself.
"""

import hashlib
import logging
import os
import pickle
import sys
import tempfile
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path
from secrets import randbits

import llvmlite
import numba
import numpy as np
from numba import njit
from numba.core.bytecode import FunctionIdentity
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.registry import cpu_target
from numba.core.serialize import dumps

from mvlm_np import ops

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")

# "contract" lets a * b + c become one instruction, rounded once. It is the only licence: nothing may
# change the order of a sum. Division by zero gives what IEEE 754 says, not an exception.
OPTIONS = {"fastmath": {"contract"}, "error_model": "numpy"}

ROOM = 4 << 20  # bytes that the kernels of an answer take, and more

LOG = logging.getLogger(__name__)  # of what is compiled, just before it is, and of whether it can be kept

# Machine code off the disk is linked by name. Numba tells functions of one name apart by numbers, which begin
# with 1 in every process: siblings of one factory, compiled by two processes, would be the same to a third.
FunctionIdentity._unique_ids = count(randbits(48))

# For functions that become part of the kernels which call them.
inline = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)


@cache
def compiled(body, signature):
    """The machine code of a function for one signature, from the disk if it is there. It runs without the
    GIL.
    """
    body = getattr(body, "py_func", body)
    function = njit(nogil=True, **OPTIONS)(body)
    if folder := cache_folder():
        function._cache = DiskCache(folder / f"{body.__module__}.{body.__qualname__}")
    if not (folder and function._cache.path.exists()):
        LOG.info("%s.%s", body.__module__, body.__qualname__, extra={"kept": can_keep()})
    function.compile(signature)
    function.disable_compile()  # from now on, arguments are converted to the signature: none is added
    return function


# ---------------------------------------------------------------- the cache on disk


class DiskCache(NullCache):
    """One kernel's machine code in one file: its SHA-256, then what Numba needs to load it.

    Numba's own cache cannot serve a read-only installation, does not notice changes of the files that a
    kernel imports from, and its index file can mix up two processes that write at once.
    """

    def __init__(self, path):
        self.path = path

    def load_overload(self, signature, context):
        context.refresh()
        try:
            stored = self.path.read_bytes()
        except OSError:
            return None
        digest, data = stored[:32], stored[32:]
        if hashlib.sha256(data).digest() != digest:
            return None  # cut short by a full disk or a power cut
        return CompileResult._rebuild(context, *pickle.loads(data))

    def save_overload(self, signature, result):
        if not can_keep():
            return
        data = dumps(result._reduce())
        with suppress(OSError), tempfile.NamedTemporaryFile(dir=self.path.parent, delete=False) as file:
            try:
                file.write(hashlib.sha256(data).digest() + data)
                file.flush()
                os.replace(file.name, self.path)  # other processes see all of it or nothing
            except BaseException:  # the disk is full, or somebody presses Ctrl-C
                os.unlink(file.name)
                raise


@cache
def cache_folder():
    """The folder of this installation's machine code, there or not yet; None if nobody has a home."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not home.is_absolute():
            home = Path.home() / ".cache"
    except RuntimeError:
        return None
    return home / "mvlm-np" / fingerprint()


@cache
def can_keep():
    """Whether that folder takes machine code. A disk may be full, or be mounted for reading only."""
    folder = cache_folder()
    if folder is None:
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, ROOM)
    except OSError:
        return False
    return True


def fingerprint():
    """A hash of all that the machine code depends on: sources, versions, CPU, settings."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    sources = [path.read_bytes() for path in [*files, Path(ops.__file__)]]  # ops has erf's coefficients
    versions = sys.version, numba.__version__, llvmlite.__version__, np.__version__
    config = numba.config
    settings = config.OPT, config.BOUNDSCHECK, config.DEBUGINFO_DEFAULT, os.environ.get("MVLM_SIMD")
    cpu = cpu_target.target_context.codegen().magic_tuple()
    return hashlib.sha256(repr((sources, versions, settings, cpu)).encode()).hexdigest()[:16]
