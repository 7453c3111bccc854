"""The Python of README and docs runs: with the model in the box, under the names that the pages use."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import mvlm_np
from mvlm_np.demo import MODEL, PICTURES
from tests.conftest import DATA, ROOT

pytestmark = pytest.mark.xdist_group("demo")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: in it is photo.jpg. Models are loaded as they would be if they were large."""
    pytest.importorskip("numba")
    shutil.copy(PICTURES / "0.png", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    load = partial(mvlm_np.load, backend="numba", precision="int8")
    monkeypatch.setattr(mvlm_np, "load", load)
    return tmp_path


def called(here: Path, *names: str) -> None:
    """The model in the box has these names."""
    for name in names:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).symlink_to(MODEL)


def python_blocks(page: str) -> list[Example]:
    return [*Sybil(parsers=[PythonCodeBlockParser()]).parse(ROOT / page).examples()]


def run(page: str) -> dict[str, Any]:
    """Runs the Python blocks of a page. Returns what they define."""
    blocks = python_blocks(page)
    for block in blocks:
        block.evaluate()
    return blocks[0].document.namespace


def test_no_page_with_python_is_forgotten() -> None:
    """docs/walk.md and the port guide have tests of their own."""
    pages = {str(page.relative_to(ROOT)) for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]}
    own = {
        "README.md",
        *(f"docs/{name}.md" for name in ("batch", "look", "json", "speculation", "evaluation")),
    }
    others = {"docs/walk.md", "docs/is-my-port-right.md"}
    assert {page for page in pages if python_blocks(page)} == own | others


def test_readme(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    called(here, "mtgv/MobileVLM_V2-1.7B")
    found = run("README.md")
    assert capsys.readouterr().out.startswith(found["model"].ask("photo.jpg", "What animal is this?") + "\n")
    chat, turns = found["chat"], found["turns"]
    questions = ("Is it new?", "Who made it?", "What is it for?")
    assert [turn.text for turn in turns] == [chat.fork().ask(question) for question in questions]
    assert len(chat.history) == 2 and all(turn.text for turn in turns)


def test_looking_at_an_answer(here: Path) -> None:
    called(here, "mtgv/MobileVLM_V2-1.7B")
    found = run("docs/look.md")
    assert 0 < found["step"].probability <= 1


def test_answers_as_json(here: Path) -> None:
    called(here, "mtgv/MobileVLM_V2-1.7B")
    answer = run("docs/json.md")["answer"]
    assert list(answer) == ["lamp", "colour", "value"] and answer["lamp"] in ("on", "off")
    assert 0 <= answer["value"] <= 100 and len(answer["colour"]) <= 20


def test_drafts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    called(here, "SMALL", "LLAMA-68M")
    plain = run("docs/speculation.md")["model"].ask("photo.jpg", "What is in the picture?")
    assert capsys.readouterr().out == f"{plain}\n" * 2


def test_many_pictures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run("docs/batch.md")
    model, rows = found["model"], found["rows"]
    answers = [model.ask(*row, max_new_tokens=20) for row in rows]
    assert len(answers) == 2 and capsys.readouterr().out.splitlines() == answers


def test_scores_of_benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "benchmark_data").symlink_to(DATA / "evaluation")
    shutil.copy(DATA / "evaluation" / "gqa" / "predictions" / "main.jsonl", "answers.jsonl")
    found = run("docs/evaluation.md")
    assert found["worth"].name == "Accuracy" and len(found["wrong"]) == 10
