"""LayerNorm and RMSNorm, row by row. Each sum over a row runs in 16 lanes and never crosses threads."""

import numpy as np
from numba import types

from mvlm_np import ops
from mvlm_np.kernels.arrays import contiguous, float32
from mvlm_np.kernels.compile import inline
from mvlm_np.kernels.kernel import kernel, reads, writes
from mvlm_np.kernels.simd import LANES, add, load, multiply_add, splat, total


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """`ops.layer_norm`, up to the rounding of its two sums."""
    if not (float32(x, weight, bias) and weight.shape == bias.shape == x.shape[-1:]):
        return ops.layer_norm(x, weight, bias, eps)
    rows = contiguous(x).reshape(-1, x.shape[-1])
    out = np.empty_like(rows)
    _layer_norm(len(rows), x.shape[-1] / 2, rows, contiguous(weight), contiguous(bias), eps, out)
    return out.reshape(x.shape)


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """`ops.rms_norm`, up to the rounding of its sum."""
    if not (float32(x, weight) and weight.shape == x.shape[-1:]):
        return ops.rms_norm(x, weight, eps)
    rows = contiguous(x).reshape(-1, x.shape[-1])
    out = np.empty_like(rows)
    _rms_norm(len(rows), x.shape[-1] / 2, rows, contiguous(weight), eps, out)
    return out.reshape(x.shape)


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
        out[j] = (x[j] - mean) * scale * weight[j] + bias[j]


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
        s += (x[j] - centre) * (x[j] - centre)
    return s
