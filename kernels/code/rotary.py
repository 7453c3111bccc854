"""Rotary angles: cos and sin as `ops` computes them, operation by operation."""

from math import pi

import numpy as np

from mvlm_np import ops
from mvlm_np.kernels.code.compile import inline
from mvlm_np.kernels.code.kernel import kernel, reads, writes

QUARTERS = 2 / pi
HALF_PI, HALF_PI_REST = ops.HALF_PI, ops.HALF_PI_REST
COS, SIN = (tuple(series) for series in ops.TAYLOR[..., 0, 0].T.tolist())


@kernel(reads(1), reads(1), writes(2), writes(2))
def _rope_angles(first, stop, positions, frequencies, cos, sin):
    for t in range(first, stop):
        for i in range(len(frequencies)):
            cos[t, i], sin[t, i] = cos_sin(positions[t] * frequencies[i])


@inline
def cos_sin(angle):
    """Of a float32, computed in float64 and rounded."""
    wide = np.float64(angle)
    quarters = np.rint(wide * QUARTERS)
    r = wide - quarters * HALF_PI - quarters * HALF_PI_REST
    square = r * r
    c, s = _series(COS, square), _series(SIN, square) * r
    turned = np.int64(quarters)
    if turned & 1:
        c, s = s, c
    c = -c if (turned + 1) & 2 else c
    s = -s if turned & 2 else s
    return np.float32(c), np.float32(s)


@inline
def _series(coefficients, x):
    total = 0.0
    for coefficient in coefficients:
        total = total * x + coefficient
    return total
