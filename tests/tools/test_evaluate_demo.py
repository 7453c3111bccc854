"""tools/evaluate_demo.py: what is asked, what is right, and what is written of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mvlm_np
from mvlm_np.demo import MODEL
from mvlm_np.evaluation.statistics import estimate
from tools.demo.evaluation import asked, evaluate, picture, run, with_answers
from tools.demo.questions import TASKS
from tools.demo.scenes import render, scene
from tools.evaluate_demo import main


class Oracle:
    """Knows the answers to some questions by heart, and looks at no picture."""

    def __init__(self, answers: dict[tuple[bytes, str], str]):
        self.answers = answers

    def chat(self, image: Image.Image) -> Any:
        self.image, self.history = image, list[Any]()
        return self

    def ask(self, question: str, max_new_tokens: int) -> str:
        return self.answers[self.image.tobytes(), question]


def oracle(count: int) -> Oracle:
    known = {}
    for number, questions in asked("test", count, TASKS):
        for question in questions:
            known[render(scene("test", number)).tobytes(), question.text] = question.answer
    return Oracle(known)


def test_who_knows_the_answers_is_right() -> None:
    judged = evaluate(oracle(60), count=60)
    assert len(judged) == len({one.id for one in judged}) == 60 and {one.right for one in judged} == {1.0}
    assert run("oracle", judged).score.value == 100
    found = estimate("demo", judged)
    scenes = {one.picture for one in judged}
    assert found.pictures == len(scenes) < 30  # several questions each
    assert found.low == pytest.approx(100 * len(scenes) / (len(scenes) + 1.959964**2))
    np.testing.assert_array_equal(picture("test/3"), render(scene("test", 3)))


def test_other_answers_are_judged_by_the_same_rules() -> None:
    judged = evaluate(oracle(60), count=60)
    half = {one.id: "" if i % 2 else str(one.answer) for i, one in enumerate(judged[:30])}
    again = with_answers(judged, half)
    assert [one.right for one in again] == [1.0, 0.0] * 15
    described = next(one for one in judged if one.category == "describe" and one.gold.count(", ") > 1)
    (part,) = with_answers(judged, {described.id: described.gold.split(", ")[0]})
    assert 0 < part.right < 1  # some of its facts


def test_our_answers_are_those_of_ask_and_have_a_probability() -> None:
    model = mvlm_np.load(MODEL, "float32", backend="numpy")
    ways = [evaluate(model, count=4, tasks=("colour", "exists"), probable=p) for p in (True, False)]
    for one, other in zip(*ways, strict=True):
        assert one.answer == other.answer == model.ask(picture(one.picture), one.prompt, max_new_tokens=128)
        assert one.probability is not None and 0 < one.probability <= 1 and other.probability is None


def test_what_is_saved_can_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--questions", "12", "--backend", "numpy", "--precision", "float32"]
    assert main([*common, "--save", str(tmp_path / "a.json")]) == 0
    saved = json.loads((tmp_path / "a.json").read_text())
    assert len(saved) == 12
    wrong = dict.fromkeys(saved, "no such thing")
    (tmp_path / "b.json").write_text(json.dumps(wrong))
    html = tmp_path / "page.html"
    argv = [*common, "--against", str(tmp_path / "b.json"), "--html", str(html), "--least", "1.1"]
    assert main(argv) == 1  # no score is so high
    printed = capsys.readouterr().out
    assert "12 questions, 12 answers differ, score +" in printed and "\nall " in printed
    text = html.read_text("utf-8")
    assert "Drawn scenes" in text and "Answers that changed" in text and "data:image/jpeg" in text


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--against", "missing.json"], "missing.json: "),
        (["--html", "missing/page.html"], "missing/page.html: cannot be written"),
        (["--save", "missing/a.json"], "missing/a.json: there is no such folder"),
    ],
)
def test_a_bad_call_is_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"evaluate_demo: {said}") and error.count("\n") == 1
