"""Where tests find llama.cpp as it is and with edits, with its source."""

import os
from pathlib import Path

import pytest


def llama_cpp_builds() -> tuple[Path, Path, Path]:
    """The source, the build as it is and the edited one; the test is skipped where they are not named."""
    names = ("LLAMA_CPP_SOURCE", "LLAMA_CPP", "LLAMA_CPP_CHANGED")
    if missing := [name for name in names if not os.environ.get(name)]:
        pytest.skip(f"needs {', '.join(missing)}: the folders source, stock and changed of `make llama-cpp`")
    source, stock, changed = (Path(os.environ[name]).resolve() for name in names)
    return source, stock, changed
