"""tools/llama_cpp_formats.py: what it counts and measures, and what it says where something is missing."""

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from mvlm_np.checkpoints.gguf_writer import write_gguf_pair
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.config import Config, DecoderConfig
from mvlm_np.converting import convert
from tests.checkpoints.gguf_models import VOCAB, as_weights, random_weights, tokenizer_model
from tools.llama_cpp_formats import QUANTIZE, contents, main
from tools.parts.llama_cpp.process import find

# Rows of 256, but 352 of down_proj, which 256 does not divide.
CONFIG = Config(DecoderConfig(256, 352, 2, 4, 2, VOCAB))
SHARE = 352 / (3 * 352 + 256 + 256 + 128 + 128)  # of down_proj among a layer's matrices


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("floats")
    weights = as_weights(random_weights(CONFIG))
    return write_gguf_pair(folder, weights, CONFIG, tokenizer_model(), "F32")[0]


def program(folder: Path, code: str) -> Path:
    """A folder with a llama-quantize of our own making."""
    path = folder / QUANTIZE
    path.write_text(f"#!{sys.executable}\nimport shutil, sys\n{code}\n")
    path.chmod(stat.S_IRWXU)
    return folder


def rows(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, dict[str, Any]]:
    assert main([*map(str, argv), "--tokens", "48", "--window", "24", "--backend", "numpy", "--json"]) == 0
    return {row["format"]: row for row in json.loads(capsys.readouterr().out)}


def test_every_matrix_is_counted_by_the_type_that_it_has(tmp_path: Path) -> None:
    (path,) = write_gguf_pair(tmp_path, as_weights(random_weights(CONFIG)), CONFIG, None, "Q4_K")
    stored, bits, lm_head, runs_as = contents(path)
    assert stored == pytest.approx({"q4_k": 1 - SHARE, "q8_0": SHARE}) and list(stored) == ["q4_k", "q8_0"]
    assert bits == pytest.approx(4.5 * (1 - SHARE) + 8.5 * SHARE)
    assert lm_head == "q8_0"
    assert runs_as == pytest.approx({"uint4": 1 - SHARE, "int8": SHARE})


def test_formats_are_compared_with_the_floats(
    floats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A quantiser that changes nothing costs nothing; ours cost more with fewer bits."""
    convert(open_checkpoint(floats), tmp_path / "kept", "int8", template=None)
    copying = program(tmp_path, "shutil.copyfile(sys.argv[1], sys.argv[2])")
    found = rows(capsys, floats, tmp_path / "kept", "--llama-cpp", copying, "--formats", "Q4_0")
    same, kept, int8 = found["Q4_0"], found["kept"], found["int8"]
    assert same["stored"] == same["runs_as"] == {"float32": 1}
    assert (same["alone"]["kl"], same["alone"]["same_best"], same["bits"]) == (0, 1, 32)
    assert 0 < int8["alone"]["kl"] < int8["engine"]["kl"] < found["int4"]["alone"]["kl"]
    assert found["int4"]["bits"] > 4.5 == found["int4-symmetric"]["bits"]
    assert kept["engine"]["kl"] == int8["engine"]["kl"]


def test_what_llama_cpp_makes_is_read(floats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if find(QUANTIZE) is None:
        pytest.skip(f"needs llama.cpp's {QUANTIZE}, on the PATH or in the folder that LLAMA_CPP names")
    found = rows(capsys, floats, "--theirs", "--formats", "Q8_0", "Q6_K", "Q4_0")
    assert list(found) == ["Q8_0", "Q6_K", "Q4_0"]
    assert found["Q8_0"]["stored"] == {"q8_0": 1}
    assert found["Q4_0"]["stored"] == {"q4_0": 1}
    assert found["Q6_K"]["stored"] == pytest.approx({"q6_k": 1 - SHARE, "q8_0": SHARE})
    kl = [found[name]["alone"]["kl"] for name in ("Q8_0", "Q6_K", "Q4_0")]
    assert 0 < kl[0] < kl[1] < kl[2]


@pytest.mark.parametrize(
    "code, said",
    [
        ("sys.exit('first\\nno such type')", ": Q4_0: failed with 1 (no such type)"),
        ("pass", ": Q4_0: failed with 0 (it says nothing)"),
    ],
)
def test_a_quantiser_that_fails_is_quoted(
    code: str, said: str, floats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [floats, "--llama-cpp", program(tmp_path, code), "--formats", "Q4_0", "--tokens", "8"]
    assert main(list(map(str, argv))) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"llama_cpp_formats: {tmp_path / QUANTIZE}{said}"


def test_without_a_quantiser_it_says_how_one_is_made(
    floats: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    assert main([str(floats)]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"llama_cpp_formats: {QUANTIZE}: is not there") and "cmake" in error
