"""Pictures of requests, decoded within limits before anything is queued. One that is none is an error."""

from collections.abc import Sequence

from PIL import Image

from mvlm_np.errors import ImageError
from mvlm_np.inputs.image import open_image
from mvlm_np.inputs.picture_file import Encoded, open_encoded

PIXELS = 64_000_000  # of a picture, at most; phones have 12 to 50 million
IN_ALL = 2 * PIXELS  # of a request's pictures, which are in memory together
SHRINK = "send a smaller one; the model sees 336 x 336"


def decode(pictures: Sequence[Encoded]) -> list[Image.Image]:
    """RGB pictures as the model sees them. ImageError, which names the picture: it is none, or too large."""
    decoded: list[Image.Image] = []
    for picture in pictures:
        before = sum(image.width * image.height for image in decoded)
        decoded.append(_decode(picture, min(PIXELS, IN_ALL - before)))
    return decoded


def _decode(picture: Encoded, most: int) -> Image.Image:
    """most: pixels that it may have"""
    try:
        with open_encoded(picture) as opened:
            width, height = opened.size
    except Image.DecompressionBombError:
        raise ImageError(picture.name, "has too many pixels", f"at most {PIXELS:,}", SHRINK) from None
    if width * height > most:
        found = f"has {width} x {height} pixels"
        wanted = f"at most {PIXELS:,}, and {IN_ALL:,} with the others of its request"
        raise ImageError(picture.name, found, wanted, SHRINK)
    return open_image(picture)
