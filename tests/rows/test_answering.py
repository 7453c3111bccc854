"""Many rows get the answers that `ask` gives, to the bit, and what they have in common is computed once."""

import itertools
from collections.abc import Iterator
from functools import lru_cache
from math import isclose
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import mvlm_np
from mvlm_np import batch, decoder
from mvlm_np.demo import MODEL, PICTURES
from mvlm_np.errors import GenerationError, PromptError, SchemaError, UserError
from mvlm_np.generation import log_probabilities
from mvlm_np.model import MobileVLM
from mvlm_np.rows.answering import AHEAD, answer
from mvlm_np.rows.pictures import Pictures
from mvlm_np.rows.row import Answered, Row, as_rows

pytestmark = pytest.mark.xdist_group("demo")

PHOTOS = sorted(str(path) for path in PICTURES.glob("*.png"))[:3]
QUESTIONS = ["Is there a lamp?", "What does the label say?", "Describe it.", "", "How many lamps are on?"]
FAULTY = "<image><image>", "word " * 3000
asked = st.tuples(
    st.sampled_from([*PHOTOS, None, "there/is/none.png"]),
    st.sampled_from([*QUESTIONS, *FAULTY]),
    st.sampled_from([0, 1, 3, 20]),
)


@lru_cache
def packed(cache: str = "float16") -> MobileVLM:
    """The model in the box, with which rows share what they have in common."""
    pytest.importorskip("numba")
    return mvlm_np.load(MODEL, precision="int4", backend="numba", cache=cache)


@lru_cache(2048)
def alone(
    model: MobileVLM, picture: str | None, question: str, most: int, temperature: float = 0
) -> tuple[str | None, str | None]:
    """What `ask` answers, or its error."""
    try:
        return model.ask(picture, question, max_new_tokens=most, temperature=temperature, seed=7), None
    except UserError as error:
        return None, str(error)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(asked, max_size=9),
    st.integers(1, 6),
    st.sampled_from(["float16", "int8"]),
    st.sampled_from([0, 0.8]),
)
def test_each_row_gets_to_the_bit_what_ask_gives_in_order(given, together, cache, temperature):
    model = packed(cache)
    rows = [Row(str(i), *row) for i, row in enumerate(given)]
    got = list(answer(model, iter(rows), together=together, temperature=temperature, seed=7))
    assert [one.row for one in got] == rows
    for one, row in zip(got, given, strict=True):
        text, error = alone(model, *row, temperature)
        # Of several errors, that of the prompt comes first here, and that of the picture there.
        assert one.answer == text and (one.error is None) == (error is None)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_float_weights_too_give_what_ask_gives(backend):
    if backend == "numba":
        pytest.importorskip("numba")
    model = mvlm_np.load(MODEL, precision="float32", backend=backend)
    rows = [(photo, question) for photo in PHOTOS[:2] for question in QUESTIONS[:3]]
    got = [one.answer for one in model.batch(rows, max_new_tokens=4)]
    assert got == [model.ask(*row, max_new_tokens=4) for row in rows]


def test_the_probability_is_the_product_of_those_of_the_tokens():
    model, question = packed(), QUESTIONS[1]
    (got,) = model.batch([(PHOTOS[0], question)], max_new_tokens=5)
    chat = model.chat(PHOTOS[0])
    chat.ask(question, max_new_tokens=5)
    assert got.tokens == len(chat.answer_ids) > 1
    x, _ = model.embed([*chat.prompt_ids, *chat.answer_ids], chat.images)
    session, total = model.session(), 0.0
    before = len(x) - len(chat.answer_ids)
    session.cache.reserve(len(x))
    h = session.forward(x)
    logits = model.decoder.lm_head(h[before - 1 : -1])[:, : model.tokenizer.vocab_size]
    for row, token in zip(log_probabilities(logits), chat.answer_ids, strict=True):
        total += row[token]
    assert isclose(got.probability, np.exp(total), rel_tol=1e-9) and 0 < got.probability < 1


def test_answers_fit_a_schema():
    model, schema = packed(), {"enum": ["on", "off"]}
    got = list(model.batch([(PHOTOS[0], QUESTIONS[0]), (None, "Well?")], schema=schema))
    assert [one.answer for one in got] == [
        model.ask(PHOTOS[0], QUESTIONS[0], schema=schema),
        model.ask(None, "Well?", schema=schema),
    ]


# ---------------------------------------------------------------- what is computed


class Counting:
    """Counts pictures that are encoded, and positions that go through the decoder, pass by pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: MobileVLM):
        self.encoded, self.passes = 0, list[int]()
        encoding, forward = model.encoding, decoder.forward

        def counted(*args: Any) -> Iterator[np.ndarray]:
            self.encoded += 1
            return encoding(*args)

        def passed(x: np.ndarray, *args: Any) -> np.ndarray:
            self.passes.append(len(x))
            return forward(x, *args)

        monkeypatch.setattr(model, "encoding", counted)
        monkeypatch.setattr(batch.decoder, "forward", passed)


def test_a_picture_is_encoded_and_read_once_and_its_questions_are_read_together(monkeypatch):
    model = packed()
    count = Counting(monkeypatch, model)
    rows = [(PHOTOS[0], question) for question in (*QUESTIONS[:3], QUESTIONS[4])]
    list(model.batch(rows, max_new_tokens=1))
    lengths = [len(model.tokenizer.encode(question)) for _, question in rows]  # the template's are to come
    assert count.encoded == 1
    first, second = count.passes  # the picture with the first question; the other three questions
    assert first > 144 + lengths[0]
    assert sum(lengths[1:]) <= second < sum(lengths[1:]) + 3 * 16


def test_sequences_share_passes(monkeypatch):
    model = packed()
    count = Counting(monkeypatch, model)
    rows = [(photo, "Describe it.") for photo in PHOTOS for _ in range(4)]
    got = list(model.batch(rows, max_new_tokens=12, together=4))
    tokens = sum(one.tokens for one in got)
    assert count.encoded == len(PHOTOS)
    assert len(count.passes) < tokens / 2.5


def test_pictures_that_do_not_fit_in_memory_are_encoded_once_too(monkeypatch):
    model, rows = packed(), [(photo, QUESTIONS[1]) for photo in PHOTOS * 3]
    wanted, count = [alone(model, *row, 6)[0] for row in rows], Counting(monkeypatch, model)
    for stored, encoded in (
        (1 << 30, len(PHOTOS)),
        (0, len(rows)),
        (model.encode_image(PHOTOS[0]).nbytes, 7),
    ):
        count.encoded = 0
        pictures = Pictures(model, budget=1, stored=stored)
        got = answer(model, as_rows(rows, 6), pictures=pictures)
        assert [one.answer for one in got] == wanted
        assert count.encoded == encoded
    pictures = Pictures(model, budget=1)
    with open("/dev/full", "r+b", buffering=0) as full:
        pictures.__dict__["_file"] = full
        assert [one.answer for one in answer(model, as_rows(rows, 6), pictures=pictures)] == wanted


def test_the_same_picture_may_come_as_file_bytes_pixels(monkeypatch):
    model, photo = packed(), PHOTOS[0]
    pixels = Image.open(photo).convert("RGB")
    again = np.array(pixels)
    wanted, count = alone(model, photo, QUESTIONS[1], 6), Counting(monkeypatch, model)
    forms = [photo, Path(photo), Path(photo).read_bytes(), pixels, again]
    got = list(model.batch([(form, QUESTIONS[1]) for form in forms for _ in range(2)], max_new_tokens=6))
    assert {one.answer for one in got} == {wanted[0]}
    assert count.encoded == len(forms) - 1  # a path is one, however it is given


def test_a_file_that_changes_is_another_picture(tmp_path):
    model, path = packed(), tmp_path / "now.png"

    def rows() -> Iterator[tuple[Path, str]]:
        for photo in PHOTOS[:2]:
            path.write_bytes(Path(photo).read_bytes())
            yield path, QUESTIONS[2]

    got = [one.answer for one in model.batch(rows(), max_new_tokens=12)]
    assert got == [alone(model, photo, QUESTIONS[2], 12)[0] for photo in PHOTOS[:2]]


# ---------------------------------------------------------------- the stream


def test_rows_are_taken_as_they_are_needed():
    taken = 0

    def rows() -> Iterator[Row]:
        nonlocal taken
        for taken in itertools.count(1):
            yield Row(str(taken), None, "Well?", max_new_tokens=100 if taken == 1 else 1)

    got = answer(packed(), rows(), together=2)
    for i in range(1, 2 * AHEAD):
        assert next(got).row.key == str(i)
        assert taken <= i + AHEAD
    got.close()


def test_what_has_failed_before_keeps_its_place_and_bugs_end_their_row_only(monkeypatch, caplog):
    model, broken = packed(), Answered(Row("b", None, ""), None, "rows.csv: row 2: has no picture")
    encoding = model.encoding

    def failing(*args: Any) -> Iterator[np.ndarray]:
        raise ZeroDivisionError("nobody expected\nthis")

    monkeypatch.setattr(model, "encoding", failing)
    row = Row("c", None, "Well?", 2)
    got = list(answer(model, [Row("a", PHOTOS[0], "What?"), broken, row]))
    assert got[0].error == "ZeroDivisionError: nobody expected this" and "a" in caplog.text
    assert got[1] is broken
    assert got[2].answer == alone(model, None, "Well?", 2)[0]
    monkeypatch.setattr(model, "encoding", encoding)


@pytest.mark.parametrize(
    "wrong, error",
    [
        ({"num_beams": 2}, GenerationError),
        ({"temperature": -1}, GenerationError),
        ({"together": 0}, GenerationError),
        ({"colour": 1}, GenerationError),
        ({"max_new_tokens": 3}, GenerationError),
        ({"conv_mode": "none"}, PromptError),
        ({"schema": {"type": "what"}}, SchemaError),
    ],
)
def test_what_is_wrong_for_all_rows_is_said_before_the_first(wrong, error):
    def rows() -> Iterator[Row]:
        raise AssertionError("a row was asked for")
        yield

    with pytest.raises(error):
        answer(packed(), rows(), **wrong)


def test_what_is_no_row_is_named():
    with pytest.raises(PromptError, match=r"row 2: found 'photo.png'"):
        list(packed().batch([(None, "Well?"), "photo.png"], max_new_tokens=1))
