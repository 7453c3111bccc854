"""Convolution and pooling of pictures that are kept channels-last: the inner loop runs over the channels."""

import numpy as np
from numba import types

from mvlm_np.kernels.code.kernel import kernel, reads, writes
from mvlm_np.kernels.code.simd import fma


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
                        to[c] = fma(pixel[c], tap[c], to[c])
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
