"""`mvlm evaluate`: from a folder to a score, after an interruption too, and scoring without a model."""

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mvlm_np
from mvlm_np.cli import main, progress
from mvlm_np.config import FAMILY
from mvlm_np.demo import MODEL
from mvlm_np.evaluation.answers import read_answers
from mvlm_np.evaluation.benchmarks import BENCHMARKS, read
from mvlm_np.rows import answering
from mvlm_np.rows.row import Answered, Row
from tests.conftest import DATA
from tests.evaluation.fixtures import folder

ALL = str(DATA / "evaluation")
MAIN = str(folder("gqa") / "predictions" / "main.jsonl")
MISSING = str(folder("gqa") / "predictions" / "missing.jsonl")


class Pretended:
    """A model of a published shape that says what the fixtures' answers file has.

    asked  the rows that it has got
    """

    def __init__(self, key: str, stop_after: int | None = None, failing: int | None = None):
        texts = json.loads((folder(key) / "answers" / "main.json").read_text())
        questions = read(BENCHMARKS[key], folder(key))
        self.says = {one.id: text for one, text in zip(questions, texts, strict=True)}
        self.config = FAMILY["MobileVLM_V2-1.7B"]
        self.asked: list[str] = []
        self.stop_after, self.failing = stop_after, failing

    def answer(self, model: object, rows: Iterable[Row], *, together: int) -> Iterator[Answered]:
        for i, row in enumerate(rows):
            if i == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(row.key)
            failed = i == self.failing
            yield Answered(row, None, "no") if failed else Answered(row, self.says[row.key], None, 3, 0.5)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    def used(model: Pretended) -> Pretended:
        monkeypatch.setattr(answering, "answer", model.answer)
        monkeypatch.setattr(progress, "load_with_bar", lambda **arguments: model)
        return model

    return used


def evaluate(*args: str) -> int:
    return main(["evaluate", *args, "--data", ALL, *(["--model", "some/m"] if args[0] != "score" else [])])


def test_score_needs_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("score", "gqa", MAIN) == 0
    out = capsys.readouterr().out
    assert out.startswith("GQA: Accuracy 41.18 % (95 %: ")
    assert "answered: 18, expected: 18, not balanced, not counted: 1" in out
    assert "\nAccuracy / structural type\n" in out and f"answers: {MAIN}" in out


def test_json_has_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("score", "mme", str(folder("mme") / "predictions" / "main.jsonl"), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["benchmark"], found["name"], found["value"]) == ("mme", "Perception", 1050.0)
    assert {"table": "Cognition", "name": "total", "value": 100.0, "of": 8} in found["parts"]
    assert found["counts"]["answered"] == 30 and found["as_published"] is False
    assert found["model"] == "made-up-model" and found["published"] is None
    assert found["interval"]["low"] <= 1050 <= found["interval"]["high"]


def test_as_published_stops_where_the_script_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("score", "gqa", MISSING, "--as-published") == 1
    out, err = capsys.readouterr()
    assert out == "no prediction for question 900000005. Please add prediction for all questions.\n"
    assert err == "mvlm: the published script stops here, without a score: Exception: missing predictions\n"
    assert evaluate("score", "gqa", MISSING, "--as-published", "--json") == 1
    assert json.loads(capsys.readouterr().out)["error"] == "Exception: missing predictions"


def test_asking_writes_answers_and_scores_them(
    here: Path, use: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    use(Pretended("gqa"))
    assert evaluate("gqa") == 0
    out = capsys.readouterr().out
    first = out.splitlines()[0]
    assert first.startswith("GQA: Accuracy 41.18 % (95 %: ")
    assert first.endswith(", published for MobileVLM_V2-1.7B: 59.3")
    assert "18 questions in" in out and "tokens a second" in out
    assert [path.name for path in here.iterdir()] == ["gqa-m.jsonl"]
    theirs = read_answers(Path(MAIN))
    assert [(one.question_id, one.text) for one in read_answers(here / "gqa-m.jsonl")] == [
        (one.question_id, one.text) for one in theirs
    ]
    assert evaluate("gqa") == 2
    assert "gqa-m.jsonl: is there already, wanted a new file; name another one" in capsys.readouterr().err


def test_an_interrupted_run_goes_on(here: Path, use: Any, capsys: pytest.CaptureFixture[str]) -> None:
    use(Pretended("pope"))
    assert evaluate("pope", "--answers", "whole.jsonl") == 0
    first = use(Pretended("pope", stop_after=7))
    assert evaluate("pope") == 130
    assert not (here / "pope-m.jsonl").exists()
    assert evaluate("pope") == 2
    assert "pope-m.jsonl.part: is there already" in capsys.readouterr().err
    with open(here / "pope-m.jsonl.part", "ab") as file:
        file.write(b'{"id": "cut')  # as a kill may leave it
    second = use(Pretended("pope"))
    assert evaluate("pope", "--resume") == 0
    assert sorted(first.asked + second.asked) == sorted(second.says) and len(first.asked) == 7
    assert (here / "pope-m.jsonl").read_bytes() == (here / "whole.jsonl").read_bytes()
    third = use(Pretended("pope"))
    assert evaluate("pope", "--resume") == 0
    assert third.asked == []
    assert "pope-m.jsonl is complete, and nothing is asked" in capsys.readouterr().err


def test_a_limited_run_is_not_taken_for_a_complete_one(
    here: Path, use: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    use(Pretended("gqa"))
    assert evaluate("gqa", "--limit", "5") == 0
    assert evaluate("gqa", "--limit", "5", "--resume") == 0
    assert evaluate("gqa", "--resume") == 2
    assert "gqa-m.jsonl: has answers to 5 of 18 questions, wanted a new file" in capsys.readouterr().err


def test_a_question_that_failed_is_wrong_and_kept_with_its_error(
    here: Path, use: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    use(Pretended("gqa", failing=0))
    assert evaluate("gqa", "--json") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["counts"]["answered"] == 17 and found["value"] == pytest.approx(100 * 6 / 17)
    assert "1 questions have no answer, and count as wrong" in found["remarks"]
    assert '1 questions failed, see "error" in gqa-m.jsonl.part' in err
    assert '"error": "no"' in (here / "gqa-m.jsonl.part").read_text()


@pytest.mark.parametrize(
    "key, limit, asked", [("gqa", 5, 5), ("mme", 1, 28), ("pope", 6, 6), ("mmbench", 1, 17)]
)
def test_a_limit_asks_a_part(
    here: Path, use: Any, capsys: pytest.CaptureFixture[str], key: str, limit: int, asked: int
) -> None:
    model = use(Pretended(key))
    assert evaluate(key, "--limit", str(limit)) == 0
    out = capsys.readouterr().out
    assert len(model.asked) == asked
    assert f"not comparable: {asked} of {len(model.says)} questions were asked" in out
    assert f"answered: {asked}, expected: {asked}" in out


def test_scienceqa_without_the_questions_that_have_no_picture(
    here: Path, use: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = use(Pretended("sqa"))
    assert evaluate("sqa", "--pictures-only") == 0
    assert len(model.asked) == 12
    assert capsys.readouterr().out.startswith("ScienceQA: IMG-Accuracy 58.33 %")


def test_what_is_wrong_shows_before_a_model_is_loaded(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(**arguments: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(progress, "load_with_bar", load)
    monkeypatch.delenv("MVLM_MODEL", raising=False)
    shutil.copytree(folder("gqa"), here / "data")
    next((here / "data" / "images").iterdir()).unlink()
    assert main(["evaluate", "gqa", "--data", "data", "--model", "m"]) == 2
    assert "is missing, as 1 of the 4 pictures are" in capsys.readouterr().err
    assert main(["evaluate", "gqa", "--data", ALL]) == 2
    assert "--model: is missing" in capsys.readouterr().err
    assert main(["evaluate", "gqa", "--data", "nothing", "--model", "m"]) == 2
    assert "nothing: is no folder" in capsys.readouterr().err
    assert main(["evaluate", "gqa", "--data", ALL, "--model", "m", "--html", "no/where.html"]) == 2
    shutil.copytree(folder("gqa"), here / "whole")
    (here / "whole" / "testdev_balanced_questions.json").unlink()
    assert main(["evaluate", "gqa", "--data", "whole", "--model", "m"]) == 2
    assert "testdev_balanced_questions.json" in capsys.readouterr().err
    assert main(["evaluate", "gqa", "--data", ALL, "--model", "m", "--against", "none.jsonl"]) == 2
    assert "none.jsonl" in capsys.readouterr().err
    assert list(here.glob("gqa-m.jsonl*")) == []


def test_answers_of_another_benchmark_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for key in BENCHMARKS:
        if key != "gqa":
            given = str(folder(key) / "predictions" / "main.jsonl")
            assert evaluate("score", "gqa", given) == 2
            assert "has no answer to a question of GQA; name the benchmark" in capsys.readouterr().err


def test_a_model_that_cannot_see_is_refused(here: Path, use: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model = use(Pretended("gqa"))
    model.config = replace(model.config, vision=None)
    assert evaluate("gqa") == 2
    assert "some/m: cannot see, wanted a model with a vision tower for GQA" in capsys.readouterr().err
    assert model.asked == [] and list(here.iterdir()) == []


def test_two_runs_beside_each_other_and_a_page(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = str(folder("gqa") / "predictions" / "duplicates.jsonl")
    assert evaluate("score", "gqa", MAIN, "--against", other, "--html", "gqa.html") == 0
    out = capsys.readouterr().out
    assert "against made-up-model: -5.88 (95 %: " in out and "1 answers differ" in out
    page = (here / "gqa.html").read_text()
    assert "On which side of the picture is the box?" in page and "data:image/" in page


def test_the_demo_model_answers_as_if_it_was_asked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real model from the files to the score: each answer is that of `ask` with the published settings."""
    assert main(["evaluate", "gqa", "--data", ALL, "--limit", "5", "--model", str(MODEL)]) == 0
    assert "not comparable: 5 of 18" in capsys.readouterr().out
    model = mvlm_np.load(MODEL)
    asked = read(BENCHMARKS["gqa"], folder("gqa"))
    for one, answer in zip(asked[:5], read_answers(here / "gqa-model.jsonl"), strict=True):
        assert isinstance(one.source, Path)
        assert answer.text == model.ask(one.source, one.text, max_new_tokens=128).strip()
        assert answer.probability is not None and 0 < answer.probability <= 1
