"""Attention in int8, for a vision tower whose weights are int8."""

import numpy as np

from mvlm_np import ops
from mvlm_np.kernels.arrays import float32, rows_contiguous
from mvlm_np.kernels.kernel import Kernel

_int8_attention = Kernel("int8_attention.int8_attention")


def int8_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> np.ndarray:
    """`ops.int8_attention`: scores and sums up to rounding, after which some exponentials are rounded to int8
    by one more or less.
    """
    if causal or not (
        float32(q, k, v) and q.ndim == 3 and k.shape == v.shape and q.shape[::2] == k.shape[::2]
    ):
        return ops.int8_attention(q, k, v, causal)
    (H, T, d), S = q.shape, k.shape[1]
    out = np.empty((H, T, d), np.float32)
    _int8_attention(H, T * S * d / 16, *map(rows_contiguous, (q, k, v)), out)
    return out
