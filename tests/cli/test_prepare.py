"""`mvlm prepare`: a picture as the model sees it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvlm_np import memory
from mvlm_np.cli import main
from mvlm_np.config import ImageConfig
from mvlm_np.inputs.image import open_image, preprocess
from tests.conftest import DATA
from tests.golden_sets import SETS

CAT = DATA / "golden" / "picture.png"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*args: object) -> tuple[int, str, str]:
        code = main(["prepare", *(str(arg) for arg in args)])
        return code, *capsys.readouterr()

    return run


def test_a_square_of_the_longer_side_and_the_picture_in_its_middle(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "square.png"
    picture = np.asarray(Image.open(CAT))
    h, w, _ = picture.shape
    assert w > h
    assert run(CAT, "-o", out) == (0, f"wrote {out}: {w} x {w}\n", "")
    square, top = np.asarray(Image.open(out)), (w - h) // 2
    np.testing.assert_array_equal(square[top : top + h], picture)
    for border in (square[:top], square[top + h :]):
        assert (border == (122, 116, 104)).all()
    assert [path.name for path in tmp_path.iterdir()] == ["square.png"]


@pytest.mark.parametrize("options", [[], ["--size", 336]])
def test_the_model_sees_the_same_in_what_was_prepared(
    run: Run, tmp_path: Path, options: list[object]
) -> None:
    run(CAT, "-o", tmp_path / "out.png", *options)
    config = ImageConfig()
    photo, prepared = (preprocess(open_image(path), config) for path in (CAT, tmp_path / "out.png"))
    np.testing.assert_array_equal(photo, prepared)


def test_a_model_that_crops_gets_no_padding(run: Run, tmp_path: Path) -> None:
    picture = np.asarray(Image.open(CAT))
    run(CAT, "-o", tmp_path / "out.png", "--model", SETS["own/mlp"])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png")), picture)
    run(CAT, "-o", tmp_path / "small.png", "--model", SETS["own/mlp"], "--size", 20)
    small = np.asarray(Image.open(tmp_path / "small.png"))
    config = ImageConfig(20, (20, 20), (0, 0, 0), (1, 1, 1), None)
    np.testing.assert_array_equal(
        preprocess(open_image(CAT), config).transpose(1, 2, 0), small / np.float32(255)
    )


def test_a_photo_is_turned_upright_unless_told_otherwise(run: Run, tmp_path: Path) -> None:
    photo = Image.new("RGB", (8, 4), (9, 9, 9))
    photo.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "photo.png", exif=exif)
    run(tmp_path / "photo.png", "-o", tmp_path / "turned.png")
    run(tmp_path / "photo.png", "-o", tmp_path / "lying.png", "--no-exif")
    assert Image.open(tmp_path / "turned.png").getpixel((5, 0)) == (255, 255, 255)
    assert Image.open(tmp_path / "lying.png").getpixel((0, 2)) == (255, 255, 255)


def test_what_cannot_be_written_is_one_line(run: Run, tmp_path: Path) -> None:
    code, _, err = run(CAT, "-o", tmp_path / "out.jpg")
    assert code == 2 and err.endswith("wanted a name that ends in .png; JPEG loses pixels\n")
    code, _, err = run(CAT, "-o", tmp_path / "out.png", "--size", 0)
    assert code == 2 and err == "mvlm: --size: found 0, wanted 1 to 4096\n"
    code, _, err = run(tmp_path / "none.jpg", "-o", tmp_path / "out.png")
    assert code == 2 and "none.jpg" in err
    code, _, err = run(CAT, "-o", tmp_path / "absent" / "out.png")
    assert code == 2 and "cannot be written" in err
    assert not any(tmp_path.iterdir())
    (tmp_path / "out.png").write_text("mine")
    code, _, err = run(CAT, "-o", tmp_path / "out.png")
    assert code == 2 and "exists already" in err and (tmp_path / "out.png").read_text() == "mine"


def test_a_square_that_memory_does_not_hold_is_not_begun(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / "long.png"
    Image.new("RGB", (9000, 10)).save(long)
    monkeypatch.setattr(memory, "available", lambda: 300_000_000)
    code, _, said = run(long, "-o", tmp_path / "out.png")
    assert code == 2 and "its square takes" in said and "--size 336 makes it small" in said
    assert run(long, "-o", tmp_path / "small.png", "--size", 336)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.png", "small.png"]


def patches(path: Path) -> np.ndarray:
    """(576, 14, 14, 3), row by row."""
    return np.asarray(Image.open(path)).reshape(24, 14, 24, 14, 3).swapaxes(1, 2).reshape(-1, 14, 14, 3)


def test_for_a_class_token_behind_the_patches_all_move_on_by_one(run: Run, tmp_path: Path) -> None:
    assert run(CAT, "-o", tmp_path / "plain.png", "--size", 336)[0] == 0
    code, out, err = run(CAT, "-o", tmp_path / "moved.png", "--class-token-last")
    assert (code, out, err) == (0, f"wrote {tmp_path / 'moved.png'}: 336 x 336\n", "")
    plain, moved = patches(tmp_path / "plain.png"), patches(tmp_path / "moved.png")
    np.testing.assert_array_equal(moved[1:], plain[:-1])
    for patch in (moved[0], plain[-1]):
        assert (patch == (122, 116, 104)).all()


def test_what_is_lost_of_a_square_photo_is_said(run: Run, tmp_path: Path) -> None:
    Image.new("RGB", (50, 50), (1, 2, 3)).save(tmp_path / "photo.png")
    _, _, err = run(tmp_path / "photo.png", "-o", tmp_path / "moved.png", "--class-token-last")
    assert err == "mvlm: note: the lower right 14 x 14 of 336 x 336 pixels are lost\n"
    moved = patches(tmp_path / "moved.png")
    assert (moved[1:] == (1, 2, 3)).all() and (moved[0] == (122, 116, 104)).all()


def test_a_class_token_behind_the_patches_goes_with_the_models_size_alone(run: Run, tmp_path: Path) -> None:
    code, _, err = run(CAT, "-o", tmp_path / "out.png", "--class-token-last", "--size", 224)
    assert code == 2 and err.endswith("found --size 224, wanted the model's own size, a square\n")
    small = (CAT, "-o", tmp_path / "small.png", "--class-token-last", "--model", SETS["own/ldpv2"])
    assert run(*small)[1].endswith("52 x 52\n")
