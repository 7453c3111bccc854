"""Rounding weights to int8 and int4: a group of 32 columns shares a float16 scale.

int8: scale = max |w| / 127. int4: scale = (the w of largest magnitude) / -8, so that this w is exact and
all 16 values are used; or, at quality "high", whichever of several scales leaves the smallest squared
error. These are GGUF's Q8_0 and Q4_0 grids; only the choice of the scale differs.

A scale is stored in float16. A group whose scale is 0 there (no weight above 127 x 2^-25, or 3.8e-6, in
int8, and 8 x 2^-25, or 2.4e-7, in int4) becomes zeros; one whose scale would be infinite (from 65520 on)
cannot be stored and is a CheckpointError, as are weights that are not finite.
"""

import numpy as np

from mvlm_np.errors import CheckpointError
from mvlm_np.kernels.pack import GROUP

# Factors on the plain int4 scale that quality "high" tries. Shrinking cuts the extreme weight a
# little and makes the rest finer; 1 keeps the plain choice among the candidates.
CANDIDATES = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8)
BLOCK = 1 << 17  # weights that are rounded at a time: few enough to stay in a cache


def quantize(
    w: np.ndarray, bits: int, quality: str = "high", where: object = "weight"
) -> tuple[np.ndarray, np.ndarray]:
    """float32 (N, K) -> int8 (N, K) and float16 (N, groups), rounding half to even.

    A last group of fewer than 32 columns has a scale of its own. quality: "high" or "fast" (the plain
    scale). `where` names the weight in errors.
    """
    if not np.isfinite(w).all():
        raise CheckpointError(where, "holds NaN or infinity", "finite numbers", "download it again")
    N, K = w.shape
    q, scales = np.empty((N, K), np.int8), np.empty((N, -(-K // GROUP)), np.float16)
    step = max(1, BLOCK // K)
    for start in range(0, N, step):
        rows = slice(start, start + step)
        q[rows], scales[rows] = _quantize(w[rows], bits, quality, where)
    return q, scales


def _quantize(w: np.ndarray, bits: int, quality: str, where: object) -> tuple[np.ndarray, np.ndarray]:
    N, K = w.shape
    padded = np.pad(w, ((0, 0), (0, -K % GROUP))) if K % GROUP else w
    groups = padded.reshape(N, -1, GROUP)
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)  # (N, groups, 1)
    if bits == 8:
        scales = _storable(np.abs(extreme) / 127, where)
        q = _round(groups, scales, -127, 127)
    else:
        plain = extreme / -8
        scales = _storable(plain, where)
        if quality == "high":
            scales = _refined(groups.reshape(-1, GROUP), plain.reshape(-1), scales.reshape(-1))
        q = _round(groups, scales.reshape(plain.shape), -8, 7)
    return q.reshape(N, -1)[:, :K], scales.reshape(N, -1)


def dequantize(q: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """int8 (N, K) and float16 (N, groups) -> float32 (N, K)."""
    per_column = np.repeat(scales.astype(np.float32), GROUP, axis=1)[:, : q.shape[1]]
    return q * per_column


def _storable(scales: np.ndarray, where: object) -> np.ndarray:
    largest = np.abs(scales).max(initial=0)
    if largest >= 65520:  # would round to infinity
        raise CheckpointError(where, f"has a group with the scale {largest:.5g}", "below 65520")
    return scales.astype(np.float16)


def _round(groups: np.ndarray, scales: np.ndarray, least: int, most: int) -> np.ndarray:
    """The nearest multiples of the stored scales, still float32; groups of scale 0 become zeros."""
    divisors = scales.astype(np.float32)
    q = groups * np.divide(1, divisors, where=divisors != 0, out=np.zeros_like(divisors))
    return np.clip(np.rint(q, out=q), least, most, out=q)


def _refined(groups: np.ndarray, plain: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Tries scales around the plain one, each with its least-squares fit, and takes each group's best.

    groups (n, 32), plain (n,) float32, scales (n,) float16, the plain ones -> (n,) float16
    """
    # A group to a column: what is done to every group is done to long rows, at which NumPy is fast.
    groups = np.ascontiguousarray(groups.T)

    def error(scales: np.ndarray) -> np.ndarray:
        difference = _round(groups, scales, -8, 7)
        difference *= scales.astype(np.float32)
        np.subtract(groups, difference, out=difference)
        return _dot(difference, difference)

    least = error(scales)
    for factor in CANDIDATES:
        q = _round(groups, (plain * factor).astype(np.float16), -8, 7)
        # Given the integers, the scale of smallest squared error is <w, q> / <q, q>.
        qq = _dot(q, q)
        fitted = np.divide(_dot(groups, q), qq, where=qq != 0, out=np.zeros_like(qq))
        fitted = np.clip(fitted, -65504, 65504).astype(np.float16)
        fitted_error = error(fitted)
        scales = np.where(fitted_error < least, fitted, scales)
        least = np.minimum(fitted_error, least)
    return scales


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sums of products within each group."""
    return np.einsum("ig,ig->g", a, b)
