"""Pictures of more than 8 bits a pixel are seen, and what was done is said; upstream's way is a choice."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mvlm_np.inputs import levels
from mvlm_np.inputs.image import open_image
from mvlm_np.inputs.levels import to_grey

GREY = np.random.default_rng(0).integers(0, 256, (30, 40))
GREY[0, :2] = 0, 255  # so that every range is filled
NEGATIVE = {262: 0}  # a TIFF's PhotometricInterpretation

# Files, how they are written, and how much the grey seen may differ from GREY.
FILES: dict[str, tuple[Callable[[Path], None], int]] = {
    "16 bits, PNG": (lambda p: Image.fromarray((GREY * 257).astype("<u2")).save(p, "PNG"), 0),
    "16 bits, TIFF": (lambda p: Image.fromarray((GREY * 257).astype("<u2")).save(p, "TIFF"), 0),
    "16 bits, big-endian TIFF": (lambda p: Image.fromarray((GREY * 257).astype(">u2")).save(p, "TIFF"), 0),
    "16 bits, deflated TIFF": (
        lambda p: Image.fromarray((GREY * 257).astype("<u2")).save(
            p, "TIFF", compression="tiff_adobe_deflate"
        ),
        0,
    ),
    "16 bits, PGM": (lambda p: Image.fromarray((GREY * 257).astype(np.int32)).save(p, "PPM"), 0),
    "16 bits, JPEG 2000": (lambda p: Image.fromarray((GREY * 257).astype("<u2")).save(p, "JPEG2000"), 0),
    "16 bits, a negative": (
        lambda p: Image.fromarray(((255 - GREY) * 257).astype("<u2")).save(p, "TIFF", tiffinfo=NEGATIVE),
        0,
    ),
    "12 bits": (lambda p: Image.fromarray((GREY * 16).astype("<u2")).save(p, "PNG"), 1),
    "14 bits": (lambda p: Image.fromarray((GREY * 64).astype("<u2")).save(p, "PNG"), 1),
    "32 bits": (lambda p: Image.fromarray((GREY * 257).astype(np.int32)).save(p, "TIFF"), 0),
    "more than 16 bits": (lambda p: Image.fromarray((GREY * 8_000_000).astype(np.int32)).save(p, "TIFF"), 0),
    "below zero": (lambda p: Image.fromarray((GREY * 4 - 1024).astype(np.int32)).save(p, "TIFF"), 0),
    "far from zero": (lambda p: Image.fromarray((GREY + 29_000).astype("<u2")).save(p, "PNG"), 0),
    "float, 0 to 1": (lambda p: Image.fromarray((GREY / 255).astype(np.float32)).save(p, "TIFF"), 0),
    "float, -1 to 1": (lambda p: Image.fromarray((GREY / 127.5 - 1).astype(np.float32)).save(p, "TIFF"), 0),
    "float, metres": (lambda p: Image.fromarray((GREY / 25).astype(np.float32)).save(p, "TIFF"), 0),
    "float, huge": (lambda p: Image.fromarray((GREY * 1e36).astype(np.float32)).save(p, "TIFF"), 0),
}


@pytest.mark.parametrize("kind", FILES)
def test_what_is_seen_is_the_picture(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write, bound = FILES[kind]
    write(tmp_path / "a")
    seen = np.asarray(open_image(tmp_path / "a")).astype(int)
    assert abs(seen - GREY[:, :, None]).max() <= bound
    (note,) = caplog.messages
    assert note.startswith(f"{tmp_path / 'a'}: its values go from ")
    assert ("is shown black and" in note) and ("\n" not in note)


def test_the_note_says_which_values_are_black_and_white() -> None:
    def said(values: list[float], dtype: type) -> str:
        return to_grey(Image.fromarray(np.array([values]).astype(dtype)))[1]

    assert said([0, 3000], np.uint16) == "its values go from 0 to 3000; 0 is shown black and 4095 white"
    thermal = "its values go from 29000 to 31000; 29000 is shown black and 31000 white"
    assert said([29000, 31000], np.uint16) == thermal
    assert said([0, 0.25, np.nan], np.float32).endswith("and 1 white, and what is no number black")


def test_a_deep_picture_is_turned_upright_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray((GREY * 257).astype(np.uint16)).save(tmp_path / "a.png", exif=exif)
    seen = np.asarray(open_image(tmp_path / "a.png"))[:, :, 0]
    np.testing.assert_array_equal(seen, np.rot90(GREY, -1))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_values_of_8_bits_stay_as_they_are_and_nothing_is_said(
    dtype: type, caplog: pytest.LogCaptureFixture
) -> None:
    deep = Image.fromarray(GREY.astype(dtype))
    assert open_image(deep).tobytes() == deep.convert("RGB").tobytes()
    assert not caplog.records


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_as_upstream_has_it_they_are_cut(dtype: type, caplog: pytest.LogCaptureFixture) -> None:
    deep = Image.fromarray((GREY * 257).astype(dtype))
    assert open_image(deep, adapt=False).tobytes() == deep.convert("RGB").tobytes()
    assert not caplog.records


def test_infinities_are_black_and_white_and_what_is_no_number_is_black() -> None:
    values = np.array([[-np.inf, 0.0, 0.5, 1.0, np.inf, np.nan]], np.float32)
    grey, said = to_grey(Image.fromarray(values))
    assert [*np.asarray(grey)[0]] == [0, 0, 128, 255, 255, 0]
    assert said.endswith("and what is no number black")


@pytest.mark.parametrize(("value", "seen"), [(0, 0), (7, 7), (300, 75), (60000, 233), (-5, 0), (10**6, 255)])
def test_a_picture_of_one_value_is_seen_in_its_range(value: int, seen: int) -> None:
    grey, _ = to_grey(Image.fromarray(np.full((3, 4), value, np.int32)))
    assert {*grey.tobytes()} == {seen}


def test_a_picture_without_a_number_is_black() -> None:
    grey, said = to_grey(Image.fromarray(np.full((3, 4), np.nan, np.float32)))
    assert {*grey.tobytes()} == {0}
    assert said


@given(
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=50)
    | st.lists(st.floats(width=32), min_size=1, max_size=50)
)
def test_brighter_values_are_never_darker(values: list[float]) -> None:
    array = np.array([values], np.float32 if isinstance(values[0], float) else np.int32)
    grey = np.asarray(to_grey(Image.fromarray(array))[0])[0].astype(int)
    array = np.nan_to_num(array[0], nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    order = np.argsort(array, kind="stable")
    assert (np.diff(grey[order]) >= 0).all()


def test_rows_are_worked_on_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = Image.fromarray((GREY * 257).astype(np.uint16))
    whole = to_grey(deep)[0].tobytes()
    monkeypatch.setattr(levels, "BLOCK", 100)
    assert to_grey(deep)[0].tobytes() == whole
