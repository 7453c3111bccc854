"""What people give for a picture, and what is said of it."""

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mvlm_np.errors import ImageError
from mvlm_np.inputs.image import open_image
from tests.conftest import shared_path

NOISE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)

# First bytes, what they are called, and what there is to do.
NO_PICTURES = {
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is a HEIC picture", "heif-convert IN OUT.jpg"),
    "HEIF of another brand": (b"\0\0\0\x1cftypmif1\0\0\0\0", "is a HEIC picture", "heif-convert IN OUT.jpg"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3", "is a PDF document", "pdftoppm"),
    "MP4": (b"\0\0\0\x20ftypisom\0\0\2\0", "is a video", "ffmpeg -i IN -frames:v 1 OUT.png"),
    "QuickTime": (b"\0\0\0\x14ftypqt  \0\0\0\0", "is a video", "ffmpeg"),
    "WebM": (b"\x1aE\xdf\xa3\x9fB\x86\x81", "is a video", "ffmpeg"),
    "AVI": (b"RIFF\xff\xff\0\0AVI LIST", "is a video", "ffmpeg"),
    "MPEG": (b"\0\0\x01\xb3\x16\x01\x20\x13" + bytes(50), "is a video", "ffmpeg"),
    "MPEG program": (b"\0\0\x01\xba" + bytes(90), "is a video", "ffmpeg"),
    "MPEG transport": ((b"G" + bytes(187)) * 2, "is a video", "ffmpeg"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg">', "is a drawing (SVG)", "rsvg-convert"),
    "SVG with a header": (
        b'<?xml version="1.0"?>\n<!-- made -->\n<!DOCTYPE svg PUBLIC "a" "b">\n<svg>',
        "is a drawing (SVG)",
        "rsvg-convert",
    ),
    "a web page": (b"\n<!doctype html><title>404</title>", "is a web page", "download the picture itself"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer", "git lfs pull"),
    "Word": (b"PK\3\4\x14\0", "is a ZIP archive or an office document", "take the picture out"),
    "gzip": (b"\x1f\x8b\x08\0", "is an archive", "unpack it"),
    "JPEG XL": (b"\xff\x0a\xfa", "is a JPEG XL picture", "djxl IN OUT.png"),
    "DICOM": (bytes(128) + b"DICM\2\0", "is a DICOM picture", "dcmj2pnm"),
    "Canon raw": (b"\0\0\0\x18ftypcrx \0\0\0\1", "is a camera's raw file", "export it as JPEG"),
    "Fuji raw": (b"FUJIFILMCCD-RAW 0201", "is a camera's raw file", "export it as JPEG"),
    "a TIFF nobody reads": (b"II*\0\x08\0\0\0" + bytes(90), "is a TIFF or a camera's raw file", "convert it"),
    "NumPy": (b"\x93NUMPY\1\0v\0{'descr'", "is a NumPy array", "uint8 (H, W, 3)"),
    "GGUF": (b"GGUF\3\0\0\0", "is a model's file", "--model"),
    "safetensors": (struct.pack("<Q", 70_000) + b'{"a":' + bytes(99), "is a model's file", "--model"),
    "a shortcut": (b"[InternetShortcut]\nURL=", "is no picture that Pillow can read", "check that the file"),
}


@pytest.mark.parametrize("kind", NO_PICTURES)
def test_what_is_no_picture_is_named_with_what_to_do(kind: str, tmp_path: Path) -> None:
    content, found, fix = NO_PICTURES[kind]
    path = tmp_path / "IMG_0001.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert str(caught.value).startswith(f"{path}: {found}")
    assert fix in str(caught.value)
    assert "\n" not in str(caught.value)


def test_avif_is_read_if_pillow_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.avif"
    path.write_bytes(b"\0\0\0\x20ftypavif\0\0\0\0avifmif1" + bytes(40))
    with pytest.raises(ImageError, match=r"AVIF|cannot be read"):
        open_image(path)
    if ".avif" in Image.registered_extensions():
        Image.fromarray(NOISE).save(path, quality=100)
        assert open_image(path).size == (40, 30)


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").touch()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ImageError, match=r"a\.png: may not be read; chmod"):
        open_image(tmp_path / "a.png")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


class TestTextsOfPng:
    """Pillow refuses a PNG whose texts or profile are large. None of them is a pixel."""

    def assert_read(self, path: Path) -> None:
        np.testing.assert_array_equal(np.asarray(open_image(path)), NOISE)

    @pytest.mark.parametrize("kind", ["zTXt", "iTXt"])
    def test_a_large_text_is_passed_over(self, kind: str, tmp_path: Path) -> None:
        info = PngImagePlugin.PngInfo()
        add = info.add_text if kind == "zTXt" else info.add_itxt
        add("workflow", "x" * 3_000_000, zip=True)
        Image.fromarray(NOISE).save(tmp_path / "a.png", pnginfo=info)
        assert kind.encode() in (tmp_path / "a.png").read_bytes()
        self.assert_read(tmp_path / "a.png")

    def test_many_texts_are_passed_over(self, tmp_path: Path) -> None:
        info = PngImagePlugin.PngInfo()
        for number in range(70):
            info.add_text(f"{number}", "x" * 1_000_000)
        Image.fromarray(NOISE).save(tmp_path / "a.png", pnginfo=info)
        self.assert_read(tmp_path / "a.png")

    def test_a_large_colour_profile_is_passed_over(self, tmp_path: Path) -> None:
        Image.fromarray(NOISE).save(tmp_path / "a.png", icc_profile=os.urandom(999) * 3000)
        self.assert_read(tmp_path / "a.png")

    def test_a_large_text_behind_the_pixels_is_passed_over(self, tmp_path: Path) -> None:
        Image.fromarray(NOISE).save(tmp_path / "a.png")
        content, end = (tmp_path / "a.png").read_bytes(), chunk(b"IEND", b"")
        text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 3_000_000))
        (tmp_path / "a.png").write_bytes(content.removesuffix(end) + text + end)
        self.assert_read(tmp_path / "a.png")

    def test_beyond_the_limit_of_pillow_it_is_passed_over_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Image.fromarray(NOISE).save(tmp_path / "a.png", icc_profile=os.urandom(999) * 3000)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        self.assert_read(tmp_path / "a.png")

    def test_the_orientation_beside_it_still_counts(self, tmp_path: Path) -> None:
        info, exif = PngImagePlugin.PngInfo(), Image.Exif()
        info.add_text("workflow", "x" * 3_000_000, zip=True)
        exif[274] = 3
        Image.fromarray(NOISE).save(tmp_path / "a.png", pnginfo=info, exif=exif)
        np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.png")), NOISE[::-1, ::-1])


FORMATS: dict[str, dict[str, Any]] = {
    "BMP": {},
    "TGA": {"compression": "tga_rle"},
    "PPM": {},
    "PCX": {},
    "SGI": {},
    "ICO": {"sizes": [(40, 30)]},
    "PNG": {},
    "TIFF": {"compression": "tiff_lzw"},
    "TIFF deflate": {"compression": "tiff_adobe_deflate"},
    "TIFF packbits": {"compression": "packbits"},
    "TIFF zstd": {"compression": "zstd"},
    "TIFF lzma": {"compression": "lzma"},
    "JPEG2000": {"irreversible": False},
    "WEBP": {"lossless": True},
    "QOI": {},
    "DDS": {},
}


@pytest.mark.parametrize("format", FORMATS)
def test_formats_without_loss_are_read_to_the_bit(format: str, tmp_path: Path) -> None:
    Image.fromarray(NOISE).save(tmp_path / "a", format.split()[0], **FORMATS[format])
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a")), NOISE)


@pytest.mark.parametrize("format", FORMATS)
def test_the_limit_of_pillow_does_not_count(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(NOISE).save(tmp_path / "a", format.split()[0], **FORMATS[format])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError), Image.open(tmp_path / "a") as image:
        image.load()
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a")), NOISE)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("compression", ["raw", "group3", "group4", "tiff_ccitt"])
def test_a_fax_is_black_and_white(compression: str, tmp_path: Path) -> None:
    bits = Image.fromarray(NOISE[:, :, 0]).convert("1")
    bits.save(tmp_path / "a.tif", compression=compression)
    assert open_image(tmp_path / "a.tif").tobytes() == bits.convert("RGB").tobytes()


def test_a_jpeg_for_print_has_the_colours_of_the_picture(tmp_path: Path) -> None:
    """CMYK, which such JPEGs hold the other way round."""
    colours = Image.new("RGB", (64, 64), (200, 40, 90))
    colours.convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.abs(np.asarray(open_image(tmp_path / "a.jpg")).astype(int) - (200, 40, 90)).max() <= 3


def test_a_stereo_picture_is_its_first(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (64, 48), "red"), Image.new("RGB", (64, 48), "blue")
    first.save(tmp_path / "a.mpo", "MPO", save_all=True, append_images=[second], quality=100)
    with Image.open(tmp_path / "a.mpo") as stored:
        assert (stored.format, stored.n_frames) == ("MPO", 2)  # type: ignore[attr-defined]
    assert np.abs(np.asarray(open_image(tmp_path / "a.mpo")).astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1)])
def test_a_picture_a_pixel_wide_is_read(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size, "lime").save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").getcolors() == [(200_000, (0, 255, 0))]


def test_the_pictures_of_the_reference_are_read_without_a_word_where_8_bits_hold_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for path in sorted(shared_path("images").glob("*.jp*g")):
        assert open_image(path).mode == "RGB"
        assert not caplog.records, path
