"""Libraries of compiled kernels: built the same everywhere, computing the same, used where they fit."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mvlm_np.errors import UserError
from mvlm_np.kernels import cpu, library
from mvlm_np.kernels.pool import new_pool
from mvlm_np.kernels.targets import TARGETS
from tests.conftest import ROOT

pytest.importorskip("numba")
build = pytest.importorskip("mvlm_np.kernels.code.build")

SOME = ("norms.rms_norm", "attention.rope", "attention.softmax")
NAME, UNFIT = library.target()


def run(code: str, libraries: Path | str, cwd: Path = ROOT, **environment: str) -> str:
    """What a new interpreter prints."""
    env = os.environ | {"MVLM_LIBRARIES": str(libraries), "PYTHONPATH": str(cwd)} | environment
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a library of three kernels for this CPU."""
    if UNFIT or not (compiler := build.c_compiler()):
        pytest.skip(UNFIT or "there is no C compiler")
    path = tmp_path_factory.mktemp("libraries")
    build.build(NAME, path, compiler, SOME)
    return path


@pytest.fixture(scope="module")
def built(folder: Path) -> Any:
    path = folder / library.file_name(NAME)
    return library.Library(path, library.opened(path, NAME))


# ---------------------------------------------------------------- what is computed

HASHES = """
import hashlib, sys
import numpy as np
from mvlm_np.kernels import attention, kernel, library, norms
kernel.TEAM.resize(3)
kernel.WORTH_SHARING = 0
x = np.random.default_rng(0).standard_normal((5, 70, 64)).astype(np.float32)
cos, sin = x[0, :, :32], x[1, :, :32]
results = norms.rms_norm(x, x[0, 0], 1e-5), attention.softmax(x), attention.rope(x, cos, sin)
print(*(hashlib.sha256(result.tobytes()).hexdigest() for result in results))
kernel.TEAM.dismiss()
print("numba" in sys.modules, "llvmlite" in sys.modules, library.choice().library is not None)
"""


def test_it_computes_the_same_bits_as_numba_without_importing_it(folder: Path) -> None:
    prebuilt, how = run(HASHES, folder).splitlines()
    assert how == "False False True"
    compiled, how = run(HASHES, "").splitlines()
    assert how == "True True False"
    assert prebuilt == compiled


def test_a_kernel_that_it_lacks_is_compiled(folder: Path) -> None:
    more = "from mvlm_np.kernels import activations\nprint(activations.silu(x).shape, 'numba' in sys.modules)"
    code = f"{HASHES}\n{more}"
    assert run(code, folder).splitlines()[-1] == "(5, 70, 64) True"


# ---------------------------------------------------------------- what a kernel takes

X = np.ones((3, 32), np.float32)
UNALIGNED = np.frombuffer(bytes(3 * 32 * 4 + 1), np.uint8)[1:].view(np.float32).reshape(3, 32)
READ_ONLY = X.copy()
READ_ONLY.setflags(write=False)


class Odd(np.ndarray):
    pass


@pytest.mark.parametrize(
    ("place", "argument", "name", "found"),
    [
        (0, X.astype(np.float64), "x", r"float64 \(3, 32\)"),
        (0, X.astype(">f4"), "x", r">f4 \(3, 32\)"),
        (0, X.astype(np.int32), "x", r"int32 \(3, 32\)"),
        (0, X[0], "x", r"float32 \(32,\)"),
        (0, X[None], "x", r"float32 \(1, 3, 32\), wanted float32 in 2 dimensions, aligned, contiguous"),
        (0, X[:, ::2], "x", "float32 .*, not contiguous"),
        (0, X.T, "x", "float32 .*, not contiguous"),
        (0, UNALIGNED, "x", "float32 .*, not aligned"),
        (0, X.view(Odd), "x", "a Odd of float32"),
        (0, [[1.0]], "x", "a list"),
        (0, None, "x", "a NoneType"),
        (0, 1 << 40, "x", "a int"),
        (0, np.float32(1), "x", "a float32"),
        (0, object(), "x", "a object"),
        (1, X, "weight", "float32"),
        (2, "small", "eps", "a str, wanted a number"),
        (2, X, "eps", "float32"),
        (3, READ_ONLY, "out", "float32 .*, read-only, wanted .*, writable"),
    ],
)
def test_a_wrong_argument_is_named_and_nothing_runs(
    built: Any, place: int, argument: Any, name: str, found: str
) -> None:
    arguments = [X, X[0], 1e-5, np.zeros_like(X)]
    out = arguments[3]
    arguments[place] = argument
    with pytest.raises(TypeError, match=rf"norms.rms_norm: {name}: found {found}"):
        call(built, "norms.rms_norm", arguments)
    assert not out.any()


def call(built: Any, name: str, arguments: list[Any]) -> None:
    """As `Kernel` calls it."""
    from mvlm_np.kernels.parameters import check

    try:
        built.function(name)(new_pool(1), 3, 1, *arguments)
    except Exception:
        check(name, built.kernels[name][3:], arguments)
        raise


def test_right_arguments_are_taken(built: Any) -> None:
    out = np.zeros_like(X)
    call(built, "norms.rms_norm", [READ_ONLY, READ_ONLY[0], 1, out])
    assert np.allclose(out, 1 / np.sqrt(2))
    call(built, "norms.rms_norm", [READ_ONLY[:0], READ_ONLY[0], 0.0, out[:0]])
    call(built, "attention.softmax", [READ_ONLY, out])
    assert np.allclose(out, 1 / 32)


@pytest.mark.parametrize("libraries", ["library", ""])
def test_however_it_is_compiled_a_kernel_says_the_same_of_a_wrong_argument(
    libraries: str, folder: Path
) -> None:
    code = """
import numpy as np
from mvlm_np.kernels import norms
x = np.ones((3, 32))
try:
    norms._rms_norm(3, 1.0, x, x[0], 1e-5, x)
except TypeError as error:
    print(error)
"""
    said = run(code, folder if libraries else "")
    assert (
        said
        == "norms.rms_norm: x: found float64 (3, 32), wanted float32 in 2 dimensions, aligned, contiguous\n"
    )


# ---------------------------------------------------------------- which one is used


def cut_short(content: bytes) -> bytes:
    return content[:-1000]


def changed(content: bytes) -> bytes:
    return content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]


def about(**other: str) -> Callable[[bytes], bytes]:
    """A whole library that says something else of itself."""

    def altered(content: bytes) -> bytes:
        end = len(content) - library.SHA256 - library.LENGTH
        length = int.from_bytes(content[end : end + library.LENGTH], "little")
        return library.sealed(content[: end - length], json.loads(content[end - length : end]) | other)

    return altered


OTHER = next(name for name, target in TARGETS.items() if target.machine != cpu.MACHINE)
UNFITTING = {
    "cut short": (cut_short, "is damaged or cut short"),
    "changed": (changed, "is damaged or cut short"),
    "empty": (lambda content: b"", "is damaged or cut short"),
    "other sources": (about(sources="0" * 16), "is made from other sources than these"),
    "other machine": (about(target=OTHER), f"is made for {TARGETS[OTHER].machine}, {OTHER}"),
    "unknown": (about(target="riscv"), "is made for another machine, riscv"),
    "no library": (
        lambda content: library.sealed(b"text", about_of(content)),
        "file too short|invalid ELF header",
    ),
}


def about_of(content: bytes) -> dict[str, Any]:
    end = len(content) - library.SHA256 - library.LENGTH
    length = int.from_bytes(content[end : end + library.LENGTH], "little")
    return json.loads(content[end - length : end])


@pytest.mark.parametrize("kind", UNFITTING)
def test_one_that_does_not_fit_is_passed_over_with_a_reason(kind: str, folder: Path, tmp_path: Path) -> None:
    damage, reason = UNFITTING[kind]
    name = library.file_name(NAME)
    (tmp_path / name).write_bytes(damage((folder / name).read_bytes()))
    _, how = run(HASHES, tmp_path).splitlines()
    assert how == "True True False"
    env = os.environ | {"MVLM_LIBRARIES": str(tmp_path)}
    command = [sys.executable, "-m", "mvlm_np", "doctor", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    (said,) = json.loads(done.stdout)["kernels"]["passed_over"].values()
    assert re.search(reason, said), said


@pytest.fixture
def choose(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], library.Choice]:
    monkeypatch.setenv("MVLM_LIBRARIES", str(folder))
    return library.choice.__wrapped__


def test_the_one_that_fits_is_used(choose: Callable[[], library.Choice], folder: Path) -> None:
    chosen, passed_over = choose()
    assert chosen and chosen.path == folder / library.file_name(NAME)
    assert passed_over == {}


def test_a_cpu_that_lacks_a_feature_of_it_is_told(
    choose: Callable[[], library.Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    lacked = min(TARGETS[NAME].needs - cpu.INSTRUCTION_SETS[cpu.INSTRUCTION_SET], default=None)
    if lacked is None:
        pytest.skip("this library needs nothing besides the instruction set")
    monkeypatch.setattr(library, "features", lambda: cpu.features() - {lacked})
    chosen, passed_over = choose()
    assert chosen is None
    assert list(passed_over.values()) == [f"needs {lacked}, which this CPU lacks"]


def test_a_python_that_lays_out_arrays_otherwise_is_told(
    choose: Callable[[], library.Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_arrays_are_laid_out_as_usual", lambda: False)
    chosen, passed_over = choose()
    assert chosen is None
    assert "global interpreter lock" in " ".join(passed_over.values())


# ---------------------------------------------------------------- building


def test_another_checkout_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("mvlm_np", "kernels"):
        skip = shutil.ignore_patterns("__pycache__", "native")
        shutil.copytree(ROOT / name, tmp_path / "other" / name, symlinks=True, ignore=skip)
    code = f"""
from pathlib import Path
from mvlm_np.kernels.code import build
assert build.__file__.startswith({str(tmp_path)!r})
build.build({NAME!r}, Path({str(tmp_path)!r}), build.c_compiler(), {SOME})
"""
    run(code, "", tmp_path / "other")
    name = library.file_name(NAME)
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_the_fingerprint_covers_all_that_the_code_is_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = set()
    for path in (ROOT / "kernels/code").glob("*.py"):
        if path.stem not in ("build", "code_cache"):  # which make no code
            used |= set(re.findall(r"from mvlm_np\.(?:kernels\.)?(\w+) import", path.read_text("utf-8")))
            used |= set(re.findall(r"from mvlm_np(?:\.kernels)? import (\w+)", path.read_text("utf-8")))
    assert used - {"code", "ops", "kernels", "machine_code", "all_kernels"} <= {*library.SHARED}

    copy = shutil.copytree(ROOT / "kernels", tmp_path / "kernels")
    monkeypatch.setattr(library, "HERE", copy)
    before = library.fingerprint.__wrapped__()
    for name in ("code/attention.py", "code/memory.c", "shapes.py"):
        with (copy / name).open("a") as file:
            file.write("\n")
        assert library.fingerprint.__wrapped__() != before
        before = library.fingerprint.__wrapped__()


def test_what_goes_wrong_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="false"):
        build.build(NAME, tmp_path, ["false"], SOME[:1])
    with pytest.raises(UserError, match="no-such-compiler"):
        build.build(NAME, tmp_path, ["no-such-compiler"], SOME[:1])
    with pytest.raises(UserError, match="compiling for"):
        build.build(NAME, tmp_path, ["true"], ["norms.nothing"])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_each_target_needs_what_its_instruction_set_needs() -> None:
    for name, target in TARGETS.items():
        assert cpu.INSTRUCTION_SETS[target.instruction_set] <= target.needs, name


def test_the_features_are_those_that_numba_finds() -> None:
    """Where both know a feature by name; what LLVM's CPU has, and Linux hides, counts as absent."""
    code_cache = pytest.importorskip("mvlm_np.kernels.code.code_cache")
    listed = {name[1:]: name[0] == "+" for name in code_cache.target()[2].split(",")}
    asked = set().union(*(target.needs for target in TARGETS.values() if target.machine == cpu.MACHINE))
    for name in asked & listed.keys():
        assert listed[name] == (name in cpu.features()), name
