"""What all tests share: the reference material beside the checkout, and how the property tests run."""

import os
import signal
from pathlib import Path

# Two workers on two cores, each with a BLAS of two threads, wait for each other most of the time.
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")

# Numba compiles the kernels, even where `mvlm warmup` has left a library of them, unless one is named.
os.environ.setdefault("MVLM_LIBRARIES", "")

# A shell starts what runs in the background deaf to Ctrl-C, and so would be the programs that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"  # large reference material that lies beside the checkout, or is absent
DATA = ROOT / "tests" / "data"  # what every clone has

# No deadlines, because compilation and busy machines are not failures. Where CI is set the examples
# are the same in every run, so that a change is judged by its own merits; elsewhere they are new ones.
settings.register_profile(
    "mvlm",
    deadline=None,
    max_examples=50,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("emulated", settings.get_profile("mvlm"), max_examples=10)  # for tools/arm.py
settings.load_profile("mvlm")


def shared_path(name: str) -> Path:
    """Path of `name` in the reference material; the test is skipped where that is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs ../shared/{name}, which is not part of the repository")
    return path


@pytest.fixture
def shared() -> Path:
    """The folder of reference material; skips as `shared_path` does."""
    return shared_path(".")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the family's smallest model, with random weights; for reading only."""
    from tools.parts.random_checkpoint import make_checkpoint

    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_checkpoint("tiny", folder)
    return folder
