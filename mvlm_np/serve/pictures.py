"""Pictures of requests, decoded within limits before anything is queued. One that is none is an error."""

from collections.abc import Sequence

from PIL import Image

from mvlm_np.errors import ImageError
from mvlm_np.inputs.image import open_image
from mvlm_np.inputs.picture_file import Encoded, open_encoded

PIXELS = 64_000_000  # of a picture, at most; phones have 12 to 50 million
SHRINK = "send a smaller one; the model sees 336 x 336"


def decode(pictures: Sequence[Encoded]) -> list[Image.Image]:
    """RGB pictures as the model sees them. ImageError, which names the picture: it is none, or too large."""
    return [_decode(picture) for picture in pictures]


def _decode(picture: Encoded) -> Image.Image:
    try:
        with open_encoded(picture) as opened:
            width, height = opened.size
    except Image.DecompressionBombError:
        raise ImageError(picture.name, "has too many pixels", f"at most {PIXELS:,}", SHRINK) from None
    if width * height > PIXELS:
        found = f"has {width} x {height} pixels"
        raise ImageError(picture.name, found, f"at most {PIXELS:,}", SHRINK)
    return open_image(picture)
