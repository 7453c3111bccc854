"""The wheels and the libraries in them: for `tools/wheels.py`, and for the tools that try them out."""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from mvlm_np.errors import UserError
from mvlm_np.kernels.code.build import build
from mvlm_np.kernels.library import file_name, fingerprint
from mvlm_np.kernels.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "libraries"
MACHINES = tuple(sorted({target.machine for target in TARGETS.values()}))
SOURCES = ("mvlm_np", "kernels", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the time of each file: what a zip file can say least


# ---------------------------------------------------------------- libraries


def libraries(targets: Iterable[str]) -> list[Path]:
    """The libraries of these targets. Those that are not there are built, as many at a time as cores."""

    def one(target: str) -> Path:
        path = folder() / file_name(target)
        if not path.exists():
            build(target, path.parent, zig(target))
            print(f"built {path.relative_to(ROOT)}, {path.stat().st_size:,} bytes", flush=True)
        return path

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, targets))


def folder() -> Path:
    """Where the libraries of these sources are."""
    return CACHE / f"{fingerprint()}-numba-{version('numba')}"


def zig(target: str) -> Sequence[str]:
    """The command of a C compiler for a target, whose libraries run with glibc 2.17 and later."""
    if not find_spec("ziglang"):
        raise UserError("zig", "is not installed", fix="pip install ziglang")
    os.environ.setdefault("ZIG_GLOBAL_CACHE_DIR", str(ROOT / ".cache" / "zig"))
    return [sys.executable, "-m", "ziglang", "cc", "-target", f"{TARGETS[target].machine}-linux-gnu.2.17"]


# ---------------------------------------------------------------- wheels


def wheels(to: Path, machines: Iterable[str] = MACHINES) -> list[Path]:
    """Builds the wheel without libraries, and one with them for each machine, into a folder."""
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mvlm-") as temporary:
        plain = _plain(Path(temporary))
        built = [_written(to / plain.name, _contents(plain))]
        for machine in machines:
            targets = [name for name, target in TARGETS.items() if target.machine == machine]
            tag = f"py3-none-manylinux_2_17_{machine}"
            name = plain.name.replace("py3-none-any", tag)
            built.append(_written(to / name, _with_libraries(_contents(plain), libraries(targets), tag)))
    return built


def _plain(folder: Path) -> Path:
    """The wheel as setuptools builds it, from a copy: it leaves no trace, and sees none of earlier ones."""
    checkout, out = folder / "checkout", folder / "wheel"
    checkout.mkdir()
    out.mkdir()
    skip = shutil.ignore_patterns("__pycache__", "native")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=skip)
        else:
            shutil.copy(ROOT / name, checkout)
    code = f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        raise UserError("setuptools", (done.stderr.strip().splitlines() or ["failed"])[-1])
    (wheel,) = out.iterdir()
    return wheel


def _contents(wheel: Path) -> dict[str, bytes]:
    with ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _with_libraries(files: dict[str, bytes], paths: Iterable[Path], tag: str) -> dict[str, bytes]:
    added = {f"mvlm_np/kernels/native/{path.name}": path.read_bytes() for path in paths}
    (about,) = [name for name in files if name.endswith(".dist-info/WHEEL")]
    text = files[about].decode().replace("Tag: py3-none-any", f"Tag: {tag}")
    text = text.replace("Root-Is-Purelib: true", "Root-Is-Purelib: false")
    return files | added | {about: text.encode()}


def _written(path: Path, files: dict[str, bytes]) -> Path:
    """A wheel of these files, which depends on nothing else."""
    (record,) = [name for name in files if name.endswith(".dist-info/RECORD")]
    names = sorted(files.keys() - {record})
    lines = [f"{name},sha256={_hash(files[name])},{len(files[name])}\n" for name in names]
    files = files | {record: "".join([*lines, f"{record},,\n"]).encode()}
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for name in [*names, record]:
            info = ZipInfo(name, LONG_AGO)
            info.compress_type, info.external_attr = ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, files[name])
    return path


def _hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
