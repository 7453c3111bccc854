"""MobileVLM as its users meet it: questions, pictures, turns, limits."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mvlm_np
from mvlm_np.errors import GenerationError, ImageError, PromptError, TokenizerError, UserError
from mvlm_np.inputs.image import open_image, preprocess
from mvlm_np.inputs.tokenizer import IMAGE_TOKEN
from mvlm_np.model import MobileVLM
from mvlm_np.projector import image_tokens
from mvlm_np.trace import Watch
from tests.conftest import ROOT

CAT = ROOT / "examples" / "chelsea.jpg"
QUESTION = "What animal is this?"
SHORT: dict[str, Any] = {"max_new_tokens": 12}


@pytest.fixture(scope="module")
def model(tiny: Path) -> MobileVLM:
    return mvlm_np.load(tiny, backend="numpy")


@pytest.fixture(scope="module")
def other_picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)


def test_pieces_of_a_stream_are_the_answer(model: MobileVLM) -> None:
    pieces = list(model.stream(CAT, QUESTION, **SHORT))
    assert len(pieces) > 1
    assert "".join(pieces) == model.ask(CAT, QUESTION, **SHORT)


def test_one_beam_is_greedy(model: MobileVLM) -> None:
    assert model.ask(CAT, QUESTION, num_beams=1, **SHORT) == model.ask(CAT, QUESTION, **SHORT)


def test_a_seed_repeats_an_answer(model: MobileVLM) -> None:
    drawn = [model.ask(CAT, QUESTION, temperature=2.0, seed=seed, **SHORT) for seed in (1, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_a_picture_may_be_a_path_an_image_or_an_array(model: MobileVLM) -> None:
    image = Image.open(CAT)
    encoded = [model.encode_image(i) for i in (CAT, str(CAT), image, np.asarray(image.convert("RGB")))]
    for other in encoded[1:]:
        np.testing.assert_array_equal(other, encoded[0])
    assert encoded[0].dtype == np.float32
    assert encoded[0].shape == (image_tokens(model.config), model.config.decoder.hidden_size)


def test_a_picture_is_encoded_step_by_step_as_at_once(model: MobileVLM) -> None:
    pixels = preprocess(open_image(CAT), model.config.image)
    *states, tokens = model.encoding(pixels)
    assert len(states) == model.config.vision_layers + 1
    np.testing.assert_array_equal(tokens, model.encode_image(CAT))


def test_several_pictures_are_each_encoded_as_if_alone(model: MobileVLM, other_picture: np.ndarray) -> None:
    both = model.encode_images([CAT, other_picture])
    np.testing.assert_array_equal(both[0], model.encode_image(CAT))
    np.testing.assert_array_equal(both[1], model.encode_image(other_picture))


def test_the_order_of_pictures_matters(model: MobileVLM, other_picture: np.ndarray) -> None:
    first = model.trace([CAT, other_picture], QUESTION, max_new_tokens=1)["logits"]
    second = model.trace([other_picture, CAT], QUESTION, max_new_tokens=1)["logits"]
    assert first.shape == second.shape
    assert not np.array_equal(first, second)


def test_a_question_without_a_picture_is_text_only(model: MobileVLM) -> None:
    traced = model.trace(None, "Hello?", max_new_tokens=2)
    assert IMAGE_TOKEN not in traced["input_ids"]
    assert not [name for name in traced if name.startswith(("vision", "projector", "pixel"))]


def test_photos_are_turned_upright_for_people_and_not_for_traces(model: MobileVLM, tmp_path: Path) -> None:
    image = Image.open(CAT).convert("RGB").crop((0, 0, 336, 200))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    image.save(tmp_path / "plain.png")
    upright = model.encode_image(image.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(model.encode_image(tmp_path / "turned.png"), upright)
    plain = model.encode_image(tmp_path / "plain.png")
    np.testing.assert_array_equal(model.encode_image(tmp_path / "turned.png", exif=False), plain)
    traced = model.trace(tmp_path / "turned.png", QUESTION, max_new_tokens=1)
    np.testing.assert_array_equal(traced["projector.output"][0], plain)


# ---------------------------------------------------------------- turns


class Phases(Watch):
    """Counts how often each phase was entered, and how many positions the decoder read."""

    def __init__(self) -> None:
        super().__init__()
        self.read = 0
        self.encoded = 0

    def __call__(self, name: str, array: np.ndarray) -> None:
        self.read += len(array) if name == "decoder.hidden_states.0" else 0
        self.encoded += name == "pixel_values"


def test_a_turn_answers_as_a_fresh_model_given_the_history(model: MobileVLM) -> None:
    chat = model.chat(CAT)
    for question in ("What is it?", "And what colour?", "Are you sure?"):
        history = list(chat.history)
        assert chat.ask(question, **SHORT) == model.ask(CAT, question, history=history, **SHORT)
    assert [asked for asked, _ in chat.history] == ["What is it?", "And what colour?", "Are you sure?"]


def test_a_turn_encodes_nothing_again_and_reads_only_what_is_new(model: MobileVLM) -> None:
    watch = Phases()
    chat = model.chat(CAT, watch=watch)
    chat.ask("What is it?", **SHORT)
    first = watch.read
    assert first > image_tokens(model.config)
    chat.ask("And?", **SHORT)
    assert watch.encoded == 1
    assert watch.read - first < 60


def test_a_turn_that_is_not_finished_leaves_no_trace(model: MobileVLM) -> None:
    chat = model.chat(CAT)
    next(iter(chat.stream("What is it?", **SHORT)))
    assert chat.history == []
    assert chat.ask(QUESTION, **SHORT) == model.ask(CAT, QUESTION, **SHORT)


def test_beams_leave_the_conversation_where_it_was(model: MobileVLM) -> None:
    chat = model.chat(CAT)
    first = chat.ask(QUESTION, num_beams=3, **SHORT)
    assert first == model.ask(CAT, QUESTION, num_beams=3, **SHORT)
    assert chat.ask("And?", **SHORT) == model.ask(CAT, "And?", history=[(QUESTION, first)], **SHORT)


def test_threads_may_share_a_model(model: MobileVLM) -> None:
    questions = ["What?", "Where?", "Who is it?", "Why?"]
    alone = [model.ask(CAT, question, **SHORT) for question in questions]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda question: model.ask(CAT, question, **SHORT), questions))
    assert together == alone


# ---------------------------------------------------------------- limits and bad input


def test_no_new_tokens_is_an_empty_answer(model: MobileVLM) -> None:
    assert model.ask(CAT, QUESTION, max_new_tokens=0) == ""
    assert model.generate([1, 5, 6], max_new_tokens=0) == []


def test_an_empty_question_is_asked_as_it_is(model: MobileVLM) -> None:
    assert isinstance(model.ask(CAT, "", **SHORT), str)


def test_answers_stop_where_the_context_ends(model: MobileVLM) -> None:
    context = model.config.decoder.max_position_embeddings
    ids = [1] + [10] * (context - 4)
    assert len(model.generate(ids, max_new_tokens=50)) <= 3


def test_a_prompt_that_fills_the_context_is_an_error(model: MobileVLM) -> None:
    with pytest.raises(PromptError, match=r"prompt: takes \d+ positions, .* shorten"):
        model.ask(CAT, "word " * 5000)
    with pytest.raises(PromptError):
        model.generate([1] * model.config.decoder.max_position_embeddings)


def test_a_mark_in_the_question_places_the_picture(model: MobileVLM) -> None:
    ids = model.trace(CAT, "Before <image> after?", max_new_tokens=1)["input_ids"][0].tolist()
    assert ids.count(IMAGE_TOKEN) == 1
    text = model.tokenizer.decode([i for i in ids[: ids.index(IMAGE_TOKEN)]])
    assert text.endswith("Before ")


def test_more_marks_than_pictures_is_an_error(model: MobileVLM) -> None:
    with pytest.raises(PromptError):
        model.ask(CAT, "<image> and <image>?")
    with pytest.raises(PromptError):
        model.ask(None, "What is in <image>?")


@pytest.mark.parametrize(
    "ids", [[], np.empty(0, np.int64), [-1], [10**6], [1.5], [[1, 2]], [IMAGE_TOKEN], "abc"]
)
def test_ids_that_are_none_are_refused(model: MobileVLM, ids: list[int]) -> None:
    with pytest.raises(PromptError, match=r"^ids: "):
        model.generate(ids)


@pytest.mark.parametrize(
    "settings", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"num_beams": 0}, {"max_new_tokens": -1}]
)
def test_bad_settings_are_refused_before_anything_runs(model: MobileVLM, settings: dict[str, Any]) -> None:
    with pytest.raises(GenerationError, match=next(iter(settings))):
        model.stream(CAT, QUESTION, **settings)


def test_a_template_that_is_not_known_is_refused(model: MobileVLM) -> None:
    with pytest.raises(PromptError, match="v1"):
        model.ask(CAT, QUESTION, conv_mode="nonsense")


def test_a_missing_picture_is_one_line(model: MobileVLM, tmp_path: Path) -> None:
    with pytest.raises(ImageError) as error:
        model.ask(tmp_path / "none.jpg", QUESTION)
    assert "\n" not in str(error.value)


def test_a_model_without_tokenizer_generates_but_cannot_be_asked(tiny: Path, tmp_path: Path) -> None:
    for path in tiny.rglob("*"):
        if path.is_file() and not path.name.startswith("tokenizer"):
            (tmp_path / path.relative_to(tiny)).parent.mkdir(exist_ok=True)
            (tmp_path / path.relative_to(tiny)).write_bytes(path.read_bytes())
    model = mvlm_np.load(tmp_path, backend="numpy")
    assert len(model.generate([1, 5], max_new_tokens=3)) == 3
    with pytest.raises(TokenizerError, match=r"tokenizer\.model"):
        model.ask(CAT, QUESTION)


def test_a_text_only_model_refuses_pictures(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(UserError, match="reads text only"):
        _text_only(tiny, tmp_path).generate([1, IMAGE_TOKEN], CAT)


def _text_only(folder: Path, tmp_path: Path) -> MobileVLM:
    """The decoder of the small model alone, as MobileLLaMA is published."""
    import json

    from safetensors.numpy import save_file

    from mvlm_np.checkpoints.safetensors import read_safetensors

    keep = ("model.embed_tokens", "model.layers", "model.norm", "lm_head")
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if not key.startswith("mm_")}
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    tensors = {
        k: t.float32()
        for k, t in read_safetensors(folder / "model.safetensors").items()
        if k.startswith(keep)
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return mvlm_np.load(tmp_path, backend="numpy")
