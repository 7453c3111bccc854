"""`ask`, `chat` and `stream` see a 16-bit picture; `trace` and `compat` see it white, as upstream does."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mvlm_np
from mvlm_np.cli import main
from mvlm_np.compat import inference_once
from mvlm_np.demo import MODEL, PICTURES
from mvlm_np.model import MobileVLM

QUESTION = "Describe the picture."

pytestmark = pytest.mark.xdist_group("demo")  # with the other tests of this model


@pytest.fixture(scope="module")
def model() -> MobileVLM:
    return mvlm_np.load(MODEL)


@pytest.fixture
def deep(tmp_path: Path) -> tuple[Path, Image.Image]:
    """A picture in 16 bits, and the same in 8."""
    grey = Image.open(PICTURES / "0.png").convert("L")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    return tmp_path / "deep.png", grey


def test_ask_stream_and_chat_see_it_and_say_so(
    model: MobileVLM, deep: tuple[Path, Image.Image], caplog: pytest.LogCaptureFixture
) -> None:
    path, grey = deep
    answer = model.ask(grey, QUESTION, max_new_tokens=8)
    assert not caplog.records
    assert model.ask(path, QUESTION, max_new_tokens=8) == answer
    assert "".join(model.stream(path, QUESTION, max_new_tokens=8)) == answer
    assert model.chat(path).ask(QUESTION, max_new_tokens=8) == answer
    assert len(caplog.records) == 3
    np.testing.assert_array_equal(model.encode_image(path), model.encode_image(grey))


def test_trace_and_compat_are_upstreams(
    model: MobileVLM,
    deep: tuple[Path, Image.Image],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, _ = deep
    cut = Image.open(path).convert("RGB")  # to 255, wherever it is not black
    cut.save(path.with_name("cut.png"))
    found, wanted = (model.trace(image, QUESTION, 1) for image in (path, cut))
    np.testing.assert_array_equal(found["pixel_values"], wanted["pixel_values"])
    answers = []
    for image in (path, path.with_name("cut.png")):
        args = Namespace(model_path=str(MODEL), image_file=str(image), temperature=0, prompt=QUESTION)
        inference_once(args)
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != ""
    assert not caplog.records


def test_the_command_says_so(
    deep: tuple[Path, Image.Image], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = deep
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115
    for verb in (["ask", str(path), QUESTION, "--max-new-tokens", "2"], ["chat", str(path)]):
        assert main([*verb, "--model", str(MODEL)]) == 0
        err = capsys.readouterr().err
        assert err.startswith(f"mvlm: note: {path}: its values go from ")
        assert err.count("\n") == 1
