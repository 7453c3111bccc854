"""Runs the project on ARM processors that this machine does not have, emulated by QEMU.

    python tools/arm.py build                   Python and its packages for ARM, in .cache/arm
    python tools/arm.py test                    the tests of all kernels on each CPU, and one question
    python tools/arm.py run cortex-a76 -m mvlm_np doctor

`build` needs Debian's or Ubuntu's apt-get, dpkg-deb and qemu-user, and a network; no root. Debian's packages
are those of this machine's release, in a folder of their own (tools/parts/debian.py); Python's have the
versions of this interpreter's own. What is there and fits is kept: a second `build` does nothing, and one
that was stopped goes on.

The kernels that are tested come from the libraries of the wheel for ARM, which are built first, here and not
under emulation. One test compiles three kernels on the emulated A76 too (tests/kernels/test_arm.py). Then the
wheel is tried out as on a board without Numba.

Emulation shows that code is right, not how fast it is.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from zipfile import ZipFile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

from mvlm_np.errors import UserError
from tools.parts import debian
from tools.parts.emulated_arm import (
    CPUS,
    FOLDER,
    PYTHON,
    ROOT,
    ROOT_FILES,
    SITE,
    environment,
    missing,
    pins,
    python,
    site_fits,
)
from tools.parts.wheels import wheels

DEBIAN = ["python3", "libstdc++6", "libgomp1"]  # apt adds what these need
WHEELS = [
    "manylinux_2_28_aarch64",
    "manylinux_2_27_aarch64",
    "manylinux_2_17_aarch64",
    "manylinux2014_aarch64",
]
# Not what compiles under emulation: how machine code is cached, and what LLVM makes of a kernel.
SLOW = ("arm", "compile", "dot_code", "limits", "library")
TESTS = ["tests/kernels", *(f"--ignore=tests/kernels/test_{name}.py" for name in SLOW)]
BOARD = FOLDER / "board"  # the wheel, unpacked, and packages without Numba

# What is used on such a board, and which library.
NO_NUMBA = """
from importlib.util import find_spec
from mvlm_np.kernels import library
print(library.choice().library.target, "Numba" if find_spec("numba") else "no Numba")
"""


# ---------------------------------------------------------------- building


def build() -> None:
    """Makes the environment, or what it lacks. UserError: what it needs is not to be had."""
    if not shutil.which("qemu-aarch64"):
        fix = "on Debian and Ubuntu: apt-get install qemu-user"
        raise UserError("qemu-aarch64", "is not installed", None, fix)
    FOLDER.mkdir(parents=True, exist_ok=True)
    debian.unpack(DEBIAN, FOLDER, "arm64")
    if PYTHON.exists() and site_fits():
        return
    PYTHON.unlink(missing_ok=True)  # it comes last, and says that all is there
    if not site_fits():
        _install_packages()
    # sys.executable is this script, so a test that starts another Python starts it on the same CPU.
    PYTHON.write_text(f'#!/bin/sh\nexec qemu-aarch64 -0 "$0" {ROOT_FILES}/usr/bin/python3 "$@"\n')
    PYTHON.chmod(0o755)
    done = python("cortex-a76", "-c", "import numba, platform; print(platform.machine(), numba.__version__)")
    if done.stdout.split() != ["aarch64", version("numba")]:
        PYTHON.unlink()
        raise UserError(
            FOLDER, debian.last_line(done), "a Python that runs", "remove the folder and try again"
        )


def _install_packages() -> None:
    found = (ROOT_FILES / "usr/bin/python3").readlink().name.removeprefix("python")
    if found not in ("3.11", "3.12", "3.13", "3.14"):
        raise UserError("python3 for arm64", f"is {found} in this release", "3.11 to 3.14")
    partial = FOLDER / "site.partial"
    shutil.rmtree(partial, ignore_errors=True)
    options = ["--no-deps", "--no-compile", "--only-binary=:all:", f"--python-version={found}"]
    options += [f"--platform={wheels}" for wheels in WHEELS]
    pip = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--target", str(partial)]
    debian.must(sys.executable, [*pip, *options, *pins().split()], "see what pip says above")
    (partial / "pins.txt").write_text(pins(), "utf-8")
    shutil.rmtree(SITE, ignore_errors=True)
    partial.rename(SITE)


# ---------------------------------------------------------------- testing


def test(cpus: Sequence[str]) -> int:
    """Runs the kernels' tests and one question on each CPU, as many at a time as there are cores."""
    model = FOLDER / "tiny"
    if not model.exists():
        maker = [sys.executable, str(ROOT / "tools/make_checkpoint.py"), "tiny", str(model)]
        subprocess.run(maker, check=True)
    shutil.rmtree(BOARD, ignore_errors=True)
    (wheel,) = (path for path in wheels(FOLDER / "wheels", ["aarch64"]) if "aarch64" in path.name)
    ZipFile(wheel).extractall(BOARD)
    for package in SITE.iterdir():
        if not package.name.startswith(("numba", "llvmlite")):
            (BOARD / package.name).symlink_to(package)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda cpu: _test_one(cpu, model), cpus)
        failed = [cpu for cpu, good in zip(cpus, results, strict=True) if not good]
    print(f"{len(cpus) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


def _test_one(cpu: str, model: Path) -> bool:
    started, libraries = perf_counter(), BOARD / "mvlm_np/kernels/native"
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=emulated", *TESTS]
    picture = str(ROOT / "examples/chelsea.jpg")
    ask = ["-m", "mvlm_np", "ask", picture, "What animal is this?", "--model", str(model)]
    ask += ["--precision", "int4", "--max-new-tokens", "2"]
    runs = [
        python(cpu, *tests, libraries=libraries),
        *(
            python(cpu, *ask, "--backend", name, libraries=libraries, site=BOARD)
            for name in ("numba", "numpy")
        ),
        python(cpu, "-c", NO_NUMBA, libraries=libraries, site=BOARD),
    ]
    tested, fast, plain, without = runs
    same = fast.stdout == plain.stdout and len(fast.stdout) > 1
    same = same and without.stdout.split() == [CPUS[cpu].instruction_set, "no", "Numba"]
    good = same and not any(run.returncode for run in runs)
    print(f"---- {cpu}: {'good' if good else 'FAILED'}, {perf_counter() - started:.0f} s")
    print(tested.stdout.strip(), tested.stderr.strip(), sep="\n")
    for run in (fast, plain, without):
        said = run.stderr.strip().splitlines()[-1:] if run.returncode else []
        print(f"from the wheel: exit code {run.returncode}, {run.stdout.strip()!r}", *said, flush=True)
    return good


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("build", help="make the environment")
    testing = verbs.add_parser("test", help="build, then test")
    testing.add_argument("--cpu", action="append", choices=CPUS, help="this one only; may be repeated")
    running = verbs.add_parser("run", help="run Python on a CPU")
    running.add_argument("cpu", choices=CPUS)
    running.add_argument("arguments", nargs=argparse.REMAINDER, help="for Python")
    args = parser.parse_args(arguments)
    try:
        if args.verb == "run":
            if reason := missing():
                raise UserError("the emulated environment", reason)
            os.execve(PYTHON, [str(PYTHON), *args.arguments], environment(args.cpu))
        build()
        return test(args.cpu or list(CPUS)) if args.verb == "test" else 0
    except UserError as error:
        print(f"arm: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
