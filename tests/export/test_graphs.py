"""The exported graphs in ONNX Runtime: every stage of every golden, in every way that they are written."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.export.exporting import Export, export
from mvlm_np.export.tracing import Form
from mvlm_np.golden.format import Golden, read_golden
from tests.golden.recorded import against
from tests.golden_sets import SETS, cases
from tools.ports.feeding import vision_stages

onnx = pytest.importorskip("onnx")
ports = pytest.importorskip("tools.ports.onnx_runtime", reason="needs onnxruntime")

pytestmark = pytest.mark.xdist_group("export")

FORMS = {
    "opset 13": Form(opset=13, layer_norm="steps", dump=True),
    "opset 17": Form(dump=True),
    "opset 20, Gelu": Form(opset=20, gelu="op", dump=True),
    "float16": Form(dtype="float16", dump=True),
    "float16, opset 13": Form(opset=13, dtype="float16", layer_norm="steps", dump=True),
}
INPUTS = {"pixel_values", "input_ids", "inputs_embeds", "generated_ids"}  # not computed by a graph


@pytest.fixture(params=SETS, scope="module")
def golden(request: pytest.FixtureRequest) -> Golden:
    return read_golden(cases(request.param)[0].folder / "golden-0.safetensors")


def written(golden: Golden, folder: Path, form: Form, rows: int = 7) -> Path:
    """The golden's model as graphs, with room for the golden's positions."""
    assert golden.path is not None
    steps = len(golden.stages["generated_ids"])
    export(
        open_checkpoint(golden.path.parent),
        folder,
        Export(form, rows=(rows,), capacity=len(golden.stages["inputs_embeds"]) + steps),
    )
    return folder


@pytest.fixture(params=FORMS, scope="module")
def graphs(request: pytest.FixtureRequest, golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(golden, tmp_path_factory.mktemp("graphs") / "graphs", FORMS[request.param])


def models(folder: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(folder.glob("*.onnx")):
        yield path.stem.partition("-")[0], onnx.load(path)


@pytest.mark.parametrize("optimise", [True, False], ids=["optimised", "as written"])
def test_every_stage_of_every_golden_is_right(golden: Golden, graphs: Path, optimise: bool) -> None:
    stages = ports.dump(graphs, golden, optimise)
    assert stages.keys() == {name for name in golden.names if "beam" not in name} - INPUTS
    result = against(golden, stages, str(stages["logits"].dtype))
    assert result.right, (result.first_wrong, result.notes)


def test_the_graphs_are_what_accelerators_take(graphs: Path) -> None:
    """Sound, of fixed shapes that are those that onnx infers, of 4 axes at most; no Gather in the tower."""
    for part, model in models(graphs):
        onnx.checker.check_model(model, full_check=True)
        ours = {value.name: shape(value) for value in (*model.graph.value_info, *model.graph.output)}
        del model.graph.value_info[:]
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        theirs = {value.name: shape(value) for value in (*inferred.graph.value_info, *inferred.graph.output)}
        assert theirs == ours
        weights = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
        inputs = {value.name: shape(value) for value in model.graph.input}
        assert all(len(dims) <= 4 for dims in (ours | weights | inputs).values())
        assert all(dims[0] == 1 for dims in (ours | inputs).values())
        used = {node.op_type for node in model.graph.node}
        assert not used & {"Einsum", "Loop", "If", "Shape", "Gemm"}
        assert ("Gather" in used) == (part == "decoder")


def shape(value: Any) -> tuple[int, ...]:
    """Its fixed shape; a free axis gives 0."""
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def test_without_dump_the_same_comes_out_and_nothing_else(golden: Golden, tmp_path: Path) -> None:
    every = ports.dump(written(golden, tmp_path / "dump", Form(dump=True)), golden)
    graphs = written(golden, tmp_path / "plain", Form())
    found = vision_stages(ports.OnnxRuntime(graphs / "vision.onnx"), golden)
    assert found.keys() == {"projector.output"}
    np.testing.assert_allclose(found["projector.output"], every["projector.output"], rtol=1e-4, atol=1e-5)
    outputs = ports.OnnxRuntime(graphs / "decoder-7.onnx").outputs
    assert {name.rstrip("0123456789") for name in outputs} == {"decoder.keys.", "decoder.values.", "logits"}
    one = ports.dump(written(golden, tmp_path / "one", Form(dump=True), rows=1), golden)
    np.testing.assert_allclose(one["logits"], every["logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pixels_of_8_bits_are_normalised_in_the_graph(golden: Golden, tmp_path: Path, dtype: str) -> None:
    graphs = written(golden, tmp_path / "graphs", Form(dtype=dtype, input="uint8", dump=True))
    assert golden.path is not None
    image = open_checkpoint(golden.path.parent).config.image
    mean, std = (np.array(values)[:, None, None] for values in (image.mean, image.std))
    levels = np.rint((golden.stages["pixel_values"] * std + mean) * 255).astype(np.uint8)
    session = ports.OnnxRuntime(graphs / "vision.onnx")
    found = session({"picture": levels.transpose(1, 2, 0)[None]})
    result = against(golden, {name: array[0] for name, array in found.items()}, dtype)
    assert result.right, (result.first_wrong, result.notes)
    off = np.abs(found["pixel_values"][0].astype(np.float64) - golden.stages["pixel_values"]) * 255 * std
    assert off.max() < (1e-4 if dtype == "float32" else 0.08)  # grey levels; 2 and a half are 2^1, of 11 bits


@pytest.mark.parametrize("name", ["own/ldpv2"])
def test_the_tanh_form_is_found_as_the_mistake_that_it_is(name: str, tmp_path: Path) -> None:
    golden = read_golden(SETS[name] / "golden-0.safetensors")
    stages = ports.dump(written(golden, tmp_path / "graphs", replace(FORMS["opset 17"], gelu="tanh")), golden)
    result = against(golden, stages)
    assert not result.right and result.first_wrong is not None
    assert result.first_wrong.name == "projector.mlp.mlp.1", result.first_wrong
