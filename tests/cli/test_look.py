"""`mvlm look`: what it prints, what it writes, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mvlm_np.cli import main
from mvlm_np.demo import MODEL, NOTE, PICTURES
from tests.conftest import DATA
from tests.look.looked import model

LAMP = str(PICTURES / "0.png")
QUESTION = "Describe the yellow lamp."
OPTIONS = ("--model", str(MODEL), "--backend", "numpy")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*args: str) -> tuple[int, str, str]:
        code = main(["look", *args])
        return code, *capsys.readouterr()

    return run


def test_it_prints_the_answer_and_each_token(run: Run) -> None:
    code, out, err = run(LAMP, QUESTION, *OPTIONS)
    answer, _, *lines = out.splitlines()
    assert (code, err) == (0, "")
    assert answer == model("demo").ask(LAMP, QUESTION)
    assert len(lines) == 7 and lines[1].startswith("▁yellow") and "% of attention to the picture" in lines[1]


def test_with_a_page_it_prints_the_answer_alone(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "look.html"
    code, out, err = run(LAMP, "--html", str(page), QUESTION, *OPTIONS)
    assert (code, err) == (0, f"mvlm: wrote {page}\n")
    assert out == model("demo").ask(LAMP, QUESTION) + "\n"
    text = page.read_text("utf-8")
    assert f"<h1>{QUESTION}</h1>" in text and ">model was asked<" in text
    assert list(tmp_path.iterdir()) == [page]


def test_as_json_it_tells_the_numbers(run: Run) -> None:
    code, out, _ = run(LAMP, QUESTION, "--json", *OPTIONS)
    told = json.loads(out)
    chat = model("demo").chat(LAMP)
    assert told["answer"] == chat.ask(QUESTION)
    assert [step["id"] for step in told["steps"]] == chat.answer_ids
    assert (code, told["picture"]["tokens"], told["model"]) == (0, 144, "model")
    assert all(len(step["likeliest"]) == 5 for step in told["steps"])
    assert [stage["name"] for stage in told["stages"]] == "preprocess encode project prefill decode".split()


def test_without_a_model_it_takes_the_one_in_the_box(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MVLM_MODEL", raising=False)
    code, out, err = run(LAMP, QUESTION, "--json", "--max-new-tokens", "2")
    told = json.loads(out)
    assert (code, told["model"], len(told["steps"])) == (0, "The demo model", 2)
    assert err == f"mvlm: note: {NOTE}\n"


def test_a_question_may_be_about_text_alone(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("How are you?", "--html", str(tmp_path / "page.html"), "--json", *OPTIONS)
    assert code == 0 and json.loads(out)["picture"] is None
    assert 'id="patches"' not in (tmp_path / "page.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ((LAMP,), "the question"),
        (("nowhere.png", QUESTION), "nowhere.png: there is no such file"),
        ((str(DATA / "README.md"), QUESTION), "README.md"),
        ((LAMP, LAMP, QUESTION), "unrecognized arguments"),
        ((LAMP, QUESTION, "--html", "nowhere/page.html"), "nowhere/page.html"),
        ((LAMP, QUESTION, "--html", "."), "is a folder"),
        ((LAMP, QUESTION, "--max-new-tokens", "0"), "max_new_tokens"),
        ((LAMP, QUESTION, "--conv-mode", "other"), "conv_mode"),
        ((LAMP, QUESTION * 2000), "positions"),
        ((LAMP, "two <image> pictures <image>"), "<image>"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*args, *OPTIONS)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and told in err
    assert list(tmp_path.iterdir()) == []


def test_no_page_is_begun_for_what_cannot_be_asked(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("before")
    assert run("nowhere.png", QUESTION, "--html", str(page), *OPTIONS)[0] == 2
    assert page.read_text() == "before" and list(tmp_path.iterdir()) == [page]
