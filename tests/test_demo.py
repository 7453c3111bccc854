"""The model in the box: an ordinary model folder, small, whose answers on its own pictures are pinned."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import mvlm_np
from mvlm_np.cli import main
from mvlm_np.demo import MODEL, NOTE, PICTURES
from mvlm_np.demo.asking import ask_all
from mvlm_np.model import MobileVLM
from mvlm_np.projector import image_tokens
from tests.conftest import ROOT

ANSWERS = json.loads((ROOT / "tests" / "data" / "demo_answers.json").read_text("utf-8"))
MOST = 10_000_000  # bytes, of model and pictures together

pytestmark = pytest.mark.xdist_group("demo")  # one worker, so that the model is loaded once


@pytest.fixture(scope="module")
def model() -> MobileVLM:
    return mvlm_np.load(MODEL)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*args: str) -> tuple[int, str, str]:
        code = main(args)
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_its_answers_are_these(backend: str) -> None:
    model = mvlm_np.load(MODEL, backend=backend)
    given = {shown.picture: {a.question: a.answer for a in shown.asked} for shown in ask_all(model)}
    assert given == ANSWERS


def test_nearly_all_its_answers_are_right(model: MobileVLM) -> None:
    asked = [a for shown in ask_all(model) for a in shown.asked]
    assert len(ANSWERS) >= 8 and len(asked) >= 24
    assert sum(a.answer == a.expected for a in asked) >= 0.9 * len(asked)


def test_it_is_a_mobilevlm_v2_through_and_through(model: MobileVLM) -> None:
    config = model.config
    assert config.vision is not None
    assert (config.mm_projector_type, config.mm_vision_select_layer) == ("ldpnetv2", -2)
    assert config.mm_vision_select_feature == "patch" and config.image.aspect_ratio == "pad"
    assert config.vision.hidden_act == "quick_gelu"
    assert image_tokens(config) == 144
    assert 1 <= config.decoder.num_key_value_heads < config.decoder.num_attention_heads
    assert model.notes == []


def test_it_stays_small() -> None:
    assert sum(path.stat().st_size for path in MODEL.parent.rglob("*") if path.is_file()) <= MOST


def test_the_command_prints_question_answer_and_times(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run("demo")
    assert (code, err) == (0, "")
    for picture, answers in ANSWERS.items():
        assert re.search(rf"^{picture}  \(\d+ ms to encode\)$", out, re.MULTILINE)
        for question, answer in answers.items():
            assert f"  {question}  {answer}" in out
    assert re.search(r"^\d+ of \d+ as expected; loaded in [\d.]+ s$", out.splitlines()[-1])


def test_as_json_it_says_the_same(run: Callable[..., tuple[int, str, str]]) -> None:
    result = json.loads(run("demo", "--json")[1])
    given = {p["picture"]: {a["question"]: a["answer"] for a in p["asked"]} for p in result["pictures"]}
    assert given == ANSWERS
    assert result["of"] == sum(map(len, ANSWERS.values()))


def test_the_page_stands_for_itself(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    page = tmp_path / "demo.html"
    assert run("demo", "--html", str(page))[0] == 0
    html = page.read_text("utf-8")
    assert html.count("data:image/jpeg;base64,") == len(ANSWERS) + sum(map(len, ANSWERS.values()))
    assert not re.search(r"https?://|<script|@font-face|url\(", html)


def test_a_page_that_cannot_be_written_is_an_error_of_one_line(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, _, err = run("demo", "--html", str(tmp_path / "nowhere" / "demo.html"))
    assert code == 2
    assert len(err.splitlines()) == 1 and "nowhere" in err


def test_ask_without_a_model_takes_this_one_and_says_so(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MVLM_MODEL", raising=False)
    picture, answers = next(iter(ANSWERS.items()))
    question, answer = next(iter(answers.items()))
    code, out, err = run("ask", str(PICTURES / picture), question)
    assert (code, out) == (0, f"{answer}\n")
    assert err == f"mvlm: note: {NOTE}\n"


def test_where_it_looks_is_a_share_of_attention(model: MobileVLM) -> None:
    first = next(ask_all(model, attention=True))
    for asked in first.asked:
        assert asked.attention.shape == (12, 12)
        assert 0 < asked.attention.sum() < 1 and (asked.attention >= 0).all()
