"""The product of two float32 matrices."""

import numpy as np

from mvlm_np import ops
from mvlm_np.kernels.arrays import contiguous, float32
from mvlm_np.kernels.kernel import Kernel
from mvlm_np.kernels.shapes import FLOAT_ROWS, LANES

_matmul = Kernel("dense.matmul")


def matmul(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """`ops.matmul`; a sum runs from the first column to the last, with any shapes, threads and CPU."""
    if not (float32(x, w) and x.ndim == w.ndim == 2 and x.shape[1] == w.shape[1]):
        return ops.matmul(x, w)
    (M, K), N = x.shape, len(w)
    x, w = _padded(x, FLOAT_ROWS), _padded(w, LANES)
    y = np.empty((len(x), len(w)), np.float32)
    _matmul(len(w) // LANES, len(x) * K / 3, x, w, y)
    return contiguous(y[:M, :N])


def _padded(a, multiple):
    """With rows of zeros behind it, up to a multiple of rows."""
    missing = -len(a) % multiple
    return contiguous(np.pad(a, ((0, missing), (0, 0))) if missing else a)
