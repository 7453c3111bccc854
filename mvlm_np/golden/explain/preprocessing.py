"""How ports prepare a picture: the way of `inputs.image`, and others that are in use."""

from dataclasses import dataclass, replace
from math import ceil, floor

import numpy as np
from PIL import Image

from mvlm_np.config import ImageConfig
from mvlm_np.golden.explain.resampling import FILTERS, Size
from mvlm_np.golden.explain.steps import CannotReplay
from mvlm_np.inputs.image import open_image, preprocess

MOST = 1 << 26  # pixels of a padded square; ports make it, `preprocess` does not


@dataclass(frozen=True)
class Picture:
    """A picture and a way to prepare it; calling it gives pixel values, float32 (3, h, w).

    image     RGB, as it is stored
    upright   the image turned as its EXIF note says; None if that changes nothing
    config    the model's
    fit       "pad" to a square and resize, "late pad" after resizing, "crop" the longer side, or "stretch"
    rounding  of the sizes in "late pad"
    place     of the picture in the square: 0 top left, 0.5 middle, 1 bottom right
    colour    of the padding
    border    how the padding is filled instead, as `np.pad` calls it; "" for with the colour
    filter    one of `resampling.FILTERS`
    bgr       when red and blue change places: "as read", "before normalising", "at the end", or "" for never
    """

    image: Image.Image
    config: ImageConfig
    upright: Image.Image | None
    fit: str
    colour: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rounding: str = "floor"
    place: float = 0.5
    border: str = ""
    filter: str = "bicubic"
    bgr: str = ""

    @classmethod
    def open(cls, source: object, config: ImageConfig) -> "Picture":
        """The picture prepared as the model wants it. ImageError: it cannot be read."""
        image, upright = (open_image(source, exif, adapt=False) for exif in (False, True))  # type: ignore[arg-type]
        turned = image.size != upright.size or image.tobytes() != upright.tobytes()
        return cls(
            image=image,
            config=config,
            upright=upright if turned else None,
            fit="pad" if config.aspect_ratio == "pad" else "crop",
            colour=tuple(int(m * 255) for m in config.mean),
            mean=config.mean,
            std=config.std,
        )

    def __call__(self) -> np.ndarray:
        if self == replace(Picture.open(self.image, self.config), upright=self.upright):
            return preprocess(self.image, self.config)
        if max(self.image.size) ** 2 > MOST:
            raise CannotReplay(f"a square of {max(self.image.size)} pixels a side is too large to make")
        image = self.image
        if self.bgr == "as read":
            image = Image.fromarray(np.ascontiguousarray(np.asarray(image)[..., ::-1]))
        pixels = self._fitted(image).transpose(2, 0, 1)  # (3, h, w)
        if self.bgr == "before normalising":
            pixels = pixels[::-1]
        mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (self.mean, self.std))
        values = ((pixels * (1 / 255)).astype(np.float32) - mean) / std
        return np.ascontiguousarray(values[::-1] if self.bgr == "at the end" else values)

    def corners(self, pixels: np.ndarray | None) -> list[tuple[int, ...]]:
        """The colours in the first and the last corner of pixel values, where padding would be."""
        if pixels is None or pixels.ndim != 3 or len(pixels) != 3 or not np.isfinite(pixels).all():
            return []
        colours = [(pixels[:, i, i] * np.array(self.std) + np.array(self.mean)) * 255 for i in (0, -1)]
        return [tuple(int(v) for v in colour.round().clip(0, 255)) for colour in colours]

    def _fitted(self, image: Image.Image) -> np.ndarray:
        """The picture at the model's size, 0 to 255: (h, w, 3)."""
        resize, (height, width) = FILTERS[self.filter], self.config.crop
        w, h = image.size
        if self.fit == "stretch":
            return resize(image, (width, height))
        if self.fit == "late pad":
            to = {"round": lambda x: floor(x + 0.5), "floor": floor, "ceil": ceil}[self.rounding]
            scale = min(width / w, height / h)
            small = resize(image, (max(min(to(w * scale), width), 1), max(min(to(h * scale), height), 1)))
            return self._pad(small, (width, height))
        if self.fit == "pad":
            image = Image.fromarray(self._pad(np.asarray(image), (max(w, h),) * 2).astype(np.uint8))
        shorter, size = min(image.size), self.config.resize
        array = resize(image, (size * image.width // shorter, size * image.height // shorter))
        top, left = (array.shape[0] - height) // 2, (array.shape[1] - width) // 2
        if top < 0 or left < 0:
            raise CannotReplay("a crop that is larger than the picture")
        return array[top : top + height, left : left + width]

    def _pad(self, array: np.ndarray, size: Size) -> np.ndarray:
        """In the middle of a canvas, or where `place` says."""
        h, w = array.shape[:2]
        left, top = int((size[0] - w) * self.place), int((size[1] - h) * self.place)
        room = ((top, size[1] - h - top), (left, size[0] - w - left), (0, 0))
        if self.border:
            return np.pad(array, room, mode=self.border)  # type: ignore[call-overload]
        canvas = np.empty((size[1], size[0], 3), array.dtype)
        canvas[:] = self.colour
        canvas[top : top + h, left : left + w] = array
        return canvas
