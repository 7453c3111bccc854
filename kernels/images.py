"""Convolution and pooling of pictures that are kept channels-last."""

import numpy as np

from mvlm_np import ops
from mvlm_np.kernels.arrays import contiguous, float32
from mvlm_np.kernels.kernel import Kernel

_depthwise_conv = Kernel("images.depthwise_conv")
_adaptive_avg_pool = Kernel("images.adaptive_avg_pool")


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
