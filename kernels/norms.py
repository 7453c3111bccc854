"""LayerNorm and RMSNorm, row by row."""

import numpy as np

from mvlm_np import ops
from mvlm_np.kernels.arrays import contiguous, float32
from mvlm_np.kernels.kernel import Kernel

_layer_norm = Kernel("norms.layer_norm")
_rms_norm = Kernel("norms.rms_norm")


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
