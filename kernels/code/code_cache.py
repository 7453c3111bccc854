"""Where machine code is kept: `$XDG_CACHE_HOME/mvlm-np`, or `~/.cache/mvlm-np`.

There it lies in a folder whose name is a hash of all that the code depends on, a file for each kernel. Where
nothing can be written, every process loads what is there and compiles the rest for itself.
"""

import hashlib
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
from numba.core.bytecode import FunctionIdentity
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.registry import cpu_target
from numba.core.serialize import dumps

from mvlm_np import ops
from mvlm_np.kernels.library import cache_home

ROOM = 4 << 20  # bytes that the kernels of an answer take, and more

# Machine code off the disk is linked by name. Numba tells functions of one name apart by numbers, which begin
# with 1 in every process: siblings of one factory, compiled by two processes, would be the same to a third.
FunctionIdentity._unique_ids = count(randbits(48))


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


def target():
    """What Numba compiles for: the machine, the CPU's name, its features with a sign before each."""
    return cpu_target.target_context.codegen().magic_tuple()


@cache
def cache_folder():
    """The folder of this installation's machine code, there or not yet; None if nobody has a home."""
    home = cache_home()
    return home / fingerprint() if home else None


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
    code = Path(__file__).parent
    files = sorted([*code.glob("*.py"), *code.parent.glob("*.py")])
    sources = [path.read_bytes() for path in [*files, Path(ops.__file__)]]  # ops has erf's coefficients
    versions = sys.version, numba.__version__, llvmlite.__version__, np.__version__
    config = numba.config
    settings = config.OPT, config.BOUNDSCHECK, config.DEBUGINFO_DEFAULT, os.environ.get("MVLM_SIMD")
    return hashlib.sha256(repr((sources, versions, settings, target())).encode()).hexdigest()[:16]
