"""llama.cpp runs what we export. Needs its programs: in the folder LLAMA_CPP names, or on the PATH."""

import subprocess
from pathlib import Path

import pytest

import mvlm_np
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.converting import convert_to_gguf
from mvlm_np.precisions import GGUF
from tests.conftest import shared_path
from tests.llama_cpp import llama_cpp_builds
from tools.llama_cpp_vision import table
from tools.parts.llama_cpp.process import find


def llama_cpp(program: str, *arguments: object) -> str:
    """What one of llama.cpp's programs writes to its standard output; the test is skipped without it."""
    path = find(program)
    if path is None:
        pytest.skip(f"needs llama.cpp's {program}, on the PATH or in the folder that LLAMA_CPP names")
    done = subprocess.run(
        [path, *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    return done.stdout.decode(errors="replace")


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_llama_cpp_tells_the_same_story(tmp_path: Path, precision: str) -> None:
    """A trained model. (In 4 bits the two differ: llama.cpp rounds activations in its own way.)"""
    convert_to_gguf(open_checkpoint(shared_path("weights/stories260K_f16.gguf")), tmp_path / "out", precision)
    path = tmp_path / "out" / f"model-{GGUF[precision]}.gguf"
    prompt = "Once upon a time"
    told = llama_cpp("llama-simple", "-m", path, "-n", 60, prompt)
    model = mvlm_np.load(path, "float32", backend="numpy")
    ids = model.tokenizer.encode(prompt)
    ours = model.tokenizer.decode(ids + model.generate(ids, max_new_tokens=60))
    assert told.strip().removeprefix("<s>").strip() == ours.strip()


@pytest.mark.parametrize("precision", GGUF)
def test_llama_cpp_answers_about_a_picture(tmp_path: Path, precision: str) -> None:
    """It loads the pair as it is and writes something; what, is its own: its vision tower is not ours."""
    source = shared_path("goldens/v2-256")
    convert_to_gguf(open_checkpoint(source), tmp_path / "out", precision)
    model = tmp_path / "out" / f"model-{GGUF[precision]}.gguf"
    mmproj = tmp_path / "out" / "mmproj-model-f16.gguf"
    arguments = ("-m", model, "--mmproj", mmproj, "--image", source / "chelsea.png", "-p", "What is this?")
    for more in ((), ("--jinja",)):
        assert llama_cpp("llama-mtmd-cli", *arguments, "-n", 8, "--temp", 0, *more).strip()


@pytest.mark.parametrize("name", ["v2-256", "v1-ldp"])
def test_llama_cpp_sees_what_the_model_sees(name: str) -> None:
    """Edited, of a padded picture; as it is, of one whose patches are moved: as docs/llama-cpp.md says."""
    source, *builds = llama_cpp_builds()
    right = [row.picture for row in table(shared_path(f"goldens/{name}"), source, builds) if row.right]
    assert right == ["moved", "square"]
