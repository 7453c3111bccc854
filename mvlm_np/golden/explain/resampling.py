"""How ports resize a picture: Pillow's filters, and others that are in use."""

from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image

Size = tuple[int, int]  # width, height
Kernel = Callable[[np.ndarray], np.ndarray]


def _pillow(resample: Image.Resampling) -> Callable[[Image.Image, Size], np.ndarray]:
    return lambda image, size: np.asarray(image.resize(size, resample))


def _cubic(a: float, x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lagrange(x: np.ndarray) -> np.ndarray:
    """The cubic through four neighbours."""
    x = np.abs(x)
    near, far = (1 - x * x) * (2 - x) / 2, (1 - x) * (2 - x) * (3 - x) / 6
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _step(x: np.ndarray) -> np.ndarray:
    """The last pixel at or before."""
    return ((x <= 0) & (x > -1)).astype(float)


def resample(
    kernel: Kernel, reach: int, centres: str, antialias: bool, rounded: bool, image: Image.Image, size: Size
) -> np.ndarray:
    """A picture resized by `resize`: (h, w, 3), 0 to 255.

    rounded  to whole numbers at the end
    """
    array = resize(kernel, reach, centres, antialias, np.asarray(image), size)
    return array.round().clip(0, 255) if rounded else array


def resize(
    kernel: Kernel,
    reach: int,
    centres: str,
    antialias: bool,
    array: np.ndarray,
    size: Size,
    scale: float | None = None,
) -> np.ndarray:
    """A separable resize in float64: (h, w, C) -> (h', w', C).

    kernel, reach  a function of the distance in pixels, zero from `reach` on
    centres        where an output pixel lies: "middle" of its share, "corner" of it, or "ends": the first
                   on the first, the last on the last
    antialias      stretch the kernel where the array shrinks; the weights outside are cut off. Else the
                   outermost pixels go on
    scale          old pixels for a new one, where it is not the sizes' ratio
    """
    array = array.astype(np.float64)
    for axis, out in ((1, size[0]), (0, size[1])):
        length = array.shape[axis]
        step = scale or length / out
        i = np.arange(out)
        at = {
            "middle": (i + 0.5) * step - 0.5,
            "corner": i * step,
            "ends": i * ((length - 1) / max(out - 1, 1)),
        }[centres]
        stretch = max(step, 1.0) if antialias else 1.0
        first = np.floor(at - reach * stretch).astype(int)
        taps = first[:, None] + np.arange(int(2 * reach * stretch) + 3)  # (out, taps)
        weights = kernel((taps - at[:, None]) / stretch)
        if antialias:
            weights[(taps < 0) | (taps >= length)] = 0
        weights /= weights.sum(axis=1, keepdims=True)
        matrix = np.zeros((out, length))
        np.add.at(matrix, (i[:, None], taps.clip(0, length - 1)), weights)
        array = np.moveaxis(np.tensordot(matrix, array, (1, axis)), 0, axis)
    return array


_soft, _sharp = partial(_cubic, -0.5), partial(_cubic, -0.75)

FILTERS: dict[str, Callable[[Image.Image, Size], np.ndarray]] = {
    "bicubic": _pillow(Image.Resampling.BICUBIC),
    "bilinear": _pillow(Image.Resampling.BILINEAR),
    "nearest": _pillow(Image.Resampling.NEAREST),
    "lanczos": _pillow(Image.Resampling.LANCZOS),
    "box": _pillow(Image.Resampling.BOX),
    "bilinear, not antialiased": partial(resample, _triangle, 1, "middle", False, True),
    "bilinear, not antialiased, ends aligned": partial(resample, _triangle, 1, "ends", False, True),
    "bilinear, not antialiased, corners aligned": partial(resample, _triangle, 1, "corner", False, True),
    "bicubic, not antialiased": partial(resample, _soft, 2, "middle", False, True),
    "bicubic with a = -0.75, not antialiased": partial(resample, _sharp, 2, "middle", False, True),
    "bicubic with a = -0.75": partial(resample, _sharp, 2, "middle", True, True),
    "bicubic, not rounded between its two passes": partial(resample, _soft, 2, "middle", True, True),
    "bicubic with a = -0.75, not antialiased, ends aligned": partial(
        resample, _sharp, 2, "ends", False, True
    ),
    "bicubic with a = -0.75, not antialiased, corners aligned": partial(
        resample, _sharp, 2, "corner", False, True
    ),
    "bilinear, not rounded to whole numbers": partial(resample, _triangle, 1, "middle", True, False),
    "bicubic, not rounded to whole numbers": partial(resample, _soft, 2, "middle", True, False),
    "cubic through four neighbours, corners aligned": partial(resample, _lagrange, 2, "corner", False, True),
    "nearest before": partial(resample, _step, 1, "corner", False, True),
}

Resize = Callable[..., np.ndarray]  # (array, size, scale=None), as `resize` takes them

# How frameworks resize a table of positions: with their functions for pictures, whose cubic has a = -0.75, or
# -0.5 where they antialias.
TABLE_FILTERS: dict[str, Resize] = {
    "bicubic": partial(resize, _sharp, 2, "middle", False),
    "bilinear": partial(resize, _triangle, 1, "middle", False),
    "bicubic, antialiased": partial(resize, _soft, 2, "middle", True),
    "bilinear, antialiased": partial(resize, _triangle, 1, "middle", True),
}
