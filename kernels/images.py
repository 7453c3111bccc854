"""Convolution and pooling of pictures that are kept channels-last: the inner loop runs over the channels."""

import numpy as np
from numba import types

from mvlm_np import ops
from mvlm_np.kernels.arrays import contiguous, float32
from mvlm_np.kernels.kernel import kernel, reads, writes


def depthwise_conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, stride: int) -> np.ndarray:
    """`ops.depthwise_conv`; the products are added up in the same order."""
    h, w, C = x.shape
    n = weight.shape[-1]
    added = np.zeros(C, np.float32) if bias is None else bias
    fits = weight.shape == (C, 1, n, n) and n % 2 == 1 and added.shape == (C,) and stride > 0
    if not (float32(x, weight, added) and fits):
        return ops.depthwise_conv(x, weight, bias, stride)
    out = np.empty((-(-h // stride), -(-w // stride), C), np.float32)
    taps = np.ascontiguousarray(weight[:, 0].transpose(1, 2, 0))  # (n, n, C)
    _depthwise_conv(
        len(out), out[0].size * n * n / 4, contiguous(x), contiguous(taps), contiguous(added), stride, out
    )
    return out


def adaptive_avg_pool(x: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """`ops.adaptive_avg_pool`; a window is added up row by row."""
    if not (float32(x) and x.ndim == 3 and rows > 0 and cols > 0):
        return ops.adaptive_avg_pool(x, rows, cols)
    out = np.empty((rows, cols, x.shape[2]), np.float32)
    _adaptive_avg_pool(rows, x.size / rows / 4, contiguous(x), out)
    return out


@kernel(reads(3), reads(3), reads(1), types.int64, writes(3))
def _depthwise_conv(first, stop, x, taps, bias, stride, out):
    h, w, C = x.shape
    n = len(taps)
    for i in range(first, stop):
        for j in range(out.shape[1]):
            to = out[i, j]
            to[:] = np.float32(0)
            top, left = i * stride - n // 2, j * stride - n // 2
            for row in range(max(0, -top), min(n, h - top)):
                for col in range(max(0, -left), min(n, w - left)):
                    pixel, tap = x[top + row, left + col], taps[row, col]
                    for c in range(C):
                        to[c] += pixel[c] * tap[c]
            for c in range(C):
                to[c] += bias[c]


@kernel(reads(3), writes(3))
def _adaptive_avg_pool(first, stop, x, out):
    h, w, C = x.shape
    rows, cols, _ = out.shape
    for i in range(first, stop):
        top, bottom = i * h // rows, ((i + 1) * h + rows - 1) // rows
        for j in range(cols):
            left, right = j * w // cols, ((j + 1) * w + cols - 1) // cols
            mean = out[i, j]
            mean[:] = np.float32(0)
            for row in range(top, bottom):
                for col in range(left, right):
                    pixel = x[row, col]
                    for c in range(C):
                        mean[c] += pixel[c]
            size = np.float32((bottom - top) * (right - left))
            for c in range(C):
                mean[c] /= size
