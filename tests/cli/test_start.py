"""`mvlm bench --start`, and what a start must not import."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mvlm_np import demo
from mvlm_np.cli import main
from tests.conftest import ROOT


def bench(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main(["bench", "--start", "--rounds", "1", "--backend", "numpy", *map(str, args)])
    return code, *capsys.readouterr()


def test_the_steps_add_up_to_what_comes_before_the_first_layer(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = bench(capsys, "--model", demo.MODEL, "--json")
    figures = json.loads(out)
    assert code == 0 and figures["starts"] == 1
    steps = figures["steps"]
    assert sum(steps.values()) == pytest.approx(figures["seconds"])
    assert next(iter(steps)) == "interpreter"
    wanted = {
        "import numpy",
        "import sentencepiece",
        "import PIL",
        "tokenizer",
        "mapping of weights",
        "picture",
    }
    assert wanted < steps.keys() and all(seconds >= 0 for seconds in steps.values())
    assert not {"import tqdm", "import numba", "import threadpoolctl"} & steps.keys()
    assert figures["cpu_seconds"] > 0 and figures["first_layer_seconds"] > 0


def test_the_table_ends_with_the_sum_and_the_first_layer(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = bench(capsys, "--model", demo.MODEL, "--image", demo.PICTURES / "1.png")
    *steps, total, first = out.splitlines()
    assert steps[0].startswith("interpreter") and all(" ms" in line for line in steps)
    assert total.startswith("before the first layer") and "CPU time" in total
    assert first.startswith("first layer")


def test_a_start_that_fails_says_why(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = bench(capsys, "--model", demo.MODEL, "--image", tmp_path / "none.png")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and "there is no such file" in err


@pytest.mark.parametrize("rounds", ["0", "-1"])
def test_a_number_of_rounds_is_wanted(capsys: pytest.CaptureFixture[str], rounds: str) -> None:
    assert main(["bench", "--start", "--model", str(demo.MODEL), "--rounds", rounds]) == 2
    assert capsys.readouterr().err == f"mvlm: --rounds: found {rounds}, wanted at least 1\n"


ASK = """
import sys
from mvlm_np import demo
from mvlm_np.cli import main, progress
progress.DELAY = 1e9  # no bar, however slow the machine is
assert main(["ask", str(demo.PICTURES / "0.png"), "What is this?", "--backend", "numpy"]) == 0
print(*sys.modules, file=sys.stderr)
"""


def test_an_answer_imports_nothing_that_it_does_not_use() -> None:
    """Each of these takes 5 to 90 ms, and no greedy answer about an upright picture needs one."""
    done = subprocess.run([sys.executable, "-c", ASK], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = done.stderr.splitlines()[-1].split()
    unused = {
        "tqdm", "numpy.random", "threadpoolctl", "safetensors", "numba", "llvmlite", "gguf", "PIL.ImageOps",
        "mvlm_np.checkpoints.pickles", "mvlm_np.checkpoints.gguf_model", "mvlm_np.checkpoints.gguf_blocks",
        "mvlm_np.checkpoints.tokenizer_json", "mvlm_np.inputs.byte_pairs",
    }  # fmt: skip
    assert unused & set(imported) == set()
