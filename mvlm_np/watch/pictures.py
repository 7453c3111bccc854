"""A picture's file in memory, opened; whatever is wrong with it is one kind of error."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageOps

from mvlm_np.errors import ImageError
from mvlm_np.inputs.picture_file import Encoded, open_encoded, unreadable


def encoded(data: bytes) -> Encoded:
    """As the model takes it. There is one at a time, so it needs no other name."""
    return Encoded(data, "the picture")


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """The picture, to be decoded within.

    ImageError: it is none, is damaged, or has more pixels than Pillow allows.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with open_encoded(encoded(data)) as image:
                yield image
        except ImageError:
            raise
        except Exception as error:
            raise unreadable("the picture", error) from None


def as_jpeg(data: bytes, side: int, most: int = 1 << 20) -> bytes:
    """A picture's file as a JPEG of at most `side` pixels a side; itself, if it is one of up to `most` bytes.

    ImageError: see `opened`.
    """
    with opened(data) as image:
        if image.format == "JPEG" and len(data) <= most and max(image.size) <= side:
            return data
        image.draft("RGB", (side, side))
        upright = ImageOps.exif_transpose(image).convert("RGB")
        upright.thumbnail((side, side))
        file = io.BytesIO()
        upright.save(file, "JPEG", quality=85)
        return file.getvalue()
