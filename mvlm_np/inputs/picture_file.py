"""A picture's file, opened with Pillow and not yet decoded; what is no picture is named, with what to do."""

import contextlib
import io
import os
import re
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from mvlm_np.errors import ImageError

RAW = "is a camera's raw file", "export it as JPEG"
VIDEO = "is a video", "take a frame out of it: ffmpeg -i IN -frames:v 1 OUT.png"
MODEL = "is a model's file", "give a picture here, and the model as --model"
# What people take for a picture, by how its first bytes look. (?s:.{n}) skips n bytes.
KINDS = {
    rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!DOCTYPE svg[^>]*>\s*)?<svg": (
        "is a drawing (SVG)",
        "draw it: rsvg-convert IN -o OUT.png",
    ),
    rb"\s*(<!DOCTYPE html|<html)": ("is a web page", "download the picture itself"),
    rb"version https://git-lfs": ("is a Git LFS pointer, not the picture itself", "git lfs pull fetches it"),
    rb"%PDF-": ("is a PDF document", "make a picture of a page: pdftoppm -r 150 -png IN OUT"),
    rb"(?s:.{4})ftyp(hei|hev|mif|msf)": ("is a HEIC picture", "convert it: heif-convert IN OUT.jpg"),
    rb"(?s:.{4})ftypavi": ("is an AVIF picture, too new for this Pillow", "convert it: avifdec IN OUT.png"),
    rb"(?s:.{4})ftypcrx|FUJIFILMCCD-RAW|II(RO|RS|U\0)|FOVb": RAW,
    rb"(?s:.{4})(ftyp|moov|mdat)|\x1aE\xdf\xa3|OggS|FLV\x01": VIDEO,
    rb"RIFF(?s:.{4})AVI |\0\0\x01[\xb3\xba]|G(?s:.{187})G": VIDEO,
    rb"\xff\x0a|\0\0\0\x0cJXL ": ("is a JPEG XL picture", "convert it: djxl IN OUT.png"),
    rb"\x76\x2f\x31\x01": ("is an OpenEXR picture", "convert it to PNG"),
    rb"(?s:.{128})DICM": ("is a DICOM picture", "convert it: dcmj2pnm --write-png IN OUT.png"),
    rb"PK\x03\x04": ("is a ZIP archive or an office document", "take the picture out of it"),
    rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!": ("is an archive", "unpack it"),
    rb"\x93NUMPY": ("is a NumPy array", "load it, and pass it from Python as uint8 (H, W, 3)"),
    rb"GGUF|(?s:.{8})\{\"": MODEL,
    rb"II\*\0|MM\0\*|II\+\0|MM\0\+": (
        "is a TIFF or a camera's raw file of a kind that Pillow cannot read",
        "convert it to PNG or JPEG",
    ),
}
# What Pillow knows by name, and either does not show or shows by running another program.
NOT_SHOWN = {
    "EPS": ("is a PostScript program, which is not run here", "convert it to PNG"),
    "MPEG": VIDEO,
    "WMF": ("is a Windows drawing", "convert it to PNG"),
    "EMF": ("is a Windows drawing", "convert it to PNG"),
}
_LIMIT = threading.Lock()  # held while Pillow's limit is lifted
TEXTS = {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}  # PNG's chunks of text, and that of the colour profile


@dataclass(frozen=True)
class Encoded:
    """A picture's file in memory: its bytes, and what errors call it."""

    data: bytes = field(repr=False)
    name: str


def open_encoded(encoded: Encoded) -> Image.Image:
    """The picture in a file that is in memory, to be decoded yet; errors as for `open_file`."""
    return _open(io.BytesIO(encoded.data), encoded.name)


def open_file(path: str) -> Image.Image:
    """The picture in a file, to be decoded yet.

    ImageError: there is none, or it is none. DecompressionBombError: it is large, and needs `no_limit`.
    """
    where = shown(path)
    if not os.path.exists(path):
        if re.match(r"[a-z][a-z0-9+.-]*:/|data:", path, re.IGNORECASE):
            raise ImageError(where, "is a URL", "a file", "download the picture first")
        raise ImageError(where, "there is no such file", fix="check the path")
    if os.path.isdir(path):
        raise ImageError(where, "is a directory", "a picture", "name a file in it")
    if not os.path.isfile(path):
        raise ImageError(where, "is not a regular file", "a picture", "save it to a file first")
    try:
        with open(path, "rb") as file:
            return _open(file, where, path)
    except PermissionError:
        raise ImageError(where, "may not be read", None, "chmod +r on it and its folders allows it") from None
    except OSError as error:
        raise unreadable(where, error) from None


def _open(file: BinaryIO, where: str, path: str | None = None) -> Image.Image:
    """path: of the file; None: it is in memory, and stays open with the picture."""
    start = b""
    try:
        start = file.read(512)
        file.seek(0)
        copy = _without_large_texts(file) if start.startswith(b"\x89PNG") else None
        file.seek(0)
        image = Image.open(copy or path or file)
    except UnidentifiedImageError:
        raise _no_picture(where, start) from None
    except Image.DecompressionBombError:
        raise
    except Exception as error:
        raise unreadable(where, error) from None
    if image.format in NOT_SHOWN:
        image.close()
        found, fix = NOT_SHOWN[image.format]
        raise ImageError(where, found, "a picture", fix)
    return image


@contextlib.contextmanager
def no_limit() -> Iterator[None]:
    """Lifts Pillow's limit on pixels, which is the same on every machine; ours is the memory.

    It holds for the whole process, so it is lifted for large pictures only, one at a time.
    """
    with _LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def shown(path: str) -> str:
    """A path, as an error names it."""
    return path if len(path) <= 200 else path[:197] + "..."


def unreadable(where: object, error: Exception) -> ImageError:
    """Pillow's decoders raise nearly anything on a damaged file; what they say is all there is to say."""
    reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return ImageError(where, f"cannot be read ({reason:.120})", "a whole picture", "fetch or save it again")


def _no_picture(where: str, start: bytes) -> ImageError:
    wanted = "a JPEG, PNG, WebP, GIF, TIFF or the like"
    if not start:
        return ImageError(where, "is empty", wanted, "fetch or save it again")
    for kind, (found, fix) in KINDS.items():
        if re.match(kind, start, re.IGNORECASE):
            return ImageError(where, found, wanted, fix)
    return ImageError(
        where, "is no picture that Pillow can read", wanted, "check that the file is what its name says"
    )


def _without_large_texts(file: BinaryIO) -> io.BytesIO | None:
    """A copy of a PNG without the texts and colour profiles that Pillow finds too large to read.

    None: it has none such. Pillow refuses the whole picture for them, though no pixel depends on them.
    """
    from PIL import PngImagePlugin  # photos are JPEGs, and start sooner without

    refused = []
    stream = PngImagePlugin.PngStream(file)
    file.seek(8)
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        start = file.tell()
        if kind in TEXTS:
            try:
                stream.call(kind, start, length)
            except Exception:  # too large, or damaged
                refused.append((start - 8, start + length + 4))
        file.seek(start + length + 4)
    if not refused:
        return None
    copy, position = io.BytesIO(), 0
    file.seek(0)
    for start, stop in refused:
        copy.write(file.read(start - position))
        file.seek(position := stop)
    copy.write(file.read())
    copy.seek(0)
    return copy
