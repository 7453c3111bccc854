"""The product of two float32 matrices, in tiles of some rows of the first and 16 rows of the second."""

import numpy as np

from mvlm_np.kernels.code.kernel import kernel, reads, writes
from mvlm_np.kernels.code.simd import load
from mvlm_np.kernels.code.tiles import add_outer, store_tile, zeros
from mvlm_np.kernels.shapes import FLOAT_ROWS, LANES


@kernel(reads(2), reads(2), writes(2))
def _matmul(first, stop, x, w, y):
    """A step is 16 rows of w with all of x. x has a multiple of FLOAT_ROWS rows, w a multiple of 16."""
    M, K = x.shape
    panel = np.empty((K, LANES), np.float32)
    for stripe in range(first, stop):
        for lane in range(LANES):
            for i in range(K):
                panel[i, lane] = w[stripe * LANES + lane, i]
        for row in range(0, M, FLOAT_ROWS):
            sums = zeros(FLOAT_ROWS, 1)
            for i in range(K):
                sums = add_outer(sums, x, row, i, load(panel, (i, 0)))
            store_tile(sums, y, row, stripe * LANES)
