"""From a picture to the numbers that the vision encoder sees, as upstream makes them, to the bit."""

import contextlib
import logging
import os
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import ExifTags, Image

from mvlm_np import memory
from mvlm_np.config import ImageConfig
from mvlm_np.errors import ImageError
from mvlm_np.inputs.levels import DEEP, to_grey
from mvlm_np.inputs.picture_file import Encoded, no_limit, open_encoded, open_file, shown, unreadable
from mvlm_np.inputs.resize import Axis, resize
from mvlm_np.paths import local

MAX_SIDE = 1 << 18  # four times what a JPEG can have; bounds a row of pixels and the weights that go with it
# Bytes a pixel: 4 for the decoded picture, and as many once more while it is converted or turned.
DECODED = 8
# What Pillow's decoders take besides, measured. A progressive JPEG is coefficients until its last scan.
DECODER = {"WEBP": 13, "JPEG2000": 16, "AVIF": 6, "progressive": 8}
RESERVE = 128 << 20  # bytes that resizing takes, and small things
SHRINK = "shrink it first: convert IN -resize 4000x4000 OUT"
DNG_VERSION, NEW_SUBFILE_TYPE, PREVIEW = 50706, 254, 1  # tags of TIFF, and what the second says of a preview

# A path, a Pillow image, uint8 (H, W, 3), a file in memory
Picture = str | os.PathLike[str] | Image.Image | np.ndarray | Encoded
Pictures = Picture | list[Picture] | tuple[Picture, ...] | None  # one, several, or none


def as_list(pictures: Pictures) -> Sequence[Picture]:
    """Pictures as users give them: one, several, or none."""
    if pictures is None:
        return []
    return pictures if isinstance(pictures, list | tuple) else [pictures]


# Notes on pictures that are answered, though they are not seen as upstream would see them.
log = logging.getLogger(__name__)


def open_image(source: Picture, exif: bool = True, adapt: bool = True) -> Image.Image:
    """A path, a Pillow image, a uint8 array (H, W, 3) or a file in memory -> a new Pillow image of mode RGB.

    Every mode becomes RGB by Pillow's `convert("RGB")`, as upstream has it: transparency is dropped, an
    animation is its first frame. With `exif` the picture is turned upright as its EXIF orientation says,
    which upstream does not do; EXIF that cannot be read turns nothing.

    With `adapt` pictures are shown that upstream does not show, and a note on it is logged as a warning:
    grey values of 16 bits and floats are scaled (`levels.to_grey`) where upstream cuts them to 255, and a
    JPEG too large for the memory is decoded at 1/2, 1/4 or 1/8 of its size.

    ImageError: the source is missing, not a picture, damaged or empty, takes more memory than there is, or
    has a side longer than MAX_SIDE, which shows before it is decoded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd files; what matters is an error here
        try:
            picture = _decode(source, adapt)
        except Image.DecompressionBombError:
            with no_limit():
                picture = _decode(source, adapt)
        if exif:
            # EXIF can be damaged in as many ways as there are exceptions; the picture itself is sound.
            with contextlib.suppress(Exception):
                if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                    from PIL import ImageOps  # upright photos start sooner without

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
    pixels = scaled(image, config)  # (3, crop height, crop width)
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (config.mean, config.std))
    # The first product is float64 upstream, the rest float32.
    return ((pixels * (1 / 255)).astype(np.float32) - mean) / std


def scaled(image: Image.Image, config: ImageConfig) -> np.ndarray:
    """What `preprocess` normalises: uint8 (3, crop height, crop width)."""
    assert image.mode == "RGB"
    lengths = (max(image.size),) * 2 if config.aspect_ratio == "pad" else image.size
    x, y = (
        Axis(pixels, length, config.resize * length // min(lengths), crop)
        for pixels, length, crop in zip(image.size, lengths, reversed(config.crop), strict=True)
    )
    return resize(image, x, y, padding(config))


def padded(image: Image.Image, config: ImageConfig) -> Image.Image:
    """A picture on a square of its longer side, where the model wants it so; the model's first step."""
    if config.aspect_ratio != "pad":
        return image
    side = max(image.size)
    square = Image.new("RGB", (side, side), padding(config))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def one_patch_on(square: np.ndarray, p: int, colour: np.ndarray | tuple[int, int, int]) -> np.ndarray:
    """A patch of one colour, then all p x p patches of a square but the last, row by row: (s, s, 3).

    For a runtime that joins the class token behind the patches, see `checkpoints.gguf_class_token`.
    """
    g = len(square) // p
    patches = square[: g * p, : g * p].reshape(g, p, g, p, 3).swapaxes(1, 2).reshape(g * g, p, p, 3)
    patches = np.concatenate([np.full((1, p, p, 3), colour, square.dtype), patches[:-1]])
    moved = square.copy()
    moved[: g * p, : g * p] = patches.reshape(g, g, p, p, 3).swapaxes(1, 2).reshape(g * p, g * p, 3)
    return moved


def padding(config: ImageConfig) -> tuple[int, int, int]:
    """The colour of what is added to make a picture square."""
    red, green, blue = (int(m * 255) for m in config.mean)
    return red, green, blue


def padding_seen(config: ImageConfig) -> np.ndarray:
    """The same as the encoder sees it, normalised: float32 (3,)."""
    return ((np.array(padding(config)) / 255 - config.mean) / config.std).astype(np.float32)


def _decode(source: object, adapt: bool) -> Image.Image:
    """Any source -> a new RGB image, not yet turned."""
    if isinstance(source, np.ndarray):
        _check_array(source)
        return Image.fromarray(source)
    if isinstance(source, Image.Image):
        where = str(getattr(source, "filename", "") or "the image given")
        _check_size(where, *source.size, _decoder_bytes(source))
        return _to_rgb(source, where, adapt)
    if isinstance(source, Encoded):
        with open_encoded(source) as image:
            return _from_file(image, source.name, adapt)
    if isinstance(source, str | os.PathLike):
        path = local(source, "the image given")
        with open_file(path) as image:
            return _from_file(image, shown(path), adapt)
    found = f"found {type(source).__name__}"
    raise ImageError("the image given", found, "a path, a Pillow image or a uint8 array (H, W, 3)")


def _from_file(image: Image.Image, where: str, adapt: bool) -> Image.Image:
    if adapt and image.format in ("JPEG", "MPO"):
        _shrink_to_fit(image, where)
    _check_size(where, *image.size, _decoder_bytes(image))
    return _to_rgb(image, where, adapt)


def _check_array(array: np.ndarray) -> None:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageError(
            "the image given",
            f"found an array of {array.dtype} {array.shape}",
            "uint8 (H, W, 3) with at least one pixel",
            "put the channels last and scale to 0 .. 255, or pass a Pillow image",
        )
    _check_size("the image given", array.shape[1], array.shape[0])


def _to_rgb(image: Image.Image, where: str, adapt: bool) -> Image.Image:
    try:
        if adapt and image.mode in DEEP:
            image, done = to_grey(image)
            if done:
                log.warning("%s: %s", where, done)
        elif adapt:
            _note_what_is_not_seen(image, where)
        return image.convert("RGB")
    except Image.DecompressionBombError:
        raise
    except MemoryError:
        raise ImageError(where, "takes more memory than this process may have", None, SHRINK) from None
    except Exception as error:
        raise unreadable(where, error) from None


def _note_what_is_not_seen(image: Image.Image, where: str) -> None:
    """Of a raw file Pillow sees a small preview, and of what is transparent the colours behind it."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    if DNG_VERSION in tags or tags.get(NEW_SUBFILE_TYPE) == PREVIEW:
        log.warning(
            "%s: is a camera's raw file, of which the preview is read, %d x %d pixels; "
            "export it as JPEG for all of it",
            *(where, *image.size),
        )
    if image.has_transparency_data:
        alpha = (image if "A" in image.getbands() else image.convert("RGBA")).getchannel("A")
        share = sum(alpha.histogram()[:128]) / (image.width * image.height)
        if share > 0.1:
            log.warning(
                "%s: %.0f %% of it is transparent, and the colours behind are read, as upstream reads them; "
                "to see it on white: convert IN -background white -flatten OUT",
                *(where, 100 * share),
            )


def _check_size(where: str, width: int, height: int, decoder: int = 0) -> None:
    """Before anything is decoded. decoder: the bytes that Pillow takes besides those of the picture."""
    found = f"found {width} x {height} pixels"
    if width < 1 or height < 1:
        raise ImageError(where, found, "at least one")
    if max(width, height) > MAX_SIDE:
        raise ImageError(where, found, f"at most {MAX_SIDE} a side", "crop it")
    needed, room = decoder + DECODED * width * height, _room()
    if needed > room:
        found += f", which take {memory.text(needed)} of memory"
        raise ImageError(where, found, f"at most the {memory.text(room)} that are free", SHRINK)


def _shrink_to_fit(image: Image.Image, where: str) -> None:
    """Has a JPEG that memory does not hold decoded at 1/2, 1/4 or 1/8 of its size, if it holds that."""
    (width, height), room, decoder = image.size, _room(), _decoder_bytes(image)
    needed = {scale: decoder + DECODED * width * height // scale**2 for scale in (1, 2, 4, 8)}
    scale = next((scale for scale in needed if needed[scale] <= room), 1)
    if scale > 1:
        image.draft(image.mode, (width // scale, height // scale))
        log.warning(
            "%s: its %d x %d pixels take %s of memory, and %s are free: it is read at 1/%d of its size, "
            "so pixel values differ a little from upstream's",
            *(where, width, height, memory.text(needed[1]), memory.text(room), scale),
        )


def _decoder_bytes(image: Image.Image) -> int:
    """What Pillow's decoder takes besides the picture itself, or the scaling of a deep one."""
    kind = "progressive" if image.info.get("progressive") else image.format or ""
    return DECODER.get(kind, 1) * image.width * image.height


def _room() -> int:
    """The bytes that a picture may take; as good as unlimited where that is not known."""
    there = memory.available()
    return 1 << 62 if there is None else max(0, there - RESERVE)
