import json
from dataclasses import replace
from pathlib import Path

import pytest

import mvlm_np
from tests.golden_sets import cases
from tools.compare_torch import BOUNDS, Errors, compare, main, table, worst_of_groups
from tools.parts.torch_reference import Reference

OWN = ("own/ldpv2", "own/ldp", "own/mlp")


@pytest.mark.parametrize("name", OWN)
def test_both_backends_agree_with_torch(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    case = cases(name)[0]
    arguments = [str(case.folder), str(case.image), "What is that?", "--max-new-tokens", "4"]
    assert main([*arguments, "--backend", "numpy", "--backend", "numba", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    runs = ["numpy alone", "numpy chain", "numba alone", "numba chain"]
    assert list(found["errors"]) == list(found["same_tokens"]) == runs
    stages = {key for key, array in case.stages.items() if array.dtype == "float32"}
    assert all(errors.keys() == stages for errors in found["errors"].values())


def errors_with_one_gain_off(alone: bool) -> set[str]:
    """Names of the stages that are off when a gain in the second vision block is wrong by a thousandth."""
    case = cases("own/ldpv2")[0]
    reference, _ = Reference(case.folder).run(case.image, "What?", max_new_tokens=2, num_beams=1)
    model = mvlm_np.load(case.folder, backend="numpy")
    assert model.vision
    layer = model.vision.layers[1]
    norm = layer.layer_norm2
    model.vision.layers[1] = replace(layer, layer_norm2=norm._replace(weight=norm.weight * 1.001))
    errors, _ = compare(model, case.image, reference, alone)
    return {name for name, error in errors.items() if error > BOUNDS["alone" if alone else "chain"]}


def test_alone_names_the_one_stage_that_is_wrong() -> None:
    assert errors_with_one_gain_off(alone=True) == {"vision.hidden_states.2"}


def test_in_the_chain_the_fault_is_carried_on() -> None:
    wrong = errors_with_one_gain_off(alone=False)
    assert {"vision.hidden_states.2", "vision.features", "projector.output", "logits"} <= wrong
    assert not wrong & {"pixel_values", "vision.hidden_states.0", "vision.hidden_states.1"}


def test_a_disagreement_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases("own/mlp")[0]
    monkeypatch.setitem(BOUNDS, "alone", 0.0)
    assert main([str(case.folder), str(case.image), "What?", "--max-new-tokens", "1"]) == 1


def test_a_row_is_the_worst_of_its_group() -> None:
    errors: Errors = {"decoder.keys.0": 1e-7, "decoder.keys.1": 2e-7, "projector.1": 3e-7, "logits": 4e-7}
    assert worst_of_groups(errors) == {"decoder.keys": 2e-7, "projector": 3e-7, "logits": 4e-7}
    head, *rows = table({"a": errors, "b": errors}).splitlines()
    assert head.split() == ["stages", "a", "b"]
    assert rows[0].split() == ["decoder.keys", "2.0e-07", "2.0e-07"]


def test_a_missing_checkpoint_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "x.png", "What?"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
