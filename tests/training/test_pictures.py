"""Pixel values for training: what the engine would see, or what the published training saw."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvlm_np.config import ImageConfig
from mvlm_np.errors import UserError
from mvlm_np.inputs.image import open_image, preprocess
from tests.conftest import DATA, shared_path
from tests.training.fixtures import load
from tools.training.pictures import opened, pixels
from tools.training.records import Record

CONFIG = ImageConfig(resize=32, crop=(32, 32))
SQUARE = replace(CONFIG, aspect_ratio="square")


def record(path: Path | None) -> Record:
    return Record("data.json: record 3", path, ())


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photo of 64 x 40 pixels, taken with the camera on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    path = tmp_path / "photo.jpg"
    Image.fromarray(noise).save(path, exif=exif, quality=95)
    return path


def test_pictures_are_the_published_trainings() -> None:
    from mvlm_np.checkpoints.safetensors import read_safetensors

    records = load(shared_path("training/fixtures/loss.json"))["records"]
    stored = read_safetensors(shared_path("training/fixtures/loss.safetensors"))
    config = ImageConfig()
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (config.mean, config.std))
    for i, entry in enumerate(records):
        path = shared_path("images") / entry["image"] if "image" in entry else None
        for as_published in (True, False):
            found = pixels(record(path), config, as_published=as_published)
            if path is None:
                assert not found.any() and found.shape == (3, 336, 336)
            else:
                levels = stored[f"image_u8.{i}"].raw
                np.testing.assert_array_equal(found, ((levels / 255).astype(np.float32) - mean) / std)


def test_a_picture_is_what_the_engine_sees_when_it_is_asked(photo: Path) -> None:
    for path in (photo, DATA / "golden" / "picture.png"):
        for config in (CONFIG, SQUARE):
            found = pixels(record(path), config, as_published=False)
            np.testing.assert_array_equal(found, preprocess(open_image(path), config))
            assert found.dtype == np.float32
    assert opened(record(photo), as_published=False).size == (40, 64)


def test_the_published_training_turns_no_photo(photo: Path) -> None:
    assert opened(record(photo), as_published=True).size == (64, 40)


def test_the_published_training_cuts_off_deep_grey(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((8, 8), 1 << 14, np.uint16)).save(path)
    assert opened(record(path), as_published=True).getpixel((0, 0)) == (255, 255, 255)
    assert opened(record(path), as_published=False).getpixel((0, 0)) == (64, 64, 64)


def test_a_picture_is_padded_for_fine_tuning_and_cropped_for_pretraining(photo: Path) -> None:
    padded, cropped = (pixels(record(photo), config, as_published=True) for config in (CONFIG, SQUARE))
    assert np.ptp(padded[:, 0], axis=1).max() < 1e-6 < np.ptp(cropped[:, 0], axis=1).max()


def test_no_picture_is_zeros() -> None:
    np.testing.assert_array_equal(
        pixels(record(None), CONFIG, as_published=False), np.zeros((3, 32, 32), np.float32)
    )


def test_of_a_file_that_is_cut_off_the_published_training_sees_the_upper_part(photo: Path) -> None:
    whole = np.asarray(opened(record(photo), as_published=True))
    photo.write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])
    with pytest.raises(UserError) as error:
        pixels(record(photo), CONFIG, as_published=False)
    assert str(error.value).startswith(
        f"data.json: record 3: {photo}: cannot be read (image file is truncated"
    )
    assert str(error.value).endswith("wanted a whole picture; fetch or save it again")
    found = np.asarray(opened(record(photo), as_published=True))
    np.testing.assert_array_equal(found[:8], whole[:8])
    assert np.ptp(found[-1].astype(int), axis=0).max() == 0
    with pytest.raises(UserError):  # as before
        pixels(record(photo), CONFIG, as_published=False)


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8\xff\xe0"])
@pytest.mark.parametrize("as_published", [True, False])
def test_what_is_no_picture_is_one_line(content: bytes, as_published: bool, tmp_path: Path) -> None:
    path = tmp_path / "no.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        pixels(record(path), CONFIG, as_published=as_published)
    assert str(error.value).startswith(f"data.json: record 3: {path}: ")
    assert "\n" not in str(error.value)
