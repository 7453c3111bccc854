"""Python on an emulated ARM processor, in the environment that `tools/arm.py build` makes."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".cache" / "arm"
ROOT_FILES, SITE, PYTHON = FOLDER / "root", FOLDER / "site", FOLDER / "python"
PACKAGES = (
    "numpy numba llvmlite safetensors sentencepiece pillow tqdm threadpoolctl "
    "pytest pluggy iniconfig packaging pygments hypothesis sortedcontainers"
).split()


class CPU(NamedTuple):
    """What QEMU is to be, what Numba is to compile for, and the instruction set that follows."""

    emulated: str
    compiled_for: str
    features: str
    instruction_set: str


CPUS = {
    "cortex-a76": CPU("cortex-a76", "cortex-a76", "+neon,+fp-armv8,+lse,+dotprod,+fullfp16", "neon_dotprod"),
    "cortex-a72": CPU("cortex-a72", "cortex-a72", "+neon,+fp-armv8", "neon"),
    "max": CPU("max", "generic", "+neon,+fp-armv8,+lse,+dotprod,+fullfp16,+i8mm", "neon_i8mm"),
}


def missing() -> str | None:
    """Why the emulated environment cannot be used, or None if it can."""
    if not shutil.which("qemu-aarch64"):
        return "qemu-aarch64 is not installed (on Debian and Ubuntu: apt-get install qemu-user)"
    return None if site_fits() and PYTHON.exists() else f"{FOLDER} is not built (make test-arm builds it)"


def environment(cpu: str, libraries: Path | None = None, site: Path | None = None) -> Mapping[str, str]:
    """The environment variables with which `PYTHON` is Python on that CPU, and its children too.

    libraries  where the libraries of compiled kernels are; None: there are none, Numba compiles
    site       what is installed, the project included; None: all packages, and the checkout
    """
    emulated, compiled_for, features, _ = CPUS[cpu]
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "MVLM_"))}
    ours |= {
        "QEMU_CPU": emulated,
        "QEMU_LD_PREFIX": str(ROOT_FILES),
        "PYTHONHOME": str(ROOT_FILES / "usr"),
        "PYTHONPATH": f"{SITE}:{ROOT}" if site is None else str(site),
        "PYTHONNOUSERSITE": "1",
        "XDG_CACHE_HOME": str(FOLDER / "machine-code"),
        "MVLM_LIBRARIES": str(libraries or ""),
    }
    # LLVM does not see through the emulation. Without Numba, the project has to.
    numba = {"NUMBA_CPU_NAME": compiled_for, "NUMBA_CPU_FEATURES": features}
    return ours | (numba if site is None else {})


def python(
    cpu: str, *arguments: str, libraries: Path | None = None, site: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs Python with these arguments on that CPU, in the checkout; `environment` says with what."""
    command, env = [str(PYTHON), *arguments], environment(cpu, libraries, site)
    return subprocess.run(command, cwd=site or ROOT, env=env, capture_output=True, text=True, check=False)


def pins() -> str:
    """The packages that the environment must have, as pip is told: the versions of this interpreter's own."""
    return "".join(f"{name}=={version(name)}\n" for name in PACKAGES)


def site_fits() -> bool:
    """Whether the environment has these packages."""
    stamp = SITE / "pins.txt"
    return stamp.exists() and stamp.read_text("utf-8") == pins()
