"""tools/quality.py: figures that are known beforehand, and one-line errors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import mvlm_np
from mvlm_np.demo import MODEL, PICTURES
from tests.conftest import DATA
from tools.parts.predictions import divergence, pieces_of_text, predictions
from tools.quality import main, split

GOLDEN = DATA / "golden" / "ldpv2"


def rows(capsys: pytest.CaptureFixture[str], *argv: object) -> list[dict[str, float]]:
    assert main([*map(str, argv), "--json", "--backend", "numpy"]) == 0
    return json.loads(capsys.readouterr().out)["models"]


def test_divergence_is_that_of_the_definition() -> None:
    true, found = np.array([[0.5, 0.25, 0.25], [1 / 3] * 3]), np.array([[0.25, 0.5, 0.25], [1 / 3] * 3])
    expected = [0.5 * np.log(2) - 0.25 * np.log(2), 0]
    np.testing.assert_allclose(divergence(np.log(true), np.log(found)), expected, atol=1e-15)


def test_a_model_is_named_with_a_precision_or_without() -> None:
    assert split("a/b@int4") == ("a/b", "int4")
    assert split("a@b/c") == ("a@b/c", None)


def test_a_text_is_cut_into_pieces() -> None:
    pieces = pieces_of_text(range(10), 9, 4)
    assert [piece.ids for piece in pieces] == [[0, 1, 2, 3], [4, 5, 6, 7]]  # one id alone predicts nothing


def test_every_prediction_is_judged_by_the_token_that_comes() -> None:
    model = mvlm_np.load(MODEL, "float32", backend="numpy")
    ids = model.tokenizer.encode("the red lamp is on")
    logarithms, coming = predictions(model, pieces_of_text(ids, 99, 99)[0])
    assert coming.tolist() == ids[1:]
    np.testing.assert_allclose(np.exp(logarithms.astype(np.float64)).sum(-1), 1, rtol=1e-6)


def test_rounding_costs_more_with_fewer_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text("a yellow lamp off, left. a large black cross, bottom. " * 4)
    small = [f"{MODEL}@{precision}" for precision in ("float32", "int8", "int4")]
    argv = [*small, "--against", f"{MODEL}@float32", "--text", tmp_path / "text", "--window", 32]
    reference, same, int8, int4 = rows(capsys, *argv)
    assert reference["kl"] == same["kl"] == 0 and same["same_best"] == 1
    assert 0 < int8["kl"] < int4["kl"] and int8["kl_99"] < int4["kl_99"]
    assert {row["tokens"] for row in (same, int8, int4)} == {reference["tokens"]}


def test_answers_about_pictures_are_judged_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copyfile(PICTURES / "0.png", tmp_path / "0.png")
    about = ["--pictures", tmp_path, "--question", "Is the yellow lamp on?"]
    reference, int4 = rows(capsys, f"{MODEL}@int4", "--against", MODEL, *about)
    assert reference["tokens"] < 8  # of a short answer, not of the picture
    assert reference["perplexity"] < 1.5  # it is sure of its own answers
    assert 0 < int4["kl"] < 0.5


def test_scores_are_compared_question_by_question(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = rows(capsys, MODEL, "--against", MODEL, "--questions", 6)
    assert (row["questions"], row["changed"], row["value"], row["p"]) == (6, 0, 0, 1)


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--text", "missing.txt"], "missing.txt: "),
        (["--pictures", "missing"], "missing: is no folder, wanted a folder of pictures"),
        (["--pictures", str(DATA)], f"{DATA}: holds no pictures"),
    ],
)
def test_a_bad_call_is_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(MODEL), "--against", str(MODEL), *argv]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"quality: {said}")


def test_a_model_with_another_vocabulary_is_refused(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("a lamp")
    assert main([str(tiny), "--against", str(MODEL), "--text", str(tmp_path / "text")]) == 2
    assert "predicts" in capsys.readouterr().err
