"""What a user gets: the wheel, the sdist, and the ways to install them."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

import mvlm_np
from tests.conftest import ROOT

pytestmark = pytest.mark.xdist_group("packaging")  # one worker, so that the wheel is built once

DEPENDENCIES = {"numpy", "numba", "safetensors", "sentencepiece", "pillow", "tqdm", "threadpoolctl"}
EXTRAS = {*"dask evaluate gguf hub llama mqtt onnx ports real serve test train fuzz wheels".split()}


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, source: Path, out: Path) -> Path:
    """Calls the build backend on `source` as pip does; kind is wheel, sdist or editable."""
    out.mkdir()
    run(sys.executable, "-c", f"from setuptools.build_meta import *; build_{kind}({str(out)!r})", cwd=source)
    (built,) = out.iterdir()
    return built


def package_files() -> Iterator[tuple[str, Path]]:
    """(path in the wheel, file here) of all that belongs to the package, data included."""
    for folder, prefix in ((ROOT / "mvlm_np", ""), (ROOT / "kernels", "mvlm_np/")):
        for path in folder.rglob("*"):
            parts = path.relative_to(ROOT).parts
            if path.is_file() and "__pycache__" not in parts and parts[:2] != ("mvlm_np", "kernels"):
                yield prefix + "/".join(parts), path


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy without caches, so that building leaves no trace here and sees no traces of earlier builds."""
    copy = tmp_path_factory.mktemp("build") / "checkout"
    copy.mkdir()
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("mvlm_np", "kernels", "tests"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    return build("wheel", checkout, checkout.parent / "wheel")


@pytest.fixture(scope="module")
def sdist(checkout: Path) -> Path:
    """The unpacked source distribution."""
    archive = build("sdist", checkout, checkout.parent / "sdist")
    with tarfile.open(archive) as tar:
        tar.extractall(archive.parent, filter="data")
    return archive.parent / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def sdist_wheel(sdist: Path) -> Path:
    return build("wheel", sdist, sdist.parent / "wheel")


@pytest.fixture(scope="module")
def editable(checkout: Path) -> Path:
    return build("editable", checkout, checkout.parent / "editable")


def contents(wheel: Path) -> dict[str, bytes]:
    with ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata(wheel: Path) -> Message:
    (text,) = [data for name, data in contents(wheel).items() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(text.decode())


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    files = {name: data for name, data in contents(wheel).items() if ".dist-info/" not in name}
    assert files == {name: path.read_bytes() for name, path in package_files()}
    assert {"mvlm_np/kernels/__init__.py", "mvlm_np/py.typed"} <= files.keys()


def test_the_wheel_carries_the_licence_and_the_command(wheel: Path) -> None:
    files = contents(wheel).items()
    info = {name.split("/", 1)[1]: data.decode() for name, data in files if ".dist-info/" in name}
    assert info["licenses/LICENSE"] == (ROOT / "LICENSE").read_text("utf-8")
    assert info["entry_points.txt"].split("\n")[:2] == ["[console_scripts]", "mvlm = mvlm_np.cli:main"]
    assert info["top_level.txt"].split() == ["mvlm_np"]
    assert "Root-Is-Purelib: true" in info["WHEEL"]


def test_the_sdist_builds_the_same_wheel(wheel: Path, sdist_wheel: Path) -> None:
    def comparable(path: Path) -> dict[str, bytes]:
        return {name: data for name, data in contents(path).items() if not name.endswith("/RECORD")}

    assert wheel.name == sdist_wheel.name
    assert comparable(wheel) == comparable(sdist_wheel)


def test_the_sdist_holds_no_links_and_no_part_of_the_tests(sdist: Path) -> None:
    assert [p for p in sdist.rglob("*") if p.is_symlink() or "tests" in p.parts] == []


def test_the_run_time_dependencies_are_these_and_no_more(wheel: Path) -> None:
    wanted = metadata(wheel).get_all("Requires-Dist") or []
    assert {w.split(">")[0] for w in wanted if "extra ==" not in w} == DEPENDENCIES
    assert set(metadata(wheel).get_all("Provides-Extra") or []) == EXTRAS


def test_the_metadata_says_version_python_and_licence(wheel: Path) -> None:
    said = metadata(wheel)
    assert said["Name"] == "mvlm-np"
    assert said["Version"] == mvlm_np.__version__
    assert set(said["Requires-Python"].split(",")) == {">=3.11", "<3.15"}
    assert said["License-Expression"] == "Apache-2.0"


@pytest.mark.parametrize("way", ["checkout", "wheel", "sdist_wheel", "editable"])
def test_however_installed_the_kernels_have_one_name(
    way: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    place: Path = request.getfixturevalue(way)
    if place.suffix == ".whl":  # installing it is unpacking it; addsitedir then follows an editable's .pth
        ZipFile(place).extractall(tmp_path)
        place = tmp_path
    names = ["mvlm_np", "mvlm_np.kernels"] + (["kernels"] if way != "checkout" else [])
    code = f"""
import site
from importlib.util import find_spec
site.addsitedir({str(place)!r})
for name in {names}:
    print(find_spec(name) and find_spec(name).origin)
"""
    # -I -S: neither this folder nor what is installed in this environment is seen
    found = run(sys.executable, "-I", "-S", "-c", code, cwd=tmp_path).splitlines()
    home = request.getfixturevalue("checkout") if way == "editable" else place
    wanted = [home / "mvlm_np/__init__.py", home / "mvlm_np/kernels/__init__.py"]
    assert found == [*map(str, wanted), "None"][: len(names)]


def test_importing_kernels_by_the_other_projects_name_fails_lint() -> None:
    code = "import kernels\nimport mvlm_np.kernels\n"
    options = ["--no-cache", "--select=TID251", "--output-format=json"]
    command = [sys.executable, "-m", "ruff", "check", *options, "-"]
    done = subprocess.run(command, cwd=ROOT, input=code, capture_output=True, text=True)
    assert [(found["code"], found["location"]["row"]) for found in json.loads(done.stdout)] == [("TID251", 1)]


def test_what_the_readme_says_of_the_model_in_the_box_works_from_the_wheel(
    wheel: Path, tmp_path: Path
) -> None:
    ZipFile(wheel).extractall(tmp_path)  # what installing it would do
    readme = (ROOT / "README.md").read_text("utf-8")
    commands = re.findall(r"^mvlm ((?:demo|(?:ask|look) mvlm_np/demo)\b[^#\n]*)", readme, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert run(sys.executable, "-m", "mvlm_np", *shlex.split(command), cwd=tmp_path)
    for page in ("demo.html", "look.html"):
        assert (tmp_path / page).stat().st_size > 100_000
