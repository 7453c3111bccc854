"""Paths as people and programs write them."""

import os
from pathlib import Path

import pytest

from mvlm_np.errors import UserError
from mvlm_np.paths import local


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("photo.jpg", "photo.jpg"),
        ("/a/b c.jpg", "/a/b c.jpg"),
        ("100%25.jpg", "100%25.jpg"),  # only addresses are decoded
        ("file:///a/my%20photo.jpg", "/a/my photo.jpg"),
        ("FILE:///a/caf%C3%A9.jpg", "/a/café.jpg"),
        ("file://localhost/a.jpg", "/a.jpg"),
        ("file:/a.jpg", "/a.jpg"),
        ("https://example.org/a.jpg", "https://example.org/a.jpg"),
        ("~nobody-of-this-name/a.jpg", "~nobody-of-this-name/a.jpg"),
    ],
)
def test_an_address_is_the_file_that_it_names(given: str, meant: str) -> None:
    assert local(given) == meant


def test_a_tilde_is_the_home_folder(home: Path) -> None:
    assert local("~/photo.jpg") == f"{home}/photo.jpg"
    assert local(Path("~/photo.jpg")) == f"{home}/photo.jpg"
    assert local("~") == str(home)


@pytest.mark.parametrize("name", ["~", "file:a.jpg", "file:%41.jpg"])
def test_a_file_of_exactly_that_name_goes_before(home: Path, name: str) -> None:
    (home / name).touch()
    assert local(name) == name


def test_a_byte_that_is_no_character_survives() -> None:
    assert os.fsencode(local("file:///a%FF.jpg")) == b"/a\xff.jpg"


def test_another_machine_is_named() -> None:
    with pytest.raises(UserError, match=r"^file://server/a\.jpg: names the machine 'server'"):
        local("file://server/a.jpg")


@pytest.mark.parametrize("given", [None, "", 3, b"/a.jpg", ["a.jpg"], True])
def test_what_is_no_path_is_refused(given: object) -> None:
    with pytest.raises(UserError, match=r"^model: found .*, wanted a path"):
        local(given, "model")
