"""Pictures of requests: as they are written there, and decoded within limits before anything is queued."""

import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from mvlm_np.errors import ImageError
from mvlm_np.inputs.image import open_image
from mvlm_np.inputs.picture_file import Encoded, open_encoded
from mvlm_np.serve.fields import shown
from mvlm_np.serve.refused import Refused

PIXELS = 64_000_000  # of a picture, at most; phones have 12 to 50 million
IN_ALL = 2 * PIXELS  # of a request's pictures, which are in memory together
SHRINK = "send a smaller one; the model sees 336 x 336"


@dataclass(frozen=True)
class Link:
    """The address of a picture, which has yet to be fetched, and what errors call it."""

    url: str
    name: str

    def refusal(self, found: str, wanted: str | None = None, fix: str | None = None) -> Refused:
        """That there is no picture to be had there."""
        return Refused(self.name, found, wanted, fix, field=self.name, code="invalid_image_url")


def picture_at(url: str, name: str) -> Encoded | Link:
    """The picture in `data:[type][;parameter];base64,...`, whose type is not believed, or a link to one.

    Refused: it is another URL, or none.
    """
    if re.match(r"\s*https?://", url, re.IGNORECASE):
        return Link(url.strip(), name)
    head, comma, data = url.partition(",")
    head = head.lower().strip()
    if not (comma and head.startswith("data:") and head.endswith(";base64")):
        scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url)
        found = f"is a URL of {scheme[0].lower()}" if scheme else f"found {shown(url)}"
        raise not_sent(Link(url, name), found)
    return from_base64(data, name)


def not_sent(link: Link, found: str) -> Refused:
    """An address in whose place the picture is wanted."""
    return link.refusal(
        found, "data:image/jpeg;base64,... with the picture's file", "send the picture itself"
    )


def from_base64(text: str, name: str) -> Encoded:
    """A picture's file in base64, with white space or without, with padding or without."""
    text = "".join(text.split()).rstrip("=")
    try:
        data = binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True) if text else b""
    except ValueError:
        raise Refused(name, "is not base64", "a picture's file in base64", field=name) from None
    return Encoded(data, name)


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
