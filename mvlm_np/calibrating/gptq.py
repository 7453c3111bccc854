"""GPTQ: rounding a weight matrix so that what it computes changes least, rather than the weights themselves.

A linear layer computes X W^T. Rounding W to Q costs |X (W - Q)^T|^2, which is the sum over rows of (w - q)
H (w - q)^T, with H = X^T X. Columns are rounded one after another, and what one of them costs is made up
for in those that are not rounded yet: with H^-1 = U^T U, U upper triangular, an error of e in column j
shifts column k > j by -e U[j, k] / U[j, j]. Source: Frantar et al. 2022, "GPTQ: Accurate Post-Training
Quantization for Generative Pre-trained Transformers", where H is twice as large, which changes nothing.

From the paper, too: damping, which adds a share of the mean of H's diagonal to all of it, and the order of
the columns, those with the largest H[j, j] first ("act-order"), so that the dearest errors find the most
columns to be made up for in. The scales of all groups are chosen before that, for the weights as they were,
and so that squared errors are small where H[j, j] is large.
"""

import numpy as np

from mvlm_np import quantize
from mvlm_np.kernels.pack import GROUP, Rounded
from mvlm_np.ops import group_factors
from mvlm_np.quantize import WHOLE

BLOCK = 128  # columns whose errors are made up for in all others at once
LEAF = 64  # rows of a triangular matrix that is inverted as it is


def gptq(
    w: np.ndarray,
    H: np.ndarray,
    kind: str,
    damping: float,
    where: object = "weight",
    whole: int = WHOLE,
) -> Rounded:
    """float32 (N, K), and the second moments float64 (K, K) of its input -> q and its factors, as
    `quantize.quantize` gives them for "int4" or "uint4".

    H may have any size, and be singular. damping: see `damped`. `where` names the weight in errors; whole is
    that of `quantize`.
    CheckpointError: the weights are not finite, or too large for float16 scales.
    """
    N, K = w.shape
    H = damped(H, damping)
    importance = np.diagonal(H).copy()
    q, *factors = quantize.quantize(w, kind, where=where, whole=whole, importance=importance)
    scales, minima = group_factors(*factors)
    order = np.argsort(-importance, kind="stable")
    H = H[np.ix_(order, order)]  # in place of the other copy: of a model of 7B each has 1 GB
    U = cholesky_of_inverse(H).astype(np.float32)
    left = np.array(w.T[order], order="C")  # (K, N), so that a column of w lies in one piece
    found = np.empty((K, N), q.dtype)
    for start in range(0, K, BLOCK):
        end = start + BLOCK
        columns, own, u = left[start:end], order[start:end], U[start:end, start:end]
        scale = scales.T[own // GROUP]
        minimum = None if minima is None else minima.T[own // GROUP]
        errors = np.empty_like(columns)
        for j, column in enumerate(columns):
            at = scale[j], None if minimum is None else minimum[j]
            found[own[j]] = rounded = quantize.round_with(column, kind, *at)
            errors[j] = (column - _weight(rounded, *at)) / u[j, j]
            columns[j + 1 :] -= u[j, j + 1 :, None] * errors[j]
        left[end:] -= U[start:end, end:].T @ errors
    return np.ascontiguousarray(found.T), *factors


def _weight(q: np.ndarray, scale: np.ndarray, minimum: np.ndarray | None) -> np.ndarray:
    """What q stands for."""
    return q * scale if minimum is None else q * scale - minimum


def damped(H: np.ndarray, damping: float) -> np.ndarray:
    """A copy of H (K, K) that has an inverse: with more on its diagonal, a share `damping` of the diagonal's
    mean, or 1 where it is all zeros."""
    H = H.copy()
    H[np.diag_indices(len(H))] += damping * np.trace(H) / len(H) or 1.0
    return H


def cholesky_of_inverse(H: np.ndarray) -> np.ndarray:
    """The upper triangular U with U^T U = H^-1, for a positive definite H (K, K), without inverting it.

    With rows and columns in reverse, H = L L^T becomes H = R R^T with an upper triangular R, and U = R^-1.
    """
    return _inverse(np.ascontiguousarray(np.linalg.cholesky(H[::-1, ::-1])[::-1, ::-1]))


def _inverse(R: np.ndarray) -> np.ndarray:
    """Of an upper triangular matrix, by halves: [[A, B], [0, D]]^-1 = [[A^-1, -A^-1 B D^-1], [0, D^-1]]."""
    if len(R) <= LEAF:
        return np.triu(np.linalg.inv(R))
    half, inverse = len(R) // 2, np.zeros_like(R)
    inverse[:half, :half], inverse[half:, half:] = _inverse(R[:half, :half]), _inverse(R[half:, half:])
    inverse[:half, half:] = -inverse[:half, :half] @ (R[:half, half:] @ inverse[half:, half:])
    return inverse


def best_rows(
    w: np.ndarray, H: np.ndarray, rounded: Rounded, nearest: Rounded
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Has the rows of `rounded` that put out more error than those of `nearest` be as these are.

    Returns the weights that it then stands for, float32 (N, K), and the squared errors (N,) of what it and of
    what `nearest` puts out. In single rows GPTQ may make more error.
    """
    found, near = quantize.dequantize(*rounded), quantize.dequantize(*nearest)
    after, before = output_error(w - found, H), output_error(w - near, H)
    worse = after > before
    for mine, other in zip((*rounded, found), (*nearest, near), strict=True):
        mine[worse] = other[worse]
    return found, np.minimum(after, before), before


def output_error(D: np.ndarray, H: np.ndarray) -> np.ndarray:
    """What differences of weights (N, K) put out, squared, for inputs with the second moments H: (N,)."""
    return np.einsum("nk,nk->n", D @ H.astype(np.float32), D)
