"""From a picture to the numbers that the vision encoder sees, as upstream makes them, to the bit."""

import contextlib
import os
import re
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mvlm_np.config import ImageConfig
from mvlm_np.errors import ImageError
from mvlm_np.inputs.resize import Axis, resize
from mvlm_np.paths import local

# A decoded picture takes 4 bytes a pixel, and converting or turning it takes them once more: 512 MB
# together, and twice that inside Pillow's WebP decoder. Pictures of 64-megapixel cameras pass; what
# Pillow calls a decompression bomb is larger.
MAX_PIXELS = 1 << 26
MAX_SIDE = 1 << 18  # four times what a JPEG can have; bounds a row of pixels and the weights that go with it

Picture = str | os.PathLike[str] | Image.Image | np.ndarray  # a path, a Pillow image, uint8 (H, W, 3)
Pictures = Picture | list[Picture] | tuple[Picture, ...] | None  # one, several, or none


def open_image(source: Picture, exif: bool = True) -> Image.Image:
    """A path, a Pillow image or a uint8 array (H, W, 3) -> a new Pillow image of mode RGB.

    Every mode becomes RGB by Pillow's `convert("RGB")`, as upstream has it: transparency is dropped,
    16-bit and float values above 255 are cut to 255, an animation is its first frame. With `exif`
    the picture is turned upright as its EXIF orientation says, which upstream does not do; EXIF
    that cannot be read turns nothing.

    ImageError: the source is missing, not a picture, damaged or empty, or has more pixels than
    MAX_PIXELS or a side longer than MAX_SIDE, which shows before it is decoded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd files; what matters is an error here
        picture = _decode(source)
        if exif:
            # EXIF can be damaged in as many ways as there are exceptions; the picture itself is sound.
            with contextlib.suppress(Exception):
                ImageOps.exif_transpose(picture, in_place=True)
    return picture


def preprocess(image: Image.Image, config: ImageConfig) -> np.ndarray:
    """An RGB picture of any size -> pixel values, float32 (3, crop height, crop width).

    In order: if `aspect_ratio` is "pad", pad to a square of the longer side in the colour
    int(mean * 255); resize the shorter side to `resize`, the longer one in proportion, rounded down;
    cut out the centre, black where there is nothing; (value / 255 - mean) / std.

    Source: upstream's `expand2square` and `process_images`, and CLIPImageProcessor of transformers
    4.33. Two faults of upstream are not copied: in its padding mode it refuses a picture of 1 by 1,
    and takes one whose longer side is 3 for channels-first.
    """
    assert image.mode == "RGB"
    lengths = (max(image.size),) * 2 if config.aspect_ratio == "pad" else image.size
    x, y = (
        Axis(pixels, length, config.resize * length // min(lengths), crop)
        for pixels, length, crop in zip(image.size, lengths, reversed(config.crop), strict=True)
    )
    red, green, blue = (int(m * 255) for m in config.mean)
    pixels = resize(image, x, y, (red, green, blue))  # (3, crop height, crop width)
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (config.mean, config.std))
    # The first product is float64 upstream, the rest float32.
    return ((pixels * (1 / 255)).astype(np.float32) - mean) / std


def _decode(source: object) -> Image.Image:
    """Any source -> a new RGB image, not yet turned."""
    if isinstance(source, np.ndarray):
        _check_array(source)
        return Image.fromarray(source)
    if isinstance(source, Image.Image):
        return _to_rgb(source, getattr(source, "filename", "") or "the image given")
    if isinstance(source, str | os.PathLike):
        path = local(source)
        with _open_file(path) as image:
            return _to_rgb(image, path)
    found = f"found {type(source).__name__}"
    raise ImageError("the image given", found, "a path, a Pillow image or a uint8 array (H, W, 3)")


def _check_array(array: np.ndarray) -> None:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageError(
            "the image given",
            f"found an array of {array.dtype} {array.shape}",
            "uint8 (H, W, 3) with at least one pixel",
            "put the channels last and scale to 0 .. 255, or pass a Pillow image",
        )
    _check_size("the image given", array.shape[1], array.shape[0])


def _open_file(path: str) -> Image.Image:
    """The picture in a file, not yet decoded."""
    where = path if len(path) <= 200 else path[:197] + "..."
    if not os.path.exists(path):
        if re.match(r"[a-z][a-z0-9+.-]*:/|data:", path, re.IGNORECASE):
            raise ImageError(where, "is a URL", "a file", "download the picture first")
        raise ImageError(where, "there is no such file", fix="check the path")
    if os.path.isdir(path):
        raise ImageError(where, "is a directory", "a picture", "name a file in it")
    if not os.path.isfile(path):
        raise ImageError(where, "is not a regular file", "a picture", "save it to a file first")
    try:
        image = Image.open(path)
    except Image.DecompressionBombError:
        raise _too_large(where, "a decompression bomb") from None
    except UnidentifiedImageError:
        raise ImageError(
            where,
            "is empty" if os.path.getsize(path) == 0 else "is no picture that Pillow can read",
            "a JPEG, PNG, WebP, GIF, TIFF or the like",
            "check that the file is what its name says; convert HEIC to JPEG first",
        ) from None
    except Exception as error:
        raise _unreadable(where, error) from None
    if image.format == "EPS":
        image.close()
        raise ImageError(
            where, "is a PostScript program, which is not run here", "a picture", "convert it to PNG"
        )
    return image


def _to_rgb(image: Image.Image, where: object) -> Image.Image:
    """Checks the size first, and decodes then."""
    _check_size(where, *image.size)
    try:
        return image.convert("RGB")
    except Exception as error:
        raise _unreadable(where, error) from None


def _check_size(where: object, width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(where, f"has {width} x {height} pixels", "at least one")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise _too_large(where, f"{width} x {height} pixels")


def _too_large(where: object, found: str) -> ImageError:
    wanted = f"at most {MAX_PIXELS} pixels, and {MAX_SIDE} a side"
    return ImageError(where, f"found {found}", wanted, "shrink or crop it")


def _unreadable(where: object, error: Exception) -> ImageError:
    """Pillow's decoders raise nearly anything on a damaged file; what they say is all there is to say."""
    reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return ImageError(where, f"cannot be read ({reason:.120})", "a whole picture", "fetch or save it again")
