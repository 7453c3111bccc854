"""Builds libraries of compiled kernels, for wheels and for `mvlm warmup`. What is in them: `library`.

Numba compiles for one target in a process, so each target has one of its own (`objects`). Then a C compiler
links the objects, with the few lines of memory.c. The same sources and tools give the same bytes, wherever
they lie.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from mvlm_np.errors import UserError
from mvlm_np.kernels.library import (
    HERE,
    cache_folder,
    choice,
    file_name,
    fingerprint,
    folders,
    sealed,
    target,
)

# Nothing in a library may depend on where or when it was linked. What it calls, malloc and such, is in the
# process that loads it.
_OPTIONS = "-O2 -fPIC -shared -s -nostdlib -Wl,--gc-sections -Wl,--build-id=none -Wl,-z,noexecstack".split()


def build(
    target: str,
    folder: Path,
    compiler: Sequence[str],
    kernels: Sequence[str] = (),
    compiled: Callable[[str], object] = lambda name: None,
) -> Path:
    """Builds the library of a target into a folder, and returns its path.

    compiler  the C compiler's command
    kernels   the names of those that go into it; none: all
    compiled  called with the name of each, once it is compiled
    UserError: it does not work out. Then nothing is left in the folder.
    """
    path, sources = folder / file_name(target), _sources()
    try:
        with tempfile.TemporaryDirectory(prefix="mvlm-") as temporary:
            objects, linked = Path(temporary, "objects"), Path(temporary, "linked")
            objects.mkdir()
            _compile(target, objects, kernels, compiled)
            parts = [Path(__file__).with_name("memory.c"), *sorted(objects.glob("*.o"))]
            _link([*compiler, *_OPTIONS, "-o", str(linked), *map(str, parts)])
            taken = json.loads((objects / "kernels.json").read_text("utf-8"))
            if sources != _sources():
                raise UserError(HERE, "has changed while it was compiled", fix="try again")
            about = {"target": target, "sources": sources, "kernels": taken}
            content = sealed(linked.read_bytes(), about)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            try:
                file.write(content)
                file.flush()
                os.replace(file.name, path)  # other processes see all of it or nothing
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise UserError(error.filename or folder, error.strerror) from None
    return path


def _sources() -> str:
    """The fingerprint of what is there now."""
    fingerprint.cache_clear()
    return fingerprint()


def build_for_this_cpu(kernels: Sequence[str], compiled: Callable[[str], object]) -> Path:
    """Builds the library that fits this CPU into the user's cache, for the next start. UserError."""
    if not (compiler := c_compiler()):
        raise UserError("a C compiler", "is not installed")
    name, unfit = target()
    if unfit:
        raise UserError(f"a library for {name}", unfit)
    if not (folder := cache_folder()):
        raise UserError("the cache", "has no folder, since there is no home")
    if folder not in folders():
        raise UserError("MVLM_LIBRARIES", "is set, so no library in the cache is used")
    path = build(name, folder, compiler, kernels, compiled)
    choice.cache_clear()
    if (chosen := choice().library) is None or chosen.path != path:
        path.unlink()
        raise UserError(path, choice().passed_over.get(str(path), "is not looked for"))
    return path


def c_compiler() -> list[str] | None:
    """The command of this machine's C compiler, if there is one."""
    found = next(filter(None, map(shutil.which, [os.environ.get("CC", ""), "cc", "gcc", "clang"])), None)
    return [found] if found else None


def _compile(target: str, folder: Path, kernels: Sequence[str], compiled: Callable[[str], object]) -> None:
    # The hash seed: sets are ordered by it, and with them the code that Numba makes.
    environment = os.environ | {"MVLM_BUILD": target, "MVLM_LIBRARIES": "", "PYTHONHASHSEED": "0"}
    environment = {
        name: value for name, value in environment.items() if not name.startswith(("NUMBA_", "MVLM_SIMD"))
    }
    command = [sys.executable, "-m", "mvlm_np.kernels.code.objects", str(folder), *kernels]
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process:
            assert process.stdout
            for line in process.stdout:
                compiled(line.strip())
        if process.returncode:
            errors.seek(0)
            raise UserError(
                f"compiling for {target}", (errors.read().strip().splitlines() or ["stopped"])[-1]
            )


def _link(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise UserError(command[0], (done.stderr.strip().splitlines() or ["failed"])[-1])
