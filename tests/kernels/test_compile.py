"""Compiling, the cache of machine code, and threads."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytest.importorskip("numba")
code_cache = pytest.importorskip("mvlm_np.kernels.code.code_cache")

# Runs two kernels, and says whether each came off the disk.
RUN = """
import numpy as np
from mvlm_np import ops
from mvlm_np.kernels import activations
x = np.arange(9, dtype=np.float32)
for name in ("quick_gelu", "silu"):
    assert np.allclose(getattr(activations, name)(x), getattr(ops, name)(x), rtol=1e-6)
kernels = activations._quick_gelu.compiled, activations._silu.compiled
print(["loaded" if sum(kernel.stats.cache_hits.values()) else "compiled" for kernel in kernels])
"""
COMPILED, LOADED = ["compiled"] * 2, ["loaded"] * 2


def start(code: str, **environment: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    env = os.environ | environment
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True
    )


def said(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.strip()


def run(cache: Path, code: str = RUN, **environment: str) -> str:
    return said(start(code, XDG_CACHE_HOME=str(cache), **environment))


def files(cache: Path) -> list[Path]:
    """The machine code in a cache; it lies in one folder, and nothing else is there."""
    (folder,) = (cache / "mvlm-np").iterdir()
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that four processes filled at once."""
    cache = tmp_path_factory.mktemp("cache")
    processes = [start(RUN, XDG_CACHE_HOME=str(cache)) for _ in range(4)]
    for process in processes:
        said(process)
    return cache


def test_processes_that_compile_at_once_leave_one_good_file_a_kernel(filled: Path) -> None:
    names = [path.name for path in files(filled)]
    assert names == [f"mvlm_np.kernels.code.activations.run_{name}" for name in ("quick_gelu", "silu")]


def test_the_next_process_compiles_nothing(filled: Path) -> None:
    assert run(filled) == str(LOADED)


def test_damaged_files_are_compiled_anew_and_replaced(filled: Path, tmp_path: Path) -> None:
    cache = shutil.copytree(filled, tmp_path / "cache")
    first, second = files(cache)
    first.write_bytes(first.read_bytes()[:1000])
    changed = bytearray(second.read_bytes())
    changed[-1000] ^= 1
    second.write_bytes(changed)
    assert run(cache) == str(COMPILED)
    assert run(cache) == str(LOADED)


def test_without_a_place_to_write_every_process_compiles(tmp_path: Path) -> None:
    (tmp_path / "file").touch()  # under which no folder can be made, not even by root
    assert run(tmp_path / "file") == str(COMPILED)
    assert (tmp_path / "file").read_bytes() == b""


# A limit on the size of files stands for a full disk.
FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from mvlm_np.kernels.code import code_cache
"""


def test_a_full_disk_gets_no_files_and_is_no_error(tmp_path: Path) -> None:
    listen = """
from mvlm_np.kernels.code import compile
compile.LOG.setLevel("INFO")
compile.LOG.handle = lambda record: print(record.kept)
"""
    code = f"{FULL}{listen}{RUN}"
    assert run(tmp_path, code).splitlines() == ["False", "False", str(COMPILED)]
    assert files(tmp_path) == []
    # Here the disk is full only when the machine code is being written.
    assert run(tmp_path, f"{FULL}code_cache.ROOM = 1\n{RUN}") == str(COMPILED)
    assert files(tmp_path) == []


def test_from_a_disk_that_has_become_full_kernels_are_loaded(filled: Path) -> None:
    assert run(filled, f"{FULL}{RUN}assert not code_cache.can_keep()") == str(LOADED)


def test_other_settings_use_other_machine_code(filled: Path, tmp_path: Path) -> None:
    cache = shutil.copytree(filled, tmp_path / "cache")
    assert run(cache, NUMBA_BOUNDSCHECK="1") == str(COMPILED)
    assert len(list((cache / "mvlm-np").iterdir())) == 2


def test_the_cache_is_in_the_users_home_unless_xdg_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = code_cache.cache_folder.__wrapped__
    monkeypatch.setenv("HOME", str(tmp_path))
    for ignored in (None, "", "relative"):
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        if ignored is not None:
            monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert folder() == tmp_path / ".cache" / "mvlm-np" / code_cache.fingerprint()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert folder() == tmp_path / "other" / "mvlm-np" / code_cache.fingerprint()


def test_a_change_in_any_source_gives_another_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(Path(code_cache.__file__).parent, tmp_path / "kernels" / "code")
    monkeypatch.setattr(code_cache, "__file__", str(copy / "code_cache.py"))
    before = code_cache.fingerprint()
    assert before == code_cache.fingerprint()
    for name in ("simd.py", "attention.py"):
        with (copy / name).open("a") as file:
            file.write("\n")
        assert code_cache.fingerprint() != before
        before = code_cache.fingerprint()


# Two siblings of one factory. Machine code is linked by name, so their names must differ.
def test_kernels_of_one_factory_come_back_from_the_disk_as_themselves(tmp_path: Path) -> None:
    code = """
import numpy as np
from mvlm_np import linear
from mvlm_np.kernels import pack, quantized
x = np.arange(64, dtype=np.float32).reshape(1, 64)
for kind in ORDER:
    w = np.arange(-7, 7, dtype=np.int8).repeat(64).reshape(14, 64)
    matrix = pack.pack(kind, w, np.ones((14, 2), np.float16))
    for M in SIZES:
        rows = np.repeat(x, M, 0)
        found = quantized.packed_product([matrix], [None])(rows)[0]
        assert np.array_equal(found, pack.packed_product([matrix], [None])(rows)[0])
"""
    kinds = ("int4", "int8")
    for order, rows in ((kinds[:1], (1,)), (kinds[1:], (9,)), (kinds, (1, 9)), (kinds[::-1], (9, 1))):
        run(tmp_path, code.replace("ORDER", str(order)).replace("SIZES", str(rows)))


def test_no_two_processes_give_functions_the_same_numbers() -> None:
    code = """
from mvlm_np.kernels.code import code_cache
from numba.core.bytecode import FunctionIdentity
print(FunctionIdentity.from_function(code_cache.fingerprint).unique_id)
"""
    numbers = {said(start(code)) for _ in range(2)}
    assert len(numbers) == 2
    assert all(int(number) > 1 << 20 for number in numbers)


TWO_THREADS = """
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from mvlm_np.kernels import activations, kernel
kernel.TEAM.resize(3)
kernel.WORTH_SHARING = 0
x = np.linspace(-9, 9, 200_000, dtype=np.float32)
wanted = activations.silu(x)
def work(_):
    return all(np.array_equal(activations.silu(x), wanted) for _ in range(50))
with ThreadPoolExecutor(2) as pool:
    assert all(pool.map(work, range(2)))
"""


def test_two_python_threads_may_compute_at_once() -> None:
    said(start(TWO_THREADS))


def test_a_forked_process_can_compute_and_so_can_its_parent() -> None:
    """As those of multiprocessing are by default."""
    code = """
import os
if child := os.fork():
    assert work(0)
    assert os.waitpid(child, 0)[1] == 0
else:
    assert work(0)
    assert len(kernel.TEAM._workers) == 2
"""
    said(start(TWO_THREADS + code))
