"""From Python, what a caller gets wrong is a UserError: never a TypeError or AttributeError of ours."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import mvlm_np
from mvlm_np.compat import inference_once
from mvlm_np.errors import UserError
from mvlm_np.model import MobileVLM
from tests.conftest import ROOT
from tools.make_checkpoint import make_checkpoint

CAT = str(ROOT / "examples" / "chelsea.jpg")
FEW: dict[str, Any] = {"max_new_tokens": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_checkpoint("tiny", path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> MobileVLM:
    return mvlm_np.load(folder, backend="numpy")


@pytest.mark.parametrize(
    "question", [None, b"What?", 3, ["a", "b"], {"text": "a"}, True, 1.5, np.array(["a"])]
)
def test_a_question_is_text(model: MobileVLM, question: Any) -> None:
    for ask in (
        lambda: model.ask(CAT, question, **FEW),
        lambda: model.stream(CAT, question, **FEW),
        lambda: model.chat(CAT).ask(question, **FEW),
        lambda: model.trace(CAT, question, **FEW),
    ):
        with pytest.raises(UserError, match=r"^question: found .*, wanted text"):
            ask()


MESSAGE = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    "history",
    [
        "hi",
        b"hi",
        3,
        {"a": "b"},
        ["What?", "A cat."],
        [("a", "b", "c")],
        [("a",)],
        [("a", None)],
        [("a", 3)],
        ["ab"],  # two letters are no pair
        [None],
        [MESSAGE],
        [MESSAGE, MESSAGE],
        [MESSAGE, {"role": "assistant"}],
        [MESSAGE, {"role": "assistant", "content": None}],
        [{"role": "system", "content": "Be brief."}, MESSAGE],
        [MESSAGE, ("a", "b")],
        [{"role": ["user"], "content": "a"}, MESSAGE],
        np.zeros((1, 2)),
    ],
    ids=repr,
)
def test_a_history_is_pairs_or_messages(model: MobileVLM, history: Any) -> None:
    for ask in (lambda: model.ask(None, "?", history=history), lambda: model.chat(history=history)):
        with pytest.raises(UserError, match=r"^history.*: found .*, wanted "):
            ask()


@pytest.mark.parametrize("name", [None, 3, "v9", ["v1"], {"v1"}, b"v1"])
def test_a_template_is_a_name(model: MobileVLM, name: Any) -> None:
    for ask in (lambda: model.ask(None, "?", conv_mode=name), lambda: model.chat(conv_mode=name)):
        with pytest.raises(UserError, match=r"^conv_mode: no template is called"):
            ask()


@pytest.mark.parametrize(
    "image", [3, b"a.jpg", {"path": CAT}, {CAT}, object(), 1.5, [None], [[CAT]], iter([CAT])]
)
def test_a_picture_is_a_picture(model: MobileVLM, image: Any) -> None:
    for ask in (lambda: model.ask(image, "?"), lambda: model.chat(image), lambda: model.encode_images(image)):
        with pytest.raises(UserError):
            ask()


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": None},
        {"max_new_tokens": "5"},
        {"max_new_tokens": 5.0},
        {"max_new_tokens": np.array([1, 2])},
        {"temperature": None},
        {"temperature": "warm"},
        {"temperature": [0.5]},
        {"top_p": "0.5"},
        {"top_k": 1.5},
        {"num_beams": None},
        {"num_beams": True},
        {"seed": "x"},
        {"seed": -1},
        {"max_tokens": 5},  # as others call it
        {"do_sample": True},
    ],
    ids=repr,
)
def test_settings_are_checked(model: MobileVLM, settings: dict[str, Any]) -> None:
    for ask in (
        lambda: model.ask(None, "?", **settings),
        lambda: model.stream(None, "?", **settings),
        lambda: model.chat().stream("?", **settings),
        lambda: model.generate([1, 2], **settings),
    ):
        with pytest.raises(UserError, match=next(iter(settings))):
            ask()


def test_numbers_may_be_numpys(model: MobileVLM) -> None:
    settings: dict[str, Any] = {
        "max_new_tokens": np.int64(3),
        "temperature": np.float32(0.5),
        "seed": np.uint8(1),
    }
    expected = model.generate([1, 5], max_new_tokens=3, temperature=0.5, seed=1)
    for ids in (np.array([1, 5], np.uint16), (1, np.int32(5)), np.array([1, 5], np.int8)):
        assert model.generate(ids, **settings) == expected  # type: ignore[arg-type]
    assert all(type(token) is int for token in expected)


@pytest.mark.parametrize(
    "ids",
    [None, 3, "abc", b"ab", {}, [None], ["a"], [[1], [2, 3]], [1.5], [True], [1 << 70], {1, 2}, iter([1])],
)
def test_ids_are_whole_numbers(model: MobileVLM, ids: Any) -> None:
    with pytest.raises(UserError, match=r"^ids"):
        model.generate(ids)


@pytest.mark.parametrize("path", [None, 3, b"model", ["model"], {}, True, object()])
@pytest.mark.parametrize("item", ["path_or_name", "vision_tower", "mmproj"])
def test_a_place_of_files_is_a_path(folder: Path, item: str, path: Any) -> None:
    if item != "path_or_name" and path is None:
        return
    with pytest.raises(UserError):
        mvlm_np.load(**{"path_or_name": folder, item: path})


@pytest.mark.parametrize(
    "options",
    [
        {"precision": 4},
        {"precision": ["int4"]},
        {"backend": None},
        {"backend": ["numba"]},
        {"threads": "2"},
        {"threads": 0},
        {"threads": 1.5},
        {"threads": True},
        {"cache": 16},
        {"progress": "bar"},
    ],
    ids=repr,
)
def test_options_of_load_are_checked(folder: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        mvlm_np.load(folder, **options)


def test_more_threads_than_cores_is_noted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[int] = []
    monkeypatch.setattr("mvlm_np.backend.limit_threads", set_to.append)
    monkeypatch.setattr("mvlm_np.cores.usable", lambda: ([0, 1], "every core that there is"))
    assert mvlm_np.load(folder, threads=2).notes == []
    (note,) = mvlm_np.load(folder, threads=3).notes
    assert note.startswith("3 threads on 2 cores")
    assert set_to == [2, 3]


@pytest.mark.parametrize("args", [None, {"model_path": "m"}])
def test_the_published_call_takes_an_object_with_attributes(args: Any) -> None:
    with pytest.raises(UserError, match="args"):
        inference_once(args)


@pytest.mark.parametrize(
    "given",
    [{"prompt": None}, {"image_file": 3}, {"temperature": None}, {"conv_mode": None}, {"model_path": None}],
)
def test_the_published_call_checks_what_it_is_given(folder: Path, given: dict[str, Any]) -> None:
    args = {"model_path": str(folder), "image_file": CAT, "prompt": "?", "temperature": 0}
    with pytest.raises(UserError):
        inference_once(SimpleNamespace(**{**args, **given}))
