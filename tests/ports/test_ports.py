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
    "nhwc": "token-grid-order",
    "grid-transposed": "token-grid-order",
    "kernel-transposed": "transposed-matrix",
    "heads-inside": "head-split",
    "qk-swapped": "qkv-swapped",
    "resized-in-float": "bilinear",
    "neighbours": "rope-interleaved",
    "no-mask": "no-causal-mask",
    "fed-twice": "last-id-twice",
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
    found = case.explain(jax_port.dump(DATA / "golden" / "ldpv2", case.golden, fault, case.image))
    assert named(found) == {NAMED[fault]}
    assert all(finding.exact for finding in found.findings)


@pytest.mark.parametrize("fault, name", [("bfloat16", "bfloat16"), ("float16", "float16")])
def test_half_precision_is_said_as_rounding_and_as_nothing_else(jax_port: Any, fault: str, name: str) -> None:
    """bfloat16, whose numbers float16 can hold as well, is not taken for that."""
    case = Case(DATA / "golden" / "ldpv2")
    found = case.explain(jax_port.dump(DATA / "golden" / "ldpv2", case.golden, fault))
    assert [c.variant.detail for f in found.findings for c in f.causes] == [f"everything in {name}"]
    assert named(found) == {"half-precision"}
    assert any(f"--class {'bf16' if name == 'bfloat16' else name}" in n for n in found.comparison.notes)


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


# What is wrong in a graph of ONNX: the first wrong stage, and the mistake.
FAULTY = {
    "norm-eps": ("vision.hidden_states.0", "layer-norm-eps"),
    "fused-silu": ("vision.hidden_states.1", "relu"),
    "hard-sigmoid": ("vision.hidden_states.1", "gelu-approximated"),
    "erf-by-tanh": ("projector.mlp.mlp.1", "tanh-gelu"),
    "class-token-last": ("vision.hidden_states.0", "class-token-last"),
    "last-row-dropped": ("vision.features", "class-token-kept"),
    "residual-lost": ("projector.peg", "peg-no-residual"),
    "sines-negated": ("decoder.keys.0", "rope-direction"),
    "gate-up-swapped": ("decoder.hidden_states.1", "gate-up-swapped"),
    "rms-eps": ("decoder.keys.0", "rms-eps"),
}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("faults") / "graphs"
    positions = len(golden("ldpv2").stages["inputs_embeds"]) + len(golden("ldpv2").stages["generated_ids"])
    form = Export(Form(dump=True), rows=(32,), capacity=positions)
    export(open_checkpoint(DATA / "golden" / "ldpv2"), folder, form)
    return folder


@pytest.mark.parametrize("runtime", ["onnx_runtime", "openvino_port"])
@pytest.mark.parametrize("fault", FAULTY)
def test_a_fault_in_a_graph_is_found_and_named(
    graphs: Path, tmp_path: Path, fault: str, runtime: str
) -> None:
    port = pytest.importorskip(f"tools.ports.{runtime}", reason=f"needs {runtime}")
    onnx_faults = pytest.importorskip("tools.ports.onnx_faults", reason="needs onnx")
    onnx_faults.make_faulty(graphs, tmp_path / "faulty", fault)
    case = Case(DATA / "golden" / "ldpv2")
    found = case.explain(port.dump(tmp_path / "faulty", case.golden))
    first, mistake = FAULTY[fault]
    assert found.comparison.first_wrong is not None
    assert (found.comparison.first_wrong.name, named(found)) == (first, {mistake})
    assert all(finding.exact for finding in found.findings)


@pytest.mark.parametrize("runtime", ["onnx_runtime", "openvino_port"])
def test_a_graph_in_float16_is_said_to_be_one(tmp_path: Path, runtime: str) -> None:
    pytest.importorskip("onnx")
    port = pytest.importorskip(f"tools.ports.{runtime}", reason=f"needs {runtime}")
    case = Case(DATA / "golden" / "ldpv2")
    form = Export(Form(dtype="float16", dump=True), parts=("vision",))
    export(open_checkpoint(DATA / "golden" / "ldpv2"), tmp_path / "graphs", form)
    run = port.OnnxRuntime if runtime == "onnx_runtime" else port.OpenVINO
    found = case.explain(vision_stages(run(tmp_path / "graphs" / "vision.onnx"), case.golden))
    assert named(found) == {"half-precision"}


def test_every_fault_of_graphs_is_tested() -> None:
    onnx_faults = pytest.importorskip("tools.ports.onnx_faults", reason="needs onnx")
    assert onnx_faults.FAULTS.keys() == FAULTY.keys()
