"""Ports on runtimes that nobody here wrote, by the scripts in tools/ports.

What is sound is called right. Of what is faulty the first wrong stage is named, and the mistake where it is
one of the list.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.export.exporting import Export, export
from mvlm_np.export.tracing import Form
from mvlm_np.golden.compare.verdict import MISPLACED
from mvlm_np.golden.format import Golden, read_golden
from tests.conftest import DATA
from tests.golden.recorded import against
from tests.golden_sets import cases
from tools.check_explain import Case, named
from tools.ports.feeding import vision_stages

OWN = ["ldpv2", "ldp", "mlp"]
GIVEN = {
    "pixel_values",
    "input_ids",
    "inputs_embeds",
    "generated_ids",
}  # to a port, so that it is not computed
Stages = dict[str, np.ndarray]

pytestmark = pytest.mark.xdist_group("ports")


@cache
def golden(name: str) -> Golden:
    return read_golden(DATA / "golden" / name / "golden-0.safetensors")


def computed(name: str) -> set[str]:
    return {stage for stage in golden(name).names if "beam" not in stage} - GIVEN


def assert_right(name: str, stages: Stages, kind: str = "float32") -> None:
    result = against(golden(name), stages, kind)
    assert result.right, (result.first_wrong, result.notes)


def first_wrong(name: str, stages: Stages, kind: str = "float32") -> str | None:
    result = against(golden(name), stages, kind)
    return result.first_wrong.name if result.first_wrong else None


# ---------------------------------------------------------------- JAX


@pytest.fixture(scope="module")
def jax_port() -> Any:
    return pytest.importorskip("tools.ports.jax_port", reason="needs jax")


@pytest.mark.parametrize("name", OWN)
def test_a_port_to_jax_is_right(jax_port: Any, name: str) -> None:
    stages = jax_port.dump(DATA / "golden" / name, golden(name))
    assert stages.keys() == computed(name)
    assert_right(name, stages)


def test_a_port_in_bfloat16_is_right_in_its_class_and_not_in_float32(jax_port: Any) -> None:
    stages = jax_port.dump(DATA / "golden" / "ldpv2", golden("ldpv2"), "bfloat16")
    assert_right("ldpv2", stages, "bf16")
    assert first_wrong("ldpv2", stages) == "vision.hidden_states.0"


FIRST_WRONG = {
    "gelu-default": "projector.mlp.mlp.1",
    "keras-epsilon": "vision.hidden_states.0",
    "nhwc": "projector.dwn.dwn",
    "grid-transposed": "projector.dwn.dwn",
    "kernel-transposed": "vision.hidden_states.1",
    "heads-inside": "vision.hidden_states.1",
    "qk-swapped": "vision.hidden_states.1",
    "resized-in-float": "pixel_values",
    "neighbours": "decoder.keys.0",
    "no-mask": "decoder.hidden_states.1",
    "fed-twice": "decode.hidden_states.1",
}
NAMED = {
    "gelu-default": "tanh-gelu",
    "keras-epsilon": "layer-norm-eps",
    "neighbours": "rope-interleaved",
    "no-mask": "no-causal-mask",
}


@pytest.mark.parametrize("fault", FIRST_WRONG)
def test_what_goes_wrong_in_jax_is_found_where_it_goes_wrong(jax_port: Any, fault: str) -> None:
    stages = jax_port.dump(DATA / "golden" / "ldpv2", golden("ldpv2"), fault, cases("own/ldpv2")[0].image)
    assert first_wrong("ldpv2", stages) == FIRST_WRONG[fault]


@pytest.mark.parametrize("kind", ["float16", "bf16", "int8", "int4"])
def test_no_class_excuses_another_way_to_resize(jax_port: Any, kind: str) -> None:
    picture = cases("own/ldpv2")[0].image
    stages = jax_port.dump(DATA / "golden" / "ldpv2", golden("ldpv2"), "resized-in-float", picture)
    assert first_wrong("ldpv2", stages, kind) == "pixel_values"


@pytest.mark.parametrize("fault", NAMED)
def test_known_mistakes_are_named(jax_port: Any, fault: str) -> None:
    case = Case(DATA / "golden" / "ldpv2")
    found = case.explain(jax_port.dump(DATA / "golden" / "ldpv2", case.golden, fault))
    assert named(found) == {NAMED[fault]}


def test_every_fault_of_the_script_is_tested(jax_port: Any) -> None:
    assert jax_port.FAULTS.keys() == FIRST_WRONG.keys() | {"bfloat16", "float16"}


# ---------------------------------------------------------------- runtimes of ONNX


@pytest.fixture(scope="module", params=OWN)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A small model, as graphs with all stages."""
    pytest.importorskip("onnx")
    name, folder = request.param, tmp_path_factory.mktemp("ports") / "graphs"
    positions = len(golden(name).stages["inputs_embeds"]) + len(golden(name).stages["generated_ids"])
    export(
        open_checkpoint(DATA / "golden" / name),
        folder,
        Export(Form(dump=True), rows=(9,), capacity=positions),
    )
    return name, folder


@pytest.mark.parametrize("precision", ["f32", "default"])
def test_openvino_is_right(exported: tuple[str, Path], precision: str) -> None:
    """In its default precision too, which is bf16 where the processor has it."""
    port = pytest.importorskip("tools.ports.openvino_port", reason="needs openvino")
    name, folder = exported
    stages = port.dump(folder, golden(name), precision)
    assert stages.keys() == computed(name)
    assert_right(name, stages, "float32" if precision == "f32" else "bf16")


@pytest.mark.parametrize("optimise", [True, False])
def test_faults_in_how_a_graph_is_fed_are_found_in_onnx_runtime(
    exported: tuple[str, Path], optimise: bool
) -> None:
    port = pytest.importorskip("tools.ports.onnx_runtime", reason="needs onnxruntime")
    name, folder = exported
    kept = golden(name).stages
    pixels = kept["pixel_values"]
    for wrong in (pixels[::-1], pixels.transpose(1, 2, 0).reshape(pixels.shape), pixels + 0.05):
        vision = port.OnnxRuntime(folder / "vision.onnx", optimise)
        stages = vision_stages(vision, Golden({**kept, "pixel_values": wrong}))
        assert first_wrong(name, stages) == "vision.hidden_states.0"
        assert first_wrong(name, {"pixel_values": wrong, **stages}, "int8") == "pixel_values"
    right = port.dump(folder, golden(name), optimise)
    assert_right(name, right)
    late = {**right, "decode.logits": np.roll(right["decode.logits"], 1, axis=0)}
    assert first_wrong(name, late) == "decode.logits"
    last = max(i for i in range(99) if f"vision.hidden_states.{i}" in right)
    states = [right[f"vision.hidden_states.{i}"] for i in range(last + 1)]
    shifted = {f"vision.hidden_states.{i}": states[max(i - 1, 0)] for i in range(last + 1)}
    found = {stage.name: stage.verdict for stage in against(golden(name), {**right, **shifted}).stages}
    assert {found[f"vision.hidden_states.{i}"] for i in range(1, last + 1)} == {MISPLACED}
