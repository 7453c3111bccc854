"""Products with packed weights: `pack.packed_product`, compiled.

Two steps. First the activations are rounded to int8 and laid out for the product, in blocks of tokens,
k-major: the tokens' bytes of columns 4 c .. 4 c + 3 lie side by side.
Then a product walks over tiles of weights and blocks of tokens. A token's result depends neither on the other
tokens nor on threads.
"""

from collections.abc import Callable, Sequence
from math import isfinite

import numpy as np

from mvlm_np.errors import GenerationError
from mvlm_np.kernels.arrays import FLOAT32, rows_contiguous
from mvlm_np.kernels.kernel import Kernel
from mvlm_np.kernels.pack import KINDS, ROWS, Packed
from mvlm_np.kernels.shapes import FEWER, OFFSET, SHAPE, WORDS
from mvlm_np.ops import GROUP

CACHED = 1 << 18  # bytes of activations that stay in a core's cache while all weights pass by
NO_BIAS = np.zeros(0, np.float32)

_rounded = Kernel("quantized.rounded")
ONE_TOKEN = {kind: Kernel(f"quantized.{kind}_1x1") for kind in KINDS}
TALL, COLUMNS = SHAPE
TOKENS = {kind: Kernel(f"quantized.{kind}_{TALL}x{COLUMNS}") for kind in KINDS}


def packed_product(
    matrices: Sequence[Packed], biases: Sequence[np.ndarray | None]
) -> Callable[[np.ndarray], list[np.ndarray]]:
    """`pack.packed_product`: the integers are the same, their weighted sums up to rounding."""
    return Product(matrices, biases)


class Product:
    """The product with some matrices. What does not change from call to call is found out once:

    places   int64 (matrices, 6): addresses of values, scales and tops (or 0), how many tiles, and of all
             results' columns the matrix's first one and that behind its last: it has room for whole stripes
             of COLUMNS tiles
    columns  these two, and N, for each matrix
    tiles    of all matrices
    width    all results' columns
    bias     float32 (width,), or empty
    """

    def __init__(self, matrices: Sequence[Packed], biases: Sequence[np.ndarray | None]):
        self.matrices = tuple(matrices)  # keeps what `places` points to
        self.kind, self.K = matrices[0].kind, matrices[0].K
        self.places, self.columns = np.zeros((len(matrices), 6), np.int64), []
        self.tiles = self.width = 0
        for place, matrix in zip(self.places, matrices, strict=True):
            assert all(array.flags.c_contiguous for array in matrix.arrays)
            tiles, start, N = len(matrix.values), self.width, matrix.N
            self.tiles += tiles
            self.width += -(-tiles // COLUMNS) * COLUMNS * ROWS
            place[: len(matrix.arrays)] = [array.ctypes.data for array in matrix.arrays]
            place[3:] = tiles, start, self.width
            self.columns.append((start, self.width, N))
        self.bias = NO_BIAS
        if any(bias is not None for bias in biases):
            self.bias = np.zeros(self.width, np.float32)
            for (start, _, N), bias in zip(self.columns, biases, strict=True):
                self.bias[start : start + N] = 0 if bias is None else bias

    def __call__(self, x: np.ndarray) -> list[np.ndarray]:
        x = rows_contiguous(x)
        M, K = x.shape
        if x.dtype != FLOAT32 or M == 0:
            raise GenerationError(
                "activations", f"found {x.dtype} {x.shape}", "float32 with at least one row"
            )
        assert self.K == K, (self.K, K)
        results = self._of_one_token(x) if M == 1 else self._of_tokens(x)
        first = results[0]
        if not (isfinite(first[0, 0]) if M == 1 else np.isfinite(first[:, 0]).all()):
            # A scale that is not finite leaves no sum finite.
            raise GenerationError(
                "activations", "found NaN or infinity", "finite numbers", "the checkpoint is damaged"
            )
        return results

    def _of_one_token(self, x: np.ndarray) -> list[np.ndarray]:
        y = np.empty((1, self.width), np.float32)
        cost = ROWS * self.K / 20  # 20 weights a nanosecond come from memory
        ONE_TOKEN[self.kind](self.tiles, cost, x, OFFSET[self.kind], self.places, self.bias, y)
        return [y[:, start : start + N] for start, _, N in self.columns]

    def _of_tokens(self, x: np.ndarray) -> list[np.ndarray]:
        (M, K), kind = x.shape, self.kind
        padded = in_blocks(M)
        acts = np.empty(padded * -(-K // GROUP) * WORDS, np.int32)
        _rounded(padded, K, x, OFFSET[kind], TALL, acts)
        y = np.empty((padded, self.width), np.float32)
        span = max(1, CACHED // (TALL * K)) * TALL
        steps = self.width // (COLUMNS * ROWS) * -(-M // span)
        cost = COLUMNS * ROWS * K * min(span, M) / 200  # 200 products a nanosecond
        TOKENS[kind](steps, cost, self.places, acts, self.bias, span, y)
        # One result lies behind the other, so that each is contiguous and nobody copies it.
        flat = y.reshape(-1)
        return [
            flat[padded * start : padded * stop].reshape(padded, -1)[:M, :N]
            for start, stop, N in self.columns
        ]


def in_blocks(tokens: int) -> int:
    """The tokens with those that fill up the last block, which is the least one that holds what is left."""
    left = (tokens - 1) % TALL + 1
    return tokens - left + min(rows for rows in (TALL, *FEWER) if rows >= left)
