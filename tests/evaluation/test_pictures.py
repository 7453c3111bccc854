"""Pictures of the benchmarks reach the tower as in the published code: padded or cropped, and of every mode.

The judge is transformers' CLIP processor, behind the published way to pad.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mvlm_np.config import ImageConfig
from mvlm_np.errors import ImageError
from mvlm_np.evaluation.asked import CROP, PAD, PAD_FIRST
from mvlm_np.evaluation.benchmark import Benchmark
from mvlm_np.evaluation.benchmarks import read
from mvlm_np.evaluation.running import rows
from mvlm_np.rows.row import Preparation
from tests.evaluation.fixtures import benchmarks, folder

CONFIG = ImageConfig()
MODES = ("RGB", "RGBA", "P", "L", "LA", "1", "CMYK", "I;16")
SIZES = ((90, 60), (60, 90), (64, 64), (700, 350), (353, 701), (13, 200))


def clip(image: Image.Image) -> np.ndarray:
    """Pixel values (3, 336, 336): transformers resizes and crops, and the arithmetic is that of its 4.33."""
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    processor = module.CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    )
    # Since 5.0 the processor lays transparent pictures on white, which 4.33 does not.
    how = {"do_convert_rgb": False, "do_rescale": False, "do_normalize": False, "return_tensors": "np"}
    pixels = processor(image.convert("RGB"), **how)["pixel_values"][0]
    assert pixels.dtype == np.uint8 and pixels.shape == (3, 336, 336)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (processor.image_mean, processor.image_std))
    return ((pixels * (1 / 255)).astype(np.float32) - mean) / std


def square(image: Image.Image) -> Image.Image:
    """The published way to pad: a square of the picture's own mode."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    made = Image.new(image.mode, (side, side), (122, 116, 104))
    made.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return made


def as_published(image: Image.Image, how: Preparation) -> np.ndarray:
    if how == CROP:
        return clip(image)
    return clip(square(image if how == PAD_FIRST else image.convert("RGB")))


def picture(mode: str, size: tuple[int, int]) -> Image.Image:
    """Blocks of colours, with noise, transparency and a palette where the mode has them."""
    random = np.random.default_rng(sum(size))
    small = random.integers(0, 256, (4, 5, 4), np.uint8)
    image = Image.fromarray(small, "RGBA").resize(size, Image.Resampling.BILINEAR)
    if mode == "P":
        return image.convert("RGB").quantize(40)
    if mode == "I;16":
        return Image.fromarray(random.integers(0, 65536, size[::-1], np.uint16))
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def stored(image: Image.Image) -> bytes:
    """As a file, in which it keeps its mode."""
    file = io.BytesIO()
    image.save(file, "TIFF" if image.mode == "CMYK" else "PNG")
    return file.getvalue()


def seen(file: bytes | Path, how: Preparation, tmp_path: Path) -> np.ndarray:
    if isinstance(file, bytes):
        (tmp_path / "picture").write_bytes(file)
        file = tmp_path / "picture"
    return how.pixels(file, CONFIG)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", [CROP, PAD, PAD_FIRST], ids=["crop", "pad", "pad first"])
def test_every_mode_and_shape_is_seen_as_published(
    how: Preparation, mode: str, size: tuple[int, int], tmp_path: Path
) -> None:
    file = stored(picture(mode, size))
    image = Image.open(io.BytesIO(file))
    image.load()
    assert image.mode == mode and image.size == size
    try:
        wanted = as_published(image, how)
    except TypeError:  # of a mode with one number a pixel, which is given three to pad with
        with pytest.raises(ImageError, match="which the published code cannot pad"):
            seen(file, how, tmp_path)
        return
    np.testing.assert_array_equal(seen(file, how, tmp_path), wanted)


def test_the_cases_tell_the_ways_apart(tmp_path: Path) -> None:
    """Palettes change when they are padded first, grey cannot be, and a crop is no padding."""
    file = stored(picture("P", (90, 60)))
    ways = [seen(file, how, tmp_path) for how in (CROP, PAD, PAD_FIRST)]
    assert not any(np.array_equal(a, b) for a, b in zip(ways, ways[1:] + ways[:1], strict=True))
    with pytest.raises(ImageError, match="mode L"):
        seen(stored(picture("L", (90, 60))), PAD_FIRST, tmp_path)


def test_a_camera_s_note_turns_nothing(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image = picture("RGB", (90, 60))
    image.save(path := tmp_path / "photo.png", exif=exif)
    for how in (CROP, PAD, PAD_FIRST):
        np.testing.assert_array_equal(how.pixels(path, CONFIG), as_published(image, how))
        assert not np.array_equal(
            Preparation(True, how.aspect_ratio).pixels(path, CONFIG), how.pixels(path, CONFIG)
        )


@benchmarks
def test_pictures_of_the_data_sets(benchmark: Benchmark) -> None:
    """Each row's pixels, and what CLIP's processor was handed by the published code, mode and size."""
    published = (
        json.loads(line) for line in (folder(benchmark.key) / "prompts.jsonl").read_text().splitlines()
    )
    asked = read(benchmark, folder(benchmark.key))
    handed: dict[str, dict[str, Any]] = {
        one.id: line["image_input"] for one, line in zip(asked, published, strict=True)
    }
    known: dict[object, np.ndarray] = {}
    for row in rows(benchmark, asked, as_published=True):
        if row.picture is None:
            continue
        assert isinstance(row.picture, bytes | Path)
        if row.picture not in known:
            image = Image.open(io.BytesIO(row.picture) if isinstance(row.picture, bytes) else row.picture)
            padded = square(image if benchmark.key == "mmbench" else image.convert("RGB"))
            given = image if benchmark.key == "sqa" else padded
            assert {"mode": given.mode, "size": [*given.size]} == handed[row.key]
            known[row.picture] = clip(given)
        source = row.source
        assert source is not None
        np.testing.assert_array_equal(row.preparation.pixels(source, CONFIG), known[row.picture])
    assert len(known) > 1
