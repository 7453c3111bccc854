"""Faults that an answer does not show, from the stage where each begins."""

from math import pi, sqrt

import numpy as np
import pytest

from mvlm_np.golden.compare.verdict import FAILED, REORDERED
from mvlm_np.golden.precision import rounded, rounding_recorder, to_bf16, to_float16
from mvlm_np.golden.record.recording import record
from tests.golden.recorded import OWN, against, recorded, with_eps, with_matrix, with_ops


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    return (0.5 * x * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))).astype(np.float32)


FIRST_GELU = {
    "own/ldpv2": "projector.mlp.mlp.1",
    "own/ldp": "projector.model.mlp.2",
    "own/mlp": "projector.1",
}


@pytest.mark.parametrize("floors", [True, False], ids=["floors", "house bounds"])
@pytest.mark.parametrize("name", OWN)
def test_tanh_gelu_is_seen_where_it_is_computed(name: str, floors: bool) -> None:
    r = recorded(name)
    result = against(r.golden if floors else r.plain, record(with_ops(r.model, gelu=tanh_gelu), r.question))
    assert result.first_wrong and result.first_wrong.name == FIRST_GELU[name]


@pytest.mark.parametrize("name", OWN)
def test_another_eps_in_the_norm_is_seen_behind_the_first_norm(name: str) -> None:
    r = recorded(name)
    eps = 1e-5 if r.model.config.decoder.rms_norm_eps == 1e-6 else 1e-6
    result = against(r.golden, record(with_eps(r.model, eps), r.question))
    assert result.first_wrong and result.first_wrong.name == "decoder.keys.0"


@pytest.mark.parametrize("name", OWN)
def test_one_wrong_weight_names_its_block_and_channel(name: str) -> None:
    r = recorded(name)

    def turn_one(w: np.ndarray) -> None:
        w[5, 3] = -w[5, 3]

    result = against(r.golden, record(with_matrix(r.model, 1, "fc2", turn_one), r.question))
    assert result.first_wrong and result.first_wrong.name == "vision.hidden_states.2"
    assert result.first_wrong.where.startswith("channel 5")


@pytest.mark.parametrize("name", OWN)
def test_two_rows_of_a_matrix_that_are_swapped_name_their_channels(name: str) -> None:
    r = recorded(name)

    def swap(w: np.ndarray) -> None:
        w[[2, 7]] = w[[7, 2]]

    result = against(r.golden, record(with_matrix(r.model, 0, "out_proj", swap), r.question))
    assert result.first_wrong and result.first_wrong.name == "vision.hidden_states.1"


def test_two_channels_that_are_swapped_are_named() -> None:
    r = recorded()
    stages = dict(r.stages)
    stages["vision.hidden_states.1"] = stages["vision.hidden_states.1"].copy()
    stages["vision.hidden_states.1"][:, [2, 7]] = stages["vision.hidden_states.1"][:, [7, 2]]
    first = against(r.golden, stages).first_wrong
    assert first and (first.name, first.verdict) == ("vision.hidden_states.1", REORDERED)
    assert "channels: 2 and 7 are swapped" in first.note


@pytest.mark.parametrize("to", [to_float16, to_bf16])
@pytest.mark.parametrize("floors", [True, False], ids=["floors", "house bounds"])
def test_half_precision_passed_off_as_float32_is_called_what_it_is(to, floors: bool) -> None:
    r = recorded()
    stages = record(rounded(r.model, to), r.question, None, rounding_recorder(to))
    golden, kind = r.golden if floors else r.plain, "float16" if to is to_float16 else "bf16"
    result = against(golden, stages)
    assert result.first_wrong and result.first_wrong.name == "pixel_values"
    assert any(f"--class {kind}" in note for note in result.notes)
    assert against(golden, stages, kind).right


def test_a_fault_below_its_bound_that_grows_is_traced_to_its_beginning() -> None:
    r = recorded()
    names = [n for n in r.golden.names if r.stages[n].dtype.kind == "f"]
    rng, stages = np.random.default_rng(0), dict(r.stages)
    for i, name in enumerate(names):
        rms, _ = r.golden.floors["float32"][name]
        level = 1.0 if i < 8 else 6.0 if i < 10 else 60.0  # of the floor: sound, a fault, the fault grown
        noise = rng.standard_normal(stages[name].shape)
        scale = level * max(rms, 1e-8) * np.linalg.norm(stages[name]) / np.linalg.norm(noise)
        stages[name] = (stages[name] + scale * noise).astype(np.float32)
    result = against(r.golden, stages)
    assert next(s.name for s in result.stages if s.verdict in FAILED) == names[10]
    assert result.first_wrong and result.first_wrong.name == names[8]
    assert "farther off than before" in " ".join(result.notes)
