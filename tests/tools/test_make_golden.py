"""The torch reference against the published code's goldens, and against our own, which it once made.

Each part is fed the golden input. Vision tower and projector stay within 2e-6 of a stage's largest
magnitude. Each block of the decoder may add 5e-6, which is what the judge allows any stage: a softmax with
large scores magnifies rounding, and BLAS sums in another order on every kind of processor.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from tests.conftest import DATA
from tests.golden_sets import SETS, Case, cases, relative_error
from tools.make_golden import main
from tools.parts.torch_reference import Arrays, Reference

PART, BLOCK = 2e-6, 5e-6
all_sets = pytest.mark.parametrize("name", SETS)


@cache
def whole(case: Path, image: Path, question: str) -> tuple[Arrays, dict[str, str]]:
    """The whole chain in torch."""
    return Reference(case).run(image, question)


def run(case: Case) -> tuple[Arrays, dict[str, str]]:
    return whole(case.folder, case.image, case.question)


def worst(found: Arrays, golden: dict[str, np.ndarray]) -> float:
    """The largest relative error of all stages of floating point."""
    return max(relative_error(a[0], golden[k]) for k, a in found.items() if a.dtype == np.float32)


@all_sets
def test_it_has_the_same_stages_tokens_and_text(name: str) -> None:
    for case in cases(name):
        arrays, about = run(case)
        if "pixel_values" in case.stages:
            assert arrays.keys() == case.stages.keys()
        for key in ("input_ids", "generated_ids", "generated_ids_beam3"):
            assert arrays[key].dtype == np.int64
            assert arrays[key][0].tolist() == case.stages[key].tolist()
        assert about["text"] == case.text
        assert about["question"] == case.question


@all_sets
def test_each_part_computes_what_the_golden_says(name: str) -> None:
    for case in cases(name):
        golden = case.stages
        if "pixel_values" not in golden:
            continue
        reference = Reference(case.folder)
        np.testing.assert_array_equal(reference.pixel_values(case.image)[0], golden["pixel_values"])
        assert worst(reference.vision(golden["pixel_values"][None]), golden) <= PART
        assert worst(reference.project(golden["vision.features"][None]), golden) <= PART
        decoded = reference.decode(golden["input_ids"].tolist(), golden["projector.output"][None], "</s>")
        assert worst(decoded, golden) <= BLOCK * reference.config["num_hidden_layers"]


def test_the_long_case_agrees_at_its_last_positions() -> None:
    case = next(case for case in cases("published/v2-gqa") if "logits.tail" in case.stages)
    arrays, _ = run(case)
    for key, golden in case.stages.items():
        if golden.dtype == np.float32:
            found = arrays[key.removesuffix(".tail")][0]
            found = found[..., -16:, :] if key.endswith(".tail") else found
            assert relative_error(found, golden) <= 4 * BLOCK, key  # three blocks, and what came before them


# ---------------------------------------------------------------- the command


def test_the_command_writes_stages_and_what_was_asked(tmp_path: Path) -> None:
    case, out = cases("own/mlp")[0], tmp_path / "golden-7.safetensors"
    arguments = [str(case.folder), str(case.image), case.question, str(out)]
    assert main([*arguments, "--max-new-tokens", "3", "--beams", "2", "--beam-tokens", "2"]) == 0
    with safe_open(out, "np") as file:
        assert file.metadata() == {
            "image": "picture.png",
            "question": case.question,
            "prompt": json.loads((case.folder / "cases.json").read_text())[0]["prompt"],
            "text": file.metadata()["text"],
        }
        expected = case.stages.keys() - {"generated_ids_beam3"} | {"generated_ids_beam2"}
        assert set(file.keys()) == expected
        assert file.get_tensor("generated_ids").tolist() == [case.stages["generated_ids"][:3].tolist()]
        assert file.get_tensor("generated_ids_beam2").shape == (1, 2)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_cases_are_listed_once_each(tmp_path: Path) -> None:
    case = cases("own/mlp")[0]
    for out, question in (("a", "What?"), ("b", "Who?"), ("a", case.question)):
        path = tmp_path / f"{out}.safetensors"
        options = ["--cases", "--max-new-tokens", "1", "--beams", "1"]
        assert main([str(case.folder), str(case.image), question, str(path), *options]) == 0
    listed = json.loads((tmp_path / "cases.json").read_text())
    assert [(c["golden"], c["question"]) for c in listed] == [
        ("a.safetensors", case.question),
        ("b.safetensors", "Who?"),
    ]
    assert all((tmp_path / c["image"]).samefile(case.image) for c in listed)


@pytest.mark.parametrize("folder", ["nowhere", "clip"])
def test_a_folder_that_is_no_checkpoint_is_one_line(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = DATA / "golden" / "mlp" / folder
    assert main([str(path), "x.png", "What?", str(tmp_path / "out.safetensors")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())
