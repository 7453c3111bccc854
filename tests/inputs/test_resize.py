"""Resizing without the padding equals resizing with it, to the bit, whatever the sizes."""

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image

from mvlm_np.inputs import resize as module
from mvlm_np.inputs.resize import Axis, resize

BICUBIC = Image.Resampling.BICUBIC
COLOUR = (122, 116, 104)
SIDES = st.one_of(st.integers(1, 12), st.integers(1, 400), st.integers(300, 1700))
OUTS = st.one_of(st.sampled_from([1, 2, 224, 336]), st.integers(1, 400))


@pytest.fixture
def no_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own resize is out of reach, and pictures are worked on in several blocks."""
    monkeypatch.setattr(module, "AFFORDABLE", 0)
    monkeypatch.setattr(module, "BLOCK", 5000)


def picture(width: int, height: int, seed: int, hard: bool = False) -> Image.Image:
    """Noise; with `hard` black and white only, where the cubic overshoots and is cut to 0 and 255."""
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray((levels // 128 * 255).astype(np.uint8) if hard else levels)


def padded(image: Image.Image) -> Image.Image:
    """Upstream's square, literally."""
    longer = max(image.size)
    square = Image.new("RGB", (longer, longer), COLOUR)
    square.paste(image, ((longer - image.width) // 2, (longer - image.height) // 2))
    return square


def centre(image: Image.Image, width: int, height: int) -> np.ndarray:
    """The middle, (3, height, width); black where the picture does not reach."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height))).transpose(2, 0, 1)


@pytest.mark.usefixtures("no_pillow")
class TestOwnPasses:
    @given(SIDES, SIDES, OUTS, st.integers(0, 99), st.booleans())
    @example(1, 1, 336, 0, False)
    @example(3, 2, 336, 0, False)  # upstream takes a longer side of 3 for channels-first
    @example(2, 3, 336, 0, True)
    @example(335, 1, 336, 0, True)
    @example(337, 336, 336, 0, True)
    @example(1, 1700, 336, 0, True)
    @example(1700, 1, 336, 0, True)
    def test_equals_resizing_the_padded_square(
        self, width: int, height: int, out: int, seed: int, hard: bool
    ) -> None:
        image = picture(width, height, seed, hard)
        longer = max(width, height)
        ours = resize(image, Axis(width, longer, out, out), Axis(height, longer, out, out), COLOUR)
        theirs = centre(padded(image).resize((out, out), BICUBIC), out, out)
        np.testing.assert_array_equal(ours, theirs)

    @given(SIDES, SIDES, OUTS, OUTS, OUTS, OUTS, st.integers(0, 99), st.booleans())
    @example(400, 3, 30000, 225, 336, 336, 0, True)
    @example(3, 400, 225, 30000, 336, 336, 0, True)
    def test_equals_pillow_along_x_then_along_y_then_cut(
        self, width: int, height: int, out_x: int, out_y: int, crop_x: int, crop_y: int, seed: int, hard: bool
    ) -> None:
        image = picture(width, height, seed, hard)
        ours = resize(image, Axis(width, width, out_x, crop_x), Axis(height, height, out_y, crop_y), COLOUR)
        theirs = image.resize((out_x, height), BICUBIC).resize((out_x, out_y), BICUBIC)
        np.testing.assert_array_equal(ours, centre(theirs, crop_x, crop_y))

    @given(st.integers(1, 300), st.integers(1, 300), OUTS, OUTS, OUTS)
    def test_a_crop_of_the_padded_square_may_be_smaller_or_larger(
        self, width: int, height: int, out: int, crop_x: int, crop_y: int
    ) -> None:
        image = picture(width, height, seed=1)
        longer = max(width, height)
        ours = resize(image, Axis(width, longer, out, crop_x), Axis(height, longer, out, crop_y), COLOUR)
        theirs = centre(padded(image).resize((out, out), BICUBIC), crop_x, crop_y)
        np.testing.assert_array_equal(ours, theirs)

    @given(st.integers(1, 60_000), st.integers(0, 2), st.integers(64, 400))
    def test_a_picture_in_the_colour_of_the_padding_cannot_be_seen(
        self, longer: int, shorter: int, out: int
    ) -> None:
        image = Image.new("RGB", (longer, min(longer, shorter + 1)), COLOUR)
        ours = resize(image, Axis(longer, longer, out, out), Axis(image.height, longer, out, out), COLOUR)
        assert (ours == np.reshape(COLOUR, (3, 1, 1))).all()


@given(SIDES, SIDES, st.integers(1, 400), st.integers(1, 400), st.integers(1, 400))
def test_pillow_itself_resizes_what_is_not_padded(
    width: int, height: int, shorter: int, crop_x: int, crop_y: int
) -> None:
    out_x, out_y = (shorter * side // min(width, height) for side in (width, height))
    assume(out_x * out_y <= 1 << 22)
    image = picture(width, height, seed=2)
    ours = resize(image, Axis(width, width, out_x, crop_x), Axis(height, height, out_y, crop_y), COLOUR)
    np.testing.assert_array_equal(ours, centre(image.resize((out_x, out_y), BICUBIC), crop_x, crop_y))
    assert ours.flags.c_contiguous


@pytest.mark.parametrize("size", [(1512, 2016), (2016, 1511)], ids=["portrait", "landscape"])
def test_photo_sized_pictures_equal_the_padded_square(size: tuple[int, int]) -> None:
    image = picture(*size, seed=3)
    x, y = (Axis(side, max(size), 336, 336) for side in size)
    np.testing.assert_array_equal(
        resize(image, x, y, COLOUR), centre(padded(image).resize((336, 336), BICUBIC), 336, 336)
    )


@pytest.mark.parametrize(("side", "out"), [(4, 3), (2, 8), (9, 9), (1, 5)])
def test_weights_are_whole_numbers_that_sum_to_one(side: int, out: int) -> None:
    """Up to their rounding, which is at most half a unit each."""
    low, weights = module._weights(Axis(side, side, out, out), 0, out)
    assert low == 0
    assert weights.shape == (out, side)
    assert (weights == np.trunc(weights)).all()
    assert (abs(weights.sum(1) - 2**module.WEIGHT_BITS) <= side / 2).all()


def test_shrinking_by_two_has_the_weights_of_the_textbook() -> None:
    """Keys' cubic with a = -1/2 at the distances 1/4, 3/4, 5/4, 7/4, halved: 111, 29, -9, -3 of 256."""
    _, weights = module._weights(Axis(64, 64, 32, 32), 16, 17)
    expected = np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256
    np.testing.assert_array_equal(weights[0], expected * 2**module.WEIGHT_BITS)
