"""Rotary angles."""

import numpy as np

from mvlm_np import ops
from mvlm_np.kernels.kernel import Kernel

_rope_angles = Kernel("rotary.rope_angles")


def rope_angles(positions: np.ndarray, d: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """`ops.rope_angles`, to the bit."""
    frequencies = ops.rope_frequencies(d, theta)
    cos, sin = np.empty((2, len(positions), len(frequencies)), np.float32)
    if cos.size:
        _rope_angles(
            len(positions), 10 * len(frequencies), positions.astype(np.float32), frequencies, cos, sin
        )
    return cos, sin
