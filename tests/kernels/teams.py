"""How many threads share the steps of kernels, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

kernel = pytest.importorskip("mvlm_np.kernels.kernel")


@contextmanager
def threads(size: int) -> Iterator[None]:
    """`size` threads share every step, however little there is to do."""
    before, worth = kernel.TEAM.size, kernel.WORTH_SHARING
    try:
        kernel.TEAM.resize(size)
        kernel.WORTH_SHARING = 0
        yield
    finally:
        kernel.WORTH_SHARING = worth
        kernel.TEAM.resize(before)
