"""`mvlm export`: the folder that it writes, and what it refuses."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from mvlm_np import demo
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.cli import main
from mvlm_np.export import exporting, onnx_file
from mvlm_np.inputs.conversation import render
from mvlm_np.inputs.image import open_image, preprocess
from mvlm_np.inputs.tokenizer import tokenize_prompt
from mvlm_np.loading import bound_tensors, load
from tests.golden_sets import SETS
from tools.parts.random_checkpoint import make_checkpoint

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

OWN = SETS["own/ldpv2"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*args: object) -> tuple[int, str, str]:
        code = main(["export", *(str(arg) for arg in args)])
        return code, *capsys.readouterr()

    return run


def code_of(readme: Path) -> str:
    """The Python of the page."""
    blocks = re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", readme.read_text("utf-8"), re.MULTILINE)
    return "".join(block for block in blocks if "mvlm " not in block).replace("\n    ", "\n")


def test_the_page_beside_the_graphs_runs_them_to_the_same_answer(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trained model in the box, which is packed, with a picture."""
    code, out, err = run(demo.MODEL, tmp_path / "out", "--rows", 1, 16, "--capacity", 300)
    files = "README.md decoder-1.onnx decoder-16.onnx decoder.data embed_tokens.npy vision.onnx".split()
    assert (code, err) == (0, "")
    assert {f"wrote {tmp_path / 'out' / name}" for name in files} <= set(out.splitlines())

    model = load(demo.MODEL, "float32", "numpy")
    picture, question = demo.PICTURES / "0.png", "Describe the yellow lamp."
    pixels = preprocess(open_image(picture, exif=True, adapt=True), model.config.image)
    monkeypatch.chdir(tmp_path / "out")
    said: dict[str, Any] = {"picture": pixels[None]}
    exec(compile(code_of(Path("README.md")), "README.md", "exec"), said)
    np.testing.assert_allclose(said["tokens"][0], model.encode_image(picture), atol=1e-4)
    x, _ = model.embed(tokenize_prompt(render("v1", question, 1), model.tokenizer), [said["tokens"][0]])
    np.testing.assert_array_equal(said["table"], model.decoder.embed_tokens(np.arange(len(said["table"]))))
    end = model.config.decoder.end_tokens[0]
    text = model.tokenizer.decode(said["answer"](x, end, 40)).strip()
    assert text == model.ask(picture, question) != ""


def test_weights_in_a_file_of_their_own_are_the_same(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(OWN, tmp_path / "inside", "--rows", 4)
    monkeypatch.setattr(exporting, "LARGEST", 100)
    run(OWN, tmp_path / "outside", "--rows", 4)
    assert not (tmp_path / "inside" / "decoder.data").exists()
    tensors = bound_tensors(open_checkpoint(OWN))
    for name in ("vision", "decoder-4"):
        inside, outside = (onnx.load(tmp_path / place / f"{name}.onnx") for place in ("inside", "outside"))
        assert inside.graph.node == outside.graph.node
        for one, other in zip(inside.graph.initializer, outside.graph.initializer, strict=True):
            assert one.name == other.name
            array = onnx.numpy_helper.to_array(one)
            np.testing.assert_array_equal(array, onnx.numpy_helper.to_array(other))
            if tensor := tensors.get(one.name.removesuffix(".T")):
                stored = array.T if one.name.endswith(".T") else array
                np.testing.assert_array_equal(stored.ravel(), tensor.float32().ravel())
    outside = onnx.load(tmp_path / "outside" / "vision.onnx", load_external_data=False)
    about = [{e.key: e.value for e in weight.external_data} for weight in outside.graph.initializer]
    begins = [int(said["offset"]) for said in about if said]
    assert len(begins) > 10 and all(begin % onnx_file.PAGE == 0 for begin in begins)


def test_float16_weights_are_the_nearest(run: Run, tmp_path: Path) -> None:
    run(OWN, tmp_path / "out", "--dtype", "float16", "--part", "vision")
    assert not (tmp_path / "out" / "embed_tokens.npy").exists()
    tensors = bound_tensors(open_checkpoint(OWN))
    for weight in onnx.load(tmp_path / "out" / "vision.onnx").graph.initializer:
        if weight.name in tensors:
            wanted = tensors[weight.name].float32().astype(np.float16).reshape(weight.dims)
            np.testing.assert_array_equal(onnx.numpy_helper.to_array(weight), wanted)


def test_a_tied_lm_head_is_the_table_of_embeddings(tmp_path: Path, run: Run) -> None:
    make_checkpoint("tiny", tmp_path / "tied")
    path = tmp_path / "tied" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    assert run(tmp_path / "tied", tmp_path / "out", "--part", "decoder", "--rows", 1)[0] == 0
    names = {weight.name for weight in onnx.load(tmp_path / "out" / "decoder-1.onnx").graph.initializer}
    assert "model.embed_tokens.weight.T" in names and not any("lm_head" in name for name in names)


WRONG = {
    "--opset 21": "opset: found 21, wanted 13 to 20",
    "--opset 12": "opset: found 12, wanted 13 to 20",
    "--gelu op": "gelu: found op, with opset 17, wanted opset 20; or take erf",
    "--opset 16 --layer-norm op": (
        "layer_norm: found op, with opset 16, wanted opset 17 or more; or take steps"
    ),
    "--rows 0": "rows: found 0, wanted 1 to 1024, the capacity",
    "--rows 9 --capacity 8": "rows: found 9, wanted 1 to 8, the capacity",
    "--capacity 99999": "capacity: found 99999, wanted 1 to 2048, the model's positions",
}


@pytest.mark.parametrize("options", WRONG)
def test_what_cannot_be_written_is_one_line_and_leaves_nothing(
    run: Run, tmp_path: Path, options: str
) -> None:
    code, out, err = run(OWN, tmp_path / "out", *options.split())
    assert (code, out, err) == (2, "", f"mvlm: {WRONG[options]}\n")
    assert not any(tmp_path.iterdir())


def test_a_weight_beyond_float16_is_named_and_nothing_is_left(run: Run, tmp_path: Path) -> None:
    shutil.copytree(SETS["own/mlp"], tmp_path / "model")
    path, name = tmp_path / "model" / "model.safetensors", "model.layers.1.mlp.down_proj.weight"
    tensors = load_file(path)
    tensors[name][1, 1] = 70000
    save_file(tensors, path)
    code, _, err = run(tmp_path / "model", tmp_path / "out", "--dtype", "float16")
    assert code == 2
    assert f"{name}: holds what float16 cannot hold, wanted finite values up to 65504; take float32" in err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert run(tmp_path / "model", tmp_path / "out")[0] == 0


def test_nothing_that_is_there_is_written_over(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    code, _, err = run(OWN, tmp_path / "out")
    assert code == 2 and "exists already" in err
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written_is_named(run: Run, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    code, _, err = run(OWN, tmp_path / "out")
    assert code == 2 and "cannot be written" in err


def test_without_onnx_it_says_how_to_get_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, _, err = run(OWN, tmp_path / "out")
    assert code == 2 and err.endswith("wanted the package onnx; pip install 'mvlm-np[onnx]'\n")
    assert not any(tmp_path.iterdir())


def test_a_model_of_text_alone_has_a_decoder_only(run: Run, tmp_path: Path) -> None:
    make_checkpoint("tiny", tmp_path / "text")
    path = tmp_path / "text" / "config.json"
    config = {k: v for k, v in json.loads(path.read_text()).items() if not k.startswith("mm_")}
    path.write_text(json.dumps(config | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    weights = tmp_path / "text" / "model.safetensors"
    kept = {name: a for name, a in load_file(weights).items() if "vision" not in name and "mm_" not in name}
    save_file(kept, weights)
    assert "export the decoder alone" in run(tmp_path / "text", tmp_path / "out")[2]
    assert run(tmp_path / "text", tmp_path / "out", "--part", "decoder")[0] == 0
    assert {path.name for path in (tmp_path / "out").glob("*.onnx")} == {"decoder-1.onnx", "decoder-64.onnx"}


def test_the_tanh_form_is_said_to_be_a_mistake(run: Run, tmp_path: Path) -> None:
    code, _, err = run(OWN, tmp_path / "out", "--part", "vision", "--gelu", "tanh")
    assert code == 0 and "known porting mistake" in err
    assert "--gelu tanh" in (tmp_path / "out" / "README.md").read_text()
