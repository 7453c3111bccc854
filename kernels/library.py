"""Libraries of compiled kernels: which of them fits this machine, and how its functions are called.

`code.build` makes them, a file TARGET.so for each of `targets`: a shared library, and behind its end, where
the system's loader does not look, a description in JSON, the length of that (8 bytes), and the SHA-256 of all
before. With a library, neither Numba nor a compiler is needed. Without one that fits, Numba compiles.

They lie in the folder `native` of the package, where a wheel for this machine has brought them, and in the
user's cache, where `mvlm warmup` puts one. MVLM_LIBRARIES names another folder to look in, and no other; if
it is empty there are none.
"""

import ctypes
import hashlib
import json
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mvlm_np import ops
from mvlm_np.errors import UserError
from mvlm_np.kernels import launcher
from mvlm_np.kernels.cpu import INSTRUCTION_SET, MACHINE, features
from mvlm_np.kernels.parameters import Parameter
from mvlm_np.kernels.targets import TARGETS

HERE = Path(__file__).parent
PACKAGED = HERE / "native"
# What compiled code depends on, besides `code`.
SHARED = ("cpu", "pack", "parameters", "pool", "shapes", "targets")
SHA256, LENGTH = 32, 8  # bytes


class Library:
    """A library in use."""

    def __init__(self, path: Path, about: dict[str, Any]):
        self.path, self.target, self._loaded = path, about["target"], ctypes.CDLL(str(path))
        self.kernels = {name: [Parameter(*p) for p in taken] for name, taken in about["kernels"].items()}

    def function(self, name: str) -> Callable:
        """call(pool, steps, least, *arguments), as what Numba compiles is called.

        TypeError: an argument is not of the type that the kernel declares. MemoryError.
        """
        return launcher.of(self._loaded["mvlm_" + name.replace(".", "_")], name, self.kernels[name])


class Choice(NamedTuple):
    """The library in use, if any, and why others that were there are not: {path: reason}."""

    library: Library | None
    passed_over: dict[str, str]


@cache
def choice() -> Choice:
    """Chooses a library, once in a process."""
    wanted, unfit = target()
    passed_over: dict[str, str] = {}
    for folder in folders():
        if (path := folder / file_name(wanted)).is_file():
            try:
                return Choice(Library(path, opened(path, wanted, unfit)), passed_over)
            except (UserError, OSError) as error:
                passed_over[str(path)] = str(error).removeprefix(f"{path}: ")
    return Choice(None, passed_over)


def target() -> tuple[str, str | None]:
    """The name of the target that suits this CPU, and why its library cannot be used here, if it cannot."""
    same = MACHINE, INSTRUCTION_SET
    suited = [name for name, t in TARGETS.items() if (t.machine, t.instruction_set) == same]
    if not suited:
        return INSTRUCTION_SET, f"no library is made for {INSTRUCTION_SET} on {MACHINE}"
    lacking = {name: TARGETS[name].needs - features() for name in suited}
    name = next((name for name in suited if not lacking[name]), suited[-1])
    if lacking[name]:
        return name, f"needs {', '.join(sorted(lacking[name]))}, which this CPU lacks"
    if object.__basicsize__ != 16 or not _arrays_are_laid_out_as_usual():
        return name, "this Python keeps arrays in another way (it has no global interpreter lock)"
    return name, None


def _arrays_are_laid_out_as_usual() -> bool:
    """Whether an array's data stand in its object where CPython and NumPy put them."""
    x = np.zeros(1)
    return (
        sys.implementation.name == "cpython"
        and ctypes.c_int64.from_address(id(x) + 16).value == x.ctypes.data
    )


# ---------------------------------------------------------------- files


def folders() -> list[Path]:
    """Where libraries are looked for, in this order."""
    named = os.environ.get("MVLM_LIBRARIES")
    if named is not None:
        return [Path(named)] if named else []
    return [PACKAGED, *filter(None, [cache_folder()])]


def cache_folder() -> Path | None:
    """Where `mvlm warmup` puts the library of these sources; None if nobody has a home."""
    home = cache_home()
    return home / "native" / fingerprint() if home else None


def cache_home() -> Path | None:
    """`$XDG_CACHE_HOME/mvlm-np`, or `~/.cache/mvlm-np`."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not home.is_absolute():
            home = Path.home() / ".cache"
    except RuntimeError:
        return None
    return home / "mvlm-np"


def file_name(target: str) -> str:
    """What the library of a target is called."""
    return f"{target}.so"


@cache
def fingerprint() -> str:
    """A hash of the sources that a library is made of."""
    files = [
        *(HERE / "code").glob("*.py"),
        *(HERE / "code").glob("*.c"),
        *(HERE / f"{name}.py" for name in SHARED),
    ]
    seen = hashlib.sha256()
    for path in [*sorted(files), Path(ops.__file__)]:  # ops has erf's coefficients
        seen.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return seen.hexdigest()[:16]


def sealed(library: bytes, about: dict[str, Any]) -> bytes:
    """The bytes of a file: the linked library, what it is, and what `opened` checks it by."""
    text = json.dumps(about, sort_keys=True).encode()
    content = library + text + len(text).to_bytes(LENGTH, "little")
    return content + hashlib.sha256(content).digest()


def opened(path: Path, wanted: str, unfit: str | None = None) -> dict[str, Any]:
    """What a library says of itself. UserError: it is damaged, or not for this CPU and these sources."""
    data = path.read_bytes()
    content, digest = data[:-SHA256], data[-SHA256:]
    if hashlib.sha256(content).digest() != digest:
        raise UserError(path, "is damaged or cut short")
    end = len(content) - LENGTH
    about = json.loads(content[end - int.from_bytes(content[end:], "little") : end])
    if about["target"] != wanted:
        known = TARGETS.get(about["target"])
        raise UserError(
            path, f"is made for {known.machine if known else 'another machine'}, {about['target']}"
        )
    if unfit:
        raise UserError(path, unfit)
    if about["sources"] != fingerprint():
        raise UserError(path, "is made from other sources than these")
    return about
