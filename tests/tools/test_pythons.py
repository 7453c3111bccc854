"""Which Pythons the wheel is tested on, and how they are found; `make test-pythons` runs the rest."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from mvlm_np.errors import UserError
from tests.conftest import ROOT
from tools import pythons
from tools.parts import debian


def test_the_versions_are_those_that_the_project_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", c) for c in project["classifiers"]]
    assert tuple(found[1] for found in named if found) == pythons.VERSIONS
    first, last = pythons.VERSIONS[0], pythons.VERSIONS[-1]
    assert project["requires-python"] == f">={first},<3.{int(last.split('.')[1]) + 1}"
    for document in ("README.md", "CONTRIBUTING.md"):
        assert f"Python {first} to {last}" in (ROOT / document).read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert all(f"python{version}" in makefile for version in pythons.VERSIONS)
    assert f"(3, 11) <= sys.version_info[:2] <= ({last.replace('.', ', ')})" in makefile


def executable(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return folder / name


def test_a_python_is_found_on_the_path_and_among_pyenvs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    start = f'exec {sys.executable} "$@"'
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    # As a shim of pyenv's that leads nowhere: passed over.
    executable(tmp_path / "bin", f"python{version}", "echo 'command not found' >&2; exit 127")
    among = executable(tmp_path / "pyenv/versions" / f"{version}.9/bin", "python", start)
    assert pythons.find(version) == among
    on_path = executable(tmp_path / "bin", f"python{version}", start)
    assert pythons.find(version) == on_path


def test_one_that_is_not_here_is_told_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/bin:/nowhere")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setattr(pythons, "FROM_DEBIAN", ())
    with pytest.raises(UserError, match=r"Python 3\.9.: is neither on the PATH nor among pyenv's"):
        pythons.find("3.99")
    executable(tmp_path / "versions/3.99.1/bin", "python", "echo no module named ensurepip >&2; exit 1")
    with pytest.raises(UserError, match=r"cannot make environments: no module named ensurepip"):
        pythons.find("3.99")


def test_what_is_unpacked_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root").mkdir()
    monkeypatch.setenv("PATH", "/nowhere")
    assert debian.unpack(["python3"], tmp_path, "amd64") == tmp_path / "root"
    with pytest.raises(
        UserError, match="apt-get: is not installed; on Debian and Ubuntu: apt-get install apt"
    ):
        debian.unpack(["python3"], tmp_path / "other", "amd64")
