"""From a record's picture to pixel values, as `mvlm_np` makes them of a picture that it is asked about."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageFile

from mvlm_np.config import ImageConfig
from mvlm_np.errors import UserError
from mvlm_np.inputs.image import open_image, preprocess
from tools.training.records import Record

_CUT_OFF = threading.Lock()  # held while Pillow reads files that are cut off


def pixels(record: Record, config: ImageConfig, *, as_published: bool) -> np.ndarray:
    """float32 (3, h, w); zeros for a record without a picture.

    config  its aspect_ratio is the stage's: "pad" in fine-tuning, "square" in pretraining, which crops

    With `as_published` no photo is turned upright, and the lower part of one that is cut off is grey.

    UserError: no picture, a damaged one, or too large a one.
    """
    if record.image is None:
        return np.zeros((3, *config.crop), np.float32)
    return preprocess(opened(record, as_published=as_published), config)


def opened(record: Record, *, as_published: bool) -> Image.Image:
    """The picture of a record that has one, of mode RGB; see `pixels`."""
    assert record.image is not None
    try:
        if not as_published:
            return open_image(record.image)
        with _cut_off_files():
            return open_image(record.image, exif=False, adapt=False)
    except UserError as error:
        raise UserError(record.where, error) from None


@contextmanager
def _cut_off_files() -> Iterator[None]:
    """Has Pillow fill in what is missing at the end of a file. It holds for the whole process."""
    with _CUT_OFF:
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before
