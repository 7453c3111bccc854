"""Installs the wheel on every Python that the project supports, as a user would, and tests it there.

    python tools/pythons.py test                    on all that are here
    python tools/pythons.py test --python 3.14      on one; may be repeated
    python tools/pythons.py run 3.14 -m mvlm_np doctor

A Python is here if it is on the PATH or among pyenv's. Python 3.14 may come from Debian's unstable release
instead, unpacked in .cache/pythons, with a C library of its own; that needs Debian's apt-get and dpkg-deb,
and no root. One that is not to be had is passed over, and it is said why.

The wheel for this machine, with its libraries of compiled kernels, is built once. Each Python gets a fresh
environment with the wheel and pytest, and no torch, and runs the tests of packaging, of the command line and
of the kernels, then the model in the box. The tests run in a folder without the sources, so what they test is
what was installed. Each Python gets a second environment, without Numba, as docs/install.md makes one for a
board: there every verb that needs no network is tried.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

from mvlm_np.errors import UserError
from tools.parts import debian
from tools.parts.wheels import wheels

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".cache" / "pythons"
WHEEL, CHECKOUT = FOLDER / "wheel", FOLDER / "checkout"
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
FROM_DEBIAN = ("3.14",)  # what Debian's unstable release has
NEEDED = ["libstdc++6", "libgomp1"]  # by the wheels of NumPy and Numba
TOOLS = ["pytest", "pytest-xdist", "hypothesis", "setuptools>=77"]
WITHOUT_NUMBA = ["numpy", "safetensors", "sentencepiece", "pillow", "tqdm", "threadpoolctl"]
# What the tests read besides the package, and what the wheel is built from.
FOR_TESTS = ["tests", "tools", "examples", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"]
FOR_THE_WHEEL = ["mvlm_np", "kernels"]
# Not what LLVM makes of a kernel, which is the same on each Python, not what compiles for minutes, and not
# how libraries are built, which needs the sources.
TESTS = [
    "tests/kernels",
    *(f"--ignore=tests/kernels/test_{name}.py" for name in ("arm", "dot_code", "cached", "library")),
]
TESTS += ["tests/test_cli.py", "tests/test_demo.py", "tests/cli/test_doctor.py"]
TESTS += ["tests/cli/test_warmup.py", "tests/inputs/test_levels.py", "tests/inputs/test_picture_file.py"]
# With the wheel's compiled kernels; the other tests let Numba compile.
OF_LIBRARIES = ["tests/kernels/test_quantized.py", "tests/kernels/test_float.py"]
# The model in the box, as README shows it, and one question that everybody can check.
DEMO = [["demo"], ["ask", "examples/chelsea.jpg", "Describe the picture.", "--max-new-tokens", "5"]]


# ---------------------------------------------------------------- finding


def find(version: str) -> Path:
    """A Python of this version that can make environments. UserError: there is none, and why."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    places = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"))]
    reason = "is neither on the PATH nor among pyenv's"
    for place in (Path(place) for place in places if place):
        code = "import sys, ensurepip, venv; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([place, "-c", code], capture_output=True, text=True, env=environment(version))
        if done.stdout.split() == [version]:
            return place
        reason = f"({place}) cannot make environments: {debian.last_line(done)}"
    if version not in FROM_DEBIAN:
        raise UserError(f"Python {version}", reason)
    return _from_debian(version)


def _from_debian(version: str) -> Path:
    """Python unpacked from Debian's packages, run by the C library that was unpacked with it."""
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    root = debian.unpack([f"python{version}-venv", *NEEDED], FOLDER / version, architecture, "sid")
    program = root / f"usr/bin/python{version}"
    binary = program.with_name(f"{program.name}.elf")
    if not binary.exists():
        program.rename(binary)
    # Debian's ensurepip looks for pip in a fixed place.
    for file in root.glob(f"usr/lib/python{version}/_sysconfigdata_*.py"):
        file.write_text(
            file.read_text().replace("': '/usr/share/python-wheels", f"': '{root}/usr/share/python-wheels")
        )
    (loader,) = root.glob("usr/lib*/ld-linux-*.so.?")
    libraries = root / f"usr/lib/{platform.machine()}-linux-gnu"
    # Python finds its library, or the environment that it belongs to, by the name that it is called by.
    program.write_text(f'#!/bin/sh\nexec {loader} --argv0 "$0" --library-path {libraries} {binary} "$@"\n')
    program.chmod(0o755)
    done = subprocess.run([program, "--version"], capture_output=True, text=True)
    if f"Python {version}." not in done.stdout:
        raise UserError(root, debian.last_line(done), "a Python that runs", "remove the folder and try again")
    return program


def environment(version: str) -> Mapping[str, str]:
    """The variables that a Python runs with: none of ours, and its own place for machine code."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("NUMBA_", "MVLM_", "PYTHON"))
    }
    return ours | {"XDG_CACHE_HOME": str(FOLDER / version / "machine-code"), "PYTHONNOUSERSITE": "1"}


# ---------------------------------------------------------------- testing


def build() -> Path:
    """Copies what is needed, builds the wheel, and leaves only what the tests read."""
    for folder in (CHECKOUT, WHEEL):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for name in (*FOR_TESTS, *FOR_THE_WHEEL):
        if (ROOT / name).is_dir():
            skip = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, CHECKOUT / name, symlinks=True, ignore=skip)
        else:
            shutil.copy(ROOT / name, CHECKOUT)
    for name in FOR_THE_WHEEL:
        shutil.rmtree(CHECKOUT / name, ignore_errors=True)
    return next(path for path in wheels(WHEEL, [platform.machine()]) if platform.machine() in path.name)


def install(version: str, python: Path, wheel: Path) -> Path:
    """A fresh environment with the wheel and the test tools: the folder of its programs."""
    folder = FOLDER / version / "venv"
    shutil.rmtree(folder, ignore_errors=True)
    debian.must(str(python), ["-m", "venv", str(folder)], f"Python {version} must be able to make one")
    pip = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    debian.must(str(folder / "bin/python"), [*pip, str(wheel), *TOOLS], "see what pip says above")
    return folder / "bin"


def install_without_numba(version: str, python: Path, wheel: Path) -> Path:
    """An environment as docs/install.md makes one for a board: the folder of its programs."""
    folder = FOLDER / version / "board"
    shutil.rmtree(folder, ignore_errors=True)
    debian.must(str(python), ["-m", "venv", str(folder)], f"Python {version} must be able to make one")
    pip = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    debian.must(str(folder / "bin/python"), [*pip, *WITHOUT_NUMBA], "see what pip says above")
    debian.must(str(folder / "bin/python"), [*pip, "--no-deps", str(wheel)], "see what pip says above")
    return folder / "bin"


def verbs_without_numba(version: str, programs: Path) -> list[subprocess.CompletedProcess[str]]:
    """Every verb that needs no network, once, where there is no Numba."""
    work = FOLDER / version / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    picture = str(CHECKOUT / "examples/chelsea.jpg")
    code = """
import shutil
from mvlm_np import backend, demo
assert backend.prebuilt()
shutil.copytree(demo.__path__[0] + "/model", "model")
"""
    calls = [
        ["doctor"],
        ["warmup"],
        ["demo"],
        ["ask", picture, "Describe the picture.", "--model", "model", "--max-new-tokens", "5"],
        ["ask", "Who are you?", "--model", "model", "--backend", "numba", "--precision", "int4"],
        ["inspect", "model"],
        ["convert", "model", "small", "--precision", "int4"],
        ["bench", "--model", "small", "--backend", "numba", "--prompt", "12", "--new", "2", "--rounds", "1"],
        ["look", picture, "Describe the picture.", "--model", "model", "--html", "look.html"],
        ["golden", "record", "model", "--image", picture, "--question", "What?", "-o", "golden.safetensors"],
        ["golden", "compare", "golden.safetensors", "golden.safetensors"],
    ]
    first = _run(version, [str(programs / "python"), "-c", code], work)
    return [first, *(_run(version, [str(programs / "mvlm"), *call], work) for call in calls)]


def test(versions: Sequence[str]) -> int:
    """Tests each version that is here, as many at a time as there are cores."""
    pythons, passed_over = {}, 0
    for version in versions:
        try:
            pythons[version] = find(version)
        except UserError as error:
            passed_over += 1
            print(f"---- passed over: {error}")
    wheel = build()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda version: _test_one(version, pythons[version], wheel), pythons))
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed, {passed_over} skipped")
    return 0 if all(results) else 1


def _test_one(version: str, python: Path, wheel: Path) -> bool:
    started = perf_counter()
    try:
        programs = install(version, python, wheel)
        board = install_without_numba(version, python, wheel)
    except UserError as error:
        print(f"---- {version}: FAILED: {error}", flush=True)
        return False
    installed = perf_counter()
    pytest = [str(programs / "python"), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    pytest += ["--hypothesis-profile=emulated"]  # fewer examples; all of them run on the first Python
    (libraries,) = (programs.parent / "lib").glob("python*/site-packages/mvlm_np/kernels/native")
    runs = [
        _run(version, [*pytest, *TESTS], CHECKOUT),
        _run(version, [*pytest, "tests/test_packaging.py", "-k", "not lint"], ROOT),
        *(_run(version, [str(programs / "mvlm"), *arguments], CHECKOUT) for arguments in DEMO),
        _run(version, [*pytest, *OF_LIBRARIES], CHECKOUT, {"MVLM_LIBRARIES": str(libraries)}),
        *verbs_without_numba(version, board),
    ]
    good = not any(run.returncode for run in runs)
    seconds = f"{installed - started:.0f} s to install, {perf_counter() - installed:.0f} s to test"
    print(f"---- {version}, {python}: {'good' if good else 'FAILED'}, {seconds}")
    for run in runs:
        print(run.stdout.strip() if run.returncode else debian.last_line(run), flush=True)
    return good


def _run(
    version: str, command: Sequence[str], folder: Path, more: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    pipe, together = subprocess.PIPE, subprocess.STDOUT
    return subprocess.run(
        command,
        cwd=folder,
        env={**environment(version), **(more or {})},
        stdout=pipe,
        stderr=together,
        text=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    testing = verbs.add_parser("test", help="build the wheel, install and test it")
    testing.add_argument("--python", action="append", choices=VERSIONS, help="this one only; may be repeated")
    running = verbs.add_parser("run", help="run a Python that was tested, in its environment")
    running.add_argument("python", choices=VERSIONS)
    running.add_argument("arguments", nargs=argparse.REMAINDER, help="for Python")
    args = parser.parse_args(arguments)
    try:
        if args.verb == "test":
            return test(args.python or VERSIONS)
        program = FOLDER / args.python / "venv/bin/python"
        if not program.exists():
            raise UserError(f"Python {args.python}", "has no environment yet", None, "test makes it")
        os.execve(program, [str(program), *args.arguments], environment(args.python))
    except UserError as error:
        print(f"pythons: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
