"""Choosing the functions that compute."""

import json
import subprocess
import sys

import pytest

from mvlm_np import backend, ops
from mvlm_np.errors import UserError
from tests.conftest import DATA, ROOT


def test_numpy_is_the_definition_itself() -> None:
    chosen = backend.choose("numpy")
    assert chosen.layer_norm is ops.layer_norm
    assert chosen.attention is ops.attention


def test_numba_replaces_what_has_a_kernel_and_keeps_the_rest() -> None:
    pytest.importorskip("numba")
    from mvlm_np import kernels

    fast, reference = backend.choose("numba"), backend.choose("numpy")
    replaced = {name for name in vars(reference) if getattr(fast, name) is not getattr(reference, name)}
    assert vars(fast).keys() == vars(reference).keys()
    assert replaced == kernels.operations().keys()


def test_auto_is_numba_where_it_is_there() -> None:
    pytest.importorskip("numba")
    assert backend.choose("auto").attention is backend.choose("numba").attention


@pytest.mark.parametrize("name", ["", "cuda", "Numba", None])
def test_another_name_is_an_error_that_lists_the_backends(name: object) -> None:
    with pytest.raises(UserError, match=r"^backend: found .*, wanted auto or numba or numpy$"):
        backend.choose(name)  # type: ignore[arg-type]


def without_numba(code: str, set_up: str = "sys.modules['numba'] = None") -> str:
    """The standard output of `code` where numba cannot be imported."""
    code = f"import sys; {set_up}\n{code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_numba_auto_answers_with_numpy() -> None:
    folder = DATA / "golden" / "ldpv2"
    case = json.loads((folder / "cases.json").read_text())[0]
    code = f"""
import mvlm_np
model = mvlm_np.load({str(folder)!r})
assert model.ops.attention is mvlm_np.ops.attention
print(model.ask({str(folder / case["image"])!r}, {case["question"]!r}, max_new_tokens=24))
"""
    assert without_numba(code) == case["text"]


REPORT = """
from mvlm_np import backend, errors
try:
    backend.choose("numba")
except errors.UserError as error:
    print(error)
"""


def test_without_numba_asking_for_it_is_an_error_of_one_line() -> None:
    said = without_numba(REPORT)
    assert said.startswith("backend: numba cannot be imported (")
    assert said.endswith("; install numba, or take numpy")
    assert "\n" not in said


def test_numba_that_may_not_compile_counts_as_absent() -> None:
    """Run as plain Python the kernels would take minutes for an answer."""
    said = without_numba(REPORT, set_up="import os; os.environ['NUMBA_DISABLE_JIT'] = '1'")
    assert "(NUMBA_DISABLE_JIT is set)" in said
