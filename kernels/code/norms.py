"""LayerNorm and RMSNorm, row by row. Each sum over a row runs in 16 lanes and never crosses threads."""

import numpy as np
from numba import types

from mvlm_np.kernels.code.compile import inline
from mvlm_np.kernels.code.kernel import kernel, reads, writes
from mvlm_np.kernels.code.simd import LANES, add, fma, load, multiply_add, splat, total


@kernel(reads(2), reads(1), reads(1), types.float64, writes(2))
def _layer_norm(first, stop, x, weight, bias, eps, out):
    for i in range(first, stop):
        layer_norm_row(x[i], weight, bias, np.float32(eps), out[i])


@inline
def layer_norm_row(x, weight, bias, eps, out):
    n = np.float32(len(x))
    mean = _sum(x) / n
    scale = np.float32(1) / np.sqrt(_sum_of_squares(x, mean) / n + eps)
    for j in range(len(x)):
        out[j] = fma((x[j] - mean) * scale, weight[j], bias[j])


@kernel(reads(2), reads(1), types.float64, writes(2))
def _rms_norm(first, stop, x, weight, eps, out):
    for i in range(first, stop):
        rms_norm_row(x[i], weight, np.float32(eps), out[i])


@inline
def rms_norm_row(x, weight, eps, out):
    mean_square = _sum_of_squares(x, np.float32(0)) / np.float32(len(x))
    scale = np.float32(1) / np.sqrt(mean_square + eps)
    for j in range(len(x)):
        out[j] = x[j] * scale * weight[j]


@inline
def _sum(x):
    whole = len(x) // LANES * LANES
    lanes = splat(np.float32(0))
    for j in range(0, whole, LANES):
        lanes = add(lanes, load(x, (j,)))
    s = total(lanes)
    for j in range(whole, len(x)):
        s += x[j]
    return s


@inline
def _sum_of_squares(x, centre):
    """sum((x - centre)^2)"""
    whole = len(x) // LANES * LANES
    shift, lanes = splat(-centre), splat(np.float32(0))
    for j in range(0, whole, LANES):
        centred = add(load(x, (j,)), shift)
        lanes = multiply_add(centred, centred, lanes)
    s = total(lanes)
    for j in range(whole, len(x)):
        s = fma(x[j] - centre, x[j] - centre, s)
    return s
