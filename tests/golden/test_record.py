"""What is recorded: the stages themselves, what they were made of, and how far rounding carries each."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mvlm_np import vision
from mvlm_np.checkpoints.opening import open_checkpoint
from mvlm_np.golden.measure import distance
from mvlm_np.golden.precision import in_float64, rounded, to_bf16, to_float16
from mvlm_np.golden.record.metadata import config_sha256, describe, weights_sha256
from mvlm_np.golden.record.recording import record
from mvlm_np.loading import bound_tensors
from mvlm_np.trace import Recorder
from tests.golden.recorded import OWN, recorded
from tests.golden_sets import cases
from tools.check_golden import in_torch
from tools.parts.random_checkpoint import make_checkpoint


@pytest.mark.parametrize("name", OWN)
def test_floors_are_there_for_every_stage_and_class(name: str) -> None:
    r = recorded(name)
    floats = {n for n, a in r.stages.items() if a.dtype.kind == "f"}
    assert r.golden.floors.keys() == {"float32", "float16", "bf16", "int8", "int4", "int8-static"}
    for kind, floors in r.golden.floors.items():
        assert floors.keys() == floats
        for stage, (rms, relative) in floors.items():
            exact = stage == "pixel_values" and kind in ("float32", "int8", "int4")
            exact |= stage == "vision.hidden_states.0" and kind in ("int8", "int4")  # no linear layer yet
            assert (rms == relative == 0) if exact else 0 < rms < 1, (kind, stage)
    logits = {kind: floors["logits"][0] for kind, floors in r.golden.floors.items()}
    assert logits["float32"] < 1e-5 < logits["float16"] < logits["bf16"] < logits["int4"]


@pytest.mark.parametrize("name", OWN)
def test_the_float64_run_is_float64_throughout(name: str) -> None:
    r = recorded(name)
    stages = record(in_float64(r.model), r.question, r.stages["generated_ids"])
    assert {n for n, a in stages.items() if a.dtype != np.float64} == {
        "pixel_values", "input_ids", "generated_ids",
    }  # fmt: skip
    assert {n for n, a in r.stages.items() if a.dtype == np.float64} == set()


@pytest.mark.parametrize("name", OWN)
def test_the_float64_run_is_torch_s(name: str) -> None:
    """Up to the float32 in which transformers' attention takes its softmax, and its results are kept."""
    r = recorded(name)
    assert r.question.image
    ours = record(in_float64(r.model), r.question, r.stages["generated_ids"])
    theirs = in_torch(r.folder, r.question.image, torch.float64, question=r.question.text)
    for stage in r.golden.names:
        if stage.startswith(("vision.", "projector.")):
            floor, _ = r.golden.floors["float32"][stage]
            assert distance(stage, ours[stage], theirs[stage]).rms <= 0.8 * floor, stage


def test_ids_to_follow_are_fed_in_place_of_the_model_s_own() -> None:
    r = recorded()
    ids = r.stages["generated_ids"][::-1]
    followed = record(r.model, r.question, ids)
    np.testing.assert_array_equal(followed["generated_ids"], r.stages["generated_ids"])
    assert followed["decode.logits"].shape == r.stages["decode.logits"].shape
    assert not np.array_equal(followed["decode.logits"], r.stages["decode.logits"])


def test_roundings_are_torch_s() -> None:
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32) * 100
    for ours, dtype in ((to_float16, torch.float16), (to_bf16, torch.bfloat16)):
        np.testing.assert_array_equal(ours(x), torch.from_numpy(x).to(dtype).float().numpy())
    assert np.isinf(to_float16(np.array([70000], np.float32))).all()


@pytest.mark.parametrize("to", [to_float16, to_bf16])
def test_a_rounded_model_rounds_the_sums_of_its_residual_streams(to) -> None:
    r = recorded()
    model = rounded(r.model, to)
    assert model.vision and model.config.vision
    states = vision.hidden_states(r.stages["pixel_values"], model.vision, model.config.vision, model.ops)
    watch = Recorder()
    model.session().prefill(to(r.stages["inputs_embeds"]), np.arange(len(r.stages["logits"])), 1, watch)
    blocks = [array for name, array in watch.arrays.items() if "hidden_states" in name]
    assert len(blocks) == model.config.decoder.num_hidden_layers + 1
    for state in (*states, *blocks):
        np.testing.assert_array_equal(state, to(state))


def test_metadata_say_what_was_run_on_what() -> None:
    r = recorded()
    case = cases("own/ldpv2")[0]
    about = describe(r.folder, r.model, r.question, r.stages, "float32")
    assert about["image_sha256"] == hashlib.sha256(case.image.read_bytes()).hexdigest()
    assert (about["model"], about["image"], about["text"]) == ("ldpv2", case.image.name, case.text)
    assert about["prompt"].endswith(f"USER: <image>\n{case.question} ASSISTANT:")
    assert about["recorder"].startswith("mvlm-np ")
    assert not any("/" in value for key, value in about.items() if key != "prompt")  # no path of a machine


def test_the_fingerprint_of_weights_is_the_same_in_another_file_format(tmp_path: Path) -> None:
    prints = []
    for form in ("safetensors", "bin"):
        make_checkpoint("tiny", tmp_path / form, form=form, seed=3)
        prints.append(weights_sha256(bound_tensors(open_checkpoint(tmp_path / form))))
    make_checkpoint("tiny", tmp_path / "other", seed=4)
    prints.append(weights_sha256(bound_tensors(open_checkpoint(tmp_path / "other"))))
    assert prints[0] == prints[1] != prints[2]


def test_the_fingerprint_of_settings_knows_them_by_value(tmp_path: Path) -> None:
    r = recorded()
    shutil.copytree(r.folder, tmp_path / "copy")
    same = open_checkpoint(tmp_path / "copy").config
    assert config_sha256(same) == config_sha256(r.model.config)
    assert config_sha256(same) != config_sha256(recorded("own/ldp").model.config)
