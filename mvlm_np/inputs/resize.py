"""Pillow's bicubic resize of a padded picture, cut to its centre, without the padding and the cut-off parts.

Upstream pads a picture to a square, resizes the square and cuts out its centre; for a picture of
100,000 by 1 that is a square of 30 GB. Or it does not pad, and resizes the same picture to
33,600,000 by 336, of which it keeps 336 columns. Here neither exists, and the result is the same to
the bit: resizing is a weighted sum, and the padding's share of it is its colour times the weights that
fall on it; and of the output only those pixels are computed that see the picture and survive the cut.

A picture that is not padded and has no extreme shape is left to Pillow itself, because Pillow's
versions differ in which axis they resize first (since 13 it is y where that saves work). For a
square, and so for all that is padded, they agree on x.
"""

from dataclasses import dataclass
from functools import cached_property
from math import ceil, floor

import numpy as np
from PIL import Image

WEIGHT_BITS = 22  # Pillow's weights are whole numbers in units of 2**-22
GROUP = 16  # output pixels that share one matrix product; it stays so small that BLAS wakes no threads for it
BLOCK = 1 << 21  # pixels of the picture that are worked on at a time
AFFORDABLE = 1 << 25  # pixels that Pillow may make for the crop to choose from: 128 MB


@dataclass(frozen=True)
class Axis:
    """One axis on its way: `pixels` of the picture, padded to `length`, resized to `out`, cut to `crop`.

    The picture stands in the middle of the padding, and the crop in the middle of the output; where
    the middle falls between two pixels, the picture comes early and the crop too. A crop larger
    than the output reaches beyond it on both sides.
    """

    pixels: int
    length: int
    out: int
    crop: int

    @cached_property
    def before(self) -> int:
        """Padding in front of the picture."""
        return (self.length - self.pixels) // 2

    @cached_property
    def cut(self) -> int:
        """The output position where the crop begins; negative if the crop reaches beyond the output."""
        return (self.out - self.crop) // 2

    @cached_property
    def scale(self) -> float:
        """Input pixels per output pixel."""
        return self.length / self.out

    @cached_property
    def support(self) -> float:
        """How far an output pixel sees to either side of its centre, in input pixels."""
        return 2.0 * max(self.scale, 1.0)

    @cached_property
    def start(self) -> int:
        """The first output pixel to compute: it is in the crop and may see the picture."""
        return max(floor((self.before - self.support) / self.scale) - 1, self.cut, 0)

    @cached_property
    def stop(self) -> int:
        """One past the last output pixel to compute."""
        end = ceil((self.before + self.pixels + self.support) / self.scale) + 1
        return min(end, self.cut + self.crop, self.out)

    @cached_property
    def needed(self) -> tuple[int, int]:
        """The pixels of the picture, from and to, that the computed output sees."""
        low, high = self.window(self.start, self.stop)
        return max(low - self.before, 0), min(high - self.before, self.pixels)

    def window(self, start: int, stop: int) -> tuple[int, int]:
        """The input pixels, from and to, padding included, that output pixels start .. stop - 1 see."""
        low = (start + 0.5) * self.scale - self.support
        high = (stop - 0.5) * self.scale + self.support
        return max(int(low + 0.5), 0), min(int(high + 0.5), self.length)


def resize(image: Image.Image, x: Axis, y: Axis, colour: tuple[int, int, int]) -> np.ndarray:
    """An RGB picture -> uint8 (3, y.crop, x.crop).

    `colour` is that of the padding; where the crop reaches beyond the output it is black. One axis
    is resized after the other, and rounded to uint8 in between.
    """
    if image.size == (x.length, y.length) and x.out * y.out <= AFFORDABLE:
        whole = image.resize((x.out, y.out), Image.Resampling.BICUBIC)
        centre = whole.crop((x.cut, y.cut, x.cut + x.crop, y.cut + y.crop))
        return np.ascontiguousarray(np.asarray(centre).transpose(2, 0, 1))

    (left, right), (top, bottom) = x.needed, y.needed
    narrow = np.empty((3, bottom - top, x.stop - x.start), np.uint8)
    rows = max(1, BLOCK // (right - left))
    for row in range(top, bottom, rows):
        block = np.asarray(image.crop((left, row, right, min(row + rows, bottom))))
        narrow[:, row - top :][:, :rows] = _resize_axis(block.transpose(2, 0, 1), x, colour)
    small = _resize_axis(narrow.transpose(0, 2, 1), y, colour).transpose(0, 2, 1)

    # Output that sees only padding has its colour. Up to 4 * scale + 1 weights are off by half a
    # unit each, which times 255 stays below half of 2**WEIGHT_BITS up to a scale of 4,000.
    result = np.zeros((3, y.crop, x.crop), np.uint8)
    inside = (slice(max(-axis.cut, 0), axis.out - axis.cut) for axis in (y, x))
    result[:, *inside] = np.reshape(colour, (3, 1, 1))
    result[:, y.start - y.cut : y.stop - y.cut, x.start - x.cut : x.stop - x.cut] = small
    return result


def _resize_axis(picture: np.ndarray, axis: Axis, colour: tuple[int, int, int]) -> np.ndarray:
    """uint8 (3, rows, needed pixels) -> uint8 (3, rows, axis.stop - axis.start), along the last axis.

    Every number is an integer below 2**53: float64 holds it exactly, in whatever order BLAS adds.
    """
    result = np.empty((*picture.shape[:2], axis.stop - axis.start), np.uint8)
    origin = axis.before + axis.needed[0]  # of `picture` on the padded axis
    padding = np.reshape(np.array(colour, np.float64), (3, 1, 1))
    for start in range(axis.start, axis.stop, GROUP):
        stop = min(start + GROUP, axis.stop)
        low, weights = _weights(axis, start, stop)
        left, right = np.clip([low - origin, low - origin + weights.shape[1]], 0, picture.shape[2])
        seen = weights[:, left + origin - low : right + origin - low]
        # (3, rows, pixels) @ (pixels, outputs) + (3, 1, outputs) -> (3, rows, outputs)
        total = picture[:, :, left:right].astype(np.float64, order="C") @ seen.T
        if seen.size < weights.size:
            total += padding * (weights.sum(1) - seen.sum(1))
        total *= 2.0**-WEIGHT_BITS
        total += 0.5
        np.clip(np.floor(total, out=total), 0, 255, out=total)
        result[:, :, start - axis.start : stop - axis.start] = total
    return result


def _weights(axis: Axis, start: int, stop: int) -> tuple[int, np.ndarray]:
    """The first input pixel that output pixels start .. stop - 1 see, and each one's weights from there on.

    float64 (outputs, inputs), whole numbers. As Pillow makes them: the cubic with a = -1/2, stretched
    where the picture shrinks, made to sum to one also at the edges, in units of 2**-WEIGHT_BITS,
    halves rounded away from zero. The order of the operations matters to the last bit.
    """
    low, high = axis.window(start, stop)
    centres = (np.arange(start, stop) + 0.5) * axis.scale
    x = np.abs((np.arange(low, high) - centres[:, None] + 0.5) * (1.0 / max(axis.scale, 1.0)))
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    cubic = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    cubic /= cubic.sum(1, keepdims=True)
    return low, np.trunc(cubic * (1 << WEIGHT_BITS) + np.copysign(0.5, cubic))
