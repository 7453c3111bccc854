"""The published API: a script written for upstream runs with one line changed."""

from pathlib import Path
from types import SimpleNamespace

import pytest

import mvlm_np
from mvlm_np.compat import inference_once
from tests.golden_sets import SETS, cases


@pytest.mark.parametrize("name", SETS)
def test_it_prints_the_published_answer(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    case = cases(name)[0]
    args = SimpleNamespace(
        model_path=str(case.folder),
        image_file=str(case.image),
        prompt=case.question,
        conv_mode="v1",
        temperature=0,
        top_p=None,
        num_beams=1,
        max_new_tokens=24,
        load_8bit=False,
        load_4bit=False,
    )
    inference_once(args)
    assert capsys.readouterr().out == f"🚀 {case.folder.name}: {case.text}\n\n"


def test_missing_arguments_have_the_published_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    class Model:
        def ask(self, image: str, question: str, **options: object) -> str:
            asked.update(options, image=image, question=question)
            return "A"

    def load(path: str, precision: str | None) -> Model:
        asked.update(path=path, precision=precision)
        return Model()

    monkeypatch.setattr("mvlm_np.compat.load", load)
    inference_once(SimpleNamespace(model_path="some/model", load_4bit=True))
    assert asked == {
        "path": "some/model",
        "precision": "int4",
        "image": "assets/samples/demo.jpg",
        "question": "Who is the author of this book?\nAnswer the question using a single word or phrase.",
        "conv_mode": "v1",
        "exif": False,
        "temperature": 0.2,
        "top_p": None,
        "num_beams": 1,
        "max_new_tokens": 512,
    }


@pytest.mark.parametrize(("given", "precision"), [({}, None), ({"load_8bit": True}, "int8")])
def test_8_bit_goes_before_4_bit(
    given: dict[str, bool], precision: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []

    def load(path: str, precision: str | None) -> mvlm_np.MobileVLM:
        seen.append(precision)
        raise KeyboardInterrupt

    monkeypatch.setattr("mvlm_np.compat.load", load)
    with pytest.raises(KeyboardInterrupt):
        inference_once(SimpleNamespace(model_path=Path("m"), load_4bit=bool(given), **given))
    assert seen == [precision]
