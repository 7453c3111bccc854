"""Verdicts on real runtimes, which nobody here wrote: what ONNX Runtime computes, exported and quantised."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.golden.format import read_golden
from tests.conftest import DATA
from tests.golden.recorded import against, recorded

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the sums of 8-bit products are x86-64's")
@pytest.mark.parametrize("name", ["ldpv2", "ldp", "mlp"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
def test_a_graph_that_onnx_runtime_has_quantised_is_right(
    name: str, per_channel: bool, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime.quantization")
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    from mvlm_np.export.exporting import Export, export
    from mvlm_np.export.tracing import Form
    from tools.ports.feeding import vision_stages
    from tools.ports.onnx_runtime import OnnxRuntime

    folder = DATA / "golden" / name
    golden = read_golden(folder / "golden-0.safetensors")
    export(open_checkpoint(folder), tmp_path / "graphs", Export(Form(dump=True), parts=("vision",)))
    graph, quantised = tmp_path / "graphs" / "vision.onnx", tmp_path / "quantised.onnx"
    (picture,) = OnnxRuntime(graph).inputs

    class Calibration(CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[dict[str, Any]] = iter([{picture: golden.stages["pixel_values"][None]}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    # Weights of 7 bits: without VNNI, sums of products of 8 bits are cut off, says ONNX Runtime.
    types = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8, "reduce_range": True}
    quantize_static(str(graph), str(quantised), Calibration(), per_channel=per_channel, **types)
    stages = vision_stages(OnnxRuntime(quantised), golden)
    r = recorded(f"own/{name}")
    assert (result := against(r.golden, stages, "int8-static")).right, result.first_wrong
    assert any("256 even steps" in note for note in against(r.golden, stages).notes)
    assert not against(r.golden, stages, "float16").right
    first = against(r.golden, stages).first_wrong
    assert first is not None and first.name == "vision.hidden_states.0"


@pytest.mark.parametrize("name", ["ldpv2", "ldp", "mlp"])
def test_a_graph_that_openvinos_quantiser_has_quantised_is_right(name: str, tmp_path: Path) -> None:
    openvino, nncf = pytest.importorskip("openvino"), pytest.importorskip("nncf")
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    from mvlm_np.export.exporting import Export, export
    from mvlm_np.export.tracing import Form
    from tools.ports.feeding import vision_stages
    from tools.ports.openvino_port import OpenVINO

    r = recorded(f"own/{name}")
    export(open_checkpoint(r.folder), tmp_path / "graphs", Export(Form(dump=True), parts=("vision",)))
    graph = openvino.Core().read_model(tmp_path / "graphs" / "vision.onnx")
    picture = nncf.Dataset([{"pixel_values": r.golden.stages["pixel_values"][None]}])
    # Without VNNI, sums of products of 8 bits are cut off; this option takes 7 bits where that may be.
    options = AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE)
    quantised = nncf.quantize(graph, picture, subset_size=1, advanced_parameters=options)
    openvino.save_model(quantised, tmp_path / "quantised.xml")
    stages = vision_stages(OpenVINO(tmp_path / "quantised.xml"), r.golden)
    assert (result := against(r.golden, stages, "int8-static")).right, result.first_wrong
    first = against(r.golden, stages, "float16").first_wrong
    assert first is not None and first.name == "vision.hidden_states.0"
