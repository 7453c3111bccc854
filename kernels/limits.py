"""What the machine can do at best, for `mvlm bench`: how fast it reads memory and multiplies bytes."""

import numpy as np

from mvlm_np.kernels.kernel import Kernel
from mvlm_np.kernels.shapes import LANES, PARTS, SHAPE
from mvlm_np.kernels.shapes import READ as BLOCK

STEPS = 64  # of multiplying, for the threads to share

_read = Kernel("limits.read")
_multiply = Kernel("limits.multiply")


def read(x: np.ndarray) -> np.ndarray:
    """Reads a float32 array (n,) with all threads, n a multiple of 16,384. Returns its blocks' sums."""
    sums = np.empty(len(x) // BLOCK, np.float32)
    _read(len(sums), BLOCK / 4, x, sums)
    return sums


def multiply(groups: int) -> None:
    """Multiplies bytes and adds them up in registers, with all threads: `operations(groups)` in all.

    The products are those of a prompt's tokens with int4 weights, with nothing loaded or stored: what real
    products reach is a part of this.
    """
    x = np.ones((SHAPE[0], 64), np.int8)
    _multiply(STEPS, 100 * groups, x, groups, np.empty(STEPS, np.int32))


def operations(groups: int) -> int:
    """Multiplications and additions that `multiply` does."""
    return 2 * 32 * LANES // PARTS * SHAPE[0] * SHAPE[1] * groups * STEPS
