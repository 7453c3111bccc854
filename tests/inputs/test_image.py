"""Pictures of every kind go in, and come out as upstream's chain of Pillow and CLIP processing has them."""

import hashlib
import io
import json
import re
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from mvlm_np import memory
from mvlm_np.config import ImageConfig
from mvlm_np.errors import ImageError
from mvlm_np.inputs import image as module
from mvlm_np.inputs.image import MAX_SIDE, open_image, preprocess
from tests.conftest import ROOT, SHARED, shared_path

PAD = ImageConfig(aspect_ratio="pad")
CUT = ImageConfig(aspect_ratio=None)
FLOAT32 = 1e-6  # pixel values lie within 3 of zero, and come out of three float32 roundings, 4e-7 together
NAMES = sorted(json.loads((SHARED / "images/manifest.json").read_text())) if SHARED.exists() else ["(absent)"]


def noise(width: int = 40, height: int = 30, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def upstream(image: Image.Image, config: ImageConfig) -> np.ndarray:
    """What upstream does, one literal step after the other."""
    if config.aspect_ratio == "pad":
        longer = max(image.size)
        square = Image.new("RGB", (longer, longer), tuple(int(m * 255) for m in config.mean))
        square.paste(image, ((longer - image.width) // 2, (longer - image.height) // 2))
        image = square
    shorter = min(image.size)
    width, height = (int(config.resize * side / shorter) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - config.crop[1]) // 2, (height - config.crop[0]) // 2
    image = image.crop((left, top, left + config.crop[1], top + config.crop[0]))
    scaled = (np.asarray(image) * (1 / 255)).astype(np.float32)
    mean, std = np.array(config.mean, np.float32), np.array(config.std, np.float32)
    return ((scaled - mean) / std).transpose(2, 0, 1)


def assert_within_one_rounding(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.dtype == theirs.dtype == np.float32
    assert ours.shape == theirs.shape
    assert (abs(ours - theirs) <= np.spacing(abs(theirs))).all()


# How a camera's picture must be turned for each EXIF orientation, on arrays (H, W, 3).
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
    9: lambda a: a,  # no such orientation
}


class TestOpenImage:
    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
    def test_every_mode_becomes_rgb_as_pillow_converts_it(self, mode: str, tmp_path: Path) -> None:
        if mode in ("I;16", "I", "F"):
            dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
            image = Image.fromarray((np.arange(30 * 40).reshape(30, 40) * 0.7).astype(dtype))
        else:
            image = Image.fromarray(noise(channels=4), "RGBA").convert(mode)
        assert image.mode == mode
        path = tmp_path / "picture.tif"
        image.save(path)
        opened = open_image(path, adapt=False)
        assert opened.mode == "RGB"
        with Image.open(path) as stored:
            assert stored.mode == mode
            assert opened.tobytes() == stored.convert("RGB").tobytes()

    def test_transparency_is_dropped(self, tmp_path: Path) -> None:
        rgba = noise(channels=4)
        rgba[:10, :, 3] = 0
        Image.fromarray(rgba).save(tmp_path / "rgba.png")
        np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "rgba.png")), rgba[:, :, :3])

        palette = Image.fromarray(noise(16, 16, 1)[:, :, 0])
        palette.putpalette(bytes(range(255, -1, -1)) * 3)
        palette.save(tmp_path / "palette.png", transparency=bytes(range(256)))
        expected = np.frombuffer(bytes(range(255, -1, -1)) * 3, np.uint8).reshape(256, 3)[np.asarray(palette)]
        np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "palette.png")), expected)

    def test_as_upstream_has_it_large_values_of_deep_pictures_are_cut_to_255(self) -> None:
        for dtype in (np.uint16, np.int32, np.float32):
            deep = Image.fromarray(np.array([[0, 7, 255, 256, 60000]], dtype))
            assert [*np.asarray(open_image(deep, adapt=False))[0, :, 0]] == [0, 7, 255, 255, 255]

    @pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
    def test_an_animation_is_its_first_frame(self, format: str, tmp_path: Path) -> None:
        frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
        options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
        frames[0].save(tmp_path / "a", format, save_all=True, append_images=frames[1:], **options)
        with Image.open(tmp_path / "a") as stored:
            assert getattr(stored, "n_frames", 1) == 3
        assert open_image(tmp_path / "a").getcolors() == [(48, (255, 0, 0))]

    @pytest.mark.parametrize("orientation", UPRIGHT)
    @pytest.mark.parametrize("format", ["PNG", "WEBP"])
    def test_exif_orientation_is_applied_unless_declined(
        self, orientation: int, format: str, tmp_path: Path
    ) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        stored, path = noise(), tmp_path / "a"
        Image.fromarray(stored).save(path, format, exif=exif, lossless=True)
        np.testing.assert_array_equal(np.asarray(open_image(path)), UPRIGHT[orientation](stored))
        np.testing.assert_array_equal(np.asarray(open_image(path, exif=False)), stored)
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(open_image(image)), UPRIGHT[orientation](stored))
            np.testing.assert_array_equal(np.asarray(image), stored, "the caller's image is as it was")

    def test_a_tiff_that_pillow_turns_itself_is_not_turned_twice(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        Image.fromarray(noise()).save(tmp_path / "a.tif", exif=exif)
        for flag in (True, False):
            opened = open_image(tmp_path / "a.tif", exif=flag)
            np.testing.assert_array_equal(np.asarray(opened), np.rot90(noise(), -1))

    @pytest.mark.parametrize(
        "exif", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0" + b"\7" * 40]
    )
    def test_exif_that_cannot_be_read_turns_nothing(self, exif: bytes, tmp_path: Path) -> None:
        Image.fromarray(noise()).save(tmp_path / "a.webp", exif=exif, lossless=True)
        np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.webp")), noise())

    def test_arrays_may_be_read_only_and_strided(self) -> None:
        array = noise(channels=6)[::2, ::-1, :3]
        array.flags.writeable = False
        np.testing.assert_array_equal(np.asarray(open_image(array)), array)

    def test_paths_may_be_text_or_path_objects(self, tmp_path: Path) -> None:
        Image.fromarray(noise()).save(tmp_path / "a.png")
        assert open_image(str(tmp_path / "a.png")).tobytes() == open_image(tmp_path / "a.png").tobytes()

    def test_a_sound_picture_gives_no_warning_even_if_pillow_has_one(self, tmp_path: Path) -> None:
        image = Image.fromarray(noise(16, 16, 1)[:, :, 0]).convert("P")
        image.save(tmp_path / "a.png", transparency=bytes(range(256)))  # Pillow would have us convert to RGBA
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            open_image(tmp_path / "a.png")


def png(width: int, height: int, content: bytes = b"") -> bytes:
    """A PNG that claims a size, whatever it holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


def encoded(format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise()).save(buffer, format, **options)
    return buffer.getvalue()


# Files that hold no sound picture, and what is said of them.
FILES = {
    "text": (b"Dear Sir or Madam,\n" * 9, "is no picture that Pillow can read"),
    "empty": (b"", "is empty"),
    "truncated JPEG": (encoded("JPEG")[:-300], "cannot be read (image file is truncated"),
    "truncated PNG": (encoded("PNG")[:-900], "cannot be read (image file is truncated"),
    "only a header": (encoded("PNG")[:33], "is no picture that Pillow can read"),
    "damaged inside": (png(40, 30, b"\7" * 3630), "cannot be read"),
    "fewer pixels than it claims": (png(40, 30, b"\0" * 999), "cannot be read"),
    "more pixels than any memory holds": (png(200000, 200000), "found 200000 x 200000 pixels, which take 36"),
    "a side too long": (png(MAX_SIDE + 1, 1), f"found {MAX_SIDE + 1} x 1 pixels"),
    "no pixels": (png(0, 9), "is no picture that Pillow can read"),
    "a program": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n9 9 moveto\n",
        "PostScript",
    ),
}


class TestBadPictures:
    """Each is one line that names the file, what was found, what was wanted, and what to do."""

    @pytest.mark.parametrize("kind", FILES)
    def test_a_file_that_is_no_sound_picture_is_refused(self, kind: str, tmp_path: Path) -> None:
        content, reason = FILES[kind]
        path = tmp_path / "picture.jpg"
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.assert_refused(path, str(path), reason)

    def test_a_place_without_a_picture_is_refused(self, tmp_path: Path) -> None:
        self.assert_refused(tmp_path / "none.png", str(tmp_path / "none.png"), "there is no such file")
        self.assert_refused("none\0.png", "none", "there is no such file")
        self.assert_refused("a" * 5000, "aaa...", "there is no such file")
        self.assert_refused(tmp_path, str(tmp_path), "is a directory")
        self.assert_refused("/dev/null", "/dev/null", "is not a regular file")
        self.assert_refused("https://example.org/cat.jpg", "https://example.org/cat.jpg", "is a URL")
        self.assert_refused(Path("https://example.org/cat.jpg"), "cat.jpg", "is a URL")
        self.assert_refused("data:image/png;base64," + "A" * 9999, "data:image/png", "is a URL")

    def test_an_array_that_is_no_picture_is_refused(self) -> None:
        for array in (
            noise().astype(np.float32),
            noise().astype(np.int64),
            noise()[:, :, 0],
            noise(channels=4),
            noise().transpose(2, 0, 1),
            noise()[None],
            noise()[:0],
            noise()[:, :0],
        ):
            found = f"an array of {array.dtype} {array.shape}"
            self.assert_refused(array, "the image given", re.sub(r"\s+", " ", found))
        large = np.broadcast_to(np.uint8(0), (200000, 200000, 3))
        self.assert_refused(large, "the image given", "found 200000 x 200000 pixels, which take 320 GB")

    def test_a_pillow_image_that_is_no_picture_is_refused(self, tmp_path: Path) -> None:
        self.assert_refused(Image.new("RGB", (0, 5)), "the image given", "found 0 x 5 pixels")
        (tmp_path / "half.png").write_bytes(encoded("PNG")[:-900])
        with Image.open(tmp_path / "half.png") as image:
            self.assert_refused(image, "half.png", "cannot be read")
        closed = Image.fromarray(noise())
        closed.close()
        self.assert_refused(closed, "the image given", "cannot be read")

    @pytest.mark.parametrize("source", [None, 7, b"cat.jpg", io.BytesIO(), ["cat.jpg"]])
    def test_other_types_are_refused(self, source: Any) -> None:
        self.assert_refused(source, "the image given", type(source).__name__)

    @given(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]), st.data())
    def test_a_damaged_file_is_a_picture_or_an_error_of_one_line(
        self, format: str, data: st.DataObject
    ) -> None:
        content = bytearray(encoded(format))
        for _ in range(data.draw(st.integers(1, 4))):
            position = data.draw(
                st.integers(0, min(200, len(content) - 1)) | st.integers(0, len(content) - 1)
            )
            content[position] = data.draw(st.integers(0, 255))
        path = Path(self.folder) / "picture"
        path.write_bytes(content[: data.draw(st.integers(1, len(content)) | st.just(len(content)))])
        try:
            assert open_image(path).mode == "RGB"
        except ImageError as error:
            assert "\n" not in str(error)

    @pytest.fixture(autouse=True)
    def _in_a_folder_of_its_own(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    @staticmethod
    def assert_refused(source: Any, where: str, found: str) -> None:
        with pytest.raises(ImageError) as caught:
            open_image(source)
        message = str(caught.value)
        assert where in message
        assert found in message
        assert "\n" not in message
        assert len(message) < 600


class TestMemory:
    """A picture is seen whole where memory allows, whatever its size; else a JPEG is read smaller."""

    SIZE = 400, 300  # pixels; with `room`, memory is as short for them as it is for a hundred million

    @pytest.fixture
    def room(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
        """Sets the memory that is free, in bytes a pixel of a picture of SIZE."""

        def set_room(bytes_a_pixel: float) -> None:
            monkeypatch.setattr(
                "mvlm_np.memory.available", lambda: module.RESERVE + int(bytes_a_pixel * 400 * 300)
            )

        return set_room

    @pytest.fixture
    def photo(self, tmp_path: Path) -> Path:
        Image.fromarray(noise(*self.SIZE)).resize(self.SIZE).save(tmp_path / "photo.jpg")
        return tmp_path / "photo.jpg"

    def test_a_photo_of_200_megapixels_is_read(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        size = 16384, 12288  # more than Pillow's limit
        if (memory.available() or 0) < 3e9:
            pytest.skip("needs 3 GB of free memory")
        Image.new("RGB", size, (200, 30, 90)).save(tmp_path / "a.jpg")
        opened = open_image(tmp_path / "a.jpg")
        assert opened.size == size
        assert opened.resize((1, 1)).getpixel((0, 0)) == pytest.approx((200, 30, 90), abs=2)  # it is a JPEG
        assert not caplog.records

    @pytest.mark.parametrize(
        ("bytes_a_pixel", "scale"), [(9, 1), (8.9, 2), (3, 2), (2.9, 4), (1.5, 4), (1.4, 8)]
    )
    def test_a_jpeg_that_memory_does_not_hold_is_read_as_large_as_it_does(
        self,
        bytes_a_pixel: float,
        scale: int,
        room: Callable[[float], None],
        photo: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        room(bytes_a_pixel)
        opened = open_image(photo)
        assert opened.size == (400 // scale, -(-300 // scale))
        with Image.open(photo) as whole:
            whole.draft("RGB", (400 // scale, 300 // scale))
            assert opened.tobytes() == whole.tobytes()
        assert len(caplog.records) == (scale > 1)
        if scale > 1:
            assert caplog.messages[0].startswith(
                f"{photo}: its 400 x 300 pixels take 1.08 MB of memory, and "
            )
            assert f"read at 1/{scale} of its size" in caplog.messages[0]

    def test_turning_counts_the_smaller_picture(self, room: Callable[[float], None], tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        Image.fromarray(noise(*self.SIZE)).save(tmp_path / "a.jpg", exif=exif)
        room(3)
        assert open_image(tmp_path / "a.jpg").size == (150, 200)

    def test_a_progressive_jpeg_takes_more(self, room: Callable[[float], None], tmp_path: Path) -> None:
        Image.fromarray(noise(*self.SIZE)).save(tmp_path / "a.jpg", progressive=True)
        room(10)
        assert open_image(tmp_path / "a.jpg").size == (200, 150)

    def test_where_pixels_must_be_upstreams_nothing_is_read_smaller(
        self, room: Callable[[float], None], photo: Path
    ) -> None:
        room(8.9)
        with pytest.raises(ImageError, match=r"found 400 x 300 pixels, which take 1.08 MB of memory"):
            open_image(photo, adapt=False)

    @pytest.mark.parametrize("suffix", ["png", "webp", "tif", "jp2"])
    def test_other_formats_are_refused_with_what_to_do(
        self, suffix: str, room: Callable[[float], None], tmp_path: Path
    ) -> None:
        Image.fromarray(noise(*self.SIZE)).save(tmp_path / f"a.{suffix}")
        room(8.9)
        with pytest.raises(ImageError, match="shrink it first: convert IN -resize 4000x4000 OUT"):
            open_image(tmp_path / f"a.{suffix}")
        room(30)
        assert open_image(tmp_path / f"a.{suffix}").size == self.SIZE

    def test_a_pillow_image_is_never_changed(self, room: Callable[[float], None], photo: Path) -> None:
        room(8.9)
        with Image.open(photo) as image, pytest.raises(ImageError, match="400 x 300"):
            open_image(image)
        assert image.size == self.SIZE

    def test_where_the_memory_is_not_known_everything_is_read(
        self, monkeypatch: pytest.MonkeyPatch, photo: Path
    ) -> None:
        monkeypatch.setattr("mvlm_np.memory.available", lambda: None)
        assert open_image(photo).size == self.SIZE

    def test_memory_that_runs_out_all_the_same_is_one_line(
        self, monkeypatch: pytest.MonkeyPatch, photo: Path
    ) -> None:
        def convert(*_: object) -> None:
            raise MemoryError

        monkeypatch.setattr(Image.Image, "convert", convert)
        with pytest.raises(ImageError, match=r"photo.jpg: takes more memory than this process may"):
            open_image(photo)


class TestNotes:
    """What is answered though less is seen than the file holds."""

    def test_of_a_raw_file_the_preview_is_seen(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for number, tags in enumerate(({50706: b"\1\4\0\0"}, {254: 1})):
            path = tmp_path / f"{number}.dng"
            Image.fromarray(noise()).save(path, "TIFF", tiffinfo=tags)
            assert open_image(path).size == (40, 30)
            assert f"{path}: is a camera's raw file, of which the preview is read" in caplog.messages[0]
            caplog.clear()

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
    def test_what_is_transparent_is_seen_without_its_transparency(
        self, mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        rgba = noise(channels=4)
        rgba[:, :, 3] = 255
        Image.fromarray(rgba).convert(mode).save(tmp_path / "opaque.png")
        open_image(tmp_path / "opaque.png")
        assert not caplog.records
        rgba[:15, :, 3] = 0
        image = Image.fromarray(rgba)
        (image.quantize(64, Image.Quantize.FASTOCTREE) if mode == "P" else image.convert(mode)).save(
            tmp_path / "half.png"
        )
        opened = open_image(tmp_path / "half.png")
        assert "half.png: 50 % of it is transparent, and the colours behind are read" in caplog.messages[0]
        caplog.clear()
        assert opened.tobytes() == open_image(tmp_path / "half.png", adapt=False).tobytes()
        assert not caplog.records


class TestPreprocess:
    @pytest.mark.parametrize("config", [PAD, CUT], ids=["pad", "cut"])
    @pytest.mark.parametrize(
        "size", [(1, 1), (2, 2), (3, 1), (2, 3), (335, 90), (336, 336), (500, 337), (360, 800)]
    )
    def test_equals_the_literal_steps(self, size: tuple[int, int], config: ImageConfig) -> None:
        image = Image.fromarray(noise(*size))
        np.testing.assert_array_equal(preprocess(image, config), upstream(image, config))

    @given(
        st.integers(1, 300),
        st.integers(1, 300),
        st.integers(1, 100),
        st.tuples(st.integers(1, 120), st.integers(1, 120)),
        st.sampled_from(["pad", "square", None]),
    )
    def test_equals_the_literal_steps_at_any_setting(
        self, width: int, height: int, size: int, crop: tuple[int, int], aspect: str | None
    ) -> None:
        image = Image.fromarray(noise(width, height))
        config = ImageConfig(size, crop, mean=(0.5, 0.0, 1.0), std=(0.25, 0.5, 1.5), aspect_ratio=aspect)
        ours = preprocess(image, config)
        np.testing.assert_array_equal(ours, upstream(image, config))
        assert ours.dtype == np.float32
        assert ours.shape == (3, *crop)
        assert ours.flags.c_contiguous

    @pytest.mark.parametrize("size", [(640, 400), (400, 640), (100, 90), (336, 336), (37, 500)])
    def test_equals_the_processor_of_transformers(self, size: tuple[int, int]) -> None:
        processor = clip_processor()
        image = Image.fromarray(noise(*size))
        assert_within_one_rounding(preprocess(image, CUT), processor(image))

    def test_white_and_black_have_the_values_of_the_formula(self) -> None:
        for level in (0, 255):
            pixels = preprocess(Image.new("RGB", (50, 50), (level,) * 3), CUT)
            for channel in range(3):
                expected = (level / 255 - CUT.mean[channel]) / CUT.std[channel]
                np.testing.assert_allclose(pixels[channel], expected, rtol=0, atol=FLOAT32)

    def test_padding_has_the_colour_of_the_mean_rounded_down(self) -> None:
        pixels = preprocess(Image.new("RGB", (300, 100)), PAD)
        for channel, level in enumerate((122, 116, 104)):
            expected = (level / 255 - PAD.mean[channel]) / PAD.std[channel]
            np.testing.assert_allclose(pixels[channel, :100], expected, rtol=0, atol=FLOAT32)
            np.testing.assert_allclose(pixels[channel, 236:], expected, rtol=0, atol=FLOAT32)

    @pytest.mark.parametrize("aspect", ["pad", None])
    @pytest.mark.parametrize("size", [(100_000, 1), (1, 100_000), (100_000, 40), (40, 100_000)])
    def test_an_extreme_shape_takes_little_memory(self, size: tuple[int, int], aspect: str | None) -> None:
        """The square would take 30 GB; the picture without padding 34 GB."""
        script = f"""
            import re, numpy
            from PIL import Image
            from mvlm_np import memory
from mvlm_np.config import ImageConfig
            from mvlm_np.inputs.image import open_image, preprocess
            picture = open_image(Image.new("RGB", {size}, (200, 30, 90)))
            pixels = preprocess(picture, ImageConfig(aspect_ratio={aspect!r}))
            assert pixels.shape == (3, 336, 336) and numpy.isfinite(pixels).all()
            print(pixels[:, 168, 168].tolist())
            print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
        """
        code = "\n".join(line.strip() for line in script.splitlines())
        out = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
        )
        middle, peak = out.stdout.split("\n")[:2]
        assert int(peak) * 1024 < 300e6  # Python with NumPy and Pillow is 30 to 60 MB of it
        if aspect is None:  # a picture of one colour
            expected = [(v / 255 - m) / s for v, m, s in zip((200, 30, 90), CUT.mean, CUT.std, strict=True)]
            np.testing.assert_allclose(json.loads(middle), expected, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("name", NAMES)
class TestSharedPictures:
    def test_pixels_are_those_that_were_recorded(self, name: str) -> None:
        path = shared_path(f"images/{name}")
        recorded = json.loads(shared_path("images/manifest.json").read_text())[name]
        pixels = np.asarray(open_image(path, exif=False, adapt=False))
        assert list(pixels.shape) == recorded["rgb_shape"]
        if not PIL.__version__.startswith("13."):
            pytest.skip("the checksums are those of Pillow 13 and its JPEG and WebP decoders")
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == recorded["rgb_sha256_pillow13"]

    @pytest.mark.parametrize("config", [PAD, CUT], ids=["pad", "cut"])
    def test_pixel_values_equal_the_literal_steps(self, name: str, config: ImageConfig) -> None:
        for exif in (True, False):
            image = open_image(shared_path(f"images/{name}"), exif)
            np.testing.assert_array_equal(preprocess(image, config), upstream(image, config))

    def test_pixel_values_equal_the_processor_of_transformers(self, name: str) -> None:
        image = open_image(shared_path(f"images/{name}"))
        assert_within_one_rounding(preprocess(image, CUT), clip_processor()(image))


@pytest.mark.parametrize(
    ("name", "turn"),
    [("d_chelsea_exif8.jpg", 1), ("hopper_orientation_6.jpg", -1), ("hopper_orientation_5.webp", None)],
)
def test_camera_pictures_are_turned_upright(name: str, turn: int | None) -> None:
    path = shared_path(f"images/{name}")
    stored = np.asarray(open_image(path, exif=False))
    upright = stored.transpose(1, 0, 2) if turn is None else np.rot90(stored, turn)
    np.testing.assert_array_equal(np.asarray(open_image(path)), upright)


@pytest.mark.parametrize(
    "golden", ["mlp-cls/golden-0", "v1-ldp/golden-0", "v2-256/golden-0", "v2-gqa/golden-0", "v2-gqa/golden-1"]
)
def test_pixel_values_are_those_of_the_published_code(golden: str) -> None:
    from safetensors.numpy import load_file

    folder = shared_path(f"goldens/{golden}.safetensors").parent
    cases = json.loads((folder / "cases.json").read_text())
    case = next(case for case in cases if case["golden"] == f"{Path(golden).name}.safetensors")
    aspect = json.loads((folder / "config.json").read_text())["image_aspect_ratio"]
    image = open_image(folder / case["image"], exif=False)
    theirs = load_file(folder / case["golden"])["pixel_values"]
    assert_within_one_rounding(preprocess(image, ImageConfig(aspect_ratio=aspect))[None], theirs)


def clip_processor() -> Any:
    """transformers' CLIP processing on Pillow; its newer way with transparency is left out."""
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    processor = module.CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    )
    return lambda image: processor(image, do_convert_rgb=False, return_tensors="np")["pixel_values"][0]
