"""Mistakes made in torch are found from the outputs alone, and named."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.cli import main
from mvlm_np.golden.compare.candidates import Candidate, read_candidate
from mvlm_np.golden.explain import approximations
from mvlm_np.golden.explain.explanation import explain, find_picture, in_class
from mvlm_np.golden.explain.mistake import known_mistakes
from mvlm_np.golden.explain.report import as_json, as_text
from mvlm_np.golden.explain.scene import make_scene
from mvlm_np.golden.explain.search import Search
from mvlm_np.golden.explain.spare_weights import spare_weights
from mvlm_np.golden.explain.steps import STEPS, step_of
from mvlm_np.golden.format import read_golden
from mvlm_np.golden.precision import held_in, to_bf16, to_float16, to_tf32
from mvlm_np.golden.record.recording import Question, record
from mvlm_np.golden.stages import order
from mvlm_np.loading import load
from mvlm_np.ops import gelu
from tests.conftest import DATA, ROOT, shared_path
from tools.check_explain import Case, judge, named
from tools.parts import mutants
from tools.parts.random_checkpoint import make_checkpoint

MISTAKES = known_mistakes()

pytestmark = pytest.mark.xdist_group("explain")


@cache
def case(name: str) -> Case:
    return Case(DATA / "golden" / name)


# ---------------------------------------------------------------- the list


def test_the_list_of_mistakes_is_fit_to_be_read() -> None:
    assert len(MISTAKES) >= 30
    for id, mistake in MISTAKES.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", id)
        assert mistake.what and mistake.mend and mistake.shown
        assert step_of(mistake.stage) in STEPS


def test_every_mistake_is_built_into_torch_code_that_knows_nothing_of_this_package() -> None:
    assert mutants.FAULTS.keys() == MISTAKES.keys()
    tree = ast.parse(Path(mutants.__file__).read_text("utf-8"))
    modules = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    modules += [str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert not [name for name in modules if name.split(".")[0] in ("mvlm_np", "tools", "tests")]


def test_every_mistake_of_the_list_has_variants_on_some_model() -> None:
    tried = {c.mistake.id for name in ("ldpv2", "ldp", "mlp") for c in search_of(name).causes}
    assert MISTAKES.keys() == tried


def search_of(name: str) -> Search:
    c = case(name)
    return Search(make_scene(c.model, c.golden, {}, c.image, c.spare), {})


# ---------------------------------------------------------------- torch


@pytest.mark.parametrize("name", ["ldpv2", "ldp", "mlp"])
def test_torch_without_faults_is_right(name: str) -> None:
    e = case(name).explain(case(name).faultless)
    assert e.right
    assert not e.findings
    invisible = {m.id for m in e.invisible}
    assert "exif-turned" in invisible
    assert not {"hardswish-as-silu", "resize-before-pad"} & invisible  # they show, or cannot be made


# On which model a mistake shows, where it is not ldpv2.
MODELS = {
    "ldp": "hardswish-as-silu hardsigmoid-as-sigmoid squeeze-width squeeze-excitation residual-on-stride-2 "
    "no-residual-on-stride-1 wrong-tower",
    "mlp": "pad-not-wanted",
}
PLACE = {id: name for name, ids in MODELS.items() for id in ids.split()}


@pytest.mark.parametrize("id", [id for id in mutants.FAULTS if id != "exif-turned"])
def test_a_mistake_is_named(id: str) -> None:
    """Each in one strength; tools/check_explain.py takes them all."""
    v = judge(case(PLACE.get(id, "ldpv2")), [id], mutants.FAULTS[id][0])
    assert v.moved is not None
    assert v.first == v.moved
    assert v.named == {id}


@pytest.mark.parametrize(
    "faults",
    [
        {"tanh-gelu": {"projector_act": "tanh"}, "layer-norm-eps": {"vision_eps": 1e-3}},
        {"class-token-last": {"class_token": "last"}, "no-causal-mask": {"causal": False}},
        {"bgr": {"bgr": "start"}, "pad-colour": {"colour": (0, 0, 0)}},
        {"exact-gelu": {"vision_act": "gelu"}, "attention-scale": {"vision_scale": 0.9}},
        {"rope-base": {"theta": 7777.0}, "rms-eps": {"rms_eps": 1e-3}},
        {"bos-missing": {"bos": 0}, "no-dummy-prefix": {"prefix": False}},
    ],
    ids=" + ".join,
)
def test_two_mistakes_are_named(faults: dict[str, dict[str, object]]) -> None:
    both = {key: value for fault in faults.values() for key, value in fault.items()}
    v = judge(case("ldpv2"), list(faults), both)
    assert v.named == set(faults)
    assert v.first == v.moved


def test_one_late_stage_is_enough() -> None:
    c = case("ldpv2")
    stages = c.run({"class_token": "last", "select": -1, "projector_act": "tanh"})
    e = c.explain({"projector.output": stages["projector.output"]})
    assert named(e) == {"class-token-last", "one-layer-short", "tanh-gelu"}
    assert e.findings[0].exact
    assert e.findings[0].cosine > 0.999999


def test_a_mistake_in_one_layer_only_is_found_there() -> None:
    e = case("ldpv2").explain(case("ldpv2").run({"vision_act": "gelu", "only_block": 1}))
    assert [f.stage for f in e.findings] == ["vision.hidden_states.2"]
    assert named(e) == {"exact-gelu"}


# ---------------------------------------------------------------- what is not on the list


def test_a_fault_of_its_own_is_placed_and_not_named() -> None:
    c = case("ldpv2")
    stages = c.run({})
    swapped = stages["vision.hidden_states.2"].copy()
    swapped[..., [3, 7]] = swapped[..., [7, 3]]
    e = c.explain(stages | {"vision.hidden_states.2": swapped})
    assert not e.right
    assert e.findings[0].stage == "vision.hidden_states.2"
    assert not any(f.exact for f in e.findings)
    assert "vision.hidden_states.2 is wrong" in as_text(e) or "not wholly" in as_text(e)


def test_numbers_that_are_not_numbers_and_other_shapes_are_no_reason_to_fail() -> None:
    c = case("ldpv2")
    stages = c.run({})
    features = stages["vision.features"].copy()
    features[0, 0, 0] = np.nan
    for broken in (features, stages["vision.features"][:, :-3], stages["vision.features"][..., 0]):
        e = c.explain(stages | {"vision.features": broken})
        assert not e.right
        json.dumps(as_json(e), allow_nan=False)
        as_text(e)


def test_a_float16_port_is_judged_as_one() -> None:
    c = case("ldpv2")
    half = {n: a.astype(np.float16) if a.dtype == np.float32 else a for n, a in c.run({}).items()}
    arguments = {"path_or_name": c.folder, "backend": "numpy"}
    for stages, found in ((half, set()), (c.run({"peg": "no residual"}), {"peg-no-residual"})):
        candidate = Candidate({n: a for n, a in stages.items() if n in c.golden.names})
        e = explain(c.model, c.golden, candidate, "float16", c.image, c.spare,
                    in_class("float16", c.model, arguments))  # fmt: skip
        assert named(e) == found


HALVES = {"bfloat16": "bf16", "float16": "float16"}


@pytest.mark.parametrize("name", ["ldpv2", "ldp", "mlp"])
@pytest.mark.parametrize("type", HALVES)
def test_a_sound_port_in_16_bits_is_rounded(name: str, type: str) -> None:
    """Right in its class; in float32 the type is named, and nothing else, from any of the stages."""
    c = case(name)
    stages = c.run({"type": type})
    e = c.explain(stages)
    assert not e.right
    assert [cause.variant.detail for f in e.findings for cause in f.causes] == [f"everything in {type}"]
    assert ("no farther off than rounding puts it" in as_text(e)) or e.findings[0].stage == "pixel_values"
    late = {n: a for n, a in stages.items() if n.startswith(("decoder", "logits"))}
    assert named(c.explain(late)) == {"half-precision"}
    sound = Candidate({n: a for n, a in stages.items() if n in c.golden.names})
    load = {"path_or_name": c.folder, "backend": "numpy"}
    kind = HALVES[type]
    e = explain(c.model, c.golden, sound, kind, c.image, c.spare, in_class(kind, c.model, load))
    assert e.right and not e.findings


@pytest.mark.parametrize("type", HALVES)
def test_a_port_that_multiplies_in_16_bits_is_rounded_and_nothing_else(type: str) -> None:
    """torch's autocast: products in 16 bits, sums and norms in float32."""
    c = case("ldpv2")
    with torch.autocast("cpu", dtype=getattr(torch, type)):
        stages = c.run({})
    given = {n: stages[n].astype(np.float32) for n in ("pixel_values", "vision.hidden_states.0")}
    assert named(c.explain(given)) == {"half-precision"}


@pytest.mark.parametrize("type", HALVES)
@pytest.mark.parametrize(
    "faults",
    [
        {"class-token-last": {"class_token": "last"}},
        {"peg-no-residual": {"peg": "no residual"}, "no-causal-mask": {"causal": False}},
    ],
    ids=" + ".join,
)
def test_a_mistake_is_found_behind_the_rounding(type: str, faults: dict[str, dict[str, object]]) -> None:
    both = {key: value for fault in faults.values() for key, value in fault.items()}
    e = case("ldpv2").explain(case("ldpv2").run({**both, "type": type}))
    assert named(e) == {"half-precision", *faults}


def test_a_class_s_yardstick_that_a_mistake_cannot_be_made_in_is_no_reason_to_fail() -> None:
    c = case("ldpv2")
    stages = c.run({"transposed": ("q",), "swap": "kv"}, torch.float16)
    candidate = Candidate({n: a for n, a in stages.items() if n in c.golden.names})
    load = {"path_or_name": c.folder, "backend": "numpy"}
    found = {}
    for kind in ("float16", "int8"):
        e = explain(c.model, c.golden, candidate, kind, c.image, c.spare, in_class(kind, c.model, load))
        assert not e.right
        found[kind] = named(e)
    assert {"transposed-matrix", "qkv-swapped"} <= found["float16"]


def test_other_weights_are_told_soon(tmp_path: Path) -> None:
    """Not after each stage has been searched in pairs and more: that took minutes."""
    c, tries = case("ldpv2"), 0
    make_checkpoint("golden-ldpv2", tmp_path / "other", seed=7)
    stages = record(load(tmp_path / "other", "float32", "numpy"), Question(c.about["question"], c.image))

    def count() -> None:
        nonlocal tries
        tries += 1

    e = explain(c.model, c.golden, Candidate(stages), "float32", c.image, c.spare, progress=count)
    told = as_text(e)
    assert "these are other weights" in told
    assert "The search ended with vision.hidden_states.2" in told
    assert tries < 12_000


def test_the_picture_s_size_is_found_from_its_tokens_alone() -> None:
    """LDPv2 gives 144 tokens of whatever grid: no shape tells."""
    c = case("ldpv2")
    stages = c.run({"table": ("bicubic", 2 / 3), "another_size": True})
    e = c.explain({"projector.output": stages["projector.output"]})
    assert named(e) == {"position-table-resized"}
    assert e.findings[0].exact


@pytest.mark.parametrize(
    "erf, most",
    list(zip(approximations.ERF.values(), (2.5e-5, 1.5e-7, 5e-4, 3e-7, 0.1), strict=True)),
)
def test_erf_is_as_near_as_its_source_says(erf: approximations.Function, most: float) -> None:
    x = np.linspace(0, 5, 999)
    error = np.abs(erf(x) - torch.erf(torch.tensor(x)).numpy()).max()
    assert most / 4 < error < most


def test_numbers_that_16_bits_hold_are_known() -> None:
    x = np.random.default_rng(0).standard_normal(999).astype(np.float32)
    assert held_in(x) is None
    assert held_in(to_float16(x)) == "float16"
    assert held_in(to_bf16(x)) == "bf16"
    assert held_in(to_float16(to_bf16(x))) == "bf16"
    assert held_in(np.ones(999, np.float32)) is None
    tf32 = to_tf32(x)
    assert np.abs(tf32 / x - 1).max() <= 2**-11
    np.testing.assert_array_equal(to_float16(tf32), to_float16(x))


def test_gelu_of_the_mutants_is_this_one() -> None:
    x = np.linspace(-6, 6, 99, dtype=np.float32)
    np.testing.assert_allclose(mutants.activation(torch.tensor(x), "gelu").numpy(), gelu(x), atol=1e-6)


# ---------------------------------------------------------------- the command


def test_the_command_names_the_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    c = case("ldpv2")
    arguments = ["golden", "explain", str(c.folder), str(c.golden.path), str(tmp_path / "c.safetensors")]
    save_file(c.run({"peg": "no residual"}), tmp_path / "c.safetensors")
    assert main(arguments) == 1
    told = capsys.readouterr().out
    assert "WRONG from projector.peg on" in told
    assert "reproduced by peg-no-residual" in told
    assert MISTAKES["peg-no-residual"].mend in told
    assert main([*arguments, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["mistakes"] == ["peg-no-residual"]
    assert found["first_wrong"] == "projector.peg"
    save_file(c.faultless, tmp_path / "c.safetensors")
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert told.startswith("RIGHT")
    assert "Not distinguishable by this golden" in told


def test_the_picture_is_looked_for_beside_the_golden(tmp_path: Path) -> None:
    c = case("ldpv2")
    assert find_picture(c.golden) == c.image.resolve() or find_picture(c.golden) is not None
    (tmp_path / "golden-0.safetensors").write_bytes((c.folder / "golden-0.safetensors").read_bytes())
    alone = read_golden(tmp_path / "golden-0.safetensors")
    assert find_picture(alone) is None
    e = explain(c.model, alone, Candidate(c.run({"bgr": "start"})))
    assert not e.right
    assert not named(e)
    assert any("--image" in note for note in e.notes)


def test_the_list_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["golden", "explain", "--list"])
    assert not end.value.code
    told = capsys.readouterr().out
    assert all(id in told for id in MISTAKES)


@pytest.mark.parametrize("missing", ["model", "golden", "candidate", "image"])
def test_bad_input_is_one_line(missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    c = case("ldpv2")
    places = {"model": c.folder, "golden": c.golden.path, "candidate": c.golden.path, "image": c.image}
    places[missing] = tmp_path / "absent"
    model, golden, candidate, image = map(str, places.values())
    assert main(["golden", "explain", model, golden, candidate, "--image", image]) == 2
    told = capsys.readouterr()
    assert not told.out
    assert told.err.count("\n") == 1
    assert str(tmp_path / "absent") in told.err


# ---------------------------------------------------------------- a real port


def test_what_is_wrong_in_llama_cpp() -> None:
    """Its image embeddings of October 2026, from float16 weights and tables."""
    folder = shared_path("goldens/v2-256")
    golden = read_golden(folder / "golden-0.safetensors")
    candidate = read_candidate(folder / "llamacpp-embeddings.bin", golden.names)
    model = load(folder, "float32", backend="numpy")
    e = explain(
        model, golden, candidate, image=find_picture(golden), spare=spare_weights(open_checkpoint(folder))
    )
    assert not e.right
    assert {"class-token-last", "one-layer-short", "resize-before-pad"} <= named(e)
    assert e.findings[0].cosine > 0.9999


def test_the_guide_names_what_there_is() -> None:
    guide = (ROOT / "docs" / "is-my-port-right.md").read_text("utf-8")
    for id in re.findall(r"^\s+([a-z0-9-]+): ", guide, re.MULTILINE):
        assert id in MISTAKES
    stages = case("ldpv2").golden.names
    assert sorted(stages, key=order) == stages
