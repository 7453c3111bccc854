"""A picture's file in memory, opened; whatever is wrong with it is one kind of error."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageOps, UnidentifiedImageError

from mvlm_np.errors import ImageError
from mvlm_np.inputs.picture_file import unreadable


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """The picture, to be decoded within.

    ImageError: it is none, is damaged, or has more pixels than Pillow allows.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                yield image
        except UnidentifiedImageError:
            found = "is empty" if not data else "is no picture that Pillow can read"
            raise ImageError("the picture", found, "a JPEG, PNG, WebP or the like") from None
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
