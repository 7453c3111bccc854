"""What counts as a change in front of a camera, in scenes whose pictures are known."""

import io
from collections.abc import Callable
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from mvlm_np.errors import ImageError
from mvlm_np.watch.gate import HEIGHT, WIDTH, Gate, thumbnail
from tests.watch.camera import jpeg, scene

RATE = 4  # looks a second


def watched(
    show: Callable[[float], np.ndarray], seconds: float, gate: Gate | None = None, begin: float = 0.0
) -> list[float]:
    """When the gate asked, if each question is answered at once; in seconds from the beginning."""
    gate, asked = gate or Gate(), []
    for i in range(round(seconds * RATE)):
        now = begin + i / RATE
        if gate.look(thumbnail(jpeg(show(now))), now):
            gate.asked()
            asked.append(now)
    return asked


def frame(now: float, **options: object) -> np.ndarray:
    """The room as a camera with some noise sees it."""
    return scene(seed=round(now * RATE), noise=4.0, **options)  # type: ignore[arg-type]


def test_a_still_room_is_asked_about_once() -> None:
    assert watched(frame, 60) == [1.0]  # once it has been calm for a second


def test_light_that_comes_and_goes_is_no_change() -> None:
    assert watched(lambda now: frame(now, light=20 * np.sin(now / 5)), 60) == [1.0]


def test_what_comes_and_stays_is_asked_about_once_it_stands() -> None:
    def show(now: float) -> np.ndarray:
        walked = min(max(now - 20, 0), 3)  # comes in from the left for three seconds
        return frame(now, at=(30, round(20 * walked)) if now >= 20 else None)

    first, second = watched(show, 60)
    assert first == 1.0 and 23 <= second <= 25


def test_what_passes_by_is_not_asked_about_and_what_goes_is() -> None:
    def passes(now: float) -> np.ndarray:
        return frame(now, at=(30, round(20 * (now - 20))) if 20 <= now < 23 else None)

    assert watched(passes, 60) == [1.0]
    first, came, went = watched(lambda now: frame(now, at=(30, 40) if 20 <= now < 40 else None), 60)
    assert (first, round(came), round(went)) == (1.0, 21, 41)


def test_what_never_settles_is_asked_about_after_a_while() -> None:
    def dances(now: float) -> np.ndarray:
        return frame(now, at=(24, 8 * (round(now * RATE) % 8)) if now >= 20 else None)

    asked = watched(dances, 40)
    assert asked[0] == 1.0 and 29 <= asked[1] <= 31  # ten times `settle`


def test_without_settling_a_change_is_asked_about_as_it_begins() -> None:
    gate = Gate(settle=0.0)
    assert watched(lambda now: frame(now, at=(30, 40) if now >= 20 else None), 40, gate) == [0.0, 20.0]


def test_a_tree_in_the_wind_is_learnt() -> None:
    """A quarter of the picture flickers from the beginning; later only what is elsewhere counts."""

    def show(now: float) -> np.ndarray:
        pixels = frame(now, at=(40, 60) if now >= 100 else None)
        pixels[:36, :48] = np.random.default_rng(round(now * RATE)).integers(0, 255, (36, 48, 1)) // 32 * 32
        return np.kron(pixels[::4, ::4], np.ones((4, 4, 1), np.uint8))

    asked = watched(show, 140)
    assert not [now for now in asked if 20 < now < 100]
    assert [round(now) for now in asked if now >= 100] == [101]


def test_a_smaller_change_than_wanted_is_none() -> None:
    def show(now: float) -> np.ndarray:
        return frame(now, at=(30, 40) if now >= 20 else None)  # 8 %

    assert len(watched(show, 40, Gate(change=0.05))) == 2
    assert len(watched(show, 40, Gate(change=0.15))) == 1


def test_with_no_change_wanted_each_look_is_one() -> None:
    assert len(watched(lambda now: scene(), 5, Gate(change=0.0))) == 5 * RATE


def test_a_change_stays_until_it_is_asked_about() -> None:
    gate = Gate()
    room, guest = (thumbnail(jpeg(scene(at=at))) for at in (None, (30, 40)))
    assert not gate.look(room, 0) and gate.look(room, 1)
    gate.asked()
    assert not gate.open
    assert [gate.look(guest, now) for now in (2, 3, 4)] == [False, True, True]
    assert gate.open
    assert not gate.look(room, 5) and gate.open  # gone, but not for long enough
    assert not gate.look(room, 6) and not gate.open


def test_nothing_grows() -> None:
    gate = Gate()
    for i in range(400):
        gate.look(np.zeros((HEIGHT, WIDTH), np.float32), i)
        assert len(gate._looks) <= 60
    for i in range(400):
        gate.look(np.zeros((HEIGHT, WIDTH), np.float32), 400 + i / 30)
        assert len(gate._looks) <= 60


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "1"])
def test_pictures_of_every_mode(mode: str) -> None:
    file = io.BytesIO()
    Image.fromarray(scene()).convert(mode).save(file, "TIFF")
    cells = thumbnail(file.getvalue())
    assert cells.shape == (HEIGHT, WIDTH) and cells.dtype == np.float32 and np.median(cells) == 0


def test_an_eighth_of_a_jpeg_shows_the_same_cells() -> None:
    large = np.kron(scene(noise=10), np.ones((10, 10, 1), np.uint8))
    file = io.BytesIO()
    Image.fromarray(large).save(file, "PNG")
    assert np.abs(thumbnail(jpeg(large)) - thumbnail(file.getvalue())).mean() < 2  # of 256; at edges more


@pytest.mark.parametrize("data", [b"", b"<html>", jpeg(scene())[:300], b"\xff\xd8\xff\xd9"])
def test_what_is_no_picture_is_an_error(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"^the picture: "):
        thumbnail(data)


def test_a_picture_that_would_not_fit_in_memory_is_an_error() -> None:
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    header = b"IHDR" + (20_000).to_bytes(4) * 2 + b"\x08\0\0\0\0"
    large = file.getvalue()[:12] + header + crc32(header).to_bytes(4) + file.getvalue()[33:]
    with pytest.raises(ImageError, match=r"cannot be read .*exceeds limit"):
        thumbnail(large)
