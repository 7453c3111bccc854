"""`mvlm warmup`, and what a first answer says about compiling."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytest.importorskip("numba")


def run(code: str, cache: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"XDG_CACHE_HOME": str(cache)}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)


# All kernels would take half a minute.
WARM = """
from mvlm_np import backend
from mvlm_np.cli import main
some = [kernel for kernel in backend.all_kernels() if kernel.name.startswith("norms.")]
backend.all_kernels = lambda: some
raise SystemExit(main(["warmup", *{more}]))
"""


def test_it_compiles_once_and_loads_from_then_on(tmp_path: Path) -> None:
    first = run(WARM.format(more=[]), tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("2 kernels compiled, 0 loaded")
    second = run(WARM.format(more=["--json"]), tmp_path)
    result = json.loads(second.stdout)
    assert [row["loaded"] for row in result["kernels"]] == [True, True]
    assert Path(result["folder"]).is_relative_to(tmp_path)
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    assert run(full + WARM.format(more=[]), tmp_path).stdout.startswith("0 kernels compiled, 2 loaded")


def test_where_nothing_can_be_kept_it_says_no(tmp_path: Path) -> None:
    (tmp_path / "file").touch()  # under which no folder can be made, not even by root
    done = run(WARM.format(more=[]), tmp_path / "file")
    assert done.returncode == 1
    assert "not kept" in done.stdout


def test_without_numba_there_is_nothing_to_warm(tmp_path: Path) -> None:
    blocked = "import sys; sys.modules['numba'] = None\n"
    done = run(f"{blocked}from mvlm_np.cli import main\nraise SystemExit(main(['warmup']))", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("mvlm: kernels: numba cannot be imported")


def test_every_kernel_of_the_vocabulary_is_known() -> None:
    from mvlm_np import backend

    names = [kernel.name for kernel in backend.all_kernels()]
    assert len(set(names)) == len(names)
    assert {name.split(".")[0] for name in names} >= {
        "activations",
        "attention",
        "images",
        "norms",
        "quantized",
    }


FIRST = """
import numpy as np
from mvlm_np.cli.progress import say_what_is_compiled
from mvlm_np.kernels import norms
say_what_is_compiled()
say_what_is_compiled()
x = np.ones((2, 32), np.float32)
norms.rms_norm(x, x[0], 1e-5)
norms.layer_norm(x, x[0], x[0], 1e-5)
"""


def test_it_promises_nothing_where_nothing_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for _ in range(2):
        (line,) = run(FIRST, tmp_path / "file").stderr.splitlines()
        assert "cannot be kept" in line and "later starts" not in line


def test_the_first_answer_says_once_that_it_compiles(tmp_path: Path) -> None:
    (line,) = run(FIRST, tmp_path).stderr.splitlines()
    assert line.startswith("mvlm: compiling")
    assert run(FIRST, tmp_path).stderr == ""
