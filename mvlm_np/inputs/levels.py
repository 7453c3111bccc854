"""Pictures of more than 8 bits a pixel: which of their values are black and white.

Upstream leaves them to Pillow's `convert`, which cuts every value above 255 to 255: a scan in 16 bits
becomes white, and a float picture of 0 to 1 black.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image

DEEP = {"I;16", "I;16B", "I;16L", "I;16N", "I", "F"}  # Pillow's modes of one channel with more than 8 bits
WHITES = (1, 255, 1023, 4095, 16383, 65535)  # what white usually is: 1 for floats, and 8 to 16 bits
FILLED = 0.1  # a picture that takes up less of its range than this has too little contrast to be seen
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # a tag of TIFF, and what it says of a negative, as X-rays may be
BLOCK = 1 << 21  # pixels that are worked on at a time


def to_grey(image: Image.Image) -> tuple[Image.Image, str]:
    """A picture of a mode in `DEEP` -> the same in 8 bits (mode L), and what was done, in words, or nothing.

    Black is 0 and white the smallest of `WHITES` that is not below any value. Where the values take up
    less than a tenth of that range, or leave it on either side, the smallest is black and the largest
    white. NaN is black. A TIFF whose white is zero is turned around. Where that leaves the values as
    they are, they are converted as Pillow converts them.
    """
    low, high, numbers = _extremes(image)
    black, white = _range(low, high)
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        black, white = white, black
    if (black, white) == (0, 255) and numbers:
        return image.convert("L"), ""
    grey = Image.new("L", image.size)
    grey.info = dict(image.info)  # EXIF is in it
    for top, block in _blocks(image):
        with np.errstate(invalid="ignore", over="ignore"):  # infinities
            share = (block - black) / (white - black)
        share = np.where(np.isnan(block), 0, share.clip(0, 1))
        grey.paste(Image.fromarray(np.rint(255 * share).astype(np.uint8)), (0, top))
    done = f"its values go from {low:g} to {high:g}; {black:g} is shown black and {white:g} white"
    return grey, done + ("" if numbers else ", and what is no number black")


def _range(low: float, high: float) -> tuple[float, float]:
    """Which values are black and white, for the smallest and the largest value."""
    if low >= 0 and high <= WHITES[-1]:
        white = min(w for w in WHITES if w >= high)
        if low == high or high - low >= FILLED * white:
            return 0, white
    return (low, high) if low < high else (0, WHITES[-1])


def _extremes(image: Image.Image) -> tuple[float, float, bool]:
    """The smallest and the largest finite value, 0 and 0 if there is none, and whether all are finite."""
    low, high, finite = np.inf, -np.inf, True
    for _, block in _blocks(image):
        numbers = block[np.isfinite(block)]
        finite = finite and numbers.size == block.size
        low, high = min(low, numbers.min(initial=np.inf)), max(high, numbers.max(initial=-np.inf))
    return (float(low), float(high), finite) if low <= high else (0.0, 0.0, finite)


def _blocks(image: Image.Image) -> Iterator[tuple[int, np.ndarray]]:
    """Rows of the picture from the top, as many at a time as need little memory: (first row, float64)."""
    rows = max(1, BLOCK // image.width)
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(top + rows, image.height)))
        yield top, np.asarray(part).astype(np.float64)
