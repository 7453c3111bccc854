"""The activations, element by element."""

import numpy as np

from mvlm_np import ops
from mvlm_np.kernels.arrays import contiguous, float32
from mvlm_np.kernels.kernel import Kernel
from mvlm_np.kernels.shapes import ACTIVATED as BLOCK

_quick_gelu = Kernel("activations.quick_gelu")
_silu = Kernel("activations.silu")
_swiglu = Kernel("activations.swiglu")
_gelu = Kernel("activations.gelu")


def quick_gelu(x: np.ndarray) -> np.ndarray:
    """`ops.quick_gelu`."""
    return _apply(_quick_gelu, x) if float32(x) else ops.quick_gelu(x)


def silu(x: np.ndarray) -> np.ndarray:
    """`ops.silu`."""
    return _apply(_silu, x) if float32(x) else ops.silu(x)


def gelu(x: np.ndarray) -> np.ndarray:
    """`ops.gelu`."""
    return _apply(_gelu, x) if float32(x) else ops.gelu(x)


def swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """`ops.swiglu`."""
    if not (float32(gate, up) and gate.shape == up.shape):
        return ops.swiglu(gate, up)
    return _apply(_swiglu, gate, up)


def _apply(compiled, *arrays):
    out = np.empty(arrays[0].shape, np.float32)
    compiled(-(-out.size // BLOCK), BLOCK, *(contiguous(a).reshape(-1) for a in arrays), out.reshape(-1))
    return out
