"""Pages are written whole or not at all, to wherever a user may want them."""

import base64
import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvlm_np import pages
from mvlm_np.errors import GoldenError, UserError


def test_a_page_replaces_the_one_before_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    for text in ("<!doctype html>first", "<!doctype html>second – 2 × 2"):
        pages.write(path, text)
        assert path.read_text("utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


def test_a_page_that_breaks_off_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.html"
    pages.write(path, "<!doctype html>whole")
    write_text = Path.write_text

    def full(self: Path, *args: str) -> None:
        write_text(self, "ha")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="No space left on device"):
        pages.write(path, "half")
    assert path.read_bytes() == b"<!doctype html>whole" and list(tmp_path.iterdir()) == [path]


def test_what_is_no_page_is_not_replaced(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"\x89PNG")
    for write in (pages.check, lambda path: pages.write(path, "<html>")):
        with pytest.raises(UserError, match="holds something else, which a page would replace"):
            write(photo)
    assert photo.read_bytes() == b"\x89PNG"
    (empty := tmp_path / "empty").touch()
    pages.write(empty, "<html>")
    assert empty.read_text() == "<html>"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "page.html"
    link.symlink_to(tmp_path / "there" / "page.html")
    pages.write(link, "text")
    assert link.is_symlink() and (tmp_path / "there" / "page.html").read_text() == "text"


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    pages.write(pipe, "text")
    reader.join(timeout=60)
    assert found == ["text"] and pipe.is_fifo()


def test_names_that_are_not_unicode_do_not_stop_a_page(tmp_path: Path) -> None:
    pages.write(tmp_path / "page.html", "a\udce9b")
    assert (tmp_path / "page.html").read_text("utf-8") == "a?b"


@pytest.mark.parametrize("where", ["missing/page.html", "."])
def test_a_place_that_takes_no_page_is_an_error_of_the_kind_that_is_asked_for(
    tmp_path: Path, where: str
) -> None:
    path = tmp_path / where
    for call in (lambda: pages.check(path, GoldenError), lambda: pages.write(path, "")):
        with pytest.raises(UserError) as error:
            call()
        assert str(tmp_path) in str(error.value) and len(str(error.value).splitlines()) == 1
    with pytest.raises(GoldenError):
        pages.write(path, "", GoldenError)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_takes_a_page_is_none(tmp_path: Path) -> None:
    pages.check(tmp_path / "page.html")


def test_pictures_are_inside_the_page() -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    start, _, text = pages.inline(Image.fromarray(array)).partition(",")
    assert start == "data:image/png;base64"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))), array)
