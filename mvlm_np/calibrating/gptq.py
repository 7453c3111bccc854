"""GPTQ: rounding a weight matrix so that what it computes changes least, rather than the weights themselves.

A linear layer computes X W^T. Rounding W to Q costs |X (W - Q)^T|^2, which is the sum over rows of (w - q)
H (w - q)^T, with H = X^T X. Columns are rounded one after another, and what one of them costs is made up
for in those that are not rounded yet: with H^-1 = U^T U, U upper triangular, an error of e in column j
shifts column k > j by -e U[j, k] / U[j, j]. Source: Frantar et al. 2022, "GPTQ: Accurate Post-Training
Quantization for Generative Pre-trained Transformers", where H is twice as large, which changes nothing.

From the paper, too: damping, which adds a share of the mean of H's diagonal to all of it, and the order of
the columns, those with the largest H[j, j] first ("act-order"), so that the dearest errors find the most
columns to be made up for in. Here whole groups (in uint4, super-blocks) are put in that order, and then the
columns within each. So scales can be chosen when a group's turn comes, for its weights as they are by then.
"""

import numpy as np

from mvlm_np import quantize
from mvlm_np.kernels.pack import GROUP, SUPER, Rounded
from mvlm_np.ops import group_factors
from mvlm_np.quantize import WHOLE

DAMPING = 0.01  # of the mean of H's diagonal
LEAF = 64  # rows of a triangular matrix that is inverted as it is


def gptq(w: np.ndarray, H: np.ndarray, kind: str, where: object = "weight", whole: int = WHOLE) -> Rounded:
    """float32 (N, K), and the second moments float64 (K, K) of its input -> q and its factors, as
    `quantize.quantize` gives them for "int4" or "uint4".

    H may have any size, and be singular. `where` names the weight in errors; whole is that of `quantize`.
    CheckpointError: the weights are not finite, or too large for float16 scales.
    """
    N, K = w.shape
    size = GROUP * SUPER if kind == "uint4" else GROUP  # of a block: columns whose scales are found together
    order = order_of(np.diagonal(H), size)
    U = cholesky_of_inverse(damped(H[np.ix_(order, order)])).astype(np.float32)
    left = np.array(w.T[order], np.float32, order="C")  # (K, N), so that a column of w lies in one piece
    q, found = np.empty((K, N), np.uint8 if kind == "uint4" else np.int8), dict[int, Rounded]()
    start = 0
    while start < K:
        block = order[start] // size
        end = start + min(size, K - block * size)
        columns, u, own = left[start:end], U[start:end, start:end], order[start:end] - block * size
        in_place = np.empty_like(columns)
        in_place[own] = columns
        factors = found[block] = quantize.find_factors(in_place.T, kind, where=where, whole=whole)
        scale, minimum = (None if f is None else f.T[own // GROUP] for f in group_factors(*factors))
        assert scale is not None
        errors = np.empty_like(columns)
        for j, column in enumerate(columns):
            at = scale[j], None if minimum is None else minimum[j]
            q[order[start + j]] = rounded = quantize.round_with(column, kind, *at)
            errors[j] = (column - _weight(rounded, *at)) / u[j, j]
            columns[j + 1 :] -= u[j, j + 1 :, None] * errors[j]
        left[end:] -= U[start:end, end:].T @ errors
        start = end
    parts = zip(*(found[block] for block in sorted(found)), strict=True)
    return np.ascontiguousarray(q.T), *(np.concatenate(part, axis=1) for part in parts)


def _weight(q: np.ndarray, scale: np.ndarray, minimum: np.ndarray | None) -> np.ndarray:
    """What q stands for."""
    return q * scale if minimum is None else q * scale - minimum


def order_of(importance: np.ndarray, size: int) -> np.ndarray:
    """Columns (K,) in the order in which they are rounded, by importance (K,): each block in one piece."""
    K = len(importance)
    blocks = np.pad(importance, (0, -K % size)).reshape(-1, size)
    first = np.argsort(-blocks.sum(1), kind="stable")
    within = np.argsort(-blocks[first], axis=1, kind="stable")
    columns = (first[:, None] * size + within).reshape(-1)
    return columns[columns < K]


def damped(H: np.ndarray) -> np.ndarray:
    """A copy of H (K, K) with more on its diagonal, so that it has an inverse: 1, where it is all zeros."""
    H = H.copy()
    H[np.diag_indices(len(H))] += DAMPING * np.trace(H) / len(H) or 1.0
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


def output_error(D: np.ndarray, H: np.ndarray) -> np.ndarray:
    """What differences of weights (N, K) put out, squared, for inputs with the second moments H: (N,)."""
    return np.einsum("nk,nk->n", D @ H.astype(np.float32), D)
